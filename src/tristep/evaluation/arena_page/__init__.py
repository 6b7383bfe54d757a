"""The arena's page: three files and a handful of routes, on this machine unless told otherwise.

Sounds are served by the number of a trial as plain 24 kHz wav, whatever they were stored as, so that neither name nor
format gives a system away.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import soundfile
import uvicorn
from fastapi import FastAPI, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from tristep.audio import SPEAK_HZ
from tristep.evaluation.arena import MAX_STRENGTH, MIN_REASON, Arena, Choice, Prompt, Side

FOLDER = Path(__file__).parent
FILES = {"/": ("index.html", "text/html"), "/arena.js": ("arena.js", "text/javascript"),
         "/arena.css": ("arena.css", "text/css")}  # fmt: skip
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "media-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
Name = Annotated[str, Query(min_length=1, max_length=40, pattern=r"^[\w .@-]+$")]
"""What a listener calls themselves."""


class Answer(BaseModel):
    """What a listener says of a trial."""

    model_config = ConfigDict(extra="forbid")

    listener: str = Field(min_length=1, max_length=40, pattern=r"^[\w .@-]+$")
    trial: str = Field(max_length=40)
    choice: Choice
    strength: int = Field(ge=1, le=MAX_STRENGTH)
    reason: str = Field(min_length=MIN_REASON, max_length=500)


def create_app(arena: Arena, host: str = "127.0.0.1") -> FastAPI:
    """Build the app."""
    app = FastAPI(title="tristep arena", docs_url=None, redoc_url=None, openapi_url=None)
    # Another site's page can't reach it by a name that it points here.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[host, "localhost", "127.0.0.1"])

    @app.exception_handler(ValueError)
    async def refused(request: Request, error: ValueError) -> Response:
        return JSONResponse({"error": str(error)}, 400, HEADERS)

    for path, (name, media_type) in FILES.items():
        app.add_api_route(path, page_of(name, media_type), methods=["GET"])

    @app.get("/trial")
    def trial(listener: Name) -> JSONResponse:
        return JSONResponse(describe(arena, listener), headers=HEADERS)

    @app.get("/sound/{trial}/{side}")
    def sound(trial: str, side: Literal["a", "b"], listener: Name) -> Response:
        return Response(wav_of(arena, listener, trial, side), media_type="audio/wav", headers=HEADERS)

    @app.post("/verdict")
    def verdict(answer: Answer) -> JSONResponse:
        arena.judge(answer.listener, answer.trial, answer.choice, answer.strength, answer.reason)
        return JSONResponse(describe(arena, answer.listener), headers=HEADERS)

    return app


def page_of(name: str, media_type: str) -> Callable[[], Any]:
    """Serve one of the page's files."""

    async def page() -> FileResponse:
        return FileResponse(FOLDER / name, media_type=media_type, headers=HEADERS)

    return page


def describe(arena: Arena, listener: str) -> dict[str, Any]:
    """Say what a listener hears next, and how far they are; nothing of whose sounds these are."""
    trials, found = arena.trials(listener), arena.next_trial(listener)
    if found is None:
        return {"trial": None, "total": len(trials)}
    prompt = arena.prompts.get(found.prompt, Prompt(found.prompt))
    asked = {"text": prompt.text, "instructions": prompt.instructions}
    return {"trial": asdict(found)["id"], "number": trials.index(found) + 1, "total": len(trials), **asked}


def wav_of(arena: Arena, listener: str, trial: str, side: Side) -> bytes:
    """Encode a sound of a trial."""
    data = io.BytesIO()
    soundfile.write(data, arena.sound(listener, trial, side).numpy(), SPEAK_HZ, format="WAV", subtype="PCM_16")
    return data.getvalue()


def run(arena: Arena, host: str = "127.0.0.1", port: int = 8010) -> None:
    """Serve until interrupted."""
    uvicorn.run(create_app(arena, host), host=host, port=port, log_level="warning")
