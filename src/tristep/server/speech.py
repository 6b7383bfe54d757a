"""Words in, sound out: speech as it comes, in six formats, as bytes or as events."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from typing import Any, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field, model_validator
from starlette.responses import Response

from tristep.audio import SPEAK_HZ
from tristep.server import uploads
from tristep.server.encoding import FORMATS, Delivery, Encoder
from tristep.server.errors import ApiError, unsupported
from tristep.server.jobs import Speak, Spoken
from tristep.server.service import OfRequest, Service, Streamed, while_connected
from tristep.server.transcriptions import event, failure
from tristep.server.wording import PronunciationMap, without_directions, without_markdown
from tristep.server.worker import RefusedError, WorkerError

router = APIRouter()


class VoiceId(BaseModel):
    """A voice as OpenAI's newer clients name it."""

    id: str


class SpeechRequest(BaseModel):
    """The body of `POST /v1/audio/speech`, OpenAI's fields and StepFun's."""

    model: str
    input: str
    voice: str | VoiceId
    instructions: str = ""
    instruction: str = ""
    """StepFun's name of it, which wins."""
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] = "mp3"
    speed: float = Field(1.0, ge=0.25, le=4.0)
    stream_format: Literal["audio", "sse"] = "audio"
    volume: float = Field(1.0, ge=0.1, le=2.0)
    sample_rate: Literal[8000, 16000, 22050, 24000, 48000] = 24000
    inline_directions: bool | None = None
    """Whether round brackets hold directions, which are not spoken; not for OpenAI's model names if not given."""
    seed: int = Field(0, ge=0, le=2**31)
    """Ours: chooses among the ways to say it."""
    voice_label: Any = None
    return_url: bool = False
    pronunciation_map: PronunciationMap = PronunciationMap()
    markdown_filter: bool = False

    @model_validator(mode="after")
    def agree(self) -> SpeechRequest:
        """Check that the fields go together."""
        _ = self.delivery
        return self

    @property
    def delivery(self) -> Delivery:
        """What the client is to be handed."""
        return Delivery(self.response_format, self.sample_rate, volume=self.volume)

    @property
    def has_directions(self) -> bool:
        """Whether round brackets hold directions."""
        from_openai = self.model.startswith(("tts-", "gpt-"))
        return not from_openai if self.inline_directions is None else self.inline_directions

    @property
    def text(self) -> str:
        """What the engine is given."""
        written = without_markdown(self.input) if self.markdown_filter else self.input
        read = self.pronunciation_map.read(written)
        return read if self.has_directions else without_directions(read)


def refuse_what_has_no_effect(body: SpeechRequest, max_characters: int) -> None:
    """Refuse settings that would be ignored: a setting that is taken does something."""
    if len(body.input) > max_characters:
        message = f"input has {len(body.input)} characters: expected at most {max_characters}; send it in parts"
        raise ApiError(400, message, code="string_above_max_length", param="input")
    reasons = {
        "voice_label": "say in `instructions` how to speak",
        "return_url": "the sound is in the answer itself",
    }
    for param, reason in reasons.items():
        if getattr(body, param):
            raise unsupported(param, f"{param} can't be heeded: {reason}")


@router.post(
    "/audio/speech",
    dependencies=[Depends(uploads.only_json)],
    responses={200: {"content": {kind.media_type: {} for kind in FORMATS.values()}}},
)
async def speak(request: Request, body: SpeechRequest, service: OfRequest) -> Response:
    """Say a text; the sound leaves as it comes."""
    service.check_model(body.model, "tts")
    refuse_what_has_no_effect(body, service.settings.max_input_characters)
    name = body.voice if isinstance(body.voice, str) else body.voice.id
    voice = await asyncio.to_thread(service.shelf.find, name)
    job = Speak(body.text, voice, body.instruction or body.instructions, body.seed, body.speed)
    async with AsyncExitStack() as stack:
        stack.enter_context(service.places.taken())
        started = time.perf_counter()
        delivery = replace(body.delivery, is_tagged=service.settings.mark)
        sound = await stack.enter_async_context(aclosing(Sound(service, job, delivery)))
        await while_connected(request, sound.begin())
        service.metrics.time_to_first_audio.observe(time.perf_counter() - started)
        content = sound.events() if body.stream_format == "sse" else sound.bytes()
        media_type = "text/event-stream" if body.stream_format == "sse" else FORMATS[body.response_format].media_type
        return Streamed(content, stack.pop_all(), media_type)


class Sound:
    """A text that is being said, encoded as it comes."""

    def __init__(self, service: Service, job: Speak, delivery: Delivery) -> None:
        self.metrics = service.metrics
        self.answer = service.engine.ask(job)
        self.encoder = Encoder(delivery, SPEAK_HZ)
        self.first: Any = None
        self.spoken: Spoken | None = None
        """How it went, at the end."""
        self._started, self._num_samples = time.perf_counter(), 0

    async def begin(self) -> None:
        """Wait for the first samples: until they are there, a failure can still be answered as one."""
        self.first = await anext(self.answer)

    async def aclose(self) -> None:
        """Stop speaking."""
        await self.answer.aclose()

    async def messages(self) -> AsyncIterator[Any]:
        """Yield what the engine says, the first message too."""
        yield self.first
        async for message in self.answer:
            yield message

    async def bytes(self) -> AsyncIterator[bytes]:
        """Yield the pieces of one file."""
        async for message in self.messages():
            if isinstance(message, Spoken):
                self.spoken = message
            else:
                self._num_samples += len(message)
                if piece := await asyncio.to_thread(self.encoder.push, message):
                    yield piece
        if piece := await asyncio.to_thread(self.encoder.finish):
            yield piece
        self.metrics.worked("tts", self._num_samples / SPEAK_HZ, time.perf_counter() - self._started)

    async def events(self) -> AsyncIterator[str]:
        """Yield the pieces as events, in a form that OpenAI's and StepFun's clients read."""
        try:
            async for piece in self.bytes():
                yield event(type="speech.audio.delta", audio=base64.b64encode(piece).decode())
        except (RefusedError, WorkerError) as error:
            yield event(type="speech.audio.error", **failure(error))
            return
        assert self.spoken is not None
        num_in, num_out = self.spoken.num_input_tokens, self.spoken.num_output_tokens
        usage = {"input_tokens": num_in, "output_tokens": num_out, "total_tokens": num_in + num_out}
        yield event(type="speech.audio.done", audio="", usage=usage, finish_reason=self.spoken.finish_reason)
        yield "data: [DONE]\n\n"
