"""Verification: of what was drafted, keep what the backbone would have written itself.

The rule is the report's (section 4.3): the longest agreed prefix is kept, the first token that disagrees is dropped
with everything after it, and decoding goes on from there. Rows of a batch accept as much as each of them can.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

NO_DRAFT = -1
"""Fills the rows that drafted fewer tokens than others: no backbone ever chooses it."""


@dataclass(frozen=True)
class Verified:
    """What one pass of the backbone settles."""

    tokens: Tensor
    """The backbone's own choices, shape `(B, K + 1)`; beyond the first mismatch they follow a rejected draft."""
    num_accepted: Tensor
    """Drafted tokens kept, 0..K, shape `(B,)`."""


def verify_draft(draft_tokens: Tensor, target_logits: Tensor) -> Verified:
    """Keep the longest drafted prefix that the backbone would have written itself.

    The drafts guess `K` tokens ahead; one pass of the backbone scores all of them at once. Reading from the left, a
    guess is kept while it equals the backbone's own choice, and the first mismatch is replaced by that choice. So
    row `b` advances by `num_accepted[b] + 1` tokens, and what it writes is token for token what greedy decoding writes
    one token at a time.

    Args:
        draft_tokens: Guessed ids, shape `(B, K)`; rows that guess less are filled up with `NO_DRAFT`.
        target_logits: The backbone's logits after the last settled token and after each guess, shape `(B, K + 1, V)`,
            already masked by the mode's decoding constraint.

    Returns:
        The settled tokens, of which row `b` uses the first `num_accepted[b] + 1`.

    Raises:
        ValueError: If the logits do not cover exactly one position more than the draft.
    """
    B, K = draft_tokens.shape
    if target_logits.shape[:2] != (B, K + 1):
        raise ValueError(
            f"verifying {K} drafted tokens needs logits of shape ({B}, {K + 1}, V), got {tuple(target_logits.shape)}"
        )
    tokens = target_logits.argmax(dim=-1)  # (B, K + 1)
    matches = draft_tokens == tokens[:, :-1]  # (B, K)
    # A running product stays 1 up to the first mismatch and is 0 from there on.
    num_accepted = matches.long().cumprod(dim=-1).sum(dim=-1)  # (B,)
    return Verified(tokens, num_accepted)


@dataclass
class PassCounts:
    """What the backbone's passes after the prompt brought to one completion."""

    num_passes: int = 0
    num_settled: int = 0
    """Tokens written in these passes, the end of the turn among them."""
    drafted: list[int] = field(default_factory=list)
    """Passes that verified a draft at depth 1, 2, ..."""
    accepted: list[int] = field(default_factory=list)
    """Of those, the ones that kept it, and so all before it."""

    @property
    def acceptance_length(self) -> float:
        """Tokens settled per pass; 1 without drafts."""
        return self.num_settled / max(self.num_passes, 1)

    def count(self, num_drafted: int, num_accepted: int, num_settled: int) -> None:
        """Count one pass."""
        self.num_passes += 1
        self.num_settled += num_settled
        missing = [0] * (num_drafted - len(self.drafted))
        self.drafted += missing
        self.accepted += missing
        for depth in range(num_drafted):
            self.drafted[depth] += 1
            self.accepted[depth] += depth < num_accepted
