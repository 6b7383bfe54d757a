"""The learner: a policy with its critic, what it says of rollouts, and what it learns from them.

The log-probabilities of rollouts are recomputed by the forward pass that training uses, in the same batches, so that
the ratio of policy and behaviour is exactly 1 before the first update on them. The prompt of a group is read once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from itertools import pairwise, starmap
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tristep.backbone.branches import grow
from tristep.backbone.model import Backbone
from tristep.modes.tts.data import IGNORED
from tristep.objectives.policy import clipped_policy_loss, clipped_share, kl_loss, token_logprobs, value_loss
from tristep.training.policies import PolicySettings
from tristep.training.recipes import Lesson
from tristep.training.rollouts import NOT_CHOSEN, Rollout, Rollouts


class Critic(nn.Module):
    """Reads from the policy's hidden states what reward is to come; it learns by itself and never moves the policy."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.hidden, self.value = nn.Linear(dim, dim), nn.Linear(dim, 1)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the expected rest of the reward after each position: `(B, T, D)` -> `(B, T)`."""
        return self.value(torch.tanh(self.hidden(hidden.detach()))).squeeze(-1)


class Learner(nn.Module):
    """The policy, and its critic where there is one."""

    def __init__(self, backbone: Backbone, with_critic: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.critic = Critic(backbone.config.decoder.dim) if with_critic else None


@dataclass(frozen=True)
class PolicyBatch:
    """Rollouts of one width, and what is to be learnt from them; every tensor but `shared` of shape `(B, T)`."""

    tokens: Tensor
    targets: Tensor
    """What each position predicts, `IGNORED` where nothing was chosen."""
    choices: Tensor
    rollout_logprobs: Tensor
    reference_logprobs: Tensor
    values: Tensor
    """What the critic expected at the time of the rollouts; 0 without one."""
    advantages: Tensor
    returns: Tensor
    shared: Tensor
    """With how many tokens, sound and all, each row begins as the one before it does: its prompt's, or 0; `(B,)`."""
    audio_embeddings: tuple[Tensor | None, ...] = ()
    """Vectors for the audio slots of each row, shape `(N, D)`."""
    reported: tuple[tuple[str, float], ...] = ()
    """Means over the whole round, for the log."""
    is_warm: bool = True
    """Whether the policy learns, and not only its critic."""
    rehearsed: Any = None
    """A supervised batch of the mode."""

    @property
    def loss_mask(self) -> Tensor:
        """Mark where the policy chose, shape `(B, T)`."""
        return self.targets != IGNORED

    @property
    def sound(self) -> Tensor | None:
        """Join the audio embeddings of all prompts in reading order, shape `(sum, D)`."""
        led = [place == 0 or not number for place, number in enumerate(self.shared.tolist())]
        found = [row for row, leads in zip(self.audio_embeddings, led, strict=True) if leads and row is not None]
        return torch.cat(found) if found else None

    @property
    def read_rows(self) -> list[list[int]]:
        """Return the tokens of each row that predict something, or come before one that does."""
        ends = (self.loss_mask * torch.arange(1, self.tokens.shape[1] + 1, device=self.tokens.device)).amax(dim=1)
        return [row[:end] for row, end in zip(self.tokens.tolist(), ends.tolist(), strict=True)]

    def rows(self, start: int, stop: int) -> PolicyBatch:
        """Take some of the rollouts."""
        taken = {name: value[start:stop] for name, value in self.tensors().items()}
        return replace(self, **taken, audio_embeddings=self.audio_embeddings[start:stop])

    def tensors(self) -> dict[str, Any]:
        """Return what has a row for each rollout."""
        return {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}

    def to(self, device: torch.device) -> PolicyBatch:
        """Move every tensor."""
        moved = {name: value.to(device) for name, value in self.tensors().items()}
        sound = tuple(None if row is None else row.to(device) for row in self.audio_embeddings)
        rehearsed = None if self.rehearsed is None else self.rehearsed.to(device)
        return replace(self, **moved, audio_embeddings=sound, rehearsed=rehearsed)


def collate(rollouts: Sequence[Rollout]) -> PolicyBatch:
    """Pad rollouts on the right to one width; what is to be learnt from them is not known yet."""

    def padded(rows: list[list[int]], padding: int) -> Tensor:
        return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=padding)

    tokens = padded([rollout.tokens for rollout in rollouts], 0)
    nothing = torch.zeros(tokens.shape)
    return PolicyBatch(
        tokens,
        padded([rollout.targets for rollout in rollouts], IGNORED),
        padded([rollout.choices for rollout in rollouts], NOT_CHOSEN),
        *(nothing,) * 5,
        shared=torch.tensor([0, *starmap(shared_prompt, pairwise(rollouts))]),
        audio_embeddings=tuple(rollout.audio_embeddings for rollout in rollouts),
    )


