"""The app: routes, the gate before them, the processes behind them."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import APIRouter, FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp

import tristep
from tristep.server import calls, chat, errors, frontend, realtime, realtime_audio, speech, transcriptions, voices
from tristep.server.carrier import Server, SocketProtocol
from tristep.server.limits import PREFIXES, Gate
from tristep.server.service import ALIASES, OfRequest, Service, undated
from tristep.server.settings import Settings

router = APIRouter()
models = APIRouter()

DOORS = (transcriptions, speech, voices, chat, realtime, realtime_audio, calls)
"""What there is under each prefix."""
EXPOSED = ("location", "x-request-id")
"""Headers of an answer that a page of another origin may read: the first names a call."""


@router.get("/health")
@router.get("/healthz", include_in_schema=False)
@router.get("/ping", include_in_schema=False)
async def health() -> dict[str, str]:
    """Say that the server lives."""
    return {"status": "ok"}


@router.get("/readyz")
async def readiness(service: OfRequest) -> Response:
    """Say whether requests are answered now."""
    return JSONResponse({"status": service.status}, 200 if service.is_ready else 503)


@router.get("/version")
async def version(service: OfRequest) -> dict[str, str]:
    """Say what runs."""
    return {"version": tristep.__version__, "model": service.settings.model_id}


@router.get("/metrics")
async def metrics(service: OfRequest) -> Response:
    """Tell Prometheus what was done."""
    return PlainTextResponse(await service.exposition(), media_type="text/plain; version=0.0.4")


@models.get("/models")
async def list_models(service: OfRequest) -> dict[str, Any]:
    """List the model that is loaded."""
    return {"object": "list", "data": [model_entry(service)]}


@models.get("/models/{name:path}")
async def find_model(name: str, service: OfRequest) -> dict[str, Any]:
    """Describe the model that is loaded, by its name or one that it answers by."""
    entry = model_entry(service)
    if name != entry["id"] and undated(name) not in entry["aliases"]:
        raise errors.ApiError(404, f"there is no model {name[:80]!r}", code="model_not_found", param="model")
    return entry


@models.get("/audio/models")
async def list_audio_models(service: OfRequest) -> dict[str, Any]:
    """List the model that is loaded, as Open WebUI asks for it."""
    name = service.settings.model_id
    return {"object": "list", "models": [{"id": name, "name": name}]}


def model_entry(service: Service) -> dict[str, Any]:
    """Describe the model that is loaded."""
    aliases = [alias for mode in ALIASES.values() for alias in mode]
    return {
        "id": service.settings.model_id,
        "object": "model",
        "created": service.created_at,
        "owned_by": "tristep",
        "aliases": aliases,
    }


def create_app(service: Service) -> ASGIApp:
    """Build the app; the processes behind it start with it and end with it."""
    settings = service.settings

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.stop()

    app = FastAPI(
        title="tristep", version=tristep.__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        redirect_slashes=False,
    )  # fmt: skip
    app.state.service = service
    errors.install(app)
    app.include_router(router)
    app.include_router(frontend.router)
    for prefix in PREFIXES:
        for part in (models, *(door.router for door in DOORS)):
            app.include_router(part, prefix=prefix, include_in_schema=prefix == PREFIXES[0])
    gate: ASGIApp = Gate(app, settings, service.metrics, service.secrets)
    if settings.allow_origins:
        gate = CORSMiddleware(
            gate, settings.allow_origins, allow_methods=["*"], allow_headers=["*"], expose_headers=EXPOSED
        )
    return traced(gate) if settings.telemetry else gate


def traced(app: ASGIApp) -> ASGIApp:
    """Tell of whatever an app answers.

    Raises:
        ModuleNotFoundError: If the extra is not installed.
    """
    from tristep.server.telemetry import Traced, collector

    return Traced(app, collector())


def run(settings: Settings, announce: Callable[[str], None] = lambda address: None) -> None:
    """Serve until a signal says to stop; what is being answered then is answered first.

    Args:
        settings: What to serve, and to whom.
        announce: Is told the server's address once it is ready.

    Raises:
        ValueError: If the address can't be listened on, or the model can't be loaded.
    """
    service = Service(settings)
    with listen(settings) as listener:
        asyncio.run(serve(build_server(service), service, listener, announce))


def build_server(service: Service) -> uvicorn.Server:
    """Build what carries the app."""
    # It takes an upgrade that was refused with an answer for one that was forgotten.
    logging.getLogger("uvicorn.error").addFilter(lambda line: "completing handshake" not in line.getMessage())
    config = uvicorn.Config(
        create_app(service), ws=SocketProtocol, ws_max_size=service.settings.max_message_bytes,
        ws_per_message_deflate=False, loop="asyncio", http="h11", access_log=False, log_config=None,
        log_level="warning", server_header=False,
    )  # fmt: skip
    return Server(config, service)


async def serve(
    server: uvicorn.Server, service: Service, listener: socket.socket, announce: Callable[[str], None]
) -> None:
    """Serve on an open socket."""
    serving, loading = asyncio.create_task(server.serve([listener])), asyncio.create_task(service.loaded())
    await asyncio.wait({serving, loading}, return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        loading.cancel()
    elif error := loading.exception():
        server.should_exit = True
        await serving
        raise ValueError(str(error)) from error
    else:
        announce(address(listener))
    await serving


def listen(settings: Settings) -> socket.socket:
    """Open the socket."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family)
    except OSError as error:
        raise ValueError(
            f"{settings.host}:{settings.port} can't be served on ({error.strerror or error}): choose another --host or "
            "--port"
        ) from error


def address(listener: socket.socket) -> str:
    """Write where a socket is reached."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
