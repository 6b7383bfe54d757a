"""What a session of the engine says, in the names of OpenAI's realtime protocol."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from tristep.audio import SPEAK_HZ
from tristep.engine import dialogue
from tristep.engine.dialogue import Event
from tristep.server.realtime_items import (
    MAX_SOUND,
    Manner,
    content_part,
    retrieved_item,
    written_item,
    written_response,
)
from tristep.server.realtime_session import Output, written_format
from tristep.server.realtime_sound import Outgoing

Message = dict[str, Any]

HEARD = "conversation.item.input_audio_transcription"
NAMES = {
    dialogue.SpeechStarted: "input_audio_buffer.speech_started",
    dialogue.SpeechStopped: "input_audio_buffer.speech_stopped",
    dialogue.IdleTimeout: "input_audio_buffer.timeout_triggered",
    dialogue.Committed: "input_audio_buffer.committed",
    dialogue.Cleared: "input_audio_buffer.cleared",
    dialogue.ItemDeleted: "conversation.item.deleted",
    dialogue.TranscriptDelta: f"{HEARD}.delta",
    dialogue.ArgumentsDelta: "response.function_call_arguments.delta",
    dialogue.ArgumentsDone: "response.function_call_arguments.done",
    dialogue.Ducked: "tristep.ducked",
    dialogue.ContextTrimmed: "tristep.context_trimmed",
}
"""Events whose fields have the protocol's names."""
OURS = (dialogue.Ducked, dialogue.ContextTrimmed)
"""Events that the protocol doesn't know: strict clients stumble over them, so that only who asks is told."""


def new_id(kind: str) -> str:
    """Return an id that nobody else has."""
    return f"{kind}_{uuid.uuid4().hex}"


def message(kind: str, **fields: Any) -> Message:
    """Write a message."""
    return {"type": kind, "event_id": new_id("event"), **fields}


@dataclass
class Answer:
    """A response that is being given."""

    output: Output
    """How it sounds."""
    sounds: dict[str, Outgoing] = field(default_factory=dict)
    """Its sound on the way out, by item."""


class Writer:
    """Writes events; it remembers of every response how it sounds."""

    def __init__(self, output: Output, *, extended: bool = False) -> None:
        """Begin to write.

        Args:
            output: How the next responses sound.
            extended: Whether the client knows messages of our own.
        """
        self.output, self.extended = output, extended
        self.conversation_id = new_id("conv")
        self.answers: dict[str, Answer] = {}

    def written(self, events: Iterable[Event], output: Output | None = None) -> Iterator[Message]:
        """Write events in order; a response that begins sounds as `output` says, as the session does if not given."""
        for event in events:
            if isinstance(event, dialogue.ResponseCreated):
                self.answers[event.response.id] = Answer(output or self.output)
            yield from self._written(event)

    def _written(self, event: Event) -> Iterator[Message]:
        match event:
            case dialogue.AudioDelta() | dialogue.AudioDone():
                yield from self._sound(event)
            case dialogue.ItemAdded() | dialogue.ItemDone():
                yield from item_messages(event)
            case dialogue.ItemRetrieved():
                item = retrieved_item(event.item, self.output.format.wire)
                yield message("conversation.item.retrieved", item=item)
            case dialogue.ResponseCreated() | dialogue.ResponseDone():
                yield self._response(event)
            case _ if isinstance(event, OURS) and not self.extended:
                return
            case _ if type(event) in NAMES:
                yield message(NAMES[type(event)], **asdict(event))
            case _:
                yield spoken_message(event)

    def _sound(self, event: dialogue.AudioDelta | dialogue.AudioDone) -> Iterator[Message]:
        """Write sound; what the resampler still holds comes with its end."""
        place = place_of(event)
        answer = self.answers[event.response_id]
        sound = answer.sounds.setdefault(event.item_id, Outgoing(answer.output.format.wire, SPEAK_HZ))
        is_last = isinstance(event, dialogue.AudioDone)
        data = sound.finish() if is_last else sound.push(event.waveform.detach().numpy())  # type: ignore[union-attr]
        for start in range(0, len(data), MAX_SOUND):
            delta = base64.b64encode(data[start : start + MAX_SOUND]).decode()
            yield message("response.output_audio.delta", **place, delta=delta)
        if is_last:
            yield message("response.output_audio.done", **place)

    def _response(self, event: dialogue.ResponseCreated | dialogue.ResponseDone) -> Message:
        """Write that a response begins or ends."""
        answer = self.answers[event.response.id]
        manner = Manner(self.conversation_id, written_format(answer.output.format), answer.output.voice)
        kind = "response.created"
        if isinstance(event, dialogue.ResponseDone):
            kind = "response.done"
            del self.answers[event.response.id]
        return message(kind, response=written_response(event.response, manner))


def item_messages(event: dialogue.ItemAdded | dialogue.ItemDone) -> Iterator[Message]:
    """Write that an item begins or is complete; an answer's item is also output of its response."""
    is_added = isinstance(event, dialogue.ItemAdded)
    kind, item = "added" if is_added else "done", written_item(event.item)
    in_order = []
    if event.response_id:
        place = {"response_id": event.response_id, "output_index": event.output_index}
        in_order.append(message(f"response.output_item.{kind}", **place, item=item))
    if event.in_conversation:
        previous = event.previous_item_id
        in_order.append(message(f"conversation.item.{kind}", previous_item_id=previous, item=item))
    yield from in_order if is_added else reversed(in_order)


def spoken_message(event: Event) -> Message:
    """Write what is said: parts of answers, and what was heard of the user."""
    match event:
        case dialogue.PartAdded():
            return message("response.content_part.added", **place_of(event), part=content_part(event.kind, ""))
        case dialogue.PartDone():
            part = content_part(event.part.kind, event.part.text or "")
            return message("response.content_part.done", **place_of(event), part=part)
        case dialogue.TextDelta(kind="text"):
            return message("response.output_text.delta", **place_of(event), delta=event.delta)
        case dialogue.TextDelta():
            return message("response.output_audio_transcript.delta", **place_of(event), delta=event.delta)
        case dialogue.TextDone(kind="text"):
            return message("response.output_text.done", **place_of(event), text=event.text)
        case dialogue.TextDone():
            return message("response.output_audio_transcript.done", **place_of(event), transcript=event.text)
        case dialogue.Truncated():
            return message(
                "conversation.item.truncated",
                item_id=event.item_id, content_index=event.content_index, audio_end_ms=event.audio_end_ms,
            )  # fmt: skip
        case dialogue.TranscriptCompleted():
            return message(
                f"{HEARD}.completed",
                item_id=event.item_id, content_index=event.content_index, transcript=event.text,
                usage={"type": "duration", "seconds": event.duration_s},
            )  # fmt: skip
        case dialogue.TranscriptFailed():
            error = {"type": "server_error", "code": "transcription_failed", "message": event.message}
            return message(f"{HEARD}.failed", item_id=event.item_id, content_index=event.content_index, error=error)
    raise TypeError(f"a session said {type(event).__name__}, which has no name in the protocol")


def place_of(event: Any) -> Message:
    """Say which part of which answer an event is about."""
    return {name: getattr(event, name) for name in ("response_id", "item_id", "output_index", "content_index")}
