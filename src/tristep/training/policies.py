"""Recipes that learn from rewards: what a mode's own recipe sets, and how rollouts are made, rewarded and learnt from.

The reports name PPO with a KL penalty and a critic that is warmed up first (StepAudio 2.5 section 5.3; EditX: 80 steps,
clip range 0.2, KL 0.05, learning rate 1e-6 to 2e-7). Those are the defaults here, beside GRPO, which needs no critic.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from tristep.config import Settings
from tristep.objectives.rewards import Limits
from tristep.training.hearing import HearingRecipe
from tristep.training.settings import LoopSettings, OptimSettings
from tristep.training.speaking import SpeakingRecipe


class PolicySettings(Settings):
    """How rollouts are made, and how the policy learns from them."""

    algorithm: Literal["ppo", "grpo"] = "ppo"
    group_size: int = Field(default=4, ge=2)
    """Rollouts per prompt."""
    updates: int = Field(default=1, ge=1)
    """Steps on the same rollouts."""
    temperature: float = Field(default=1.0, gt=0)
    """At which rollouts are drawn; the policy is what is drawn from at this temperature."""
    kl_coeff: float = Field(default=0.05, ge=0)
    """What a nat of divergence from the reference, the model that the run began with, costs."""
    clip_range: float = Field(default=0.2, gt=0)
    clip_range_high: float | None = None
    """Above 1, where it is to differ (DAPO)."""
    by_std: bool = True
    """Whether GRPO divides by the spread of a group's rewards; without it, and with `intelligibility` alone, it is the
    minimum word error rate objective."""
    skip_agreed: bool = True
    """Whether GRPO leaves out the prompts whose rollouts all earned the same: they teach nothing, and cost as much."""
    critic_lr: float = 1e-4
    critic_warmup: int = Field(default=80, ge=0)
    """Steps in which only the critic learns."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    rehearsal: float = Field(default=0.0, ge=0)
    """Weight of the mode's own supervised loss on as much data, beside the policy's; 0 rehearses nothing."""


class ListenerSettings(Settings):
    """Who hears what is spoken; a reward that nobody measures is refused."""

    sound: str | None = None
    """Weights with the codec, the voices and CAM++; without them, only rewards of codes can be weighed."""
    voice: str | None = None
    """Name of the voice that is spoken in."""
    recogniser: str | None = None
    """Weights of ours, whose ASR mode listens, or `faster-whisper:` and a model of theirs."""
    mos: bool = False
    """Whether DistillMOS listens."""
    judge: str | None = None
    """Weights of a judge."""


@dataclass(frozen=True)
class AlarmSettings(Limits):
    """When a run stops itself (`objectives.rewards.Limits`); 0 updates as `window` is no alarm at all."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")


class Rewarded(Settings):
    """What a recipe that learns from rewards adds to that of its mode."""

    rl: PolicySettings
    rewards: dict[str, float]
    """What each reward weighs; 0 only watches it."""
    normalise: bool = True
    """Whether each reward is brought to mean 0 and standard deviation 1 over the run, before it is weighed."""
    alarms: AlarmSettings = AlarmSettings()
    listeners: ListenerSettings = ListenerSettings()
    optim: OptimSettings
    loop: LoopSettings = LoopSettings()

    @model_validator(mode="after")
    def _whole_rounds(self) -> Self:
        for name, steps in (("optim.steps", self.optim.steps), ("loop.save_every", self.loop.save_every)):
            if steps % self.rl.updates:
                raise ValueError(f"{name} is {steps}, no multiple of rl.updates = {self.rl.updates}: rounds are whole")
        if self.loop.prefetch:
            raise ValueError("loop.prefetch builds batches ahead, but rollouts need the newest weights: leave it at 0")
        if not any(self.rewards.values()):
            raise ValueError("no reward has a weight: give at least one")
        return self


class RewardedHearing(Rewarded, HearingRecipe):
    """A run in which the ASR mode learns from rewards."""


class RewardedSpeaking(Rewarded, SpeakingRecipe):
    """A run in which the TTS mode learns from rewards."""


def learns_from_rewards(recipe_path: Path) -> bool:
    """Say whether a recipe has a table `[rl]`; whoever reads it next says what is wrong with it, if anything is."""
    try:
        return "rl" in tomllib.loads(recipe_path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


RewardedRecipe = RewardedHearing | RewardedSpeaking
