"""Phones: the sounds that words are made of, which the adaptor reads first and the codec's first dimensions say.

A clip's phones come with the times at which they end: a teacher voice knows its own, and for the rest they are found
by alignment (`python -m tristep.corpus.phones`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

PHONES = " abdefhijklmnopstuvwzæðŋɑɔəɚɛɜɡɪɹɾʃʊʌʒθ"  # noqa: RUF001
"""Silence, and the sounds of English as espeak-ng writes them, stress and length left out."""
SILENCE = PHONES[0]
UNLABELLED = -100
"""Stands where a frame's phone is not known."""
FRAME_S = 0.02
"""Seconds of one label."""
MIN_FRAMES = 2
"""A phone that is read in a single frame is the way from one to the next."""


def frame_phones(phones: Sequence[tuple[str, float]], num_frames: int) -> Tensor:
    """Label frames by the phone in their middle, shape `(num_frames,)`; what comes after the last one is silence.

    Args:
        phones: Symbols of `PHONES` and when each ends, in seconds; none if they are not known.
        num_frames: Frames of 20 ms.
    """
    if not phones:
        return torch.full((num_frames,), UNLABELLED)
    ends_s = torch.tensor([end_s for _, end_s in phones])
    labels = torch.tensor([PHONES.index(symbol) for symbol, _ in phones] + [PHONES.index(SILENCE)])
    middles_s = (torch.arange(num_frames) + 0.5) * FRAME_S
    return labels[torch.searchsorted(ends_s, middles_s, right=True)]


def read_phones(frames: Tensor) -> str:
    """Read what labels of frames `(N,)`, indices into `PHONES`, say: each phone once, and silence never."""
    runs = ((PHONES[phone], len(list(run))) for phone, run in groupby(frames.tolist()))
    return without_repeats("".join(phone for phone, num in runs if num >= MIN_FRAMES and phone != SILENCE))


def without_repeats(phones: str) -> str:
    """Write a phone that follows itself, as at the border of two words, once."""
    return "".join(phone for number, phone in enumerate(phones) if phone != phones[number - 1 : number])
