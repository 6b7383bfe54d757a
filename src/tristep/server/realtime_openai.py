"""OpenAI's realtime protocol over a session of the engine: its messages in, messages of ours out.

No sockets and no JSON text here: a message is a dict. The session holds the conversation; this holds what only the
protocol knows, the session object above all. What a client gets wrong it is told by an `error` message that names the
message it came with, and nothing else happens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tristep.audio import LISTEN_HZ
from tristep.engine.dialogue import SessionError
from tristep.engine.quieting import Quieter
from tristep.engine.session import Session
from tristep.server.errors import ApiError
from tristep.server.realtime_events import Message, Writer, message
from tristep.server.realtime_items import check_size, read_base64, read_item, read_options
from tristep.server.realtime_session import SessionObject, updated
from tristep.server.realtime_sound import Incoming
from tristep.server.shelf import Shelf

MAX_RESPONSES = 8
"""Responses outside the conversation at once."""
MAX_EVENT_ID, MAX_SENTENCE = 512, 2000
"""Characters of a client's name of its message, as they are given back, and of what is wrong with it."""


class Protocol:
    """One connection."""

    def __init__(self, session: Session, body: SessionObject, shelf: Shelf, *, extended: bool, max_items: int) -> None:
        """Speak for a session.

        Args:
            session: Hears and answers.
            body: How, as the client is told.
            shelf: Where voices are found.
            extended: Whether the client knows our own messages, `tristep.*`.
            max_items: Most items of the conversation.
        """
        self.session, self.body, self.shelf, self.max_items = session, body, shelf, max_items
        self.writer = Writer(body.audio.output, extended=extended)
        self._incoming = Incoming(body.audio.input.format.wire, LISTEN_HZ)
        self._quieter = quieter(body)

    def opened(self) -> Iterator[Message]:
        """Greet."""
        yield message("session.created", session=self.body.json_object())
        if self.body.type == "realtime":
            conversation = {"id": self.writer.conversation_id, "object": "realtime.conversation"}
            yield message("conversation.created", conversation=conversation)

    def receive(self, given: Any) -> Iterator[Message]:
        """Do what a client's message asks, and answer."""
        asked = given if isinstance(given, dict) else {}
        try:
            yield from verb(asked.get("type"))(self, asked)
        except SessionError as error:
            yield error_message(str(error), error.code, error.param, asked.get("event_id"))
        except ApiError as error:
            yield error_message(error.detail, error.code, error.param, asked.get("event_id"))

    def step(self) -> Iterator[Message]:
        """Let the session go on for a moment, and tell what comes of it."""
        yield from self.writer.written(self.session.step())

    def _update(self, given: Message) -> Iterator[Message]:
        body = updated(self.body, given.get("session"))
        changes = changed(self.body.engine_settings(), body.engine_settings())
        if body.audio.output.voice != self.body.audio.output.voice:
            changes["voice"] = self.shelf.find(body.audio.output.voice)
        told = self.session.update(**changes) if changes else []
        if body.audio.input.format != self.body.audio.input.format:
            self._incoming = Incoming(body.audio.input.format.wire, LISTEN_HZ)
        if body.audio.input.noise_reduction != self.body.audio.input.noise_reduction:
            self._quieter = quieter(body)
        self.body, self.writer.output = body, body.audio.output
        yield message("session.updated", session=body.json_object())
        yield from self.writer.written(told)

    def _append(self, given: Message) -> Iterator[Message]:
        samples = self._incoming.push(read_base64(given.get("audio")))
        waveform = torch.from_numpy(samples.copy())  # what was read may not be written to
        yield from self._heard(self._quieter.push(waveform) if self._quieter else waveform)

    def _heard(self, waveform: Tensor) -> Iterator[Message]:
        """Let the session hear a sound at 16 kHz, shape `(S,)`."""
        if len(waveform):
            yield from self.writer.written(self.session.append(waveform, LISTEN_HZ))

    def _create_item(self, given: Message) -> Iterator[Message]:
        if len(self.session.items) >= self.max_items:
            raise SessionError("invalid_value", f"there are {self.max_items} items already: delete some", "item")
        item = check_size(read_item(given.get("item"), self.body.audio.input.format.wire))
        yield from self.writer.written(self.session.add_item(item, text_or_none(given, "previous_item_id")))

    def _commit(self, given: Message) -> Iterator[Message]:
        if self._quieter:
            yield from self._heard(self._quieter.finish())
        yield from self.writer.written(self.session.commit())

    def _clear(self, given: Message) -> Iterator[Message]:
        yield from self.writer.written(self.session.clear())

    def _retrieve(self, given: Message) -> Iterator[Message]:
        yield from self.writer.written(self.session.retrieve_item(item_id(given)))

    def _delete(self, given: Message) -> Iterator[Message]:
        yield from self.writer.written(self.session.delete_item(item_id(given)))

    def _truncate(self, given: Message) -> Iterator[Message]:
        end_ms, index = number(given, "audio_end_ms"), number(given, "content_index", 0)
        yield from self.writer.written(self.session.truncate(item_id(given), end_ms, index))

    def _played(self, given: Message) -> Iterator[Message]:
        yield from self.writer.written(self.session.played(item_id(given), number(given, "played_ms")))

    def _respond(self, given: Message) -> Iterator[Message]:
        if self.body.type == "transcription":
            raise SessionError("invalid_value", "a transcription session gives no responses: open a realtime one")
        options, wanted = read_options(given.get("response"), self.body.audio.input.format.wire)
        if not options.in_conversation and len(self.writer.answers) >= MAX_RESPONSES:
            raise SessionError("rate_limit_exceeded", f"{MAX_RESPONSES} responses are being given: wait for one")
        if wanted.voice is not None:
            options = replace(options, voice=self.shelf.find(wanted.voice))
        output = self.body.audio.output.model_copy(update={name: value for name, value in wanted if value is not None})
        yield from self.writer.written(self.session.create_response(options), output)

    def _cancel(self, given: Message) -> Iterator[Message]:
        yield from self.writer.written(self.session.cancel(text_or_none(given, "response_id")))


