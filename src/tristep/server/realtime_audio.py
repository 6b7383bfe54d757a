"""StepFun's speech from a text that goes on: text comes in pieces, and each sentence is spoken once it is complete."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter
from pydantic import BaseModel, Field, ValidationError, model_validator
from starlette.websockets import WebSocket, WebSocketDisconnect

from tristep.audio import SPEAK_HZ
from tristep.codec.voice import Voice
from tristep.server.encoding import Delivery, Encoder
from tristep.server.errors import ApiError, error_response, from_pydantic
from tristep.server.jobs import Speak, Spoken
from tristep.server.realtime import SEND_S, accept, service_of
from tristep.server.realtime_events import Message, new_id
from tristep.server.realtime_jobs import parsed
from tristep.server.realtime_sound import Samples
from tristep.server.service import Service
from tristep.server.wording import PronunciationMap, without_markdown
from tristep.server.worker import RefusedError, WorkerError
from tristep.text import sentences, without_cues, written_words

router = APIRouter()

IDLE_S = 60.0
"""How long a client may say nothing."""
MAX_DELTA = 1000
"""Characters that come at once."""


class Wanted(BaseModel):
    """What a client wants to be handed: the data of `tts.create`."""

    voice_id: str
    response_format: Literal["wav", "mp3", "flac", "opus", "pcm", "mp3_stream", "flac_stream", "opus_stream"] = "wav"
    sample_rate: Literal[8000, 16000, 22050, 24000, 48000] = 24000
    speed_ratio: float = Field(default=1.0, ge=0.5, le=2.0)
    volume_ratio: float = Field(default=1.0, ge=0.1, le=2.0)
    mode: Literal["default", "sentence"] = "default"
    instruction: str = Field(default="", max_length=200)
    pronunciation_map: PronunciationMap = PronunciationMap()
    markdown_filter: bool = False
    seed: int = Field(default=0, ge=0, le=2**31)
    """Ours: chooses among the ways to say it."""

    @model_validator(mode="after")
    def agree(self) -> Wanted:
        """Check that the fields go together."""
        _ = self.delivery
        return self

    @property
    def is_stream(self) -> bool:
        """Whether all pieces are one file, and not each a file of its own."""
        return self.response_format.endswith("_stream")

    @property
    def delivery(self) -> Delivery:
        """How sound is written."""
        kind = self.response_format.removesuffix("_stream")
        return Delivery(kind, self.sample_rate, volume=self.volume_ratio)


class WrongError(Exception):
    """A message that asks for what can't be done."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@router.websocket("/realtime/audio")
async def speak(websocket: WebSocket) -> None:
    """Say a text that goes on."""
    service = service_of(websocket)
    async with AsyncExitStack() as stack:
        try:
            service.check_model(websocket.query_params.get("model") or service.settings.model_id, "tts")
            stack.enter_context(service.sessions.taken())
        except ApiError as error:
            await websocket.send_denial_response(error_response(error))
            return
        await accept(websocket)
        reader = Reader(websocket, service)
        try:
            await reader.run()
            await websocket.close()
        except (TimeoutError, WebSocketDisconnect):
            return  # nobody reads


