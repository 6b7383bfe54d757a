"""Realtime sessions: the sockets, their limits, and the keys that browsers open them with.

What is said on a socket is passed to the engine's process and back as text (`realtime_jobs.py`); here it is only
counted and timed.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field
from starlette.websockets import WebSocket, WebSocketDisconnect

from tristep.engine.dialogue import SessionError
from tristep.server import uploads
from tristep.server.errors import ApiError, error_response, unsupported
from tristep.server.realtime_beta import session_from_beta, session_to_beta
from tristep.server.realtime_events import Message, new_id
from tristep.server.realtime_jobs import Converse, Dialect, Taken, check_wanted
from tristep.server.realtime_openai import error_message
from tristep.server.realtime_session import Kind
from tristep.server.service import ALIASES, OfRequest, Service, undated
from tristep.server.settings import MIB, Settings
from tristep.server.worker import Channel, RefusedError, WorkerError

router = APIRouter()

SEND_S = 20.0
"""Longest time that a client may take to read a message."""
MAX_UNTAKEN = 64 * MIB
"""Characters that a client may be ahead of the engine; then it is not read until the engine has caught up."""
MAX_WAITING = 1000
"""Messages that it may be ahead: each may be answered by one of 256 KiB, which waits while the client does not read."""
ENDS_OF_TURNS = '{"type":"input_audio_buffer.speech_stopped"'
ANSWER_BEGINS, ANSWER_ENDS = '{"type":"response.created"', '{"type":"response.done"'
FIRST_SOUNDS = ('{"type":"response.output_audio.delta"', '{"type":"response.audio.delta"')


@dataclass(frozen=True)
class Ending:
    """Why a connection ends."""

    code: int
    """Of the WebSocket's close frame."""
    reason: str
    error: str | None = None
    """Code of the error that the client is told before, if it can still be told."""


EXPIRED = Ending(1001, "Your session hit the maximum duration.", "session_expired")
IDLE = Ending(1001, "Nothing was sent for too long.", "session_expired")
SLOW = Ending(1013, "Messages were not read in time.")
STOPPED = Ending(1001, "The server is being stopped.")
LEFT = Ending(1000, "")


@router.websocket("/realtime")
async def converse(websocket: WebSocket) -> None:
    """Hold a realtime session: OpenAI's protocol, in its present or its older names."""
    service = service_of(websocket)
    await hold(websocket, service, lambda: realtime_job(websocket, service))


@router.websocket("/realtime/asr/stream")
async def recognise(websocket: WebSocket) -> None:
    """Write down a sound that goes on, under StepFun's names."""
    service = service_of(websocket)
    await hold(websocket, service, lambda: new_job(service, websocket, "transcription", "step-asr"))


def service_of(websocket: WebSocket) -> Service:
    """Find the service that a socket came to."""
    service: Service = websocket.app.state.service
    return service


def realtime_job(websocket: WebSocket, service: Service) -> Converse:
    """Read from an upgrade what kind of session is wanted."""
    query = websocket.query_params
    if "call_id" in query:
        raise unsupported("call_id", "there are no calls to join here: connect with a model")
    wanted = websocket.scope.get("secret") or {}
    intent: Kind = "transcription" if query.get("intent") == "transcription" else "realtime"
    job = new_job(service, websocket, wanted.get("type", intent), dialect_of(websocket))
    return replace(job, wanted=wanted, extended="tristep" in query.getlist("extensions"))


def new_job(service: Service, websocket: WebSocket, kind: Kind, dialect: Dialect) -> Converse:
    """Describe a session that is about to begin."""
    model = websocket.query_params.get("model") or service.settings.model_id
    check_model(service, model, kind)
    return blank_job(service, kind, dialect, model)


def check_model(service: Service, model: str, kind: Kind) -> None:
    """Refuse a model that isn't loaded; who only transcribes may name a realtime model too, as some clients do."""
    only_listens = kind == "transcription" and undated(model) not in ALIASES["realtime"]
    service.check_model(model, "asr" if only_listens else "realtime")


