"""The engine's end of a chat completion: a realtime session that is given a whole conversation, and answers once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tristep.audio import LISTEN_HZ, read_audio
from tristep.engine.dialogue import ArgumentsDone, Event, Item, Part, Response, ResponseDone, SessionSettings, TextDelta
from tristep.engine.engine import Engine
from tristep.engine.session import Session
from tristep.server.worker import Check


@dataclass(frozen=True)
class Complete:
    """Answer a conversation in writing. The answer is its text piece by piece, `Called`, and at last `Finished`."""

    settings: SessionSettings
    items: tuple[Item, ...]
    sounds: tuple[Path, ...] = ()
    """WAVs of ours for the parts that are sound, in order."""


@dataclass(frozen=True)
class Called:
    """A tool that the client is to run."""

    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Finished:
    """How it went."""

    response: Response


@torch.inference_mode()
def complete(engine: Engine, job: Complete, check_in: Check) -> Iterator[str | Called | Finished]:
    """Answer a conversation."""
    session = Session(engine, job.settings)
    for item in with_sounds(job):
        session.add_item(item)
    session.create_response()
    while session.has_work:
        for event in session.step():
            yield from told(event)
        check_in()


def told(event: Event) -> Iterator[str | Called | Finished]:
    """Keep of what a session says what a chat completion tells."""
    match event:
        case TextDelta():
            yield event.delta
        case ArgumentsDone():
            yield Called(event.call_id, event.name, event.arguments)
        case ResponseDone():
            yield Finished(event.response)


def with_sounds(job: Complete) -> Iterator[Item]:
    """Put the sounds into the items."""
    paths = iter(job.sounds)

    def filled(part: Part) -> Part:
        return replace(part, waveform=read_audio(next(paths)), sample_rate=LISTEN_HZ) if part.kind == "audio" else part

    for item in job.items:
        yield replace(item, parts=tuple(filled(part) for part in item.parts))
