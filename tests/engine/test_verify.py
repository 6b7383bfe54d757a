from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tristep.engine.verify import NO_DRAFT, PassCounts, verify_draft

TOKENS = st.integers(0, 3)


def choosing(tokens: list[list[int]]) -> Tensor:
    """Logits under which the backbone chooses these tokens."""
    return torch.nn.functional.one_hot(torch.tensor(tokens), 4).float()


def test_nothing_after_the_first_mismatch_is_kept() -> None:
    verified = verify_draft(torch.tensor([[1, 2, 3, 0]]), choosing([[1, 2, 0, 0, 1]]))
    assert verified.num_accepted.tolist() == [2]
    assert verified.tokens[0, :3].tolist() == [1, 2, 0]


def test_each_row_keeps_as_much_as_it_can() -> None:
    drafts = torch.tensor([[1, 1], [1, 1], [1, NO_DRAFT], [NO_DRAFT, NO_DRAFT]])
    verified = verify_draft(drafts, choosing([[1, 1, 3], [0, 1, 3], [1, 1, 3], [1, 1, 3]]))
    assert verified.num_accepted.tolist() == [2, 0, 1, 0]


def test_no_drafts_settle_one_token_a_row() -> None:
    verified = verify_draft(torch.empty(2, 0, dtype=torch.long), choosing([[3], [1]]))
    assert verified.num_accepted.tolist() == [0, 0]
    assert verified.tokens.tolist() == [[3], [1]]


@given(st.lists(st.tuples(TOKENS, TOKENS), max_size=8), TOKENS)
def test_what_is_kept_is_what_reading_from_the_left_keeps(pairs: list[tuple[int, int]], last: int) -> None:
    drafts, chosen = [pair[0] for pair in pairs], [pair[1] for pair in pairs] + [last]
    kept = 0
    while kept < len(pairs) and drafts[kept] == chosen[kept]:
        kept += 1
    drafted = torch.tensor([drafts], dtype=torch.long).view(1, len(drafts))
    assert verify_draft(drafted, choosing([chosen])).num_accepted.tolist() == [kept]


@pytest.mark.parametrize("num_positions", [2, 4])
def test_logits_that_do_not_fit_the_draft_are_refused(num_positions: int) -> None:
    with pytest.raises(ValueError, match=r"verifying 2 drafted tokens needs logits of shape \(1, 3, V\)"):
        verify_draft(torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, num_positions, 4))


def test_counts_are_cumulative_and_the_length_counts_the_backbones_own_token() -> None:
    counts = PassCounts()
    counts.count(3, 3, 4)
    counts.count(3, 1, 2)
    counts.count(0, 0, 1)
    assert (counts.drafted, counts.accepted) == ([2, 2, 2], [2, 1, 1])
    assert counts.acceptance_length == 7 / 3
    assert PassCounts().acceptance_length == 0
