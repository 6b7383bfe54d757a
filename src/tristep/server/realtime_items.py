"""Items and responses between OpenAI's realtime protocol and the engine.

What has no value is left out, never written as null: there are clients that drop an event for it. The one exception is
the transcript of what a user said, which is null until it is known.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, BeforeValidator, Field

from tristep.audio import LISTEN_HZ
from tristep.engine.dialogue import Item, Part, Response, ResponseOptions, SessionError, Usage
from tristep.server.realtime_session import (
    MAX_TEXT,
    Choice,
    Format,
    MaxTokens,
    Modalities,
    Tools,
    checked,
    chosen_tool,
    max_tokens,
    name_of,
    refuse_foreign_tools,
    refuse_what_has_no_effect,
    size_of,
    without_nulls,
)
from tristep.server.realtime_sound import Incoming, Outgoing, WireFormat

Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:+-]{1,64}$")]

MAX_FRAME = 256 * 1024
"""Most bytes of a message to a client: some hang up above 1 MiB."""
MAX_ITEM = MAX_FRAME - 8 * 1024
"""Bytes of an item in a message; the rest is the message around it."""
MAX_SOUND = MAX_FRAME * 5 // 8
"""Bytes of sound in one message; base64 takes a third more."""
TEXTS = ("input_text", "output_text", "text")
SOUNDS = ("input_audio", "output_audio", "audio")


class PartObject(BaseModel):
    """A part of a message as clients write it, in any of their ways."""

    type: Literal["input_text", "output_text", "text", "input_audio", "output_audio", "audio"]
    text: str | None = Field(default=None, max_length=MAX_TEXT)
    transcript: str | None = Field(default=None, max_length=MAX_TEXT)
    audio: str | None = None


class ItemObject(BaseModel):
    """An item as clients write it."""

    id: Id | None = None
    type: Literal["message", "function_call", "function_call_output"]
    role: Literal["system", "user", "assistant"] = "user"
    status: Literal["completed", "incomplete", "in_progress"] | None = None
    content: list[PartObject] = Field(default=[], max_length=100)
    call_id: str = Field(default="", max_length=256)
    name: str = Field(default="", max_length=64)
    arguments: str = Field(default="", max_length=MAX_TEXT)
    output: str = Field(default="", max_length=MAX_TEXT)


Metadata = Annotated[dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
                     Field(max_length=16)]  # fmt: skip


class OutputObject(BaseModel):
    """How a response is to sound."""

    format: Format | None = None
    voice: Annotated[Annotated[str, Field(max_length=256)] | None, BeforeValidator(name_of)] = None


class ResponseSound(BaseModel):
    """How a response is to sound, one level up."""

    output: OutputObject | None = None


class ResponseObject(BaseModel):
    """What a client wants of a response."""

    output_modalities: Modalities | None = None
    instructions: str | None = Field(default=None, max_length=MAX_TEXT)
    audio: ResponseSound | None = None
    tools: Tools | None = None
    tool_choice: Choice | None = None
    max_output_tokens: MaxTokens | None = None
    conversation: Literal["auto", "none"] | None = None
    input: list[dict[str, Any]] | None = Field(default=None, max_length=1000)
    metadata: Metadata | None = None

    @property
    def sound(self) -> OutputObject:
        """How it is to sound."""
        return (self.audio and self.audio.output) or OutputObject()


def read_item(given: Any, wire: WireFormat, param: str = "item") -> Item:
    """Read an item.

    Raises:
        SessionError: If it isn't one.
    """
    if not isinstance(given, dict):
        raise SessionError("invalid_value", f"{param} is {type(given).__name__}: expected an object", param)
    item: ItemObject = checked(ItemObject, without_nulls(given), param)
    kind, role = item.type, item.role
    parts = tuple(read_part(part, wire, f"{param}.content[{place}]") for place, part in enumerate(item.content))
    return Item(
        id=item.id or "", kind=kind, role=role, status="incomplete" if item.status == "incomplete" else "completed",
        parts=parts, call_id=item.call_id, name=item.name, arguments=item.arguments, output=item.output,
    )  # fmt: skip


def check_size(item: Item) -> Item:
    """Refuse an item that no message to a client could carry; sound is not told with it."""
    num_bytes = size_of(written_item(item))
    if num_bytes > MAX_ITEM:
        raise SessionError(
            "string_above_max_length", f"item takes {num_bytes} bytes: expected at most {MAX_ITEM}; shorten it", "item"
        )
    return item


def read_part(part: PartObject, wire: WireFormat, param: str) -> Part:
    """Read a part of a message."""
    if part.type in TEXTS:
        return Part("text", part.text or "")
    if part.audio is None:
        return Part("audio" if part.type == "input_audio" else "text", part.transcript)
    incoming = Incoming(wire, LISTEN_HZ)
    samples = np.concatenate([incoming.push(read_base64(part.audio, f"{param}.audio")), incoming.finish()])
    return Part("audio", part.transcript, torch.from_numpy(samples), LISTEN_HZ)


def read_base64(text: Any, param: str = "audio") -> bytes:
    """Read base64; line breaks are no fault."""
    if not isinstance(text, str):
        raise SessionError("invalid_value", f"{param} is {type(text).__name__}: expected base64", param)
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise SessionError("invalid_value", f"{param} is no base64: {error}", param) from error


def read_options(given: Any, wire: WireFormat) -> tuple[ResponseOptions, OutputObject]:
    """Read what a client wants of a response, and how it is to sound if not as the session.

    Raises:
        SessionError: If it is not what it should be.
    """
    if not isinstance(given or {}, dict):
        raise SessionError("invalid_value", f"response is {type(given).__name__}: expected an object", "response")
    refuse_foreign_tools((given or {}).get("tools"), "response")
    refuse_what_has_no_effect(given or {}, "response")
    wanted: ResponseObject = checked(ResponseObject, without_nulls(given or {}), "response")
    options = ResponseOptions(
        modality=wanted.output_modalities[0] if wanted.output_modalities else None,
        instructions=wanted.instructions,
        tools=tuple(tool.value for tool in wanted.tools) if wanted.tools is not None else None,
        tool_choice=chosen_tool(wanted.tool_choice) if wanted.tool_choice else None,
        max_output_tokens=max_tokens(wanted.max_output_tokens) if wanted.max_output_tokens else None,
        in_conversation=wanted.conversation != "none",
        input=read_input(wanted.input, wire),
        metadata=wanted.metadata,
    )
    return options, wanted.sound


def read_input(given: list[dict[str, Any]] | None, wire: WireFormat) -> tuple[Item | str, ...] | None:
    """Read items, and references to items, that a response is to answer."""
    if given is None:
        return None
    return tuple(read_entry(item, wire, f"response.input[{place}]") for place, item in enumerate(given))


def read_entry(given: dict[str, Any], wire: WireFormat, param: str) -> Item | str:
    """Read an item, or the id of one."""
    return str(given.get("id"))[:80] if given.get("type") == "item_reference" else read_item(given, wire, param)


def written_item(item: Item, sound: WireFormat | None = None) -> dict[str, Any]:
    """Write an item; its sound only where a format for it is given, and only as far as it fits into one message."""
    body: dict[str, Any] = {"id": item.id, "object": "realtime.item", "type": item.kind, "status": item.status}
    match item.kind:
        case "message":
            content = [written_part(part, item, sound) for part in item.parts]
            return body | {"role": item.role, "content": content}
        case "function_call":
            return body | {"call_id": item.call_id, "name": item.name, "arguments": item.arguments}
        case "function_call_output":
            return body | {"call_id": item.call_id, "output": item.output}


def retrieved_item(item: Item, sound: WireFormat) -> dict[str, Any]:
    """Write an item with its sound, or without where both don't fit into one message."""
    body = written_item(item, sound)
    return body if size_of(body) <= MAX_ITEM else written_item(item)


