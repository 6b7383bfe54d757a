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
from tristep.engine.answers import MOST_TOKENS
from tristep.objectives.rewards import Limits
from tristep.training.conversing import ConversingRecipe, Injection
from tristep.training.hearing import HearingRecipe
from tristep.training.settings import LoopSettings, OptimSettings
from tristep.training.speaking import SpeakingRecipe, UtteranceSettings


class PolicySettings(Settings):
    """How rollouts are made, and how the policy learns from them."""

    algorithm: Literal["ppo", "grpo"] = "ppo"
    group_size: int = Field(default=4, ge=2)
    """Rollouts per prompt."""
    updates: int = Field(default=1, ge=1)
    """Steps on the same rollouts."""
    prompts_at_once: int | None = Field(default=None, gt=0)
    """Prompts that are answered, and rewarded, together; all of a round if not given. Actors share a round by such
    pieces, and what comes of a piece does not depend on who works on it."""
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
    phone_cells: str | None = None
    """What the tokenizer's codes say, the `phone_cells.safetensors` of its run: by it the reward `phones` reads."""
    mos: bool = False
    """Whether DistillMOS listens."""
    judge: str | None = None
    """Weights of a judge."""
    judge_endpoint: str | None = None
    """URL of a chat endpoint that judges replies instead; its key is in `OPENAI_API_KEY`."""
    judge_model: str = ""
    """The model's name at that endpoint."""
    text_model: str | None = None
    """Weights of a text model, which knows how likely a reply is after a turn, and tells a judge how well it fits."""


class ScaleSettings(Settings):
    """Who works on a round beside the learner: actors of a Ray cluster, none unless they are asked for."""

    rollout_actors: int = Field(default=0, ge=0)
    """Processes that answer prompts, each with a copy of the policy."""
    reward_actors: int = Field(default=0, ge=0)
    """Processes that measure what was answered, each with listeners of its own; without any, the learner's does."""
    cpus: int = Field(default=1, gt=0)
    """Processor threads of an actor."""
    gpus: float = Field(default=0.0, ge=0)
    """GPUs of a rollout actor; a fraction shares one."""
    address: str | None = None
    """Of a cluster; without one, it is made on this machine, as large as the actors need."""
    restarts: int = Field(default=2, ge=0)
    """Times that an actor that died is started again, before the run stops."""


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
    scale: ScaleSettings = ScaleSettings()
    optim: OptimSettings
    loop: LoopSettings = LoopSettings()

    @model_validator(mode="after")
    def _whole_rounds(self) -> Self:
        for name, steps in (("optim.steps", self.optim.steps), ("loop.save_every", self.loop.save_every)):
            if steps % self.rl.updates:
                raise ValueError(f"{name} is {steps}, no multiple of rl.updates = {self.rl.updates}: rounds are whole")
        if self.loop.prefetch or self.loop.workers:
            raise ValueError(
                "loop.prefetch and workers build batches ahead, but rollouts need the newest weights: leave them at 0"
            )
        if not any(self.rewards.values()):
            raise ValueError("no reward has a weight: give at least one")
        if self.scale.reward_actors and not self.scale.rollout_actors:
            raise ValueError("[scale] has reward actors and no rollout actors: give at least one")
        if max(self.scale.rollout_actors, self.scale.reward_actors) > 1 and not self.rl.prompts_at_once:
            raise ValueError("[scale] has several actors and a round is one piece: set rl.prompts_at_once to share it")
        return self


class RewardedHearing(Rewarded, HearingRecipe):
    """A run in which the ASR mode learns from rewards."""


class RewardedSpeaking(Rewarded, SpeakingRecipe):
    """A run in which the TTS mode learns from rewards."""

    manner_only: bool = False
    """Whether an answer is no more than the manner that it settles, before a word is spoken: `heeded` and `obedience`
    reward that, in a hundredth of the time."""
    rehearsed: tuple[UtteranceSettings, ...] = ()
    """What is rehearsed, where `rl.rehearsal` has a weight: what is learnt on, if nothing is named. Manners are learnt
    on texts that nobody has spoken, and a voice that reads no others forgets how to."""


class RewardedConversing(Rewarded, ConversingRecipe):
    """A run in which the realtime mode learns from rewards: every exchange of its corpora is a prompt."""

    injections: tuple[Injection, ...] = ()
    """What is rehearsed, where `rl.rehearsal` has a weight."""
    num_prompts: int = Field(default=8, gt=0)
    """Turns of the user that are answered in a round."""
    answer_tokens: int = Field(default=MOST_TOKENS, gt=0)
    """The most tokens of an answer."""
    own_turns: int = Field(default=0, ge=0)
    """How many of the persona's last turns in the history the policy says itself, as in a session: so it meets what
    it repeats."""


def learns_from_rewards(recipe_path: Path) -> bool:
    """Say whether a recipe has a table `[rl]`; whoever reads it next says what is wrong with it, if anything is."""
    try:
        return "rl" in tomllib.loads(recipe_path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


RewardedRecipe = RewardedHearing | RewardedSpeaking | RewardedConversing
