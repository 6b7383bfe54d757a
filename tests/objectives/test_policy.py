from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tristep.objectives.policy import (
    bradley_terry_loss,
    clipped_policy_loss,
    clipped_share,
    dpo_loss,
    entropy,
    generalised_advantages,
    group_advantages,
    implicit_rewards,
    kl_loss,
    on_last_token,
    penalised_rewards,
    sequence_logprobs,
    token_logprobs,
    value_loss,
    whiten,
)

ALL = torch.ones(1, 2, dtype=torch.bool)
LOG2 = math.log(2)


def logs(*probs: float) -> Tensor:
    return torch.tensor([probs], dtype=torch.float64).log()


def test_logprobs_of_tokens_and_of_completions() -> None:
    logits = torch.tensor([[[0.0, math.log(3)], [math.log(4), 0.0]]])  # probabilities 1/4 3/4 and 4/5 1/5
    logprobs = token_logprobs(logits, torch.tensor([[1, 1]]))
    assert logprobs.tolist() == [pytest.approx([math.log(3 / 4), math.log(1 / 5)])]
    assert float(sequence_logprobs(logprobs, ALL)) == pytest.approx(math.log(3 / 20))
    assert float(sequence_logprobs(logprobs, torch.tensor([[False, True]]))) == pytest.approx(math.log(1 / 5))


def test_entropy_is_that_of_a_coin_and_forbidden_tokens_add_nothing() -> None:
    logits = torch.tensor([[[0.0, 0.0, -math.inf], [0.0, -math.inf, -math.inf]]], requires_grad=True)
    found = entropy(logits)
    assert found.tolist() == [pytest.approx([LOG2, 0.0])]
    found.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_the_last_kept_token_gets_the_reward() -> None:
    loss_mask = torch.tensor([[True, True, False], [False, True, True], [False, False, False]])
    found = on_last_token(torch.tensor([1.0, 2.0, 3.0]), loss_mask)
    assert found.tolist() == [[0, 1, 0], [0, 0, 2], [0, 0, 0]]


def test_leaving_the_reference_is_paid_for_token_by_token() -> None:
    policy, reference = logs(0.5, 0.25), logs(0.25, 0.5)
    found = penalised_rewards(torch.tensor([1.0]), policy, reference, ALL, kl_coeff=0.1)
    assert found.tolist() == [pytest.approx([-0.1 * LOG2, 1 + 0.1 * LOG2])]
    per_token = penalised_rewards(torch.tensor([[1.0, 1.0]]), policy, reference, ALL, kl_coeff=0.1)
    assert per_token.tolist() == [pytest.approx([1 - 0.1 * LOG2, 1 + 0.1 * LOG2])]
    # q / p is 1/2, then 2: (1/2 - 1 + log 2) + (2 - 1 - log 2)
    assert float(kl_loss(policy, reference, ALL)) == pytest.approx(0.5)


def test_advantages_by_hand() -> None:
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.25, 0.5]])
    keep = torch.ones(1, 3, dtype=torch.bool)
    found = generalised_advantages(rewards, values, keep, discount=0.5, gae_lambda=0.5)
    # surprises: 0.125 - 0.5, 0.25 - 0.25, 1 - 0.5
    assert found.advantages.tolist() == [[-0.375 + 0.25 * 0.125, 0.125, 0.5]]
    assert torch.equal(found.returns, found.advantages + values)
    whole = generalised_advantages(rewards, values, keep, gae_lambda=1.0)
    assert whole.returns.tolist() == [[1.0, 1.0, 1.0]]  # lambda 1: the rewards themselves


def test_a_completion_that_was_cut_off_is_worth_what_was_still_to_come() -> None:
    zeros, keep = torch.zeros(1, 2), torch.tensor([[True, False]])
    assert generalised_advantages(zeros, zeros, keep).returns.tolist() == [[0, 0]]
    cut = generalised_advantages(zeros, zeros, keep, last_values=torch.tensor([3.0]))
    assert cut.returns.tolist() == [[3.0, 0.0]]


def test_what_another_says_in_between_costs_no_time() -> None:
    keep = torch.tensor([[True, False, False, True]])
    rewards, values = torch.tensor([[0.0, 9.0, 9.0, 1.0]]), torch.tensor([[0.0, 7.0, 7.0, 0.0]])
    found = generalised_advantages(rewards, values, keep, discount=0.5, gae_lambda=1.0)
    assert found.advantages.tolist() == [[0.5, 0.0, 0.0, 1.0]]


def test_group_advantages_by_hand() -> None:
    rewards = torch.tensor([1.0, 3.0, 5.0, 5.0])
    assert group_advantages(rewards, 2).tolist() == pytest.approx([-1, 1, 0, 0])
    assert group_advantages(rewards, 4, by_std=False).tolist() == [-2.5, -0.5, 1.5, 1.5]


