"""What all routes share: the two processes, the queue, the voices, the counts."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from tristep.audio import LISTEN_HZ
from tristep.server.errors import ApiError
from tristep.server.jobs import Decode, load_decoder, load_engine
from tristep.server.limits import Places
from tristep.server.metrics import Metrics, exposition
from tristep.server.realtime_secrets import Secrets
from tristep.server.settings import MIB, Settings
from tristep.server.shelf import Shelf
from tristep.server.worker import RefusedError, Worker, WorkerError

T = TypeVar("T")

FLOAT_BYTES = 4
ALIASES = {
    "asr": ("whisper-1", "gpt-transcribe", "gpt-live-transcribe", "gpt-4o-transcribe", "gpt-4o-mini-transcribe",
            "gpt-realtime-whisper", "stepaudio-2.5-asr", "stepaudio-2.5-asr-stream", "step-asr", "step-asr-1.1-stream"),
    "tts": ("tts-1", "tts-1-hd", "gpt-4o-mini-tts", "stepaudio-2.5-tts", "step-tts-2", "step-tts-mini"),
    "realtime": ("gpt-realtime", "gpt-realtime-mini", "gpt-realtime-2", "gpt-realtime-2.1", "gpt-4o-realtime-preview",
                 "gpt-4o-mini-realtime-preview", "stepaudio-2.5-realtime", "stepaudio-2.5-chat", "step-audio-2",
                 "step-audio-2-mini", "gpt-4o-audio-preview", "gpt-audio"),
}  # fmt: skip
"""Names by which the loaded model answers too, also with a date such as `-2024-10-01` behind them, so that clients
need not be told its own."""
DATE = re.compile(r"-\d{4}-\d{2}-\d{2}$")


class Service:
    """One server's state."""

    def __init__(self, settings: Settings, secrets: Secrets | None = None, replica: str = "") -> None:
        """Prepare a server.

        Args:
            settings: What to serve, and to whom.
            secrets: Ephemeral keys that are shared with other servers.
            replica: What this server is called among them.
        """
        self.settings = settings
        self.created_at = int(time.time())
        self.metrics = Metrics(replica)
        self.places = Places(settings.max_queue)
        self.metrics.queue.set_function(lambda: self.places.num_taken)
        self.sessions = Places(settings.max_sessions, "realtime sessions are open")
        self.metrics.sessions.set_function(lambda: self.sessions.num_taken)
        self.secrets = secrets or Secrets()
        self.calls: dict[str, asyncio.Task[None]] = {}
        """Calls that are held, by their names."""
        self.draining = asyncio.Event()
        """Set when the server is being stopped: it takes nothing new."""
        self.shelf = Shelf(settings)
        load = partial(load_engine, settings.model, settings.threads, settings.mark)
        self.engine = Worker("engine", load, settings.num_parallel)
        max_bytes = round(settings.max_audio_s * LISTEN_HZ) * FLOAT_BYTES + MIB
        self.decoder = Worker("decoder", partial(load_decoder, max_bytes))
        self.decoding = asyncio.Lock()
        """One file at a time, so that whichever takes too long is known."""

    def start(self) -> None:
        """Start both processes; they load while the server answers that it isn't ready."""
        self.engine.start()
        self.decoder.start()

    async def loaded(self) -> None:
        """Wait until requests are answered.

        Raises:
            WorkerError: If they never will be.
        """
        await asyncio.gather(self.engine.loaded(), self.decoder.loaded())

    async def stop(self) -> None:
        """End calls and both processes."""
        for call in self.calls.values():
            call.cancel()
        await asyncio.gather(*self.calls.values(), return_exceptions=True)
        await asyncio.gather(self.engine.stop(), self.decoder.stop())

    def drain(self) -> None:
        """Take nothing new; sessions end once nobody is being answered in them, and calls at once."""
        self.draining.set()
        for call in self.calls.values():
            call.cancel()

    @property
    def is_ready(self) -> bool:
        """Whether requests are answered now."""
        return self.engine.is_ready and self.decoder.is_ready and not self.draining.is_set()

    @property
    def status(self) -> str:
        """Whether requests are answered now, and why not, in a few words."""
        if self.draining.is_set():
            return "stopping"
        return "ready" if self.is_ready else self.engine.failure or "loading"

    async def exposition(self) -> bytes:
        """Tell Prometheus what was done."""
        return exposition(self.metrics)

    async def hang_up(self, name: str) -> bool:
        """End a call, and say whether there was one of this name."""
        return name in self.calls and self.calls[name].cancel()

    def check_model(self, name: str, mode: str) -> None:
        """Refuse a model that isn't loaded, and any before it is."""
        if name != self.settings.model_id and undated(name) not in ALIASES[mode]:
            raise ApiError(
                404,
                f"there is no model {name[:80]!r} for this: use {self.settings.model_id!r}",
                code="model_not_found",
                param="model",
            )
        if failure := self.engine.failure or self.decoder.failure:
            raise ApiError(503, failure, code="server_overloaded", headers={"x-should-retry": "false"})
        if not self.is_ready:
            why = "the server is being stopped" if self.draining.is_set() else "the model is still being loaded"
            message = f"{why}: try again in a few seconds"
            raise ApiError(503, message, code="server_overloaded", headers={"retry-after": "2"})

    def enter(self, stack: AsyncExitStack) -> Path:
        """Take a place in the queue and a folder for what a request brings, both until the stack is left."""
        stack.enter_context(self.places.taken())
        return Path(stack.enter_context(TemporaryDirectory(prefix="tristep-")))

    async def decode(self, source: Path, target: Path, sample_rate: int = LISTEN_HZ) -> float:
        """Turn a stranger's file into a WAV of ours and return its duration, seconds."""
        job = Decode(source, target, sample_rate, self.settings.max_audio_s)
        async with self.decoding:
            await self.decoder.loaded()
            try:
                async with asyncio.timeout(self.settings.max_decode_s):
                    return float(await only(self.decoder.ask(job)))
            except RefusedError as error:
                code = "audio_too_long" if error.kind == "TooLongError" else "unsupported_file"
                raise ApiError(400, str(error), code=code, param="file") from error
            except WorkerError as error:
                raise unreadable("the upload can't be decoded") from error
            except TimeoutError as error:
                self.decoder.kill()
                raise unreadable(f"the upload takes more than {self.settings.max_decode_s:g} s to decode") from error


