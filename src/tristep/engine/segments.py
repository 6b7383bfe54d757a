"""Voice activity: a stream of sound becomes segments that hold speech and fit the backbone's ear.

Silero's detector says for every 32 ms how likely it is that somebody speaks. A segment goes on through short
pauses, so that the model hears words in their context; it ends at a long pause, or, before it grows too long,
inside the clearest pause of its second half. Only what one segment needs is kept in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tristep.audio import LISTEN_HZ
from tristep.engine.voice_activity import FRAME_SIZE, VoiceActivity

MAX_SEGMENT_S = 28.0
"""Longest segment; with `MEL_TAIL_S` it stays under the encoder's 30 s."""
MAX_PAUSE_S = 2.0
"""A longer pause ends the segment."""
MARGIN_S = 0.2
"""Sound kept before the first and after the last word."""
MIN_SPEECH_S = 0.1
"""Less speech than this in a whole segment is a click."""
SPEECH_FROM, SPEECH_UNTIL = 0.5, 0.35
"""Speech begins above the first probability and lasts until it falls below the second (Silero's numbers)."""
PAUSE_S = 0.5
"""Width of the window whose mean probability says where to cut a segment that is too long."""


def num_frames(duration_s: float) -> int:
    """Count the detector's frames in a duration."""
    return round(duration_s * LISTEN_HZ / FRAME_SIZE)


MARGIN, MIN_SPEECH, PAUSE = num_frames(MARGIN_S), num_frames(MIN_SPEECH_S), num_frames(PAUSE_S) | 1


@dataclass(frozen=True)
class Stretch:
    """A stretch of sound in which somebody speaks."""

    start_s: float
    waveform: Tensor
    """Samples at `LISTEN_HZ`, shape `(S,)`."""

    @property
    def duration_s(self) -> float:
        """Length of the stretch."""
        return len(self.waveform) / LISTEN_HZ

    @property
    def end_s(self) -> float:
        """Where the stretch ends."""
        return self.start_s + self.duration_s


class Segmenter:
    """Cuts one sound, chunk by chunk, into stretches of speech."""

    def __init__(self, max_segment_s: float = MAX_SEGMENT_S, max_pause_s: float = MAX_PAUSE_S) -> None:
        self.max_frames, self.max_pause = num_frames(max_segment_s), num_frames(max_pause_s)
        self.settled_s = 0.0
        """No cut is made inside the speech before this time, unless at a long pause."""
        self.detector = VoiceActivity()
        self.num_samples = 0
        """Samples heard so far."""
        self.max_prob = 0.0
        """How sure the detector has been at most that somebody spoke."""
        self._rest = torch.zeros(0)
        self._frames: list[Tensor] = []
        self._probs: list[float] = []
        self._num_dropped = 0  # frames before the first one held

    def push(self, chunk: Tensor) -> Iterator[Stretch]:
        """Take the next samples, shape `(S,)`, and yield the stretches that they complete."""
        self.num_samples += len(chunk)
        joined = torch.cat([self._rest, chunk])
        whole = len(joined) // FRAME_SIZE * FRAME_SIZE
        self._rest = joined[whole:]
        frames = joined[:whole].view(-1, FRAME_SIZE)
        for frame, prob in zip(frames, self.detector(frames), strict=True):
            yield from self._step(frame, prob)

    def flush(self) -> Iterator[Stretch]:
        """Yield what the end of the sound completes."""
        if len(self._rest):
            padded = F.pad(self._rest, (0, FRAME_SIZE - len(self._rest)))
            yield from self._step(self._rest, *self.detector(padded[None]))
        yield from self._cut(len(self._frames))

    def _step(self, frame: Tensor, prob: float) -> Iterator[Stretch]:
        """Take one frame and decide whether a segment ends here."""
        self.max_prob = max(self.max_prob, prob)
        self._frames.append(frame)
        self._probs.append(prob)
        if max(self._probs[-self.max_pause :]) < SPEECH_UNTIL and len(self._probs) >= self.max_pause:
            yield from self._cut(len(self._frames) - MARGIN)
        elif len(self._frames) == self.max_frames:
            yield from self._cut(quietest(self._probs, num_frames(self.settled_s) - self._num_dropped))

    def _cut(self, end: int) -> Iterator[Stretch]:
        """Yield the speech before frame `end`, if there is any, and keep what comes after it."""
        if (speech := self._speech(end)) is not None:
            yield speech
        del self._frames[:end], self._probs[:end]
        self._num_dropped += end

    @property
    def unfinished(self) -> Stretch | None:
        """The speech that no segment holds yet, None if there is none."""
        return self._speech(len(self._frames))

    def _speech(self, end: int) -> Stretch | None:
        """Return the speech before frame `end` with a margin, None if there is none."""
        first, last = speech_bounds(self._probs[:end])
        if last - first < MIN_SPEECH:
            return None
        first, last = max(0, first - MARGIN), min(end, last + MARGIN)
        start_s = (self._num_dropped + first) * FRAME_SIZE / LISTEN_HZ
        return Stretch(start_s, torch.cat(self._frames[first:last]))


def speech_bounds(probs: list[float]) -> tuple[int, int]:
    """Return the first frame of speech and the one after the last; equal where nobody speaks."""
    first = next((index for index, prob in enumerate(probs) if prob >= SPEECH_FROM), len(probs))
    last = next((index for index in range(len(probs), first, -1) if probs[index - 1] >= SPEECH_UNTIL), first)
    return first, last


def quietest(probs: list[float], first: int = 0) -> int:
    """Return the frame in the second half around which speech is least likely, from `first` on, as the place to cut."""
    half = min(max(len(probs) // 2, first), len(probs) - PAUSE)
    means = F.avg_pool1d(torch.tensor(probs[half:])[None], PAUSE, stride=1)[0]
    return half + int(means.argmin()) + PAUSE // 2


def speech_segments(chunks: Iterable[Tensor]) -> Iterator[Stretch]:
    """Cut a stream of chunks `(S,)` at `LISTEN_HZ` into stretches of speech of at most `MAX_SEGMENT_S`."""
    segmenter = Segmenter()
    for chunk in chunks:
        yield from segmenter.push(chunk)
    yield from segmenter.flush()
