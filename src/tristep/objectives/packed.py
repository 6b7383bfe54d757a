"""Packed sequences whose audio slots are closed up once the adaptor has said which of its frames it shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tristep.backbone.audio_encoder import Adapted, valid


class Sequences(Protocol):
    """Packed sequences, each field of shape `(B, T)`."""

    @property
    def tokens(self) -> Tensor: ...

    @property
    def loss_mask(self) -> Tensor: ...

    @property
    def segments(self) -> Tensor: ...


@dataclass(frozen=True)
class Packed:
    """Packed sequences, each field of shape `(B, T)`."""

    tokens: Tensor
    loss_mask: Tensor
    """True where the token is a target; or a number that says which kind of target, 0 for none."""
    segments: Tensor
    """Which sequence of the row a token belongs to, -1 for padding."""


def without_unused_slots(batch: Sequences, adapted: Adapted, slot: int) -> Packed:
    """Take out the audio slots whose embeddings the adaptor does not show, and close the gaps.

    A batch is packed before the adaptor runs, with a slot for every frame; which frames are shown is known after.
    """
    kept = torch.ones_like(batch.tokens, dtype=torch.bool)
    inside = valid(adapted.num_embeddings, adapted.audio_embeddings.shape[1])
    kept[batch.tokens == slot] = adapted.shown[inside]
    lengths = kept.sum(dim=1)
    order = (~kept).long().argsort(dim=1, stable=True)[:, : int(lengths.max())]  # kept tokens first, in order
    used = valid(lengths, order.shape[1])
    tokens, loss_mask, segments = (field.gather(1, order) for field in (batch.tokens, batch.loss_mask, batch.segments))
    pad = tokens.new_tensor(0)
    return Packed(torch.where(used, tokens, pad), loss_mask * used, torch.where(used, segments, pad - 1))
