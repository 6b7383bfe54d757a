"""StepFun's recognition of a sound that goes on: a transcription session under StepFun's names."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from tristep.server.realtime_events import HEARD, Message


class StepNames:
    """Renames the messages of one connection; StepFun's clients are told the whole text of a turn so far each time."""

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self._texts: dict[str, str] = {}
        self._starts_ms: dict[str, int] = {}

    def received(self, given: Message) -> Message:
        """Write a client's message in OpenAI's names."""
        if given.get("type") == "session.update" and isinstance(given.get("session"), dict):
            return {**given, "session": session_from_step(given["session"])}
        return given

    def sent(self, message: Message) -> Iterator[Message]:
        """Write a message for a client."""
        meta = {"session_id": self.session_id, "timestamp": round(1000 * time.time())}
        kind, item_id = message["type"], message.get("item_id", "")
        if kind == "input_audio_buffer.speech_started":
            self._starts_ms[item_id] = message["audio_start_ms"]
        elif kind == f"{HEARD}.delta":
            text = self._texts[item_id] = self._texts.get(item_id, "") + message.pop("delta")
            message |= {"text": text, "stash": ""}
            if item_id in self._starts_ms:
                message["start_time"] = self._starts_ms[item_id]
        elif kind == f"{HEARD}.completed":
            start = self._starts_ms.pop(item_id, None)
            self._texts.pop(item_id, None)
            if start is not None:
                end = start + round(1000 * message["usage"]["seconds"])
                message |= {"start_time": start, "end_time": end}
        yield {**message, "meta": meta}


def session_from_step(session: Message) -> Message:
    """Write a session object in OpenAI's names: the format is samples, the keywords are called hotwords."""
    audio = session.get("audio")
    heard = audio.get("input") if isinstance(audio, dict) else None
    if not isinstance(heard, dict):
        return session
    return {"audio": {"input": {**heard, **format_from_step(heard), **transcription_from_step(heard)}}}


def format_from_step(heard: Message) -> Message:
    """Rename the format."""
    given = heard.get("format")
    if not isinstance(given, dict):
        return {}
    kind: Any = "audio/pcm" if given.get("type") == "pcm" else given.get("type")
    return {"format": {"type": kind, "rate": given.get("rate", 16_000)}}


def transcription_from_step(heard: Message) -> Message:
    """Rename what is to be written."""
    given = heard.get("transcription")
    if not isinstance(given, dict):
        return {}
    return {"transcription": {**given, "keywords": given.get("hotwords")}}
