"""A realtime session without a process and without a socket: what a client would write, and what it would read.

Everything that is read is checked against the official client's own types.
"""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from openai.types.realtime.realtime_server_event import RealtimeServerEvent
from pydantic import TypeAdapter
from server.toys import CLIP

from tristep.audio import read_audio
from tristep.engine.engine import Engine
from tristep.server.realtime_items import MAX_FRAME
from tristep.server.realtime_jobs import Conversation, Converse
from tristep.server.settings import Settings
from tristep.server.shelf import Shelf

Message = dict[str, Any]

KNOWN = TypeAdapter[Any](RealtimeServerEvent)
MANUAL: Message = {"audio": {"input": {"turn_detection": None}}}
TEXT: Message = {"output_modalities": ["text"]}


class Talk:
    """One client."""

    def __init__(self, engine: Engine, toy: Path, **changes: Any) -> None:
        shelf = Shelf(Settings(model=str(toy)))
        job = Converse("sess_0123456789abcdef", "toy", "realtime", "ga", shelf, 2_000_000_000, max_items=100)
        self.conversation = Conversation(engine, "", replace(job, **changes))
        self.greeting = self.read(self.conversation.opened())

    @torch.inference_mode()
    def read(self, texts: Any) -> list[Message]:
        """Read messages and check them."""
        messages = []
        for text in texts:
            assert len(text.encode()) <= MAX_FRAME
            messages.append(json.loads(text))
            if self.conversation.dialect == "ga":
                assert KNOWN.validate_python(messages[-1]).type == messages[-1]["type"]
        return messages

    def send(self, kind: str, **fields: Any) -> list[Message]:
        """Send a message; return what is answered at once."""
        return self.write(json.dumps({"type": kind, **fields}))

    def write(self, text: str) -> list[Message]:
        """Send any text."""
        return self.read(self.conversation.received(text))

    def update(self, **session: Any) -> list[Message]:
        """Change the session."""
        return self.send("session.update", session={"type": self.conversation.protocol.body.type, **session})

    def say(self, text: str, role: str = "user", **fields: Any) -> list[Message]:
        """Write something into the conversation."""
        content = [{"type": "output_text" if role == "assistant" else "input_text", "text": text}]
        return self.send(
            "conversation.item.create", item={"type": "message", "role": role, "content": content}, **fields
        )

    def hear(self, waveform: torch.Tensor, chunk: int = 2400) -> list[Message]:
        """Append sound at 24 kHz, shape `(S,)`, and let the session go on meanwhile."""
        messages = []
        for piece in waveform.split(chunk):
            messages += self.send("input_audio_buffer.append", audio=pcm(piece))
        return messages

    def step(self) -> list[Message]:
        """Let the session go on for a moment."""
        return self.read(self.conversation.step())

    def work(self) -> list[Message]:
        """Let the session do all that it has to do."""
        messages = []
        while self.conversation.has_work:
            messages += self.step()
        return messages


def pcm(waveform: torch.Tensor) -> str:
    """Write sound, shape `(S,)`, as clients do."""
    return base64.b64encode((waveform * 32767).short().numpy().tobytes()).decode()


def speech(duration_s: float = 1.9) -> torch.Tensor:
    """Return real speech without a pause, 24 kHz."""
    return read_audio(CLIP, 24_000)[8000 : 8000 + round(24_000 * duration_s)]


def silence(duration_s: float = 1.0) -> torch.Tensor:
    return torch.zeros(round(24_000 * duration_s))


def types(messages: list[Message]) -> list[str]:
    return [message["type"] for message in messages]


def only(messages: list[Message], kind: str) -> Message:
    (message,) = [message for message in messages if message["type"] == kind]
    return message


def said(messages: list[Message], kind: str = "response.output_text.delta") -> str:
    return "".join(message["delta"] for message in messages if message["type"] == kind)


def refusal(messages: list[Message]) -> Message:
    """Return the only message, an error."""
    (message,) = messages
    assert message["type"] == "error", message
    error: Message = message["error"]
    return error
