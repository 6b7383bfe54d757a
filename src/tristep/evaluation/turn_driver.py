"""A session driven in time: the user's sound reaches it as it is spoken, and it works in between.

That is how the server drives it: frames of 20 ms are appended when they are over, together those that came during a
step, and then it does the next one. So frames queue up behind a step that takes long, and what that costs is counted.
Events are timed when the session returns them. What is left out is the network.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tristep.audio import SPEAK_HZ
from tristep.engine.dialogue import AudioDelta, Event, Item, Part, ResponseDone, SpeechStarted, SpeechStopped, TextDelta
from tristep.engine.session import Session
from tristep.evaluation.turn_cases import Case

FRAME_S = 0.02
"""Sound arrives in pieces of this length."""
MAX_ANSWER_S = 30.0
"""An answer that takes longer is not waited for."""


class Clock:
    """Seconds since it was made; waiting is sleeping, or time in which nothing happens is skipped."""

    def __init__(
        self,
        seconds: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] | None = time.sleep,
    ) -> None:
        """Start a clock.

        Args:
            seconds: Says how time passes while there is work.
            sleep: Lets a number of seconds pass; None skips them, which takes no time and measures the same work.
        """
        self._seconds, self._sleep = seconds, sleep
        self._skipped_s = -seconds()

    def now(self) -> float:
        """Return the time."""
        return self._seconds() + self._skipped_s

    def wait_until(self, at_s: float) -> None:
        """Return when it is so late."""
        missing_s = at_s - self.now()
        if missing_s > 0 and self._sleep:
            self._sleep(missing_s)
        elif missing_s > 0:
            self._skipped_s += missing_s


class Chunk(NamedTuple):
    """A piece of an answer as it is played."""

    start_s: float
    waveform: Tensor
    """24 kHz, shape `(S,)`."""
    item_id: str

    @property
    def end_s(self) -> float:
        """When it is over."""
        return self.start_s + len(self.waveform) / SPEAK_HZ


@dataclass(frozen=True)
class Course:
    """What happened; times are seconds of the user's clock, which runs from their first sample on."""

    events: list[tuple[float, Event]]
    begun_s: float = 0.0
    """When the sound of the case began."""
    lag_s: float = 0.0
    """The longest that a frame waited to be heard."""

    def first(self, kind: type[Event], after_s: float = 0.0) -> float | None:
        """Return when the first event of a kind came."""
        return next((at_s for at_s, event in self.events if isinstance(event, kind) and at_s >= after_s), None)

    def times(self, kind: type[Event]) -> list[float]:
        """Return when the events of a kind came."""
        return [at_s for at_s, event in self.events if isinstance(event, kind)]

    def played(self) -> list[Chunk]:
        """Return what a client plays of the answers."""
        chunks: list[Chunk] = []
        free_s = 0.0
        for at_s, event in self.events:
            if isinstance(event, AudioDelta):
                chunks.append(Chunk(max(at_s, free_s), event.waveform, event.item_id))
                free_s = chunks[-1].end_s
            elif isinstance(event, SpeechStarted):
                chunks, free_s = [until(chunk, at_s) for chunk in chunks if chunk.start_s < at_s], at_s
        return chunks

    def track(self, duration_s: float) -> Tensor:
        """Return what a client plays as one sound that begins with the user's, 24 kHz, shape `(S,)`."""
        sound = torch.zeros(round(duration_s * SPEAK_HZ))
        for chunk in self.played():
            start = min(round(chunk.start_s * SPEAK_HZ), len(sound))
            stretch = sound[start : start + len(chunk.waveform)]
            stretch.copy_(chunk.waveform[: len(stretch)])
        return sound

    def text(self, after_s: float = 0.0) -> str:
        """Return what was answered from some time on; of several answers all."""
        return "".join(event.delta for at_s, event in self.events if isinstance(event, TextDelta) and at_s >= after_s)


def until(chunk: Chunk, at_s: float) -> Chunk:
    """Cut what is played of a chunk."""
    return chunk._replace(waveform=chunk.waveform[: round((at_s - chunk.start_s) * SPEAK_HZ)])


class Talk:
    """One session in time."""

    def __init__(self, session: Session, clock: Clock | None = None, frame_s: float = FRAME_S) -> None:
        """Begin to talk.

        Args:
            session: Listens and answers.
            clock: Says how time passes, from now on.
            frame_s: Sound arrives in pieces of this length.
        """
        self.session, self.clock, self.frame_s = session, clock or Clock(), frame_s
        self.events: list[tuple[float, Event]] = []
        self.spoken_s = 0.0
        """How much sound of the user there has been, which is when the next begins."""
        self.lag_s = 0.0
        self._looked_s = 0.0  # frames that were over by then are appended before the next step

    def hear(self, waveform: Tensor, is_over: Callable[[], bool] = lambda: False) -> None:
        """Speak to the session, 24 kHz of shape `(S,)`, until that is over or something else is."""
        for frame in torch.split(waveform, round(self.frame_s * SPEAK_HZ)):
            if is_over():
                return
            self.spoken_s += len(frame) / SPEAK_HZ
            self._work()
            self.clock.wait_until(self.spoken_s)
            self._looked_s = max(self._looked_s, self.spoken_s)
            self.lag_s = max(self.lag_s, self.clock.now() - self.spoken_s)
            self._note(self.session.append(frame, SPEAK_HZ))

    def wait(self, most_s: float, is_over: Callable[[], bool] = lambda: False) -> None:
        """Say nothing for a while."""
        self.hear(torch.zeros(round(most_s * SPEAK_HZ)), is_over)

    def ask(self, text: str) -> None:
        """Ask something in writing."""
        self._note(self.session.add_item(Item(parts=(Part("text", text),))))
        self._note(self.session.create_response())

    def has(self, *kinds: type[Event]) -> bool:
        """Say whether an event of some kinds has come."""
        return any(isinstance(event, kinds) for _, event in self.events)

    @property
    def is_answered(self) -> bool:
        """Whether the user has finished, and the answer too."""
        marks = [event for _, event in self.events if isinstance(event, SpeechStarted | SpeechStopped | ResponseDone)]
        return bool(marks) and isinstance(marks[-1], ResponseDone)

    def _work(self) -> None:
        """Work until the next frame is over."""
        while self.session.has_work and self._looked_s < self.spoken_s:
            self._note(self.session.step())
            self._looked_s = self.clock.now()

    def _note(self, events: Iterable[Event]) -> None:
        now_s = self.clock.now()
        self.events += [(now_s, event) for event in events]


@torch.inference_mode()
def run(talk: Talk, case: Case) -> Course:
    """Try a case on a session that has said nothing yet.

    Args:
        talk: With the session, which finds turns itself.
        case: The sound, and what it is spoken into.
    """
    if case.asked:
        talk.ask(case.asked)
        talk.wait(MAX_ANSWER_S, lambda: talk.has(AudioDelta, ResponseDone))
        talk.wait(case.after_s)
    begun_s = talk.spoken_s
    talk.hear(case.waveform)
    if case.kind == "question":
        talk.wait(MAX_ANSWER_S, lambda: talk.is_answered)
    return Course(talk.events, begun_s, talk.lag_s)
