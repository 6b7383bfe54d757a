"""The engine's end of a realtime connection: the whole protocol, in a thread of the engine's process.

A session is told what the client writes, and says what the client is to read, both as JSON text: the event loop passes
text on and never waits for a model, for base64 or for a resampler.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from tristep.codec.voice import Voice
from tristep.engine.dialogue import SessionError, SessionSettings
from tristep.engine.engine import Engine
from tristep.engine.session import Session
from tristep.server.errors import ApiError
from tristep.server.realtime_asr import StepNames
from tristep.server.realtime_beta import from_beta, is_beta, session_to_beta, to_beta
from tristep.server.realtime_events import Message
from tristep.server.realtime_openai import Protocol, error_message
from tristep.server.realtime_session import Kind, SessionObject, TranscriptionObject, updated
from tristep.server.shelf import Shelf
from tristep.server.uploads import check_json
from tristep.server.worker import Line

Dialect = Literal["ga", "beta", "step-asr"]

TAKEN_MESSAGES, TAKEN_CHARACTERS, TAKEN_S = 32, 1 << 20, 0.2
"""So much at once is told to have been dealt with, or what there is after a while in which nothing came: a microphone
sends fifty messages a second."""
WAIT_S = 60.0
"""How long a session that has nothing to do waits before it looks whether anybody is there."""


@dataclass(frozen=True)
class Converse:
    """Hold a realtime session. It is told text, and says texts, all that are due at once, and now and then `Taken`."""

    session_id: str
    model: str
    """What clients call it."""
    kind: Kind
    dialect: Dialect
    shelf: Shelf
    expires_at: int
    max_items: int
    extended: bool = False
    """Whether the client knows messages of our own."""
    wanted: Message = field(default_factory=dict)
    """What an ephemeral key was made for: a first update of the session."""


@dataclass(frozen=True)
class Taken:
    """So much was dealt with."""

    num_characters: int
    num_messages: int


@torch.inference_mode()
def converse(engine: Engine, cannot_speak: str, job: Converse, line: Line) -> Iterator[tuple[str, ...] | Taken]:
    """Hold a realtime session until the client leaves.

    Args:
        engine: Hears and answers.
        cannot_speak: Why it can't speak, empty if it can.
        job: What kind of session.
        line: To the client.
    """
    conversation = Conversation(engine, cannot_speak, job)
    yield tuple(conversation.opened())
    num_characters = num_messages = 0
    while True:
        texts = line.told(0 if conversation.has_work else TAKEN_S if num_messages else WAIT_S)
        for text in texts:
            if said := tuple(conversation.received(text)):
                yield said
            num_characters, num_messages = num_characters + len(text), num_messages + 1
        is_much = num_messages >= TAKEN_MESSAGES or num_characters >= TAKEN_CHARACTERS
        if is_much or (num_messages and not texts):
            yield Taken(num_characters, num_messages)
            num_characters = num_messages = 0
        if conversation.has_work and (said := tuple(conversation.step())):
            yield said


class Conversation:
    """A session, its protocol, and the names that the client knows it by."""

    def __init__(self, engine: Engine, cannot_speak: str, job: Converse) -> None:
        body = session_object(job, can_speak=not cannot_speak and bool(job.shelf.folders()))
        is_spoken = body.output_modalities == ["audio"]
        voice = find_voice(job.shelf, body.audio.output.voice) if is_spoken else None
        settings = SessionSettings(**body.engine_settings(), voice=voice)
        session = Session(engine, settings, name=f"{job.session_id[-12:]}_")
        self.protocol = Protocol(session, body, job.shelf, extended=job.extended, max_items=job.max_items)
        self.dialect, self._is_open = job.dialect, job.dialect != "ga"
        self._step_names = StepNames(job.session_id)

    @property
    def has_work(self) -> bool:
        """Whether there is anything to do."""
        return self.protocol.session.has_work

    def opened(self) -> Iterator[str]:
        """Greet; who may still turn out to know the older names is told the session in both."""
        for message in self.protocol.opened():
            if self.dialect == "ga" and message["type"] == "session.created":
                message["session"] = session_to_beta(message["session"]) | message["session"]
            yield from self._sent([message])

    def received(self, text: str) -> Iterator[str]:
        """Do what a client asks."""
        try:
            given = parsed(text)
        except ValueError as error:
            yield from self._sent([error_message(f"the message is no JSON object: {error}", "invalid_json")])
            return
        if self.dialect == "ga" and not self._is_open and "session.update" in str(given.get("type")):
            self._is_open = True
            self.dialect = "beta" if is_beta(given) else "ga"
        yield from self._sent(self.protocol.receive(self._translated(given)))

    def step(self) -> Iterator[str]:
        """Let the session go on for a moment."""
        yield from self._sent(self.protocol.step())

    def _translated(self, given: Message) -> Message:
        match self.dialect:
            case "beta":
                return from_beta(given)
            case "step-asr":
                return self._step_names.received(given)
        return given

    def _sent(self, messages: Iterable[Message]) -> Iterator[str]:
        names: dict[Dialect, Callable[[Message], Iterable[Message]]] = {
            "ga": lambda message: [message], "beta": to_beta, "step-asr": self._step_names.sent,
        }  # fmt: skip
        for message in messages:
            for renamed in names[self.dialect](message):
                yield json.dumps(renamed, ensure_ascii=False, separators=(",", ":"))


def session_object(job: Converse, *, can_speak: bool) -> SessionObject:
    """Describe a session that begins; in the older names it tells what was heard unasked, as StepFun's does."""
    body = SessionObject(
        type=job.kind,
        object="realtime.session" if job.kind == "realtime" else "realtime.transcription_session",
        id=job.session_id,
        model=job.model,
        expires_at=job.expires_at,
        output_modalities=["audio"] if can_speak and job.kind == "realtime" else ["text"],
    )
    if job.kind == "transcription" or job.dialect == "beta":
        body.audio.input.transcription = TranscriptionObject(model=job.model)
    if can_speak:
        body.audio.output.voice = min(job.shelf.folders())
    return updated(body, job.wanted) if job.wanted else body


def parsed(text: str | bytes) -> Message:
    """Read a client's message.

    Raises:
        ValueError: If it is no JSON object, or holds what can't be written again.
    """
    try:
        given = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    check_json(given)
    if not isinstance(given, dict):
        raise ValueError(f"expected an object, got {type(given).__name__}")
    return given


def check_wanted(wanted: Any, job: Converse) -> Message:
    """Return the session object that an update would make of a new session.

    Raises:
        SessionError: If it can't be.
    """
    if not isinstance(wanted, dict):
        raise SessionError("invalid_value", "session is no object", "session")
    body = updated(session_object(job, can_speak=bool(job.shelf.folders())), wanted)
    if body.output_modalities == ["audio"]:
        find_voice(job.shelf, body.audio.output.voice)
    return body.json_object()


def find_voice(shelf: Shelf, name: str) -> Voice:
    """Read a voice.

    Raises:
        SessionError: If there is none.
    """
    try:
        return shelf.find(name)
    except ApiError as error:
        raise SessionError(error.code or "voice_not_found", error.detail, "session.audio.output.voice") from error