VERBS: dict[str, Callable[[Protocol, Message], Iterator[Message]]] = {
    "session.update": Protocol._update,
    "input_audio_buffer.append": Protocol._append,
    "input_audio_buffer.commit": Protocol._commit,
    "input_audio_buffer.clear": Protocol._clear,
    "conversation.item.create": Protocol._create_item,
    "conversation.item.retrieve": Protocol._retrieve,
    "conversation.item.delete": Protocol._delete,
    "conversation.item.truncate": Protocol._truncate,
    "response.create": Protocol._respond,
    "response.cancel": Protocol._cancel,
    "tristep.played": Protocol._played,
}
"""What is done for each type of message. A connection does not hold it, so that nothing outlives the connection."""


def verb(kind: Any) -> Callable[[Protocol, Message], Iterator[Message]]:
    """Return what is done for a type of message."""
    if not isinstance(kind, str) or kind not in VERBS:
        raise SessionError("invalid_value", f"there is no message of type {str(kind)[:80]!r}", "type")
    return VERBS[kind]


def quieter(body: SessionObject) -> Quieter | None:
    """Return what takes noise out of the sound of a session, if that is wanted."""
    wanted = body.audio.input.noise_reduction
    return Quieter(wanted.type) if wanted else None


def error_message(sentence: str, code: str | None, param: str | None = None, event_id: Any = None) -> Message:
    """Say that something is wrong with a message."""
    fault = {"type": "invalid_request_error", "code": code, "message": sentence[:MAX_SENTENCE], "param": param}
    named = {"event_id": event_id[:MAX_EVENT_ID]} if isinstance(event_id, str) else {}
    return message("error", error=fault | named)


def changed(current: Message, wanted: Message) -> Message:
    """Return what is wanted and not so yet."""
    return {name: value for name, value in wanted.items() if name not in current or value != current[name]}


def item_id(given: Message) -> str:
    """Return the item that a message is about; an id that isn't one belongs to no item."""
    return str(given.get("item_id"))[:80]


def text_or_none(given: Message, name: str) -> str | None:
    """Return a field that may be missing."""
    value = given.get(name)
    return None if value is None else str(value)[:80]


def number(given: Message, name: str, default: int | None = None) -> int:
    """Return a whole number that is not negative."""
    value = given.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise SessionError("invalid_value", f"{name} is {str(value)[:40]!r}: expected a whole number from 0 up", name)
    return value
