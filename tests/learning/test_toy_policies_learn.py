"""Toy policies learn from rewards and preferences: seeded, in seconds, past stated bounds.

A prompt is a number; the completion that it asks for counts up from it, modulo `V`. The policy is a table of logits
by prompt, place and token, so that what is tested is the objective and nothing else.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tristep.objectives.policy import (
    bradley_terry_loss,
    clipped_policy_loss,
    dpo_loss,
    generalised_advantages,
    group_advantages,
    kl_k3,
    kl_loss,
    penalised_rewards,
    sequence_logprobs,
    token_logprobs,
    value_loss,
    whiten,
)

P, T, V, G = 4, 3, 6, 16
"""Prompts, tokens of a completion, vocabulary, rollouts per prompt."""
PROMPTS = torch.arange(P).repeat_interleave(G)
KEEP = torch.ones(P * G, T, dtype=torch.bool)


def asked_for(prompts: Tensor) -> Tensor:
    return (prompts[:, None] + torch.arange(T)) % V  # (B, T)


def sampled(policy: Tensor, prompts: Tensor) -> Tensor:
    probs = policy.detach()[prompts].softmax(dim=-1)  # (B, T, V)
    return torch.multinomial(probs.view(-1, V), 1).view(-1, T)


def reward(prompts: Tensor, tokens: Tensor) -> Tensor:
    return (tokens == asked_for(prompts)).float().mean(dim=1)


def mean_reward(policy: Tensor) -> float:
    """The expected reward, over all completions."""
    probs = policy.detach().softmax(dim=-1)
    return float(probs.gather(2, asked_for(torch.arange(P))[..., None]).mean())


def divergence(policy: Tensor, reference: Tensor) -> float:
    """Nats a token, from the reference, over all tokens."""
    logprobs, others = policy.detach().log_softmax(dim=-1), reference.log_softmax(dim=-1)
    return float((logprobs.exp() * kl_k3(logprobs, others)).sum(dim=-1).mean())


def learn_by_ppo(kl_coeff: float) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    reference = 0.1 * torch.randn(P, T, V)
    policy, critic = reference.clone().requires_grad_(), torch.zeros(P, T, requires_grad=True)
    optimiser = torch.optim.Adam([{"params": [policy], "lr": 0.1}, {"params": [critic], "lr": 0.1}])
    warm_up = 5
    for update in range(40):
        tokens = sampled(policy, PROMPTS)
        with torch.no_grad():
            behaviour = token_logprobs(policy[PROMPTS], tokens)
            original = token_logprobs(reference[PROMPTS], tokens)
            rewards = penalised_rewards(reward(PROMPTS, tokens), behaviour, original, KEEP, kl_coeff)
            found = generalised_advantages(rewards, critic[PROMPTS], KEEP)
            advantages = whiten(found.advantages, KEEP)
        for _ in range(2):
            loss = value_loss(critic[PROMPTS], found.returns, KEEP)
            if update >= warm_up:
                logprobs = token_logprobs(policy[PROMPTS], tokens)
                loss = loss + clipped_policy_loss(logprobs, behaviour, advantages, KEEP)
            optimiser.zero_grad()
            (loss / KEEP.sum()).backward()
            optimiser.step()
    return policy, reference


def test_ppo_raises_its_reward() -> None:
    policy, reference = learn_by_ppo(kl_coeff=0.0)
    assert mean_reward(reference) < 0.25
    assert mean_reward(policy) > 0.9


def test_a_dearer_divergence_keeps_ppo_nearer_to_the_reference() -> None:
    free, reference = learn_by_ppo(kl_coeff=0.0)
    held, _ = learn_by_ppo(kl_coeff=0.2)
    assert mean_reward(held) > 0.4
    assert divergence(held, reference) < 0.6 * divergence(free, reference)


@pytest.mark.parametrize("by_std", [True, False])
def test_grpo_raises_its_reward_without_a_critic(by_std: bool) -> None:
    torch.manual_seed(1)
    reference = 0.1 * torch.randn(P, T, V)
    policy = reference.clone().requires_grad_()
    optimiser = torch.optim.Adam([policy], lr=0.1)
    for _ in range(40):
        tokens = sampled(policy, PROMPTS)
        behaviour = token_logprobs(policy[PROMPTS], tokens).detach()
        advantages = group_advantages(reward(PROMPTS, tokens), G, by_std=by_std)
        for _ in range(2):
            logprobs = token_logprobs(policy[PROMPTS], tokens)
            loss = clipped_policy_loss(logprobs, behaviour, advantages, KEEP)
            loss = loss + 0.01 * kl_loss(logprobs, token_logprobs(reference[PROMPTS], tokens), KEEP)
            optimiser.zero_grad()
            (loss / KEEP.sum()).backward()
            optimiser.step()
    assert mean_reward(reference) < 0.25
    assert mean_reward(policy) > 0.85


def test_dpo_learns_to_write_what_was_chosen() -> None:
    torch.manual_seed(2)
    reference = 0.1 * torch.randn(P, T, V)
    first, second = sampled(reference, PROMPTS), sampled(reference, PROMPTS)
    better = reward(PROMPTS, first) - reward(PROMPTS, second)
    pairs = better != 0
    prompts, wins = PROMPTS[pairs], (better > 0)[pairs, None]
    chosen, rejected = (torch.where(wins, a[pairs], b[pairs]) for a, b in ((first, second), (second, first)))
    policy = reference.clone().requires_grad_()

    def whole(logits: Tensor, tokens: Tensor) -> Tensor:
        return sequence_logprobs(token_logprobs(logits[prompts], tokens), torch.ones_like(tokens, dtype=torch.bool))

    optimiser = torch.optim.Adam([policy], lr=0.05)
    for _ in range(60):
        loss = dpo_loss(
            whole(policy, chosen), whole(policy, rejected), whole(reference, chosen), whole(reference, rejected)
        )
        optimiser.zero_grad()
        (loss / len(prompts)).backward()
        optimiser.step()
    assert mean_reward(policy) > 2 * mean_reward(reference)
    with torch.no_grad():
        gained = whole(policy, chosen) - whole(reference, chosen) > whole(policy, rejected) - whole(reference, rejected)
    assert gained.float().mean() > 0.95


@pytest.mark.parametrize("with_margins", [False, True])
def test_a_linear_reward_model_learns_to_rank_pairs_that_it_has_not_seen(with_margins: bool) -> None:
    torch.manual_seed(3)
    truth = torch.randn(8)
    first, second = torch.randn(2, 400, 8)
    gap = (first - second) @ truth
    wins = (gap + torch.randn(400) > 0)[:, None]  # raters err where the two are near
    chosen, rejected = torch.where(wins, first, second), torch.where(wins, second, first)
    weights = torch.zeros(8, requires_grad=True)
    optimiser = torch.optim.Adam([weights], lr=0.1)
    margins = 0.2 * gap[:300].abs() if with_margins else 0.0
    for _ in range(50):
        loss = bradley_terry_loss(chosen[:300] @ weights, rejected[:300] @ weights, margins)
        optimiser.zero_grad()
        (loss / 300).backward()
        optimiser.step()
    held_out = ((first - second)[300:] @ weights.detach() > 0) == (gap[300:] > 0)
    assert held_out.float().mean() > 0.9
    assert torch.cosine_similarity(weights.detach(), truth, dim=0) > 0.95
