"""Conversing with recordings: each is a turn, heard as if it were being spoken, and the time that answering takes.

The clock is computed: sound arrives in its own time, and work takes the time that it takes here. Nothing waits for the
clock, so a recording of a minute is dealt with as fast as the work allows, and the latencies are those of a live talk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from tristep.audio import LISTEN_HZ, SPEAK_HZ, read_audio, write_audio
from tristep.engine.dialogue import AudioDelta, Event, ResponseDone, TextDelta
from tristep.engine.session import Session
from tristep.mark import SYNTHETIC

CHUNK_S = 0.1
"""Sound arrives in pieces of this length, as from a microphone."""
BETWEEN_ANSWERS_S = 0.5
Clock = Callable[[], float]


@dataclass(frozen=True)
class Exchange:
    """One turn of the user, and the answer."""

    heard: str
    text: str
    waveform: Tensor
    """The answer, 24 kHz, shape `(S,)`; empty where it is text only."""
    first_text_s: float | None
    """From the end of the user's sound to the first words of the answer; None if there are none."""
    first_audio_s: float | None
    """And to its first sound."""

    def write(self, path: str | Path) -> None:
        """Write the answer as wav, flac, mp3, opus or whatever else the name's ending says."""
        if not len(self.waveform):
            raise ValueError(f"there is no sound to write to {path}: nothing was said, or it was answered in text")
        write_audio(path, self.waveform, SPEAK_HZ, SYNTHETIC)


def joined(exchanges: Sequence[Exchange]) -> Exchange:
    """Join exchanges as one, silence between the answers; the latencies are those of the first."""
    pause = torch.zeros(round(BETWEEN_ANSWERS_S * SPEAK_HZ))
    sounds = [sound for exchange in exchanges for sound in (exchange.waveform, pause) if len(exchange.waveform)]
    return replace(
        exchanges[0],
        heard=" ".join(exchange.heard for exchange in exchanges),
        text=" ".join(exchange.text for exchange in exchanges),
        waveform=torch.cat(sounds[:-1]) if sounds else torch.zeros(0),
    )


class Recorded:
    """A conversation in recordings."""

    def __init__(self, session: Session, clock: Clock = time.perf_counter) -> None:
        """Begin a conversation.

        Args:
            session: Its settings have no turn detection: a recording is a turn.
            clock: Says how long work takes.
        """
        if session.settings.turn_detection is not None:
            raise ValueError("recordings are whole turns: give a session without turn detection")
        self.session, self.clock = session, clock

    def hear(self, source: str | Path | bytes | Tensor) -> Exchange:
        """Answer a turn: a path, the bytes of a file, or a waveform at 16 kHz of shape `(S,)`.

        Raises:
            AudioError: If it can't be read.
            ValueError: If it is too short, or can't be answered.
        """
        waveform = source if isinstance(source, Tensor) else read_audio(source)
        self._listen(waveform)
        self.session.commit()
        self.session.create_response()
        began_s = self.clock()
        timed = [(self.clock() - began_s + self._late_s, event) for event in self._work()]
        return self._exchange(timed)

    def _listen(self, waveform: Tensor) -> None:
        """Hear a turn while it is spoken, shape `(S,)`; `_late_s` is the work that its end finds unfinished."""
        now_s = arrived_s = 0.0
        for chunk in torch.split(waveform, round(CHUNK_S * LISTEN_HZ)):
            arrived_s += len(chunk) / LISTEN_HZ
            now_s = max(now_s, arrived_s)
            began_s = self.clock()
            self.session.append(chunk, LISTEN_HZ)
            while self.session.has_work and now_s + self.clock() - began_s < arrived_s + CHUNK_S:
                self.session.step()
            now_s += self.clock() - began_s
        self._late_s = max(0.0, now_s - arrived_s)

    def _work(self) -> Iterator[Event]:
        while self.session.has_work:
            yield from self.session.step()

    def _exchange(self, timed: list[tuple[float, Event]]) -> Exchange:
        """Read an answer out of its events."""
        sounds = [event.waveform for _, event in timed if isinstance(event, AudioDelta)]
        response = next(event.response for _, event in timed if isinstance(event, ResponseDone))
        if response.status == "failed":
            raise ValueError(response.error)
        question = next(item for item in reversed(self.session.items) if item.role == "user")
        return Exchange(
            heard=question.text,
            text=" ".join(item.text for item in response.output),
            waveform=torch.cat(sounds) if sounds else torch.zeros(0),
            first_text_s=next((at_s for at_s, event in timed if isinstance(event, TextDelta)), None),
            first_audio_s=next((at_s for at_s, event in timed if isinstance(event, AudioDelta)), None),
        )
