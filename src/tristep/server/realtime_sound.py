"""Sound on the wire of a realtime session: 16-bit samples, or G.711, piece by piece in both directions.

Samples are 24 kHz and G.711 is 8 kHz, as OpenAI has it; other rates of samples are an extension. A piece may end
within a sample: what is left over begins the next one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import soxr

Samples = np.ndarray[Any, np.dtype[np.float32]]
Law = Literal["audio/pcm", "audio/pcmu", "audio/pcma"]
FULL_SCALE = 32768.0


@dataclass(frozen=True)
class WireFormat:
    """How sound is written."""

    type: Law = "audio/pcm"
    rate: int = 24_000
    """Samples per second, Hz; 8000 for G.711."""

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample."""
        return 2 if self.type == "audio/pcm" else 1

    def duration_s(self, num_bytes: int) -> float:
        """Return how long a number of bytes sounds."""
        return num_bytes / self.sample_bytes / self.rate

    def decode(self, data: bytes) -> Samples:
        """Read whole samples, shape `(S,)` in [-1, 1]."""
        if self.type == "audio/pcm":
            return np.frombuffer(data, "<i2").astype(np.float32) / FULL_SCALE
        return levels(self.type)[np.frombuffer(data, np.uint8)] / FULL_SCALE

    def encode(self, samples: Samples) -> bytes:
        """Write samples `(S,)`."""
        scaled = (samples * FULL_SCALE).round().clip(-FULL_SCALE, FULL_SCALE - 1)
        if self.type == "audio/pcm":
            return scaled.astype("<i2").tobytes()
        order, midpoints = nearest(self.type)
        return order[np.searchsorted(midpoints, scaled)].tobytes()


class Incoming:
    """Turns what a client sends into samples at one rate."""

    def __init__(self, wire: WireFormat, sample_rate: int) -> None:
        """Begin to read sound in a format as samples at `sample_rate`, Hz."""
        self.wire = wire
        self._resampler = Resampler(wire.rate, sample_rate)
        self._rest = b""

    def push(self, data: bytes) -> Samples:
        """Read the next bytes; returns samples `(S,)`."""
        data = self._rest + data
        whole = len(data) // self.wire.sample_bytes * self.wire.sample_bytes
        self._rest = data[whole:]
        return self._resampler.push(self.wire.decode(data[:whole]))

    def finish(self) -> Samples:
        """Return what the resampler still holds, shape `(S,)`."""
        return self._resampler.push(np.zeros(0, np.float32), is_last=True)


class Outgoing:
    """Turns samples at one rate into what a client reads."""

    def __init__(self, wire: WireFormat, sample_rate: int) -> None:
        """Begin to write samples at `sample_rate`, Hz, in a format."""
        self.wire = wire
        self._resampler = Resampler(sample_rate, wire.rate)

    def push(self, samples: Samples) -> bytes:
        """Write the next samples `(S,)`."""
        return self.wire.encode(self._resampler.push(samples))

    def finish(self) -> bytes:
        """Write what the resampler still holds."""
        return self.wire.encode(self._resampler.push(np.zeros(0, np.float32), is_last=True))


class Resampler:
    """Changes the rate of a stream, unless it is right already."""

    def __init__(self, given_hz: int, wanted_hz: int) -> None:
        self._stream = soxr.ResampleStream(given_hz, wanted_hz, 1, "float32", "MQ") if given_hz != wanted_hz else None

    def push(self, samples: Samples, is_last: bool = False) -> Samples:
        """Take and return samples `(S,)`."""
        if self._stream is None:
            return samples
        resampled: Samples = self._stream.resample_chunk(samples.astype(np.float32, copy=False), is_last)
        return resampled


@cache
def levels(law: Law) -> Samples:
    """Return what each byte of G.711 stands for, 16-bit scale, shape `(256,)`."""
    code = np.arange(256)
    code = ~code & 0xFF if law == "audio/pcmu" else code ^ 0x55
    exponent, mantissa = (code & 0x70) >> 4, code & 0x0F
    if law == "audio/pcmu":
        size = (((mantissa << 3) + 0x84) << exponent) - 0x84
        is_negative = code >= 0x80
    else:
        size = np.where(exponent == 0, (mantissa << 4) + 8, ((mantissa << 4) + 0x108) << np.maximum(exponent - 1, 0))
        is_negative = code < 0x80
    return np.where(is_negative, -size, size).astype(np.float32)


@cache
def nearest(law: Law) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], Samples]:
    """Return the bytes of G.711 in the order of what they stand for, and the midpoints between those levels."""
    order = levels(law).argsort(kind="stable").astype(np.uint8)
    sorted_levels = levels(law)[order]
    midpoints: Samples = (sorted_levels[1:] + sorted_levels[:-1]) / np.float32(2)
    return order, midpoints
