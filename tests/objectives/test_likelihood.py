from __future__ import annotations

import math
from itertools import groupby, product

import pytest
import torch
from torch import Tensor

from tristep.objectives.likelihood import ctc_loss, next_token_loss, shifted_targets


def test_next_token_loss_is_the_sum_of_the_negative_log_probabilities() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [math.log(4), 0.0]])  # probabilities 1/4 3/4 and 4/5 1/5
    loss = next_token_loss(logits, torch.tensor([1, 1]))
    assert float(loss) == pytest.approx(math.log(4 / 3) + math.log(5))


def test_next_token_loss_is_computed_in_float32() -> None:
    logits = torch.randn(4, 7).bfloat16()
    loss = next_token_loss(logits, torch.tensor([1, 2, 3, 4]))
    assert loss.dtype == torch.float32
    assert torch.equal(loss, next_token_loss(logits.float(), torch.tensor([1, 2, 3, 4])))


def test_no_targets_are_no_loss_but_still_a_gradient() -> None:
    logits = torch.randn(0, 5, requires_grad=True)
    loss = next_token_loss(logits, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None


def test_a_position_predicts_the_counted_token_to_its_right() -> None:
    tokens = torch.tensor([[10, 11, 12, 13, 14]])
    loss_mask = torch.tensor([[False, False, True, False, True]])
    predicting, targets = shifted_targets(tokens, loss_mask, torch.zeros_like(tokens))
    assert predicting.tolist() == [[False, True, False, True, False]]
    assert targets.tolist() == [12, 14]


def test_a_sequence_never_predicts_into_the_one_packed_after_it() -> None:
    tokens = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    segments = torch.tensor([[0, 0, 1, 1], [0, 1, 1, -1]])
    predicting, targets = shifted_targets(tokens, segments >= 0, segments)
    assert predicting.tolist() == [[True, False, True, False], [False, True, False, False]]
    assert targets.tolist() == [2, 4, 7]


def collapsed(path: tuple[int, ...], blank: int) -> list[int]:
    return [index for index, _ in groupby(path) if index != blank]


def ctc_by_enumeration(logits: Tensor, targets: list[int]) -> float:
    """Sum the probability of every alignment of one clip, logits `(N, V + 1)`."""
    probs, blank = logits.double().softmax(dim=-1), logits.shape[-1] - 1
    paths = product(range(blank + 1), repeat=len(logits))
    total = sum(
        math.prod(float(probs[n, index]) for n, index in enumerate(path))
        for path in paths
        if collapsed(path, blank) == targets
    )
    return -math.log(total)


@pytest.mark.parametrize("targets", [[0], [1, 0], [1, 1], [0, 1, 0]])
def test_ctc_loss_is_the_sum_over_all_alignments(targets: list[int]) -> None:
    logits = torch.randn(1, 5, 3, generator=torch.Generator().manual_seed(len(targets)))
    loss = ctc_loss(logits, torch.tensor([5]), torch.tensor(targets), torch.tensor([len(targets)]))
    assert float(loss) == pytest.approx(ctc_by_enumeration(logits[0], targets), rel=1e-5)


def test_ctc_loss_sums_over_clips_and_ignores_frames_beyond_a_clip() -> None:
    logits = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    expected = ctc_by_enumeration(logits[0], [1]) + ctc_by_enumeration(logits[1, :3], [0, 1])
    arguments = (torch.tensor([4, 3]), torch.tensor([1, 0, 1]), torch.tensor([1, 2]))
    assert float(ctc_loss(logits, *arguments)) == pytest.approx(expected, rel=1e-5)
    logits[1, 3] = 99.0
    assert float(ctc_loss(logits, *arguments)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("targets", [[1, 1], [0, 1, 0], []])
def test_a_target_that_cannot_fit_or_is_empty_gives_neither_loss_nor_gradient(targets: list[int]) -> None:
    logits = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    nums = torch.tensor([len(targets), 1])
    loss = ctc_loss(logits, torch.tensor([2, 2]), torch.tensor([*targets, 0]), nums)
    assert float(loss.detach()) == pytest.approx(ctc_by_enumeration(logits.detach()[1], [0]), rel=1e-5)
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad[0].any()
    assert logits.grad[1].any()


def test_a_batch_without_any_ctc_target_is_a_loss_of_zero() -> None:
    logits = torch.randn(2, 3, 4, requires_grad=True)
    loss = ctc_loss(logits, torch.tensor([3, 2]), torch.zeros(0, dtype=torch.long), torch.tensor([0, 0]))
    loss.backward()
    assert float(loss.detach()) == 0
