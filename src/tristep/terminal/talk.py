"""Talking at a terminal: who says what, as it is known, and how it went."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from threading import Event as Flag

import soxr
import torch
from rich.console import Console
from rich.live import Live
from rich.text import Text
from torch import Tensor

from tristep.audio import SPEAK_HZ
from tristep.engine.dialogue import (
    Event,
    Item,
    Part,
    Response,
    ResponseCreated,
    ResponseDone,
    SpeechStarted,
    TextDelta,
    TranscriptCompleted,
    Truncated,
)
from tristep.terminal.loop import FirstSound, VoiceLoop

CUT = " …"
"""What follows the words of an answer that was interrupted."""


@dataclass
class Exchange:
    """What was said last."""

    heard: str = ""
    answer: str = ""
    item_id: str = ""
    """Of the answer."""
    late_s: float | None = None
    """When it began to sound, after the end of the user's speech."""
    error: str | None = None

    def lines(self) -> Iterator[Text]:
        """Write it as lines: who, and what."""
        if self.heard:
            yield Text.assemble(("user: ", "bold cyan"), one_line(self.heard))
        if self.answer:
            late = "" if self.late_s is None else f"  ({self.late_s:.2f} s)"
            yield Text.assemble(("answer: ", "bold green"), one_line(self.answer), (late, "dim"))
        if self.error:
            yield Text(f"no answer: {self.error}", "red")


def one_line(text: str) -> str:
    """Return a text without what a terminal would obey."""
    return "".join(character for character in " ".join(text.split()) if character.isprintable())


class Transcript:
    """What both sides say: what is over stands above, what is going on is drawn again and again below."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.num_turns = 0
        """Of the user, with words in them."""
        self.latencies_s: list[float] = []
        """Of the answers that began to sound."""
        self._now, self._state = Exchange(), "listening"
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Transcript:
        self._live.start()
        self._draw()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        self._print()

    def show(self, event: Event | FirstSound) -> None:
        """Take the next thing that happens."""
        match event:
            case SpeechStarted():
                self._state = "listening to you"
            case ResponseCreated():
                self._state = "thinking"
            case TranscriptCompleted() if event.text.strip():
                self._turn(event.text)
            case TextDelta():
                self._say(event)
            case FirstSound():
                self._sound(event.late_s)
            case Truncated() if event.item_id == self._now.item_id:
                self._now.answer = event.text + CUT
            case ResponseDone():
                self._end(event.response)
            case _:
                return
        self._draw()

    @property
    def summary(self) -> str:
        """Say how it went in a line."""
        turns = f"{self.num_turns} {'turn' if self.num_turns == 1 else 'turns'}"
        if not self.latencies_s:
            return turns
        return f"{turns}, first sound {median(self.latencies_s):.2f} s after the end of speech (median)"

    def _turn(self, text: str) -> None:
        self.num_turns += 1
        self._print()
        self._now = Exchange(text)

    def _say(self, event: TextDelta) -> None:
        self._now.item_id = event.item_id
        self._now.answer += event.delta

    def _sound(self, late_s: float) -> None:
        self._state = "answering"
        self._now.late_s = late_s
        self.latencies_s.append(late_s)

    def _end(self, response: Response) -> None:
        self._state = "listening"
        self._now.error = response.error
        if response.status == "cancelled" and any(item.id == self._now.item_id for item in response.output):
            self._now.answer += CUT  # where less of it was heard, that is told next

    def _print(self) -> None:
        """Leave what is over on the screen."""
        for line in self._now.lines():
            self.console.print(line, soft_wrap=True)

    def _draw(self) -> None:
        lines = [*self._now.lines(), Text(f"[{self._state}]", "dim")]
        self._live.update(Text("\n").join(lines), refresh=True)


@torch.inference_mode()
def talk(loop: VoiceLoop, console: Console) -> str:
    """Hold a conversation until ctrl-C; return how it went."""
    transcript = Transcript(console)
    with interruptible() as is_over, transcript:
        for event in loop.events(is_over):
            transcript.show(event)
        for event in loop.leave():
            transcript.show(event)
    return transcript.summary


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Say whether ctrl-C was pressed; pressed twice it interrupts as usual."""
    is_over = Flag()
    usual = signal.getsignal(signal.SIGINT)

    def end(*_: object) -> None:
        is_over.set()
        signal.signal(signal.SIGINT, usual)

    signal.signal(signal.SIGINT, end)
    try:
        yield is_over.is_set
    finally:
        signal.signal(signal.SIGINT, usual)


def both_sides(items: Iterable[Item]) -> Tensor:
    """Join what was said and heard, turn by turn, at 24 kHz, shape `(S,)`."""
    sounds = [at_speaking_rate(part) for item in items for part in item.parts if part.waveform is not None]
    return torch.cat([torch.zeros(0), *sounds])


def at_speaking_rate(part: Part) -> Tensor:
    """Return the sound of a part at 24 kHz, shape `(S,)`."""
    assert part.waveform is not None
    if part.sample_rate == SPEAK_HZ:
        return part.waveform
    return torch.from_numpy(soxr.resample(part.waveform.numpy(), part.sample_rate, SPEAK_HZ))