@pytest.mark.parametrize(("num", "group_size"), [(5, 2), (4, 1), (3, 4)])
def test_rollouts_that_are_no_whole_groups_are_refused(num: int, group_size: int) -> None:
    with pytest.raises(ValueError, match="no whole groups"):
        group_advantages(torch.zeros(num), group_size)


def test_whitened_values_have_variance_one_over_what_is_kept() -> None:
    values, keep = torch.tensor([[1.0, 99.0], [3.0, 5.0]]), torch.tensor([[True, False], [True, True]])
    white = whiten(values, keep)
    assert white[0, 1] == 0
    assert float(white[keep].mean()) == pytest.approx(0, abs=1e-6)
    assert float(white[keep].var(correction=0)) == pytest.approx(1)
    assert float(whiten(values, keep, centre=False)[0, 0]) == pytest.approx(math.sqrt(3 / 8))
    assert not whiten(values, torch.zeros_like(keep)).any()


@pytest.mark.parametrize(
    ("ratio", "advantage", "gain", "slope"),
    [
        (1.1, 2.0, 2.2, 2.2),  # inside: the ratio counts
        (1.5, 2.0, 2.4, 0.0),  # risen enough
        (0.5, 2.0, 1.0, 1.0),  # fallen though it was good: pulled back all the way
        (0.5, -2.0, -1.6, 0.0),  # fallen enough
        (1.5, -2.0, -3.0, -3.0),  # risen though it was bad
    ],
)
def test_a_token_is_pulled_until_it_has_moved_its_clip_range(
    ratio: float, advantage: float, gain: float, slope: float
) -> None:
    logprobs = logs(0.3 * ratio).requires_grad_()
    loss = clipped_policy_loss(logprobs, logs(0.3), torch.tensor([advantage]), torch.tensor([[True]]))
    assert -float(loss.detach()) == pytest.approx(gain)
    loss.backward()
    assert logprobs.grad is not None
    assert -float(logprobs.grad) == pytest.approx(slope)  # d gain / d log p = ratio times advantage


def test_rare_tokens_may_have_more_room_to_rise() -> None:
    arguments = logs(0.39), logs(0.3), torch.tensor([[1.0]]), torch.tensor([[True]])
    assert -float(clipped_policy_loss(*arguments, clip_range=0.2)) == pytest.approx(1.2)
    assert -float(clipped_policy_loss(*arguments, clip_range=0.2, clip_range_high=0.28)) == pytest.approx(1.28)


def test_the_share_of_stale_tokens_counts_both_sides() -> None:
    policy, behaviour = logs(0.3, 0.5, 0.1, 0.9), logs(0.3, 0.3, 0.2, 0.1)
    assert clipped_share(policy, behaviour, torch.tensor([[True, True, True, False]])) == pytest.approx(2 / 3)
    assert clipped_share(policy, behaviour, torch.zeros(1, 4, dtype=torch.bool)) == 0


def test_the_value_loss_by_hand() -> None:
    values, returns = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 2.0]])
    assert float(value_loss(values, returns, ALL)) == 2.0
    # From 0.5 the value may have moved to 0.7 only: (0.7 - 3)^2 is the larger error.
    clipped = value_loss(values, returns, ALL, rollout_values=torch.tensor([[0.5, 2.0]]))
    assert float(clipped) == pytest.approx(0.5 * 2.3**2)


def test_the_gradients_are_those_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(3)
    first, second, weights = (torch.randn(2, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    keep = torch.tensor([[True, True, False, True], [True, False, True, True]])
    moving = (first + 0.03).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: clipped_policy_loss(x, first, weights, keep), moving)
    assert torch.autograd.gradcheck(lambda x: value_loss(x, weights, keep, rollout_values=second), moving)
    assert torch.autograd.gradcheck(lambda x: kl_loss(x, second, keep), moving)
    assert torch.autograd.gradcheck(lambda x: dpo_loss(x[0], x[1], second[0], second[1], margins=0.3), moving)


def test_preference_losses_by_hand() -> None:
    better, worse = torch.tensor([math.log(3)]), torch.tensor([0.0])
    assert float(bradley_terry_loss(better, worse)) == pytest.approx(-math.log(3 / 4))
    assert float(bradley_terry_loss(better, worse, margins=math.log(3))) == pytest.approx(LOG2)
    zero = torch.zeros(1)
    assert float(dpo_loss(10 * better, worse, zero, zero, beta=0.1)) == pytest.approx(-math.log(3 / 4))
    assert float(implicit_rewards(better, zero, beta=0.5)) == pytest.approx(math.log(3) / 2)