def blank_job(service: Service, kind: Kind, dialect: Dialect, model: str) -> Converse:
    """Describe a session of which nothing is known but its kind."""
    settings = service.settings
    expires_at = int(time.time() + settings.max_session_s)
    return Converse(new_id("sess"), model, kind, dialect, service.shelf, expires_at, settings.max_items)


def dialect_of(websocket: WebSocket) -> Dialect:
    """Find out which names a client knows; without a hint its first update shows it."""
    old = "realtime=v1" in websocket.headers.get("openai-beta", "")
    old = old or "openai-beta.realtime-v1" in websocket.scope.get("subprotocols", ())
    old = old or websocket.url.path.startswith("/step_plan") or websocket.query_params.get("dialect") == "beta"
    return "beta" if old else "ga"


async def hold(websocket: WebSocket, service: Service, describe: Callable[[], Converse]) -> None:
    """Let a session go on until one side ends it, or refuse the upgrade."""
    async with AsyncExitStack() as stack:
        try:
            job = describe()
            stack.enter_context(service.sessions.taken())
        except ApiError as error:
            await websocket.send_denial_response(error_response(error))
            return
        channel = await stack.enter_async_context(service.engine.session(job))
        await accept(websocket)
        await Socket(websocket, channel, service).run()


async def accept(websocket: WebSocket) -> None:
    """Open a socket; a client that offered subprotocols is answered by the one that tells nothing."""
    await websocket.accept("realtime" if websocket.scope.get("subprotocols") else None)


class Socket:
    """A client's end of a session: passes messages on, both ways at once."""

    def __init__(self, websocket: WebSocket, channel: Channel, service: Service) -> None:
        self.websocket, self.channel, self.metrics = websocket, channel, service.metrics
        self.settings: Settings = service.settings
        self.draining = service.draining
        self._num_untaken = self._num_waiting = self._num_answers = 0
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._is_silent = asyncio.Event()  # nothing is being answered
        self._is_silent.set()
        self._turn_ended: float | None = None

    async def run(self) -> None:
        """Pass messages on until one side ends it, or the time is over."""
        tasks = {asyncio.create_task(part) for part in (self._read(), self._write(), self._drain())}
        try:
            done, _ = await asyncio.wait(
                tasks, timeout=self.settings.max_session_s, return_when=asyncio.FIRST_COMPLETED
            )
            ending = next(iter(done)).result() if done else EXPIRED
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await self._end(ending)

    async def _read(self) -> Ending:
        """Pass on what the client writes."""
        while True:
            await self._has_room.wait()
            try:
                async with asyncio.timeout(self.settings.max_idle_s):
                    text = await self._receive()
            except TimeoutError:
                return IDLE
            except WebSocketDisconnect:
                return LEFT
            self._make_room(len(text), 1)
            self.channel.tell(text)

    async def _receive(self) -> str:
        """Return the next message, which may come as text or as its bytes."""
        message = await self.websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message["code"])
        text = message.get("text")
        return text if text is not None else message["bytes"].decode(errors="replace")

    async def _write(self) -> Ending:
        """Pass on what the engine says."""
        try:
            async for said in self.channel:
                if isinstance(said, Taken):
                    self._make_room(-said.num_characters, -said.num_messages)
                    continue
                for text in said:
                    await self._send(text)
        except TimeoutError:
            return SLOW
        except WebSocketDisconnect:
            return LEFT
        except RefusedError as error:
            return Ending(1008, str(error), "invalid_value")
        except WorkerError:
            return Ending(1011, "The engine failed: the server's log says why.", "internal_error")
        return LEFT

    async def _drain(self) -> Ending:
        """Wait until the server is being stopped, and then for the end of what is being answered."""
        await self.draining.wait()
        await self._is_silent.wait()
        return STOPPED

    async def _send(self, text: str) -> None:
        async with asyncio.timeout(SEND_S):
            await self.websocket.send_text(text)
        if text.startswith((ANSWER_BEGINS, ANSWER_ENDS)):
            self._num_answers += 1 if text.startswith(ANSWER_BEGINS) else -1
            self._is_silent.clear() if self._num_answers else self._is_silent.set()
        elif text.startswith(ENDS_OF_TURNS):
            self._turn_ended = time.perf_counter()
        elif self._turn_ended is not None and text.startswith(FIRST_SOUNDS):
            self.metrics.time_to_answer.observe(time.perf_counter() - self._turn_ended)
            self._turn_ended = None

    def _make_room(self, num_characters: int, num_messages: int) -> None:
        """Count how far the client is ahead of the engine."""
        self._num_untaken += num_characters
        self._num_waiting += num_messages
        if self._num_untaken > MAX_UNTAKEN or self._num_waiting > MAX_WAITING:
            self._has_room.clear()
        else:
            self._has_room.set()

    async def _end(self, ending: Ending) -> None:
        """Close, and say why where that can still be heard."""
        if ending is LEFT:
            return
        try:
            async with asyncio.timeout(SEND_S):
                if ending.error:
                    await self.websocket.send_text(json.dumps(error_message(ending.reason, ending.error)))
                await self.websocket.close(ending.code, ending.reason.encode()[:120].decode(errors="ignore"))
        except (TimeoutError, WebSocketDisconnect, RuntimeError):
            return  # the client has left in the meantime


