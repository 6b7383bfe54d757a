"""Words and sounds in, words out: OpenAI's chat completions, answered by the realtime mode in writing."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from tristep.engine.dialogue import Item, Part, SessionError, SessionSettings, Usage
from tristep.server import uploads
from tristep.server.chat_jobs import Called, Complete, Finished
from tristep.server.errors import ApiError, unsupported
from tristep.server.realtime_events import new_id
from tristep.server.realtime_session import Choice, Tools, checked, chosen_tool, drawable
from tristep.server.service import OfRequest, Service, Streamed, while_connected
from tristep.server.transcriptions import failure
from tristep.server.worker import RefusedError, WorkerError

router = APIRouter()

MAX_MESSAGES = 500
MAX_SOUNDS = 20
MAX_SOUND_S = 600.0
"""Of all sounds together, which the engine holds at once."""


class SoundObject(BaseModel):
    """A sound, base64 or a data URL; which format it says makes no difference."""

    data: str


class PartObject(BaseModel):
    """A part of a message."""

    type: Literal["text", "input_audio"]
    text: str = ""
    input_audio: SoundObject | None = None


class FunctionObject(BaseModel):
    """What was called."""

    name: str = Field(max_length=64)
    arguments: str = ""


class CallObject(BaseModel):
    """A call that an earlier answer made."""

    id: str = Field(max_length=256)
    function: FunctionObject


class MessageObject(BaseModel):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[PartObject] | None = None
    tool_calls: list[CallObject] | None = None
    tool_call_id: str = ""


class StreamOptions(BaseModel):
    """What a stream ends with."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """The body of `POST /v1/chat/completions`."""

    model: str
    messages: list[MessageObject] = Field(min_length=1, max_length=MAX_MESSAGES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    seed: int = 0
    tools: Tools = []
    tool_choice: Any = "auto"
    modalities: list[str] = ["text"]
    n: int = 1
    stop: Any = None
    logprobs: bool = False
    response_format: Any = None

    def settings(self) -> SessionSettings:
        """Return how the engine is to answer."""
        default = SessionSettings.temperature
        return SessionSettings(
            instructions=self.instructions,
            modality="text",
            turn_detection=None,
            tools=tuple(tool.value for tool in self.tools),
            tool_choice=choice_of(self.tool_choice),
            max_output_tokens=self.max_completion_tokens or self.max_tokens,
            temperature=default if self.temperature is None else drawable(self.temperature),
            seed=self.seed % 2**31,
        )

    @property
    def instructions(self) -> str:
        """What the first message says, if it says who answers."""
        first = self.messages[0]
        return text_of(first) if first.role in ("system", "developer") else ""


class Choosing(BaseModel):
    """Which tool is to be called."""

    choice: Choice


def choice_of(given: Any) -> str:
    """Read which tool is to be called; its name lies one level deeper than in a realtime session."""
    nested = given.get("function") if isinstance(given, dict) else None
    choice = {**given, **nested} if isinstance(nested, dict) else given
    return chosen_tool(checked(Choosing, {"choice": choice}, "tool_choice").choice)


def refuse_what_has_no_effect(body: ChatRequest) -> None:
    """Refuse settings that would be ignored: a setting that is taken does something."""
    kind = body.response_format.get("type", "text") if isinstance(body.response_format, dict) else "text"
    reasons = {
        "modalities": set(body.modalities) != {"text"} and "answers are in writing: use /v1/realtime to be spoken to",
        "n": body.n != 1 and "there is one answer",
        "stop": body.stop and "an answer ends by itself",
        "logprobs": body.logprobs and "log-probabilities of tokens are not told",
        "response_format": kind != "text" and "answers are plain text",
    }
    for param, reason in reasons.items():
        if reason:
            raise unsupported(param, f"{param} can't be heeded: {reason}")


@router.post("/chat/completions", dependencies=[Depends(uploads.only_json)])
async def complete(request: Request, body: ChatRequest, service: OfRequest) -> Response:
    """Answer a conversation in writing."""
    service.check_model(body.model, "realtime")
    refuse_what_has_no_effect(body)
    try:
        settings = body.settings()
    except SessionError as error:
        raise ApiError(400, str(error), code=error.code, param=error.param) from error
    async with AsyncExitStack() as stack:
        folder = service.enter(stack)
        sounds = await while_connected(request, decoded(service, sounds_of(body), folder))
        answer = Answer(service, body, Complete(settings, tuple(items_of(body)), sounds))
        await stack.enter_async_context(aclosing(answer))
        await while_connected(request, answer.begin())
        if body.stream:
            return Streamed(answer.events(), stack.pop_all(), "text/event-stream")
        return JSONResponse(await while_connected(request, answer.whole()))


def parts_of(message: MessageObject) -> list[PartObject]:
    """Return what a message holds."""
    content = message.content or []
    return [PartObject(type="text", text=content)] if isinstance(content, str) else content


def text_of(message: MessageObject) -> str:
    """Return what is written in a message."""
    return "\n".join(part.text for part in parts_of(message) if part.type == "text")


def items_of(body: ChatRequest) -> list[Item]:
    """Return the conversation as the engine takes it."""
    messages = body.messages[1:] if body.instructions else body.messages
    return [item for message in messages for item in items_of_message(message)]


def items_of_message(message: MessageObject) -> list[Item]:
    """Return a message as items: calls are items of their own."""
    if message.role == "tool":
        return [Item(kind="function_call_output", call_id=message.tool_call_id, output=text_of(message))]
    role = "system" if message.role == "developer" else message.role
    parts = tuple(Part("text", part.text) if part.type == "text" else Part("audio") for part in parts_of(message))
    calls = [
        Item(kind="function_call", role="assistant", call_id=call.id, name=call.function.name,
             arguments=call.function.arguments)
        for call in message.tool_calls or ()
    ]  # fmt: skip
    return [*([Item(role=role, parts=parts)] if parts else []), *calls]


def sounds_of(body: ChatRequest) -> list[str]:
    """Return the sounds of a conversation, base64.

    Raises:
        ApiError: If there are too many, or one is missing or not the user's.
    """
    found = [(message.role, part) for message in body.messages for part in parts_of(message)]
    sounds = [(role, part.input_audio) for role, part in found if part.type == "input_audio"]
    if any(role != "user" or sound is None for role, sound in sounds):
        raise ApiError(400, "a sound is missing, or not the user's", code="invalid_value", param="messages")
    if len(sounds) > MAX_SOUNDS:
        message = f"the conversation has {len(sounds)} sounds: expected at most {MAX_SOUNDS}"
        raise ApiError(400, message, code="invalid_value", param="messages")
    return [sound.data for _, sound in sounds if sound]


async def decoded(service: Service, sounds: list[str], folder: Path) -> tuple[Path, ...]:
    """Write sounds as WAVs of ours."""
    paths, duration_s = [], 0.0
    for number, sound in enumerate(sounds):
        source, target = folder / f"{number}", folder / f"{number}.wav"
        try:
            source.write_bytes(base64.b64decode(sound.partition("base64,")[2] or sound, validate=True))
        except ValueError as error:
            raise ApiError(400, f"a sound is no base64 ({error})", code="invalid_value", param="messages") from error
        duration_s += await service.decode(source, target)
        if duration_s > MAX_SOUND_S:
            message = f"the sounds are longer than {MAX_SOUND_S:g} s together: send shorter ones"
            raise ApiError(400, message, code="audio_too_long", param="messages")
        paths.append(target)
    return tuple(paths)


class Answer:
    """An answer on its way."""

    def __init__(self, service: Service, body: ChatRequest, job: Complete) -> None:
        self.messages, self.metrics, self.started = service.engine.ask(job), service.metrics, time.perf_counter()
        self.frame = {"id": new_id("chatcmpl"), "created": int(time.time()), "model": body.model}
        self.wants_usage = bool(body.stream_options and body.stream_options.include_usage)
        self.first: Any = None

    async def begin(self) -> None:
        """Wait for the first words: until they are there, a failure can still be answered as one."""
        self.first = await anext(self.messages)
        self.metrics.time_to_first_token.labels("chat").observe(time.perf_counter() - self.started)

    async def aclose(self) -> None:
        """Stop answering."""
        await self.messages.aclose()

    async def _all(self) -> AsyncIterator[str | Called | Finished]:
        yield self.first
        async for message in self.messages:
            yield message

    async def whole(self) -> dict[str, Any]:
        """Return the whole answer."""
        messages = [message async for message in self._all()]
        finished = next(message for message in messages if isinstance(message, Finished))
        if finished.response.status == "failed":
            raise ApiError(500, f"the answer failed: {finished.response.error}", code="internal_error")
        calls = [call_body(message) for message in messages if isinstance(message, Called)]
        said = "".join(message for message in messages if isinstance(message, str))
        message = {"role": "assistant", "content": said or None, "refusal": None}
        choice = {
            "index": 0,
            "message": message | ({"tool_calls": calls} if calls else {}),
            "logprobs": None,
            "finish_reason": finish_reason(finished, bool(calls)),
        }
        return {
            **self.frame,
            "object": "chat.completion",
            "choices": [choice],
            "usage": usage(finished.response.usage),
        }

    async def events(self) -> AsyncIterator[str]:
        """Yield the answer as events."""
        try:
            async for chunk in self._chunks():
                yield f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"
        except (RefusedError, WorkerError) as error:
            yield f"data: {json.dumps(failure(error))}\n\n"
        yield "data: [DONE]\n\n"

    async def _chunks(self) -> AsyncIterator[dict[str, Any]]:
        yield self._chunk({"role": "assistant", "content": ""})
        num_calls = 0
        async for message in self._all():
            if isinstance(message, str):
                yield self._chunk({"content": message})
            elif isinstance(message, Called):
                yield self._chunk({"tool_calls": [{"index": num_calls, **call_body(message)}]})
                num_calls += 1
            elif message.response.status == "failed":
                raise WorkerError(message.response.error or "")
            else:
                yield self._chunk({}, finish_reason(message, num_calls > 0))
                if self.wants_usage:
                    yield {**self._chunk({}), "choices": [], "usage": usage(message.response.usage)}

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return {**self.frame, "object": "chat.completion.chunk", "choices": [choice]}


def call_body(call: Called) -> dict[str, Any]:
    """Write a call."""
    return {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def finish_reason(finished: Finished, has_calls: bool) -> str:
    """Say why an answer ended."""
    if finished.response.status == "incomplete":
        return "length"
    return "tool_calls" if has_calls else "stop"


def usage(used: Usage) -> dict[str, Any]:
    """Count tokens as this protocol does."""
    given = used.input_text_tokens + used.input_audio_tokens
    return {
        "prompt_tokens": given,
        "completion_tokens": used.output_text_tokens,
        "total_tokens": given + used.output_text_tokens,
        "prompt_tokens_details": {"audio_tokens": used.input_audio_tokens, "cached_tokens": used.cached_tokens},
    }
