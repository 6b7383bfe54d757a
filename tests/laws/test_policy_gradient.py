"""Law: nothing is learnt from no advantage, leaving the reference is what costs, and masks keep."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tristep.objectives.policy import (
    bradley_terry_loss,
    clipped_policy_loss,
    dpo_loss,
    generalised_advantages,
    group_advantages,
    kl_k1,
    kl_k3,
    kl_loss,
    penalised_rewards,
    token_logprobs,
    value_loss,
    whiten,
)

B, T, V = 3, 5, 7
SEEDS = st.integers(0, 10_000)
law = partial(settings, deadline=None, max_examples=25)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rollout(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits that learn, tokens, and a mask that keeps at least one."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(V, (B, T), generator=generator)
    loss_mask = torch.rand(B, T, generator=generator) < 0.7
    loss_mask[0, 0] = True
    return normal(seed, B, T, V).requires_grad_(), tokens, loss_mask


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss, of, retain_graph=True)
    return found


@law()
@given(seed=SEEDS, stale=st.floats(0, 2), clip_range=st.floats(0.05, 0.5))
def test_zero_advantage_is_zero_gradient(seed: int, stale: float, clip_range: float) -> None:
    logits, tokens, loss_mask = rollout(seed)
    logprobs = token_logprobs(logits, tokens)
    behaviour = logprobs.detach() + stale * normal(seed + 1, B, T)
    loss = clipped_policy_loss(logprobs, behaviour, torch.zeros(B, T), loss_mask, clip_range=clip_range)
    assert float(loss.detach()) == 0
    assert not gradient(loss, logits).any()


@law()
@given(seed=SEEDS, reward=st.floats(-100, 100), by_std=st.booleans())
def test_a_group_that_agrees_teaches_nothing(seed: int, reward: float, by_std: bool) -> None:
    advantages = group_advantages(torch.full((6,), reward), group_size=3, by_std=by_std)
    assert not advantages.any()


@law()
@given(seed=SEEDS)
def test_the_policy_is_at_no_distance_from_itself(seed: int) -> None:
    logits, tokens, loss_mask = rollout(seed)
    logprobs = token_logprobs(logits, tokens)
    loss = kl_loss(logprobs, logprobs.detach(), loss_mask)
    assert float(loss.detach()) == 0
    assert not kl_k1(logprobs, logprobs).any()
    assert gradient(loss, logits).abs().max() < 1e-7
    rewards = normal(seed, B, T)
    free = penalised_rewards(rewards, logprobs.detach(), logprobs.detach(), loss_mask, kl_coeff=3.0)
    assert torch.equal(free, rewards * loss_mask)


@law()
@given(seed=SEEDS)
def test_both_estimates_of_the_divergence_are_right_on_average(seed: int) -> None:
    logprobs, reference = (normal(seed + n, V).log_softmax(dim=-1) for n in range(2))
    probs = logprobs.exp()
    divergence = float((probs * (logprobs - reference)).sum())
    for estimate in (kl_k1(logprobs, reference), kl_k3(logprobs, reference)):
        assert float((probs * estimate).sum()) == pytest.approx(divergence, abs=1e-12)
    assert (kl_k3(logprobs, reference) >= 0).all()


@law()
@given(seed=SEEDS, beta=st.floats(0.01, 10))
def test_preference_at_equality_is_log_2_a_pair(seed: int, beta: float) -> None:
    chosen, rejected = normal(seed, B), normal(seed + 1, B)
    assert float(dpo_loss(chosen, rejected, chosen, rejected, beta=beta)) == pytest.approx(B * math.log(2))
    assert float(bradley_terry_loss(chosen, chosen)) == pytest.approx(B * math.log(2))


@law()
@given(seed=SEEDS)
def test_at_a_ratio_of_one_the_gradient_is_that_of_reinforce(seed: int) -> None:
    logits, tokens, loss_mask = rollout(seed)
    advantages = normal(seed + 2, B, T)
    logprobs = token_logprobs(logits, tokens)
    reinforce = -(advantages * logprobs)[loss_mask].sum()
    expected = gradient(reinforce, logits)
    logprobs = token_logprobs(logits, tokens)
    found = gradient(clipped_policy_loss(logprobs, logprobs.detach(), advantages, loss_mask), logits)
    torch.testing.assert_close(found, expected)


@law()
@given(seed=SEEDS, junk=st.sampled_from([math.nan, math.inf, -math.inf, 1e9]))
def test_what_the_mask_leaves_out_changes_no_loss_and_no_gradient(seed: int, junk: float) -> None:
    logits, tokens, loss_mask = rollout(seed)
    kept = token_logprobs(logits, tokens)
    rollout_logprobs, advantages = kept.detach() + 0.1 * normal(seed, B, T), normal(seed + 1, B, T)

    def losses(spoil: Tensor) -> list[Tensor]:
        def spoilt(values: Tensor) -> Tensor:
            return torch.where(spoil, junk, values)

        logprobs = spoilt(token_logprobs(logits, tokens))
        return [
            clipped_policy_loss(logprobs, spoilt(rollout_logprobs), spoilt(advantages), loss_mask),
            kl_loss(logprobs, spoilt(rollout_logprobs), loss_mask),
            value_loss(logprobs, spoilt(advantages), loss_mask, rollout_values=spoilt(rollout_logprobs)),
        ]

    clean = losses(torch.zeros_like(loss_mask))
    for loss, spoilt in zip(clean, losses(~loss_mask), strict=True):
        assert torch.equal(spoilt, loss)
        assert torch.equal(gradient(spoilt, logits), gradient(loss, logits))
    noisy = generalised_advantages(*(torch.where(loss_mask, x, junk) for x in (advantages, kept)), loss_mask)
    quiet = generalised_advantages(advantages, kept, loss_mask)
    assert torch.equal(noisy.advantages, quiet.advantages)
    assert torch.equal(whiten(torch.where(loss_mask, advantages, junk), loss_mask), whiten(advantages, loss_mask))


@law()
@given(seed=SEEDS, discount=st.floats(0, 1), gae_lambda=st.floats(0, 1), cut_off=st.booleans())
def test_advantages_are_the_discounted_sum_of_surprises(
    seed: int, discount: float, gae_lambda: float, cut_off: bool
) -> None:
    _, _, loss_mask = rollout(seed)
    rewards, values, last_values = normal(seed, B, T), normal(seed + 1, B, T), normal(seed + 2, B)
    found = generalised_advantages(
        rewards, values, loss_mask,
        discount=discount, gae_lambda=gae_lambda, last_values=last_values if cut_off else None,
    )  # fmt: skip
    for row in range(B):
        keep = loss_mask[row].nonzero().flatten().tolist()
        worth = [float(values[row, t]) for t in keep] + [float(last_values[row]) if cut_off else 0.0]
        for place, t in enumerate(keep):
            surprises = (
                (discount * gae_lambda) ** (n - place)
                * (float(rewards[row, keep[n]]) + discount * worth[n + 1] - worth[n])
                for n in range(place, len(keep))
            )
            assert float(found.advantages[row, t]) == pytest.approx(sum(surprises), abs=1e-9)
    assert not found.advantages[~loss_mask].any()


@law()
@given(seed=SEEDS, scale=st.floats(0.1, 10))
def test_group_advantages_know_neither_where_rewards_start_nor_their_unit(seed: int, scale: float) -> None:
    rewards = normal(seed, 8)
    torch.testing.assert_close(
        group_advantages(scale * rewards + 5, 4), group_advantages(rewards, 4), rtol=1e-5, atol=1e-5
    )
    centred = group_advantages(rewards, 4, by_std=False).view(-1, 4)
    torch.testing.assert_close(centred.sum(dim=1), torch.zeros(2, dtype=torch.float64))