class Expiry(BaseModel):
    """How long an ephemeral key is good."""

    anchor: Literal["created_at"] = "created_at"
    seconds: int = Field(default=600, ge=10, le=7200)


class SecretRequest(BaseModel):
    """The body of `POST /v1/realtime/client_secrets`."""

    expires_after: Expiry = Expiry()
    session: dict[str, Any] = {}


@router.post("/realtime/client_secrets", dependencies=[Depends(uploads.only_json)])
async def create_secret(body: SecretRequest, service: OfRequest) -> Message:
    """Make an ephemeral key for one kind of session."""
    kind: Kind = "transcription" if body.session.get("type") == "transcription" else "realtime"
    session = await described(service, body.session, kind)
    value, expires_at = await service.secrets.mint({**body.session, "type": kind}, body.expires_after.seconds)
    return {"value": value, "expires_at": expires_at, "session": session}


@router.post("/realtime/sessions", dependencies=[Depends(uploads.only_json)])
async def create_old_session(body: dict[str, Any], service: OfRequest) -> Message:
    """Make an ephemeral key, as clients of the older names ask for it."""
    return await old_secret(service, body, "realtime")


@router.post("/realtime/transcription_sessions", dependencies=[Depends(uploads.only_json)])
async def create_old_transcription_session(body: dict[str, Any], service: OfRequest) -> Message:
    """Make an ephemeral key for a transcription session, as clients of the older names ask for it."""
    return await old_secret(service, body, "transcription")


async def old_secret(service: Service, body: Message, kind: Kind) -> Message:
    """Make an ephemeral key for a session in the older names."""
    wanted = session_from_beta(body)
    session = await described(service, wanted, kind)
    value, expires_at = await service.secrets.mint({**wanted, "type": kind}, Expiry().seconds)
    return session_to_beta(session) | {"client_secret": {"value": value, "expires_at": expires_at}}


async def described(service: Service, wanted: Message, kind: Kind) -> Message:
    """Return the session that a key would open, after checking that it could."""
    model = wanted.get("model") or service.settings.model_id
    check_model(service, str(model), kind)
    job = blank_job(service, kind, "ga", str(model))
    try:
        session = await asyncio.to_thread(check_wanted, wanted, job)
    except SessionError as error:
        raise ApiError(400, str(error), code=error.code, param=error.param) from error
    return session
