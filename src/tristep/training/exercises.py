"""Exercises: what each mode learns from rewards on, and how what it does there is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tristep.backbone.model import Backbone
from tristep.chat import Chat
from tristep.engine.answers import SAMPLING
from tristep.training import conversing, hearing, speaking
from tristep.training.policies import RewardedConversing, RewardedHearing, RewardedRecipe, RewardedSpeaking
from tristep.training.reward_workers import (
    Listeners,
    Measured,
    measure_replies,
    measure_speech,
    measure_transcripts,
)
from tristep.training.rollouts import ConversingRollouts, HearingRollouts, Rollout, Rollouts, SpeakingRollouts

Measure = Callable[[Sequence[Rollout]], Measured]
"""Says what rollouts have earned."""


@dataclass(frozen=True)
class Exercise:
    """A mode's prompts to learn from and to be measured on, and how answers are measured."""

    rollouts: Rollouts
    dev: Rollouts
    num_dev: int
    measure: Measure
    dev_temperature: float = 0.0
    """At which held-out prompts are answered."""


def exercise(recipe: RewardedRecipe, chat: Chat, backbone: Backbone, data_root: Path, listeners: Listeners) -> Exercise:
    """Build what a mode learns from rewards on."""
    if isinstance(recipe, RewardedHearing):
        return listen(recipe, chat, backbone, data_root, listeners)
    if isinstance(recipe, RewardedConversing):
        return converse(recipe, chat, backbone, data_root, listeners)
    return speak(recipe, chat, backbone, data_root, listeners)


def measure_of(recipe: RewardedRecipe, listeners: Listeners) -> Measure:
    """Say how what a mode does is measured."""
    names = frozenset(recipe.rewards)
    if isinstance(recipe, RewardedHearing):
        return partial(measure_transcripts, names=names, listeners=listeners)
    if isinstance(recipe, RewardedConversing):
        return partial(measure_replies, names=names, listeners=listeners)
    return partial(measure_speech, names=names, listeners=listeners, code_rate_hz=recipe.codes.rate_hz)


def listen(recipe: RewardedHearing, chat: Chat, backbone: Backbone, data_root: Path, listeners: Listeners) -> Exercise:
    """Build what the ASR mode learns on: clips."""
    source, dev = hearing.sources(recipe, chat, backbone, data_root)
    hear = partial(HearingRollouts, backbone=backbone, seed=recipe.optim.seed)
    return Exercise(hear(source), hear(dev), len(dev.clips), measure_of(recipe, listeners))


def speak(recipe: RewardedSpeaking, chat: Chat, backbone: Backbone, data_root: Path, listeners: Listeners) -> Exercise:
    """Build what the TTS mode learns on: texts."""
    read = partial(speaking.read_clips, root=data_root, codes=recipe.codes, max_s=recipe.data.max_duration_s)
    clips, dev_clips = read(recipe.data.corpora), read(recipe.data.dev)
    asked = partial(SpeakingRollouts, chat, recipe=recipe, first=len(backbone.head.weight))
    return Exercise(asked(clips), asked(dev_clips), len(dev_clips), measure_of(recipe, listeners))


def converse(
    recipe: RewardedConversing, chat: Chat, backbone: Backbone, data_root: Path, listeners: Listeners
) -> Exercise:
    """Build what the realtime mode learns on: turns of a user. Held-out ones are answered as in a session."""
    sources, dev = conversing.sources(recipe, chat, backbone, data_root)
    ask = partial(
        ConversingRollouts,
        num_prompts=recipe.num_prompts,
        budget=recipe.answer_tokens,
        seed=recipe.optim.seed,
        own_turns=recipe.own_turns,
    )
    prompts, held_out = ask(sources, recipe.data.corpora), ask(dev, recipe.data.dev)
    measure = measure_of(recipe, listeners)
    return Exercise(prompts, held_out, len(held_out.asked), measure, SAMPLING.temperature)