def written_part(part: Part, item: Item, sound: WireFormat | None) -> dict[str, Any]:
    """Write a part of a message."""
    direction = "output" if item.role == "assistant" else "input"
    if part.kind == "text":
        return {"type": f"{direction}_text", "text": part.text or ""}
    transcript = part.text if direction == "input" else part.text or ""
    body: dict[str, Any] = {"type": f"{direction}_audio", "transcript": transcript}
    if sound and part.waveform is not None:
        outgoing = Outgoing(sound, part.sample_rate)
        data = outgoing.push(part.waveform.numpy()) + outgoing.finish()
        if len(data) <= MAX_SOUND:
            body["audio"] = base64.b64encode(data).decode()
    return body


def content_part(kind: Literal["text", "audio"], text: str) -> dict[str, str]:
    """Write a part of an answer; here its kind has a short name."""
    return {"type": "text", "text": text} if kind == "text" else {"type": "audio", "transcript": text}


@dataclass(frozen=True)
class Manner:
    """How responses sound, as far as clients are told."""

    conversation_id: str
    format: dict[str, Any]
    voice: str


def written_response(response: Response, manner: Manner) -> dict[str, Any]:
    """Write a response."""
    body: dict[str, Any] = {
        "object": "realtime.response",
        "id": response.id,
        "status": response.status,
        "status_details": status_details(response),
        "output": [written_item(item) for item in response.output],
        "conversation_id": manner.conversation_id if response.options.in_conversation else None,
        "output_modalities": [response.modality],
        "max_output_tokens": response.max_output_tokens or "inf",
        "metadata": response.options.metadata,
        "usage": None if response.status == "in_progress" else usage(response.usage),
    }
    if response.modality == "audio":
        body["audio"] = {"output": {"format": manner.format, "voice": manner.voice}}
    return body


def status_details(response: Response) -> dict[str, Any] | None:
    """Say why a response ended, if not by itself."""
    if response.status in ("in_progress", "completed"):
        return None
    details: dict[str, Any] = {"type": response.status}
    if response.reason:
        details["reason"] = response.reason
    if response.status == "failed":
        message = response.error or "the engine failed"
        details["error"] = {"type": "server_error", "code": "server_error", "message": message}
    return details


def usage(used: Usage) -> dict[str, Any]:
    """Count tokens as clients' meters expect them."""
    given = used.input_text_tokens + used.input_audio_tokens
    written = used.output_text_tokens + used.output_audio_tokens
    return {
        "total_tokens": given + written,
        "input_tokens": given,
        "output_tokens": written,
        "input_token_details": {
            "text_tokens": used.input_text_tokens,
            "audio_tokens": used.input_audio_tokens,
            "image_tokens": 0,
            "cached_tokens": used.cached_tokens,
            "cached_tokens_details": {"text_tokens": used.cached_tokens, "audio_tokens": 0, "image_tokens": 0},
        },
        "output_token_details": {
            "text_tokens": used.output_text_tokens,
            "audio_tokens": used.output_audio_tokens,
        },
    }
