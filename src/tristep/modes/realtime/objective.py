"""Realtime, optimisation target: the likelihood of trace and answer, and of what is rehearsed beside them.

Progressive SFT (report section 6.1) trains by next-token prediction; preference comes after. A batch mixes exchanges
in sound, text-only exchanges and clips to be written down, so that what the model could do before is kept: every
target carries a label, is weighed by it and reported under it.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from tristep.backbone.model import Backbone
from tristep.modes.realtime.data import LABELS
from tristep.objectives.likelihood import shifted_targets
from tristep.objectives.packed import Packed, without_unused_slots


class RealtimeBatch(Protocol):
    """Packed samples and the sounds in them, in reading order."""

    @property
    def tokens(self) -> Tensor: ...

    @property
    def labels(self) -> Tensor: ...

    @property
    def segments(self) -> Tensor: ...

    @property
    def frames(self) -> Tensor: ...

    @property
    def num_frames(self) -> Tensor: ...


def realtime_losses(backbone: Backbone, batch: RealtimeBatch, **weights: float) -> dict[str, Tensor]:
    """Sum the cross-entropy of every target, each weighed by its label.

    Args:
        backbone: The model.
        batch: Packed samples.
        weights: Weight of a token of each label relative to 1.

    Returns:
        `loss` and `num_targets` as the training step wants them, and the sum of each label with its `_targets`.

    Raises:
        ValueError: If a weight is for something that is no label.
    """
    if unknown := sorted(set(weights) - set(LABELS)):
        raise ValueError(f"there is no target {unknown[0]!r} to weigh: expected some of {', '.join(LABELS)}")
    packed, audio_embeddings = heard(backbone, batch)
    hidden = backbone(packed.tokens, audio_embeddings, segments=packed.segments)
    predicting, targets = shifted_targets(packed.tokens, packed.loss_mask > 0, packed.segments)
    labels = packed.loss_mask.roll(-1, dims=1)[predicting]
    each = F.cross_entropy(backbone.logits(hidden[predicting]).float(), targets, reduction="none")
    losses: dict[str, Tensor] = {}
    total = each.new_zeros(())
    for number, label in enumerate(LABELS, start=1):
        losses[label] = each[labels == number].sum()
        losses[f"{label}_targets"] = (labels == number).sum()
        total = total + weights.get(label, 1.0) * losses[label]
    return {"loss": total, "num_targets": torch.tensor(len(targets), device=targets.device), **losses}


def heard(backbone: Backbone, batch: RealtimeBatch) -> tuple[Packed, Tensor | None]:
    """Hear a batch's sounds: its sequences without slots that stay empty, and what fills the others, `(N, D)`."""
    packed = Packed(batch.tokens, batch.labels, batch.segments)
    if not len(batch.frames):
        return packed, None
    adapted = backbone.adapt(batch.frames, batch.num_frames)
    return without_unused_slots(packed, adapted, backbone.vocab.control("audio_slot")), adapted.flat()