def undated(name: str) -> str:
    """Leave out the date at the end of a model's name."""
    return DATE.sub("", name)


def unreadable(wrong: str) -> ApiError:
    """Refuse a file that broke or stalled the decoder."""
    return ApiError(400, f"{wrong}: convert it to WAV, FLAC or MP3 first", code="unsupported_file", param="file")


async def only(messages: AsyncIterator[T]) -> T:
    """Return the only message of an answer."""
    received = [message async for message in messages]
    (message,) = received
    return message


async def while_connected(request: Request, answer: Coroutine[Any, Any, T]) -> T:
    """Wait for an answer as long as the client does."""
    task, watcher = asyncio.ensure_future(answer), asyncio.ensure_future(departure(request))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def departure(request: Request) -> None:
    """Return when the client has left; its body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Streamed(StreamingResponse):
    """An answer that comes piece by piece, and holds what it needs until it ends, however it ends."""

    def __init__(self, content: AsyncIterator[str | bytes], stack: AsyncExitStack, media_type: str) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(content, headers=headers, media_type=media_type)
        self.stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self.stack:
            await super().__call__(scope, receive, send)


def of_request(request: Request) -> Service:
    """Find the service that a request came to."""
    service: Service = request.app.state.service
    return service


OfRequest = Annotated[Service, Depends(of_request)]
