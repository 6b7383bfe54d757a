"""Likelihood objectives: the next token, and CTC over the adaptor's frames.

Both return sums over targets, not means: the training step divides by the number of targets in the whole step, so
that accumulated, packed and distributed batches all weigh every target alike.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum the cross-entropy of `logits` `(N, V)` against `targets` `(N,)`, in float32."""
    return F.cross_entropy(logits.float(), targets, reduction="sum")


def shifted_targets(tokens: Tensor, loss_mask: Tensor, segments: Tensor) -> tuple[Tensor, Tensor]:
    """Find the positions that predict a counted token, and those tokens.

    A position predicts its right neighbour, if that neighbour counts and belongs to the same packed sequence.

    Args:
        tokens: Shape `(B, T)`.
        loss_mask: True where the token itself is a target, shape `(B, T)`.
        segments: Packed sequence of each token, shape `(B, T)`.

    Returns:
        A mask of predicting positions `(B, T)`, whose last column is False, and their targets `(N,)`.
    """
    counts = loss_mask[:, 1:] & (segments[:, 1:] == segments[:, :-1])
    return F.pad(counts, (0, 1)), tokens[:, 1:][counts]


def ctc_loss(logits: Tensor, num_frames: Tensor, targets: Tensor, num_targets: Tensor) -> Tensor:
    """Sum the CTC loss (Graves et al. 2006) over clips, in float32; the last class is blank.

    A clip whose target cannot fit its frames counts as zero, as does one without targets.

    Args:
        logits: Shape `(B, N, V + 1)`.
        num_frames: Valid frames per clip, shape `(B,)`.
        targets: All clips' targets one after the other, shape `(sum(num_targets),)`.
        num_targets: Targets per clip, shape `(B,)`.
    """
    logprobs = logits.float().log_softmax(dim=-1).transpose(0, 1)  # (N, B, V + 1)
    blank = logits.shape[-1] - 1
    losses = F.ctc_loss(logprobs, targets, num_frames, num_targets, blank=blank, reduction="none", zero_infinity=True)
    return losses[num_targets > 0].sum()
