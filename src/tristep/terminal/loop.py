"""A session between a microphone and a loudspeaker: sound goes in as it comes, answers go out as they come.

Everything happens in one thread, between two short steps of the session; the sound device runs by itself. Its
microphone is the only clock, as it is the session's: what is said here of time counts the sound that was captured.
What the loudspeaker has taken is acknowledged before the session learns what the user says, so that of an answer that
is spoken into only what was heard is remembered.

There is no echo cancellation. Where the microphone hears the loudspeaker, an answer would interrupt itself: use
headphones, or be half duplex, which does not hear the user while an answer sounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tristep.audio import SPEAK_HZ
from tristep.engine.dialogue import AudioDelta, Ducked, Event, ServerVad, SpeechStarted, SpeechStopped
from tristep.engine.session import Session

ECHO_S = 0.3
"""An answer is still in the air, and in the loudspeaker's buffer, for so long after its last sample was taken."""


class SoundDevice(Protocol):
    """A microphone and a loudspeaker at 24 kHz, both running."""

    @property
    def num_heard(self) -> int:
        """Samples that were captured, those included that nobody has read yet."""

    @property
    def num_played(self) -> int:
        """Samples of answers that the loudspeaker has taken: nothing stops them any more."""

    def read(self, *, wait: bool) -> Tensor:
        """Return what was captured since the last call, shape `(S,)`; wait for some where that is asked for."""

    def play(self, waveform: Tensor) -> None:
        """Play samples `(S,)` after all that there is to be played."""

    def clear(self) -> None:
        """Fall silent, and forget what has not been played."""

    def duck(self, is_ducked: bool) -> None:
        """Play more quietly, or as loud as usual again."""


@dataclass(frozen=True)
class FirstSound:
    """An answer begins to sound."""

    late_s: float
    """After the end of the user's speech. The silence by which that was known is part of it, the loudspeaker's own
    delay is not."""


class VoiceLoop:
    """One conversation."""

    def __init__(self, session: Session, device: SoundDevice, *, half_duplex: bool = False) -> None:
        """Prepare to talk.

        Args:
            session: It answers aloud, and ends turns by a silence.
            device: Hears and plays.
            half_duplex: Hear silence while an answer sounds.
        """
        detection = session.settings.turn_detection
        if session.settings.modality != "audio" or not isinstance(detection, ServerVad):
            raise ValueError(
                "a voice loop listens for turns and answers aloud: give a session with ServerVad and audio"
            )
        self.session, self.device, self.half_duplex = session, device, half_duplex
        self._silence_s = detection.silence_duration_ms / 1000
        self._speech_end_s = 0.0
        self._item_id: str | None = None  # the answer that sounds, or sounded last
        self._start = self._end = 0  # its place among the samples that the loudspeaker takes
        self._deaf_until = 0

    def events(self, is_over: Callable[[], bool]) -> Iterator[Event | FirstSound]:
        """Talk until it is over; yield what happens."""
        while not is_over():
            yield from self._hear()
            if self.session.has_work:
                yield from self._followed(self.session.step())

    def leave(self) -> list[Event]:
        """Fall silent; what was not heard of an answer is not remembered."""
        self._acknowledge()
        self.device.clear()
        events = self.session.cancel() if self.session.is_responding else []
        if self._item_id and self.device.num_played < self._end:
            events += self.session.truncate(self._item_id, self._played_ms)
        return events

    @property
    def _played_ms(self) -> int:
        """How much has been heard of the answer that sounds."""
        return 1000 * (min(self.device.num_played, self._end) - self._start) // SPEAK_HZ

    def _acknowledge(self) -> None:
        """Tell the session what has been heard of its answer."""
        if self._item_id:
            self.session.played(self._item_id, self._played_ms)

    def _hear(self) -> Iterator[Event | FirstSound]:
        """Pass on what the microphone brings."""
        waveform = self.device.read(wait=not self.session.has_work)
        if self.device.num_played < self._end:
            self._deaf_until = self.device.num_heard + round(ECHO_S * SPEAK_HZ)
        if self.half_duplex and self.device.num_heard < self._deaf_until:
            waveform = torch.zeros_like(waveform)
        self._acknowledge()
        yield from self._followed(self.session.append(waveform))

    def _followed(self, events: list[Event]) -> Iterator[Event | FirstSound]:
        """Do what events ask for, and pass them on."""
        for event in events:
            match event:
                case Ducked():
                    self.device.duck(event.is_ducked)
                case SpeechStarted():
                    self._fall_silent()
                case SpeechStopped():
                    self._speech_end_s = event.audio_end_ms / 1000 - self._silence_s
                case AudioDelta():
                    yield from self._play(event)
            yield event

    def _fall_silent(self) -> None:
        self.device.clear()
        self.device.duck(False)
        self._end = self.device.num_played

    def _play(self, event: AudioDelta) -> Iterator[FirstSound]:
        """Play more of an answer."""
        self.device.play(event.waveform)
        if event.item_id != self._item_id:
            self._item_id, self._start = event.item_id, self._end
            yield FirstSound(self.device.num_heard / SPEAK_HZ - self._speech_end_s)
        self._end += len(event.waveform)