def shared_prompt(before: Rollout, rollout: Rollout) -> int:
    """Count the tokens of a prompt that two rollouts answer, 0 if they answer different ones."""
    num_given = next(place for place, target in enumerate(rollout.targets) if target != IGNORED) + 1
    alike = before.tokens[:num_given] == rollout.tokens[:num_given]
    return num_given if alike and same_sound(before.audio_embeddings, rollout.audio_embeddings) else 0


def same_sound(first: Tensor | None, second: Tensor | None) -> bool:
    """Say whether two rollouts heard the same."""
    return first is second or (first is not None and second is not None and torch.equal(first, second))


@dataclass(frozen=True)
class Forward:
    """What the policy says of a batch."""

    logprobs: Tensor
    """Of what was chosen, shape `(B, T)`; 0 elsewhere."""
    values: Tensor
    """What the critic expects, shape `(B, T)`; 0 without one."""


def forward(learner: Learner, batch: PolicyBatch, rollouts: Rollouts, temperature: float) -> Forward:
    """Score what was chosen, among all that could have been, at the temperature at which it was drawn."""
    hidden, mask = read(learner.backbone, batch), batch.loss_mask
    logits = rollouts.logits(learner.backbone, hidden[mask]).float() / temperature
    allowed = rollouts.masks.to(logits.device)[batch.choices[mask]]
    chosen = token_logprobs(logits.masked_fill(~allowed, -torch.inf), batch.targets[mask] - rollouts.first_token)
    logprobs = torch.zeros(mask.shape, device=chosen.device).masked_scatter(mask, chosen)
    values = torch.zeros_like(logprobs) if learner.critic is None else learner.critic(hidden.float())
    return Forward(logprobs, values)


def read(backbone: Backbone, batch: PolicyBatch) -> Tensor:
    """Return the hidden state after each token of each row that counts, shape `(B, T, D)`."""
    tree = grow(batch.read_rows, batch.shared.tolist()).to(batch.tokens.device)
    hidden = backbone(
        tree.tokens, batch.sound, positions=tree.positions, segments=tree.segments, trunk=tree.trunk
    )  # (G, W, D)
    places = F.pad(tree.places, (0, batch.tokens.shape[1] - tree.places.shape[1]))
    return hidden.flatten(0, 1)[places]


def remember(learner: Learner, batch: PolicyBatch, rollouts: Rollouts, temperature: float) -> Forward:
    """Score as `forward` does, to keep the numbers.

    Gradients are on all the same: without them attention takes another path, whose last bits differ.
    """
    with torch.enable_grad():
        found = forward(learner, batch, rollouts, temperature)
    return Forward(found.logprobs.detach(), found.values.detach())


@contextmanager
def lent(parameters: dict[str, nn.Parameter], weights: dict[str, Tensor]) -> Iterator[None]:
    """Put other weights in the place of some parameters for a while."""
    own = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        parameter.detach().copy_(weights[name])
    try:
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.detach().copy_(own[name])


def policy_losses(
    learner: nn.Module, batch: PolicyBatch, rollouts: Rollouts, settings: PolicySettings, lesson: Lesson | None
) -> dict[str, Tensor]:
    """Compute the losses of PPO or GRPO as sums over what was chosen, and what is reported of the round.

    PPO has paid for its divergence in its rewards; GRPO pays here. Without a warm critic only the critic learns.
    """
    assert isinstance(learner, Learner)
    found, mask = forward(learner, batch, rollouts, settings.temperature), batch.loss_mask
    num_targets = mask.sum()
    policy = clipped_policy_loss(
        found.logprobs, batch.rollout_logprobs, batch.advantages, mask,
        clip_range=settings.clip_range, clip_range_high=settings.clip_range_high,
    )  # fmt: skip
    losses = {"policy": policy}
    loss = policy if batch.is_warm else policy.detach()
    if learner.critic is not None:
        losses["value"] = value_loss(
            found.values, batch.returns, mask, rollout_values=batch.values, clip_range=settings.clip_range
        )
        loss = loss + losses["value"]
    else:
        loss = loss + settings.kl_coeff * kl_loss(found.logprobs, batch.reference_logprobs, mask)
    if batch.rehearsed is not None:
        assert lesson is not None
        rehearsal = lesson.losses(learner.backbone, batch.rehearsed)
        losses["rehearsal"], losses["rehearsal_targets"] = rehearsal["loss"], rehearsal["num_targets"]
        # Both sums are divided by the policy's targets, so the rehearsal's is brought to as many.
        loss = loss + settings.rehearsal * rehearsal["loss"] * num_targets / rehearsal["num_targets"]
    share = clipped_share(found.logprobs.detach(), batch.rollout_logprobs, mask, settings.clip_range)
    reported = {"rollout/clipped": share, **dict(batch.reported)}
    ones = {f"{name}_targets": torch.tensor(1.0) for name in reported}
    return {
        "loss": loss, "num_targets": num_targets, **losses, **ones,
        **{name: torch.tensor(value) for name, value in reported.items()},
    }  # fmt: skip
