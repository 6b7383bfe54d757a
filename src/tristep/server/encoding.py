"""Speech on its way out: volume and rate by FFmpeg's filters, and the six formats that OpenAI knows.

Each container is written as it comes, never rewound, and says in its tags that a machine spoke, unless told not to.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

import av
import numpy as np

from tristep.mark import SYNTHETIC


@dataclass(frozen=True)
class Format:
    """How one format is written."""

    media_type: str
    container: str
    codec: str
    options: tuple[tuple[str, str], ...] = ()
    rates_hz: tuple[int, ...] = (8000, 16000, 22050, 24000, 48000)


FORMATS = {
    "wav": Format("audio/wav", "wav", "pcm_s16le"),
    "flac": Format("audio/flac", "flac", "flac"),
    "mp3": Format("audio/mpeg", "mp3", "libmp3lame", (("write_xing", "0"),)),
    "opus": Format("audio/opus", "ogg", "libopus", (("page_duration", "20000"),), (8000, 16000, 24000, 48000)),
    "aac": Format("audio/aac", "adts", "aac", (("write_id3v2", "1"),)),
    "pcm": Format("audio/pcm", "s16le", "pcm_s16le"),
}


@dataclass(frozen=True)
class Delivery:
    """What a client wants to be handed."""

    format: str = "mp3"
    sample_rate: int = 24_000
    volume: float = 1.0
    is_tagged: bool = True
    """Whether it says in its tags that a machine spoke."""

    def __post_init__(self) -> None:
        if self.sample_rate not in FORMATS[self.format].rates_hz:
            rates = ", ".join(map(str, FORMATS[self.format].rates_hz))
            raise ValueError(f"sample_rate is {self.sample_rate}: {self.format} takes {rates}")


class Outbox:
    """What a muxer has written and nobody has taken yet; it can't be rewound."""

    def __init__(self) -> None:
        self.held = bytearray()

    def write(self, data: bytes) -> int:
        """Take the muxer's bytes."""
        self.held += data
        return len(data)

    def take(self) -> bytes:
        """Give what there is."""
        taken = bytes(self.held)
        self.held.clear()
        return taken


class Encoder:
    """Turns a waveform into a file, chunk by chunk; the bytes joined are one file."""

    def __init__(self, delivery: Delivery, sample_rate: int) -> None:
        """Open a file.

        Args:
            delivery: What it is to be.
            sample_rate: Of the chunks that are pushed, Hz.
        """
        kind = FORMATS[delivery.format]
        self._outbox = Outbox()
        options = {"flush_packets": "1", **dict(kind.options)}
        self._container = av.open(self._outbox, "w", format=kind.container, options=options)
        if delivery.is_tagged:
            self._container.metadata["comment"] = SYNTHETIC
        self._stream: Any = self._container.add_stream(kind.codec, rate=delivery.sample_rate, layout="mono")
        self._stream.codec_context.open()
        self._graph = filters(delivery, sample_rate, self._stream.codec_context)
        self._sample_rate, self._num_samples = sample_rate, 0

    def push(self, samples: np.ndarray[Any, np.dtype[np.float32]]) -> bytes:
        """Take the next samples `(S,)` in [-1, 1] and return the bytes that are ready."""
        frame = av.AudioFrame.from_ndarray(samples[None].clip(-1, 1), "flt", "mono")
        frame.sample_rate, frame.pts = self._sample_rate, self._num_samples
        frame.time_base = Fraction(1, self._sample_rate)
        self._num_samples += len(samples)
        self._graph.push(frame)
        self._mux()
        return self._outbox.take()

    def finish(self) -> bytes:
        """Return the end of the file."""
        self._graph.push(None)
        self._mux()
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._outbox.take()

    def _mux(self) -> None:
        while True:
            try:
                frame = self._graph.pull()
            except (BlockingIOError, EOFError):
                return
            self._container.mux(self._stream.encode(frame))


def filters(delivery: Delivery, sample_rate: int, codec: Any) -> Any:
    """Build the way from the engine's samples to what the codec takes."""
    graph = av.filter.Graph()
    tick = Fraction(1, sample_rate)
    nodes = [graph.add_abuffer(sample_rate=sample_rate, format="flt", layout="mono", time_base=tick)]
    if delivery.volume != 1:
        nodes.append(graph.add("volume", str(delivery.volume)))
    nodes.append(graph.add("aresample", str(delivery.sample_rate)))
    nodes.append(graph.add("aformat", f"sample_fmts={codec.format.name}:channel_layouts=mono"))
    if codec.frame_size:
        nodes.append(graph.add("asetnsamples", f"n={codec.frame_size}:p=0"))
    nodes.append(graph.add("abuffersink"))
    for node, following in pairwise(nodes):
        node.link_to(following)
    graph.configure()
    return graph
