"""Calls: realtime sessions over WebRTC. A client posts an offer and is answered; `webrtc.py` does the rest."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from tristep.server import uploads
from tristep.server.errors import ApiError, unsupported
from tristep.server.realtime import blank_job, check_model, described
from tristep.server.realtime_events import Message, new_id
from tristep.server.service import OfRequest, Service

if TYPE_CHECKING:
    from tristep.server.webrtc import Call

router = APIRouter()


@router.post("/realtime/calls", status_code=201, response_class=Response)
async def create_call(request: Request, service: OfRequest) -> Response:
    """Answer an offer, given as `application/sdp`, or as the part `sdp` of a form beside the part `session`."""
    call_type = installed()
    offer, wanted = await read_offer(request)
    session = without_formats(request.scope.get("secret") or wanted)
    model = str(session.get("model") or request.query_params.get("model") or service.settings.model_id)
    check_model(service, model, "realtime")
    await described(service, session, "realtime")
    async with AsyncExitStack() as stack:
        stack.enter_context(service.sessions.taken())
        job = replace(blank_job(service, "realtime", "ga", model), wanted=session)
        channel = await stack.enter_async_context(service.engine.session(job))
        call = call_type(channel, service.settings)
        answer = await call.answer(offer)
        name = new_id("rtc")
        service.calls[name] = asyncio.create_task(hold(name, call, service, stack.pop_all()))
    return Response(answer, 201, {"location": f"{request.url.path}/{name}"}, "application/sdp")


@router.post("/realtime/calls/{name}/hangup", response_class=Response)
async def hang_up(name: str, service: OfRequest) -> Response:
    """End a call."""
    if not await service.hang_up(name):
        raise ApiError(404, f"there is no call {name[:80]!r}", code="call_not_found", param="call_id")
    return Response()


async def hold(name: str, call: Call, service: Service, stack: AsyncExitStack) -> None:
    """Let a call go on until it ends, and give back its place then."""
    async with stack:
        try:
            await call.run()
        finally:
            del service.calls[name]


def installed() -> type[Call]:
    """Return what holds calls.

    Raises:
        ApiError: If the extra is not installed.
    """
    if find_spec("aiortc") is None:
        raise unsupported("sdp", "calls need the extra: pip install 'tristep[webrtc]', or connect by WebSocket")
    from tristep.server.webrtc import Call

    return Call


async def read_offer(request: Request) -> tuple[str, Message]:
    """Read an offer, and the session that is wanted with it.

    Raises:
        ApiError: If there is none.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "application/sdp":
        return (await request.body()).decode(errors="replace"), {}
    if kind != "multipart/form-data":
        raise ApiError(415, f"the body is {kind or 'of no kind'}: send application/sdp, or a form with sdp and session")
    try:
        async with request.form(max_files=2, max_fields=2) as form:
            offer, session = [await read_part(form.get(name)) for name in ("sdp", "session")]
    except HTTPException as error:
        raise ApiError(400, f"the form can't be read: {error.detail}") from error
    return offer, read_session(session)


async def read_part(part: UploadFile | str | None) -> str:
    """Read a part of a form, which may come as a field or as a file."""
    return (await part.read()).decode(errors="replace") if isinstance(part, UploadFile) else part or ""


def read_session(text: str) -> Message:
    """Read the session that a client wants."""
    try:
        session = json.loads(text or "{}")
        uploads.check_json(session)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"session is no JSON: {error}", code="invalid_value", param="session") from error
    if not isinstance(session, dict):
        raise ApiError(400, "session is no object", code="invalid_value", param="session")
    return session


def without_formats(session: Any) -> Any:
    """Leave out how sound is written: in a call that is settled by the offer."""
    if not isinstance(session, dict):
        return session
    kept = {name: value for name, value in session.items() if not name.endswith("_audio_format")}
    if isinstance(kept.get("audio"), dict):
        kept["audio"] = {side: without_format(part) for side, part in kept["audio"].items()}
    return kept


def without_format(part: Any) -> Any:
    """Leave out how one direction is written."""
    return {name: value for name, value in part.items() if name != "format"} if isinstance(part, dict) else part
