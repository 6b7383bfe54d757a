"""The judge, optimisation target: the likelihood of the reasons and of the level, the level weighing more.

A verdict has tens of tokens of reasons and one of level. With equal weights the level, which is what a reward is made
of, would be one target among sixty.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from tristep.backbone.model import Backbone
from tristep.objectives.likelihood import next_token_loss, shifted_targets


class JudgeBatch(Protocol):
    """Packed cases with their verdicts, each field but the last of shape `(B, T)`."""

    @property
    def tokens(self) -> Tensor: ...

    @property
    def loss_mask(self) -> Tensor: ...

    @property
    def segments(self) -> Tensor: ...

    @property
    def audio_embeddings(self) -> Tensor | None:
        """Vectors for the audio slots in reading order, shape `(N, D)`."""


def judge_losses(backbone: Backbone, batch: JudgeBatch, level_weight: float = 1.0) -> dict[str, Tensor]:
    """Sum the cross-entropy of what the assistant writes.

    Args:
        backbone: The model.
        batch: Packed cases.
        level_weight: What the level's cross-entropy counts, in tokens of the reasons.

    Returns:
        `loss` and `num_targets` as the training step wants them, and the parts `level` and `reason` with their
        `_targets`. The level is what follows `think_end`.
    """
    predicting, targets = shifted_targets(batch.tokens, batch.loss_mask, batch.segments)
    hidden = backbone(batch.tokens, batch.audio_embeddings, segments=batch.segments)
    logits = backbone.logits(hidden[predicting])
    is_level = batch.tokens[predicting] == backbone.vocab.control("think_end")
    losses: dict[str, Tensor] = {}
    for name, kept in (("level", is_level), ("reason", ~is_level)):
        losses[name] = next_token_loss(logits[kept], targets[kept])
        losses[f"{name}_targets"] = kept.sum()
    total = level_weight * losses["level"] + losses["reason"]
    return {"loss": total, "num_targets": torch.tensor(len(targets)), **losses}
