"""Policy objectives: learning from rewards (PPO, GRPO) and from preference pairs (DPO, Bradley-Terry).

Shapes are those of rollouts: `B` completions of `T` tokens, of which `loss_mask` keeps what the policy itself wrote;
prompts, padding and the turns of others are never counted. As in `likelihood`, every loss is a sum over what counts,
tokens or pairs, and the training step divides. Log-probabilities are in nats.

The reports that this follows name PPO with a KL penalty and a warmed-up critic (StepAudio 2.5 sections 5.3 and 6.3,
EditX's settings), but no equations: those here are of the papers cited at each function. Warming up the critic is a
matter of the loop, which leaves `clipped_policy_loss` out of its first steps.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-8
"""Keeps a variance of zero from dividing."""


class Advantages(NamedTuple):
    """How much better than expected each token was, and what the critic should have expected."""

    advantages: Tensor
    """Shape `(B, T)`, zero where `loss_mask` is False."""
    returns: Tensor
    """Shape `(B, T)`, the values' targets; zero where `loss_mask` is False."""


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the log-probability of each token `(B, T)` under its logits `(B, T, V)`, in float32."""
    return logits.float().log_softmax(dim=-1).gather(-1, tokens[..., None]).squeeze(-1)


def sequence_logprobs(logprobs: Tensor, loss_mask: Tensor) -> Tensor:
    """Sum the log-probabilities `(B, T)` of the kept tokens of each completion, shape `(B,)`."""
    return _kept(logprobs, loss_mask).sum(dim=-1)


def entropy(logits: Tensor) -> Tensor:
    """`H = -sum_v p_v log p_v` of each position, shape `(B, T)`, from logits `(B, T, V)`."""
    logprobs = logits.float().log_softmax(dim=-1)
    # A forbidden token has logprob -inf and adds nothing.
    return -(logprobs.exp() * logprobs.masked_fill(logprobs == -torch.inf, 0.0)).sum(dim=-1)


def kl_k1(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """`k1 = log p - log q`: unbiased for `KL(p || q)` on tokens sampled from `p`, but of either sign.

    Schulman, "Approximating KL Divergence" (2020). This is the one to subtract from rewards.
    """
    return logprobs - reference_logprobs


def kl_k3(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """`k3 = q/p - 1 - log(q/p)`: unbiased, never negative, and of low variance near `p = q`.

    Schulman (2020); GRPO's penalty, equation 4 of Shao et al. 2024 (DeepSeekMath). This is the one to add to a loss.
    """
    log_ratio = reference_logprobs - logprobs
    return log_ratio.expm1() - log_ratio


def kl_loss(logprobs: Tensor, reference_logprobs: Tensor, loss_mask: Tensor) -> Tensor:
    """Sum `kl_k3` over the kept tokens; the caller weighs it by `kl_coeff`."""
    return kl_k3(_kept(logprobs, loss_mask), _kept(reference_logprobs, loss_mask)).sum()


def on_last_token(rewards: Tensor, loss_mask: Tensor) -> Tensor:
    """Give the reward of each completion `(B,)` to the last token that it keeps, shape `(B, T)`."""
    last = loss_mask & (loss_mask.flip(-1).cumsum(-1).flip(-1) == 1)
    return rewards[:, None] * last


def penalised_rewards(
    rewards: Tensor, rollout_logprobs: Tensor, reference_logprobs: Tensor, loss_mask: Tensor, kl_coeff: float
) -> Tensor:
    """`r_t - kl_coeff (log p_t - log q_t)`: every token pays for leaving the reference.

    Equation 2 of Ouyang et al. 2022 (InstructGPT), which is equation 2 of Ziegler et al. 2019 spread over tokens.

    Args:
        rewards: Rewards of completions `(B,)`, given to their last token, or of tokens `(B, T)`.
        rollout_logprobs: Under the policy that wrote the tokens, shape `(B, T)`.
        reference_logprobs: Under the frozen reference, shape `(B, T)`.
        loss_mask: True where the policy wrote the token, shape `(B, T)`.
        kl_coeff: Reward that a nat of divergence costs.

    Returns:
        The reward of each token, shape `(B, T)`.
    """
    per_token = on_last_token(rewards, loss_mask) if rewards.dim() == 1 else rewards
    return _kept(per_token - kl_coeff * kl_k1(rollout_logprobs, reference_logprobs), loss_mask)


def generalised_advantages(
    rewards: Tensor,
    values: Tensor,
    loss_mask: Tensor,
    *,
    discount: float = 1.0,
    gae_lambda: float = 0.95,
    last_values: Tensor | None = None,
) -> Advantages:
    """`A_t = delta_t + discount lambda A_(t+1)`, with `delta_t = r_t + discount V_(t+1) - V_t`.

    Equations 11, 12 and 16 of Schulman et al. 2016 (GAE). The next step of a kept token is the next kept token of its
    row, so what somebody else says in between costs no time. Values are constants here: no gradient flows into them.

    Args:
        rewards: Shape `(B, T)`.
        values: What the critic expected from each token on, shape `(B, T)`.
        loss_mask: True where the policy wrote the token, shape `(B, T)`.
        discount: Worth of a reward one token later.
        gae_lambda: 0 trusts the critic's next value, 1 the rewards to the end.
        last_values: What was to be expected after the last token, shape `(B,)`: for completions that were cut off.
            Zero if not given: they ended.

    Returns:
        The advantages, and the returns `A_t + V_t`.
    """
    values = values.detach()
    advantages = torch.zeros_like(values)
    advantage = torch.zeros_like(values[:, 0])
    next_value = advantage if last_values is None else last_values
    for t in range(values.shape[1] - 1, -1, -1):
        keep = loss_mask[:, t]
        delta = rewards[:, t] + discount * next_value - values[:, t]
        advantage = torch.where(keep, delta + discount * gae_lambda * advantage, advantage)
        next_value = torch.where(keep, values[:, t], next_value)
        advantages[:, t] = advantage
    return Advantages(_kept(advantages, loss_mask), _kept(advantages + values, loss_mask))


def group_advantages(rewards: Tensor, group_size: int, *, by_std: bool = True) -> Tensor:
    """`A_i = (r_i - mean(r)) / std(r)` within each group: the other rollouts of a prompt are the critic.

    Section 4.1.2 of Shao et al. 2024 (GRPO). Without the division a prompt weighs as much as its rewards differ, and
    prompts that are nearly solved, or nearly hopeless, are not blown up (Liu et al. 2025, Dr. GRPO). A group whose
    rewards are all the same teaches nothing, and gets exactly zero.

    Args:
        rewards: One for each rollout, the rollouts of a prompt next to each other, shape `(N * G,)`.
        group_size: Rollouts per prompt, G.
        by_std: Whether to divide by the group's standard deviation.

    Raises:
        ValueError: If the rollouts are not whole groups of at least two.
    """
    if group_size < 2 or len(rewards) % group_size:
        raise ValueError(f"{len(rewards)} rewards are no whole groups of {group_size}: give every prompt two or more")
    groups = rewards.view(-1, group_size)
    advantages = groups - groups.mean(dim=1, keepdim=True)
    if by_std:
        advantages = advantages / (groups.std(dim=1, keepdim=True, correction=0) + EPSILON)
    differs = groups.amax(dim=1, keepdim=True) > groups.amin(dim=1, keepdim=True)
    return (advantages * differs).flatten()


def whiten(values: Tensor, loss_mask: Tensor, *, centre: bool = True) -> Tensor:
    """Scale kept values to variance 1, and to mean 0 unless `centre` is False; what is not kept becomes 0.

    Rewards are scaled but not centred, which would change what is worth going on for; advantages are both.
    """
    kept = values[loss_mask]
    if not len(kept):
        return torch.zeros_like(values)
    shift = kept.mean() if centre else 0.0
    return _kept((values - shift) * (kept.var(correction=0) + EPSILON).rsqrt(), loss_mask)


def clipped_policy_loss(
    logprobs: Tensor,
    rollout_logprobs: Tensor,
    advantages: Tensor,
    loss_mask: Tensor,
    *,
    clip_range: float = 0.2,
    clip_range_high: float | None = None,
) -> Tensor:
    """`-sum_t min(ratio_t A_t, clip(ratio_t, 1 - clip_range, 1 + clip_range) A_t)`, `ratio_t = p_t / p_rollout_t`.

    Equation 7 of Schulman et al. 2017 (PPO): a token that has moved its clip range in its advantage's direction is
    pulled no further. At a ratio of 1 the gradient is that of REINFORCE, `-A_t grad log p_t`.

    Args:
        logprobs: Under the policy that learns, shape `(B, T)`; gradients flow into these only.
        rollout_logprobs: Under the policy that wrote the tokens, shape `(B, T)`.
        advantages: Of each token `(B, T)`, or of each completion `(B,)`.
        loss_mask: True where the policy wrote the token, shape `(B, T)`.
        clip_range: How far below 1 a ratio counts, and above it too if nothing else is said.
        clip_range_high: How far above 1 (Yu et al. 2025, DAPO: more room for rare tokens to rise).
    """
    weights = (advantages if advantages.dim() == 2 else advantages[:, None]).detach()
    ratio = (_kept(logprobs, loss_mask) - _kept(rollout_logprobs, loss_mask)).exp()
    high = clip_range if clip_range_high is None else clip_range_high
    gain = torch.minimum(ratio * weights, ratio.clamp(1 - clip_range, 1 + high) * weights)
    return -_kept(gain, loss_mask).sum()


def clipped_share(logprobs: Tensor, rollout_logprobs: Tensor, loss_mask: Tensor, clip_range: float = 0.2) -> float:
    """Return the share of kept tokens whose ratio is outside the clip range: how stale the rollouts are."""
    ratio = (logprobs - rollout_logprobs)[loss_mask].exp()
    return float(((ratio - 1).abs() > clip_range).float().mean()) if len(ratio) else 0.0


def value_loss(
    values: Tensor,
    returns: Tensor,
    loss_mask: Tensor,
    *,
    rollout_values: Tensor | None = None,
    clip_range: float = 0.2,
) -> Tensor:
    """`sum_t (V_t - R_t)^2 / 2`, or the larger of that and of the same with `V_t` clipped around its rollout's value.

    Equation 9 of Schulman et al. 2017; the clipped form is of their published code.

    Args:
        values: What the critic expects now, shape `(B, T)`.
        returns: What it should have expected, shape `(B, T)`.
        loss_mask: True where the policy wrote the token, shape `(B, T)`.
        rollout_values: What it expected at the time of the rollouts; not clipped if not given.
        clip_range: How far a value may move from `rollout_values`.
    """
    errors = _kept(values - returns, loss_mask).square()
    if rollout_values is not None:
        near = rollout_values + (values - rollout_values).clamp(-clip_range, clip_range)
        errors = torch.maximum(errors, _kept(near - returns, loss_mask).square())
    return 0.5 * errors.sum()


def bradley_terry_loss(chosen_rewards: Tensor, rejected_rewards: Tensor, margins: Tensor | float = 0.0) -> Tensor:
    """`-sum log sigmoid(r_chosen - r_rejected - margin)`: the chosen one has to win by its margin.

    Bradley and Terry 1952; with margins, equation 2 of Touvron et al. 2023 (Llama 2).

    Args:
        chosen_rewards: Shape `(B,)`.
        rejected_rewards: Shape `(B,)`.
        margins: By how much each pair should differ, shape `(B,)`, in units of reward.
    """
    return -F.logsigmoid(chosen_rewards - rejected_rewards - margins).sum()


def implicit_rewards(logprobs: Tensor, reference_logprobs: Tensor, beta: float) -> Tensor:
    """`beta log(p / q)`: the reward that makes `p` the best policy near `q` (Rafailov et al. 2023, equation 5)."""
    return beta * (logprobs - reference_logprobs)


def dpo_loss(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    reference_chosen_logprobs: Tensor,
    reference_rejected_logprobs: Tensor,
    *,
    beta: float = 0.1,
    margins: Tensor | float = 0.0,
) -> Tensor:
    """`-sum log sigmoid(beta log(p_c / q_c) - beta log(p_r / q_r) - margin)`.

    Equation 7 of Rafailov et al. 2023 (DPO): Bradley-Terry on the rewards that the policy implies. With margins,
    equation 4 of Amini et al. 2024 (DPO with an offset).

    Args:
        chosen_logprobs: Of whole completions under the policy, shape `(B,)`; see `sequence_logprobs`.
        rejected_logprobs: The same of the rejected ones.
        reference_chosen_logprobs: Under the frozen reference.
        reference_rejected_logprobs: The same of the rejected ones.
        beta: How dear it is to leave the reference.
        margins: By how much each pair's implied rewards should differ, shape `(B,)`.
    """
    chosen = implicit_rewards(chosen_logprobs, reference_chosen_logprobs, beta)
    rejected = implicit_rewards(rejected_logprobs, reference_rejected_logprobs, beta)
    return bradley_terry_loss(chosen, rejected, margins)


def _kept(values: Tensor, loss_mask: Tensor) -> Tensor:
    """Put zero where the mask is False, whatever is there: infinities too, which then reach no gradient either."""
    return values.masked_fill(~loss_mask, 0.0)
