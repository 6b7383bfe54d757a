"""The sound of the user, as it comes: cut into the detector's frames at 16 kHz, and kept as long as it is needed.

Frames are computed one by one and always from the same samples, so nothing that follows depends on the chunks in which
the sound arrived, to the last bit.
"""

from __future__ import annotations

from collections import deque
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from tristep.audio import LISTEN_HZ, SPEAK_HZ
from tristep.engine.dialogue import SessionError
from tristep.engine.voice_activity import FRAME_SIZE

REACH = 48
"""Samples at 24 kHz on each side that a sample at 16 kHz is computed from: 2 ms."""
CUTOFF_HZ = 7_400.0


@cache
def low_pass() -> Tensor:
    """Return the filter between 24 and 16 kHz: a windowed sinc at their common multiple, shape `(4 REACH + 1,)`."""
    steps = torch.arange(-2 * REACH, 2 * REACH + 1, dtype=torch.float64)
    ratio = 2 * CUTOFF_HZ / (2 * SPEAK_HZ)
    taps = ratio * torch.sinc(ratio * steps) * torch.kaiser_window(len(steps), False, 8.0, dtype=torch.float64)
    return (2 * taps / taps.sum()).float()  # every second sample is a zero


def downsampled(waveform: Tensor) -> Tensor:
    """Resample 24 kHz, shape `(S + 2 REACH,)`, to 16 kHz, `(S * 2 / 3,)`: without the samples at both ends."""
    stuffed = torch.stack([waveform, torch.zeros_like(waveform)], dim=1).flatten()
    return F.conv1d(stuffed[None, None], low_pass()[None, None], stride=3)[0, 0]


class Microphone:
    """Takes chunks of any length, gives frames, and keeps the sound. Positions count samples at 16 kHz."""

    def __init__(self) -> None:
        self.num_samples = 0
        """Sound appended so far."""
        self.num_framed = 0
        """Sound that frames have been made of."""
        self._sample_rate: int | None = None
        self._rest = torch.zeros(0)
        self._frames: deque[Tensor] = deque()
        self.first = 0
        """Position of the first sample that is kept."""

    def check(self, waveform: Tensor, sample_rate: int) -> None:
        """Refuse what is no sound, or of another rate than before."""
        if waveform.dim() != 1 or not waveform.is_floating_point() or not bool(waveform.isfinite().all()):
            raise SessionError(
                "invalid_value",
                f"the sound has shape {tuple(waveform.shape)} and type {waveform.dtype}: expected finite floats in "
                "[-1, 1], of shape (S,)",
                "audio",
            )
        expected = (LISTEN_HZ, SPEAK_HZ) if self._sample_rate is None else (self._sample_rate,)
        if sample_rate not in expected:
            raise SessionError(
                "invalid_value",
                f"the sound has {sample_rate} Hz: expected {' or '.join(map(str, expected))} Hz, all through a session",
                "audio",
            )

    def push(self, waveform: Tensor, sample_rate: int) -> list[Tensor]:
        """Take the next samples, shape `(S,)`; return the frames they complete, each `(FRAME_SIZE,)`."""
        self.check(waveform, sample_rate)
        if self._sample_rate is None:
            self._sample_rate = sample_rate
            self._rest = torch.zeros(REACH if sample_rate == SPEAK_HZ else 0)
        self._rest = torch.cat([self._rest, waveform.detach().to("cpu", torch.float32)])
        made = []
        hop, width = self._sizes()
        while len(self._rest) >= width:
            made.append(self._frame(self._rest[:width]))
            self._rest = self._rest[hop:]
        self.num_framed += len(made) * FRAME_SIZE
        self.num_samples = self.num_framed + self._num_pending()
        self._frames.extend(made)
        return made

    def between(self, start: int, end: int) -> Tensor:
        """Return the sound between two positions, as far as it is kept, shape `(S,)`."""
        sound = torch.cat([*self._frames, self._pending()])
        return sound[max(0, start - self.first) : max(0, end - self.first)]

    def forget(self, before: int) -> None:
        """Drop whole frames before a position."""
        while self._frames and self.first + FRAME_SIZE <= before:
            self._frames.popleft()
            self.first += FRAME_SIZE

    def _sizes(self) -> tuple[int, int]:
        """Return the samples that a frame moves on by, and those it is computed from."""
        if self._sample_rate != SPEAK_HZ:
            return FRAME_SIZE, FRAME_SIZE
        hop = FRAME_SIZE * SPEAK_HZ // LISTEN_HZ
        return hop, hop + 2 * REACH

    def _frame(self, samples: Tensor) -> Tensor:
        return downsampled(samples) if self._sample_rate == SPEAK_HZ else samples.clone()

    def _pending(self) -> Tensor:
        """Return the sound that is no whole frame yet."""
        if self._sample_rate is None:
            return torch.zeros(0)
        _, width = self._sizes()
        return self._frame(F.pad(self._rest, (0, width - len(self._rest))))[: self._num_pending()]

    def _num_pending(self) -> int:
        """Count the samples of that."""
        assert self._sample_rate is not None
        return (len(self._rest) - (REACH if self._sample_rate == SPEAK_HZ else 0)) * LISTEN_HZ // self._sample_rate
