"""Listening: sources of any kind are read piece by piece, and cut into the speech that they hold."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from tristep.audio import LISTEN_HZ, AudioError, stream_audio
from tristep.engine.segments import Segmenter, Stretch
from tristep.engine.transcription import Segment, Transcription, joined

Source = str | Path | bytes | Tensor
"""A path, the bytes of a file, or a waveform at `LISTEN_HZ` of shape `(S,)`."""
OnProgress = Callable[[float], None]
"""Is told how many more seconds of sound have been dealt with."""

CHUNK_S = 10.0


@dataclass
class Hearing:
    """One source on its way through the engine: it fills as segments are found and decoded."""

    segments: dict[int, Segment] = field(default_factory=dict)
    """Decoded segments by their number."""
    num_segments: int = 0
    duration_s: float = 0.0
    silence: float = 1.0
    """How sure the detector is that nobody speaks."""
    error: AudioError | None = None
    is_read: bool = False

    @property
    def is_done(self) -> bool:
        """Whether nothing is missing."""
        return self.is_read and len(self.segments) == self.num_segments

    def next_number(self) -> int:
        """Count a segment and return its number."""
        self.num_segments += 1
        return self.num_segments - 1

    def result(self) -> Transcription | AudioError:
        """Return what was said, or why it can't be known."""
        segments = [self.segments[number] for number in range(self.num_segments)]
        return self.error or joined(segments, self.duration_s, self.silence)


Entry = tuple[Hearing, int, Stretch]
"""A stretch of speech, whose it is, and which of its source's."""


def listen(sources: Iterable[Source], hearings: deque[Hearing], on_progress: OnProgress) -> Iterator[Entry]:
    """Yield the speech of every source in turn; each appends its `Hearing`, which fills as it is read."""
    for source in sources:
        hearing = Hearing()
        hearings.append(hearing)
        segmenter = Segmenter()
        try:
            for chunk in chunks(source):
                for speech in segmenter.push(chunk):
                    yield hearing, hearing.next_number(), speech
                on_progress(len(chunk) / LISTEN_HZ)
            for speech in segmenter.flush():
                yield hearing, hearing.next_number(), speech
        except AudioError as error:
            hearing.error = error
        hearing.duration_s = segmenter.num_samples / LISTEN_HZ
        hearing.silence = 1 - segmenter.max_prob
        hearing.is_read = True


def chunks(source: Source) -> Iterator[Tensor]:
    """Read a source piece by piece."""
    if not isinstance(source, Tensor):
        yield from stream_audio(source, CHUNK_S)
        return
    if source.dim() != 1 or not source.is_floating_point() or not source.isfinite().all():
        raise AudioError(
            f"the waveform has shape {tuple(source.shape)} and type {source.dtype}: expected finite floats "
            f"in [-1, 1] at {LISTEN_HZ} Hz, of shape (S,); mix channels down, and resample it"
        )
    yield from torch.split(source.detach().to("cpu", torch.float32), round(CHUNK_S * LISTEN_HZ))
