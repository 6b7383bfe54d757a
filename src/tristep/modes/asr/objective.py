"""ASR, optimisation target: the likelihood of the transcript and of the tokens ahead, and CTC on the way to it.

The report trains next-token prediction over the transcript (section 4.1), and the draft heads on the tokens after the
next (section 4.3). The CTC terms are ours and only for adaptors that have a CTC head.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from tristep.backbone.audio_encoder import Adapted
from tristep.backbone.model import Backbone
from tristep.backbone.transformer import MixtureOfExperts
from tristep.objectives.likelihood import ctc_loss, next_token_loss, shifted_targets
from tristep.objectives.packed import Packed, without_unused_slots


class AsrBatch(Protocol):
    """Packed transcripts and the sounds that they belong to, in reading order."""

    tokens: Tensor
    loss_mask: Tensor
    segments: Tensor
    frames: Tensor
    num_frames: Tensor
    ctc_targets: Tensor
    num_ctc_targets: Tensor
    letters: Tensor
    num_letters: Tensor


def asr_losses(
    backbone: Backbone,
    batch: AsrBatch,
    next_token: float = 1.0,
    ctc: float = 0.0,
    letters: float = 0.0,
    load: float = 0.0,
    drafts: float = 0.0,
    draft_decay: float = 0.9,
) -> dict[str, Tensor]:
    """Compute the weighted sum of losses over a batch, and its parts as sums over their own targets.

    Args:
        backbone: The model.
        batch: Packed samples.
        next_token: Weight of the transcript's cross-entropy per token; 0 does not run the decoder at all.
        ctc: Weight of a CTC target relative to that of a token of the transcript.
        letters: Weight of a letter under the adaptor's CTC over letters.
        load: Weight of the experts' auxiliary load loss.
        drafts: Weight of the draft heads' cross-entropies, themselves weighted to a sum of one.
        draft_decay: Weight of a draft head relative to that of the one before it.

    Returns:
        `loss` and `num_targets` as the training step wants them, and the parts `next_token`, `ctc` and `letters` with
        their `_targets`; for each draft head also `draft_1`, ..., and `accepted_1`, ...: how often it is right where
        all heads before it are.
    """
    if not next_token and not ctc:
        raise ValueError("both loss weights, next_token and ctc, are 0: give at least one of them a weight")
    adapted = backbone.adapt(batch.frames, batch.num_frames)
    losses: dict[str, Tensor] = {}
    total = adapted.audio_embeddings.new_zeros((), dtype=torch.float32)
    if ctc:
        if adapted.ctc_logits is None:
            raise ValueError("the loss asks for CTC but the adaptor has no CTC head: set ctc = 0 or kind = 'ctc'")
        losses["ctc"] = ctc_loss(adapted.ctc_logits, adapted.num_embeddings, batch.ctc_targets, batch.num_ctc_targets)
        losses["ctc_targets"] = batch.num_ctc_targets.sum()
        total = total + ctc * losses["ctc"]
    if letters:
        if adapted.letter_logits is None or adapted.num_letter_frames is None:
            raise ValueError("the loss asks for letters but the adaptor spells none: set letters = 0 or kind = 'ctc'")
        losses["letters"] = ctc_loss(adapted.letter_logits, adapted.num_letter_frames, batch.letters, batch.num_letters)
        losses["letters_targets"] = batch.num_letters.sum()
        total = total + letters * losses["letters"]
    if next_token:
        packed = without_unused_slots(batch, adapted, backbone.vocab.control("audio_slot"))
        predicting, targets = shifted_targets(packed.tokens, packed.loss_mask, packed.segments)
        hidden = backbone(packed.tokens, adapted.flat(), segments=packed.segments)
        # Only positions that predict something pay for the output layer.
        losses["next_token"] = next_token_loss(backbone.logits(hidden[predicting]), targets)
        losses["next_token_targets"] = torch.tensor(len(targets), device=targets.device)
        total = total + next_token * losses["next_token"] + load * expert_load(backbone) * len(targets)
        if drafts:
            branches = look_ahead(backbone, hidden, packed, adapted)
            losses |= draft_losses(backbone, branches, packed)
            for number, weight in enumerate(draft_weights(len(branches), draft_decay), start=1):
                total = total + drafts * weight * losses[f"draft_{number}"]
    counted = losses["next_token_targets"] if next_token else losses["ctc_targets"]
    return {"loss": total, "num_targets": counted, **losses}


def draft_weights(num_heads: int, decay: float = 0.9) -> list[float]:
    """Weigh the heads: each `decay` times the one before it, in all one (report section 4.3)."""
    total = sum(decay**depth for depth in range(num_heads))
    return [decay**depth / total for depth in range(num_heads)]


def look_ahead(backbone: Backbone, hidden: Tensor, packed: Packed, adapted: Adapted) -> list[Tensor]:
    """Run the draft heads, if there are any, over packed samples."""
    if backbone.draft_heads is None:
        raise ValueError("the loss asks for drafts but the model has no draft heads: set num_draft_heads or drafts = 0")
    return backbone.look_ahead(hidden, packed.tokens, adapted.flat(), packed.segments)


def draft_losses(backbone: Backbone, branches: list[Tensor], packed: Packed) -> dict[str, Tensor]:
    """Score what each draft head, whose hidden states are `(B, T, D)`, says about the tokens of the transcript.

    A head is asked only where the backbone writes too: at a position that predicts a token of the transcript, and of
    the same one as its own guess, `h` tokens further.
    """
    predicting, _ = shifted_targets(packed.tokens, packed.loss_mask, packed.segments)
    agreed = predicting.clone()
    losses: dict[str, Tensor] = {}
    for depth, branch in enumerate(branches, start=1):
        asked = predicting & ahead(predicting, depth) & (ahead(packed.segments, depth) == packed.segments)
        targets = ahead(packed.tokens, depth + 1)[asked]
        logits = backbone.logits(branch[asked])
        losses[f"draft_{depth}"] = next_token_loss(logits, targets)
        agreed[asked] &= logits.argmax(dim=-1) == targets
        losses[f"accepted_{depth}"] = agreed[asked].sum()
        losses[f"draft_{depth}_targets"] = losses[f"accepted_{depth}_targets"] = asked.sum()
    return losses


def ahead(field: Tensor, steps: int) -> Tensor:
    """Show at each position what lies `steps` after it, 0 or False beyond the end: `(B, T)` -> `(B, T)`."""
    return F.pad(field, (0, steps))[:, steps:]


def expert_load(backbone: Backbone) -> Tensor | float:
    """Average the auxiliary load loss over the decoder's mixture-of-experts layers; 0 for a dense decoder."""
    layers = [module for module in backbone.decoder.modules() if isinstance(module, MixtureOfExperts)]
    loads = [layer.load_loss for layer in layers if layer.load_loss is not None]
    return torch.stack(loads).mean() if loads else 0.0
