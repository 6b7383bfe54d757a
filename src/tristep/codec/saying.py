"""Codes that say the phones that were said.

The tokenizer hears, and mishears one code in twelve. Where a clip's phones are known (`tristep.corpus.phones`), each
code can be moved to the nearest one that says them: its phone dimensions change, its prosody stays. The flow decoder
and the backbone then learn from codes whose phones can be trusted, and speaking from text needs no others.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tristep.codec.tokenizer import Lattice
from tristep.config import TokenizerConfig
from tristep.phones import PHONES, SILENCE, UNLABELLED

DISTANCE_WEIGHT = 0.5
"""Nats that a code's squared distance from the one that was heard costs."""
SURE = 0.95
"""How probable the phone is that a frame is labelled with: labels err by a frame."""


class PhoneCells:
    """What the phone dimensions of a lattice say, as its reader has learnt it."""

    def __init__(self, levels: tuple[int, ...], num_phone_dims: int, logprobs: Tensor) -> None:
        """Take log-probabilities of the phones in each of a code's frames, shape `(cells, stride, P)`."""
        self.num_cells, self.stride = math.prod(levels[:num_phone_dims]), logprobs.shape[1]
        # Of a label, which is right nearly always.
        self.expected = SURE * logprobs.float() + (1 - SURE) * logprobs.float().mean(dim=-1, keepdim=True)
        points = Lattice(levels[:num_phone_dims]).points(torch.arange(self.num_cells))
        self.distances = torch.cdist(points, points).square()  # (cells, cells)

    def say(self, codes: Tensor, phones: Tensor) -> Tensor:
        """Move codes `(T,)` to the nearest that say phones.

        Args:
            codes: As the tokenizer heard them.
            phones: Indices into `PHONES` at 50 Hz, shape `(N,)`; codes with an `UNLABELLED` frame, or with none, stay.
        """
        labels = torch.full((self.stride * len(codes),), UNLABELLED)
        labels[: len(phones)] = phones[: len(labels)]
        frames = labels.view(len(codes), self.stride)  # (T, stride)
        known = (frames != UNLABELLED).all(dim=1)
        wanted = self.expected[:, torch.arange(self.stride), frames.clamp(min=0)].sum(dim=-1).T  # (T, cells)
        heard = codes % self.num_cells
        best = (wanted - DISTANCE_WEIGHT * self.distances[heard]).argmax(dim=-1)
        return torch.where(known, codes - heard + best, codes)

    @classmethod
    def load(cls, path: str | Path, config: TokenizerConfig) -> PhoneCells:
        """Read what a tokenizer's run wrote beside its weights.

        Raises:
            ValueError: If it is not there.
        """
        return cls(config.levels, config.num_phone_dims, load_cells(path))


def silent_codes(logprobs: Tensor, num_codes: int) -> Tensor:
    """Mark the codes that most likely say silence from end to end, shape `(K,)`.

    Args:
        logprobs: What cells say, shape `(cells, stride, P)`.
        num_codes: How many codes there are, `K`.
    """
    silent = (logprobs[..., PHONES.index(SILENCE)] > math.log(0.5)).all(dim=1)  # (cells,)
    return silent[torch.arange(num_codes) % len(silent)]


def load_cells(path: str | Path) -> Tensor:
    """Read what every combination of phone levels says: log-probabilities `(cells, stride, P)`, as `read_cells` found.

    Raises:
        ValueError: If the file is not there.
    """
    if not Path(path).is_file():
        raise ValueError(f"there is no {str(path)!r}: the tokenizer's run writes it beside its weights")
    return load_file(path)["logprobs"]


@torch.no_grad()
def read_cells(reader: nn.Module, levels: tuple[int, ...], stride: int) -> Tensor:
    """Ask what every combination of phone levels says: log-probabilities `(cells, stride, P)`.

    Args:
        reader: Reads phones from the phone dimensions of points `(B, D)`.
        levels: The levels of the phone dimensions.
        stride: Frames of 20 ms under one code.
    """
    lattice = Lattice(levels)
    logits: Tensor = reader(lattice.points(torch.arange(lattice.size)))
    return logits.view(lattice.size, stride, len(PHONES)).log_softmax(dim=-1)