class Reader:
    """Reads one text aloud while it is being written."""

    def __init__(self, websocket: WebSocket, service: Service) -> None:
        self.websocket, self.service = websocket, service
        self.session_id = new_id("sess")
        self.wanted: Wanted | None = None
        self._voice: Voice | None = None
        self._file: Encoder | None = None  # the one file of a stream
        self._rest = ""

    async def run(self) -> None:
        """Greet, and do what the client says until its text is done."""
        await self._tell("tts.connection.done")
        try:
            while await self._heed(await self._receive()):
                pass
        except WrongError as error:
            await self._fail(error.code, str(error))
        except ApiError as error:
            await self._fail(error.code or "server_error", error.detail)
        except RefusedError as error:
            await self._fail("invalid_value", str(error))
        except WorkerError:
            await self._fail("internal_error", "the engine failed: the server's log says why")
        except TimeoutError:
            await self._fail("idle_timeout", f"nothing was said for {IDLE_S:g} s")

    async def _heed(self, message: Message) -> bool:
        """Do what a message says; return whether more may come."""
        data = message["data"] if isinstance(message.get("data"), dict) else {}
        match message.get("type"):
            case "tts.create":
                await self._create(data)
            case _ if self.wanted is None:
                raise WrongError("invalid_value", "there is nothing to speak with yet: send tts.create first")
            case "tts.text.flush":
                await self._say_rest()
                await self._tell("tts.text.flushed")
            case "tts.text.delta":
                await self._add(data)
            case "tts.text.done":
                await self._say_rest()
                await self._finish()
                return False
            case kind:
                raise WrongError("invalid_value", f"there is no message of type {str(kind)[:80]!r}")
        return True

    async def _create(self, data: Message) -> None:
        try:
            self.wanted = Wanted.model_validate(data)
        except ValidationError as error:
            raise from_pydantic(error) from error
        self._voice = await asyncio.to_thread(self.service.shelf.find, self.wanted.voice_id)
        if self.wanted.is_stream:
            self._file = Encoder(self._delivery, SPEAK_HZ)
        await self._tell("tts.response.created")

    @property
    def _delivery(self) -> Delivery:
        """How sound is written here."""
        assert self.wanted is not None
        return replace(self.wanted.delivery, is_tagged=self.service.settings.mark)

    async def _add(self, data: Message) -> None:
        """Take more text, and say the sentences that are complete."""
        text = data.get("text")
        if not isinstance(text, str) or len(text) > MAX_DELTA:
            raise WrongError("invalid_value", f"text is no string of at most {MAX_DELTA} characters: send it in parts")
        if len(self._rest) + len(text) > self.service.settings.max_input_characters:
            raise WrongError("string_above_max_length", "the text has no end of a sentence: write one, or flush")
        self._rest += text
        *complete, self._rest = sentences(self._rest) or [""]
        if text[-1:].isspace() and self._rest:
            self._rest += " "
        for sentence in complete:
            await self._say(sentence)

    async def _say_rest(self) -> None:
        """Say what there is, whether it is complete or not."""
        rest, self._rest = self._rest.strip(), ""
        if rest:
            await self._say(rest)

    async def _say(self, sentence: str) -> None:
        """Say one sentence, if there is anything in it to say."""
        assert self.wanted is not None
        sentence = self.wanted.pronunciation_map.read(
            without_markdown(sentence) if self.wanted.markdown_filter else sentence
        )
        if not written_words(without_cues(sentence)):
            return
        by_sentence = self.wanted.mode == "sentence"
        if by_sentence:
            await self._tell("tts.response.sentence.start", text=sentence, started_at=milliseconds())
        async with aclosing(self._sound(sentence)) as pieces:
            async for samples in pieces:
                await self._deliver(samples)
        if by_sentence:
            await self._tell("tts.response.sentence.end", text=sentence, ended_at=milliseconds())

    async def _sound(self, sentence: str) -> AsyncGenerator[Samples, None]:
        """Yield the sound of a sentence: as it comes, or whole where each piece is to be a file of a sentence."""
        assert self.wanted is not None
        assert self._voice is not None
        job = Speak(sentence, self._voice, self.wanted.instruction, self.wanted.seed, self.wanted.speed_ratio)
        whole = []
        with self.service.places.taken():
            async with aclosing(self.service.engine.ask(job)) as answer:
                async for part in answer:
                    if isinstance(part, Spoken):
                        continue
                    if self.wanted.mode == "default":
                        yield part
                    else:
                        whole.append(part)
        if whole:
            yield np.concatenate(whole)

    async def _deliver(self, samples: Samples) -> None:
        """Hand over sound: the next bytes of the one file, or a file of its own."""
        assert self.wanted is not None
        if self._file:
            data = await asyncio.to_thread(self._file.push, samples)
        else:
            data = await asyncio.to_thread(whole_file, self._delivery, samples)
        await self._hand_over(data, len(samples) / SPEAK_HZ, "unfinished")

    async def _hand_over(self, data: bytes, duration_s: float, status: str) -> None:
        audio = base64.b64encode(data).decode()
        await self._tell("tts.response.audio.delta", status=status, audio=audio, duration=round(duration_s, 3))

    async def _finish(self) -> None:
        """End the sound."""
        end = await asyncio.to_thread(self._file.finish) if self._file else b""
        await self._hand_over(end, 0.0, "finished")
        await self._tell("tts.response.audio.done", audio="")

    async def _receive(self) -> Message:
        async with asyncio.timeout(IDLE_S):
            message = await self.websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message["code"])
        try:
            return parsed(message.get("text") or message.get("bytes") or "")
        except ValueError as error:
            raise WrongError("invalid_json", f"the message is no JSON object: {error}") from error

    async def _tell(self, kind: str, **data: Any) -> None:
        body = {"event_id": new_id("event"), "type": kind, "data": {"session_id": self.session_id, **data}}
        async with asyncio.timeout(SEND_S):
            await self.websocket.send_text(json.dumps(body, ensure_ascii=False))

    async def _fail(self, code: str, message: str) -> None:
        await self._tell("tts.response.error", code=code, message=message, details={})


def whole_file(delivery: Delivery, samples: Samples) -> bytes:
    """Write samples `(S,)` as a file of their own."""
    encoder = Encoder(delivery, SPEAK_HZ)
    return encoder.push(samples) + encoder.finish()


def milliseconds() -> int:
    """Return the time, ms since 1970."""
    return round(1000 * time.time())
