"""Less noise in the user's sound, for clients that ask for it: a noise that goes on is held down, speech passes.

A Wiener filter on short spectra (Ephraim and Malah 1984, the decision-directed estimate of how far each frequency rises
above the noise). The noise is what a frequency falls back to again and again: its lowest level in the last second and a
half (Martin 2001, without his correction of the bias by the variance). Chunks joined are the whole, a little late.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Literal

import torch
from torch import Tensor

from tristep.audio import LISTEN_HZ

Distance = Literal["near_field", "far_field"]
"""How far the microphone is from the mouth: a headset, or a table."""

FRAME_SIZE, DELAY = 512, 256
"""Samples at 16 kHz of a spectrum, and how far it moves on."""
LEAST: dict[Distance, float] = {"near_field": 0.35, "far_field": 0.18}
"""What noise is multiplied by: -9 and -15 dB; less would sound hollow."""
RUMBLE_HZ: dict[Distance, float] = {"near_field": 60.0, "far_field": 100.0}
"""Below it there is no speech."""
SMOOTHING = 0.7
"""Of the power over spectra."""
NUM_SPANS, SPAN = 8, 12
"""The lowest level is that of so many spans of so many spectra, and of the one that goes on: 1.5 s in all."""
BIAS = 2.0
"""How far the mean of a noise is above what it falls back to."""
INERTIA = 0.96
"""How much of the estimate is that of the spectrum before."""


class Quieter:
    """Takes noise out of one sound."""

    def __init__(self, distance: Distance) -> None:
        self._least = LEAST[distance]
        self._window = torch.hann_window(FRAME_SIZE).sqrt()
        hz = torch.fft.rfftfreq(FRAME_SIZE, 1 / LISTEN_HZ)
        self._is_speech = (hz >= RUMBLE_HZ[distance]).float()
        self._rest = self._overlap = torch.zeros(DELAY)
        self._num_early = DELAY  # what comes out first is from before the sound
        self._power: Tensor | None = None
        self._minima = deque[Tensor](maxlen=NUM_SPANS)
        self._lowest = torch.full((len(hz),), math.inf)
        self._num_spectra = 0
        self._clean = torch.zeros(len(hz))  # power that the spectrum before had above the noise

    @torch.no_grad()
    def push(self, waveform: Tensor) -> Tensor:
        """Take the next samples at 16 kHz, shape `(S,)`; return those that are settled."""
        heard = torch.cat([self._rest, waveform])
        num_frames = max(0, (len(heard) - FRAME_SIZE) // DELAY + 1)
        pieces = []
        for start in range(0, num_frames * DELAY, DELAY):
            frame = self._frame(heard[start : start + FRAME_SIZE])
            pieces.append(self._overlap + frame[:DELAY])
            self._overlap = frame[DELAY:]
        self._rest = heard[num_frames * DELAY :]
        quieted = torch.cat([torch.zeros(0), *pieces])
        num_early = min(self._num_early, len(quieted))
        self._num_early -= num_early
        return quieted[num_early:]

    def finish(self) -> Tensor:
        """Return what is left, shape `(S,)`, and begin anew; what the noise is like is remembered."""
        num_left, known = len(self._rest) - self._num_early, (self._power, self._minima.copy(), self._lowest)
        left = self.push(torch.zeros(2 * FRAME_SIZE))[:num_left]
        self._rest = self._overlap = torch.zeros(DELAY)
        self._num_early = DELAY
        self._power, self._minima, self._lowest = known
        return left

    def _frame(self, samples: Tensor) -> Tensor:
        """Hold down the noise of one spectrum's samples, shape `(FRAME_SIZE,)`."""
        spectrum = torch.fft.rfft(samples * self._window)
        power = spectrum.abs().square() + 1e-10
        noise = BIAS * self._fallen_to(power)
        above = INERTIA * self._clean / noise + (1 - INERTIA) * (power / noise - 1).clamp(min=0)
        gain = (above / (1 + above)).clamp(min=self._least) * self._is_speech
        self._clean = gain.square() * power
        return torch.fft.irfft(gain * spectrum) * self._window

    def _fallen_to(self, power: Tensor) -> Tensor:
        """Take the next power, shape `(F,)`, and return what it has fallen to lately."""
        self._power = power if self._power is None else SMOOTHING * self._power + (1 - SMOOTHING) * power
        self._lowest = torch.minimum(self._lowest, self._power)
        lowest = torch.stack([*self._minima, self._lowest]).amin(dim=0)
        self._num_spectra += 1
        if self._num_spectra % SPAN == 0:
            self._minima.append(self._lowest)
            self._lowest = self._power
        return lowest
