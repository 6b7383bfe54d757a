"""TTS, optimisation target: the likelihood of control tokens and codes; preference comes after (report section 5.3).

Text in the answer is given, never predicted, so the output layer is computed over control tokens and codes only, and
only at the positions that predict one of them.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from tristep.backbone.model import Backbone
from tristep.modes.tts.data import IGNORED
from tristep.objectives.likelihood import next_token_loss


class TtsBatch(Protocol):
    """Packed utterances, each field of shape `(B, T)`."""

    @property
    def tokens(self) -> Tensor: ...

    @property
    def targets(self) -> Tensor: ...

    @property
    def segments(self) -> Tensor: ...


def tts_losses(backbone: Backbone, batch: TtsBatch) -> dict[str, Tensor]:
    """Sum the cross-entropy of what the assistant predicts, codes apart from control tokens.

    Returns:
        `loss` and `num_targets` as the training step wants them, and the parts `code` and `control` with their
        `_targets`: a control token says how to speak, or that a word is over.
    """
    hidden = backbone(batch.tokens, segments=batch.segments)
    predicting = batch.targets != IGNORED
    targets = batch.targets[predicting]
    logits = backbone.head.grown_logits(hidden[predicting])
    first_grown = len(backbone.head.weight)
    is_code = targets >= backbone.vocab.first_code
    losses: dict[str, Tensor] = {}
    for name, kept in (("code", is_code), ("control", ~is_code)):
        losses[name] = next_token_loss(logits[kept], targets[kept] - first_grown)
        losses[f"{name}_targets"] = kept.sum()
    return {"loss": losses["code"] + losses["control"], "num_targets": torch.tensor(len(targets)), **losses}
