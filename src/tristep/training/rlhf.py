"""Learning from rewards: prompts -> rollouts -> rewards -> advantages -> update, for all three modes.

    tristep train recipes/nano/5_rlhf_asr.toml --out runs/rlhf

The reference is the model as the run found it: the starting values of what learns are kept, and lent to the same model
when it is asked what the reference would have said.

A round is one batch of rollouts and `updates` steps on it. What a round is about follows from its number, and what is
drawn from the weights, so a run that was stopped goes on bit for bit; `rollouts.jsonl` keeps what was seen of each
round, the scales of the rewards, and a few answers to read. The alarms look at it, and stop a run with a reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from tristep.chat import Chat
from tristep.objectives.policy import (
    generalised_advantages,
    group_advantages,
    kl_k3,
    penalised_rewards,
    whiten,
)
from tristep.objectives.rewards import Scale, Statistics, alarm, mixed
from tristep.text import error_rate
from tristep.training import distributed, stages
from tristep.training.checkpoints import load_trained
from tristep.training.exercises import Exercise, Measure, exercise
from tristep.training.learner import Learner, PolicyBatch, collate, lent, policy_losses, remember
from tristep.training.metrics import append_metrics
from tristep.training.policies import RewardedRecipe, RewardedSpeaking
from tristep.training.recipes import Lesson
from tristep.training.reward_workers import Listeners, Measured, joined
from tristep.training.rollouts import Replied, Rollout, Rollouts, Transcribed, acting, seeds_of
from tristep.training.step import Task
from tristep.training.supervised import train

Hire = Callable[[], Listeners]
"""Loads who hears and judges, in whatever process they work."""
Piece = tuple[list[int], list[list[int]]]
"""Prompts, and the seeds of their answers."""
Done = tuple[list[Rollout], Measured]
"""What became of a piece."""

NUM_SHOWN = 3
"""Answers of a round that are kept to be read."""
DEV_BATCH = 16
"""Held-out prompts that are answered together."""


class AlarmError(ValueError):
    """A run stopped itself, because its rewards are no longer earned honestly."""


@dataclass(frozen=True)
class Round:
    """What was seen of one batch of rollouts."""

    number: int
    statistics: Statistics
    scales: dict[str, Scale]
    """Mean and spread of each reward so far, this round included."""
    rewards: dict[str, float]
    """Means of what was measured."""
    answers: list[str]
    """A few of them, each with what it earned."""

    @classmethod
    def read(cls, line: str) -> Round:
        """Read what `written` wrote: numbers come back as they were, bit for bit."""
        row = json.loads(line)
        scales = {name: Scale(**scale) for name, scale in row["scales"].items()}
        return cls(**{**row, "statistics": Statistics(**row["statistics"]), "scales": scales})

    def written(self) -> str:
        """Write one line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False) + "\n"


class Crew(Protocol):
    """Others who roll out and measure (`training/on_ray.py`)."""

    def work(self, weights: Mapping[str, Tensor], pieces: Sequence[Piece]) -> list[Done]:
        """Answer and measure pieces of a round, given the policy's parameters that learn."""


class Rounds:
    """Makes the batch of every step: rolls out, rewards and weighs once a round."""

    def __init__(
        self,
        learner: Learner,
        rollouts: Rollouts,
        measure: Measure,
        recipe: RewardedRecipe,
        out: Path,
        lesson: Lesson | None = None,
        crew: Crew | None = None,
    ) -> None:
        self.learner, self.rollouts, self.measure = learner, rollouts, measure
        self.recipe, self.out, self.lesson, self.crew = recipe, out, lesson, crew
        self.parameters = {name: p for name, p in learner.named_parameters() if p.requires_grad}
        self.reference = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.history: list[Round] = []
        self.batches: list[PolicyBatch] = []
        self.number: int | None = None

    def batch_at(self, step: int, micro: int, rank: int, world_size: int) -> PolicyBatch:
        """Return a micro-batch of the round that a step belongs to."""
        settings = self.recipe.rl
        if (number := step // settings.updates) != self.number:
            self.begin(number)
        rehearsed = self.lesson.batch_at(step, micro, rank, world_size) if self.lesson else None
        warm = settings.algorithm == "grpo" or step >= settings.critic_warmup
        return replace(self.batches[micro], is_warm=warm, rehearsed=rehearsed)

    def begin(self, number: int) -> None:
        """Roll out, measure and weigh: the policy is the one that the step before has left.

        Raises:
            AlarmError: If what was seen of the last rounds says that the rewards are gamed.
        """
        self.number = number
        self.recall(number)
        settings, seed = self.recipe.rl, self.recipe.optim.seed
        indices = self.rollouts.indices_at(number)
        found, measured = self.answered(indices, seeds_of(seed, number, len(indices), settings.group_size))
        scales = self.scales(measured)
        weighed = mixed(measured.rewards, self.recipe.rewards, scales if self.recipe.normalise else {})
        kept = self.teaching(weighed.total)
        batch = self.scored(collate([found[place] for place in kept]))
        shown = [shown_answer(found[place], measured, place) for place in range(min(NUM_SHOWN, len(found)))]
        self.keep(Round(number, statistics(found, measured, batch), scales, weighed.means(), shown))
        reported = (*report(self.history[-1], 1 - len(kept) / len(found)),)
        batch = replace(self.advised(batch, weighed.total, kept), reported=reported)
        self.batches = [batch.rows(*span) for span in self.spans(len(kept))]

    def answered(self, indices: list[int], seeds: list[list[int]]) -> Done:
        """Roll out and measure a round piece by piece, here or by the crew: it comes out the same bit for bit."""
        size = self.recipe.rl.prompts_at_once or len(indices)
        pieces = [(indices[at : at + size], seeds[at : at + size]) for at in range(0, len(indices), size)]
        backbone = self.learner.backbone
        if self.crew is None:
            actor = acting(backbone, self.recipe.optim.precision)
            found = [self.rollouts.roll_out(actor, *piece, self.recipe.rl.temperature) for piece in pieces]
            done = [(rollouts, self.measure(rollouts)) for rollouts in found]
        else:
            learning = {name: p.detach() for name, p in backbone.named_parameters() if p.requires_grad}
            done = self.crew.work(learning, pieces)
        return [rollout for rollouts, _ in done for rollout in rollouts], joined([part for _, part in done])

    def recall(self, number: int) -> None:
        """Read what was seen before a round, and forget what a run that was killed saw after its last checkpoint."""
        path = self.out / "rollouts.jsonl"
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
        whole = [line for line in lines[:number] if line.endswith("}")]
        self.history = [Round.read(line) for line in whole]
        path.write_text("".join(line + "\n" for line in whole), encoding="utf-8")

    def keep(self, found: Round) -> None:
        """Write down what was seen of a round, and look at the alarms."""
        self.history.append(found)
        with (self.out / "rollouts.jsonl").open("a", encoding="utf-8") as file:
            file.write(found.written())
        limits = self.recipe.alarms
        if limits.window and (reason := alarm([past.statistics for past in self.history], limits)):
            step = found.number * self.recipe.rl.updates
            append_metrics(self.out / "metrics.jsonl", {"step": step, "kind": "alarm", "reason": reason})
            raise AlarmError(f"stopped before step {step + 1}: {reason} (the last checkpoint is as it was)")

    def scales(self, measured: Measured) -> dict[str, Scale]:
        """Bring the scales of the rewards up to this round."""
        before = self.history[-1].scales if self.history else {}
        return {name: before.get(name, Scale()).with_rewards(part) for name, part in measured.rewards.items()}

    def teaching(self, total: Tensor) -> list[int]:
        """Choose the rollouts that teach something; all of them, if too few do."""
        settings, everything = self.recipe.rl, list(range(len(total)))
        if settings.algorithm != "grpo" or not settings.skip_agreed:
            return everything
        groups = total.view(-1, settings.group_size)
        differs = (groups.amax(dim=1) > groups.amin(dim=1)).repeat_interleave(settings.group_size)
        kept = [place for place in everything if differs[place]]
        return kept if len(kept) >= self.recipe.optim.num_accumulation else everything

    def scored(self, batch: PolicyBatch) -> PolicyBatch:
        """Say what the policy and the reference think of the rollouts, in the batches in which they are learnt from."""
        parts = [batch.rows(*span).to(self.device) for span in self.spans(len(batch.tokens))]
        recall = partial(remember, self.learner, rollouts=self.rollouts, temperature=self.recipe.rl.temperature)
        with self.precision():
            policy = [recall(part) for part in parts]
        # In a context of its own: one context of autocast keeps the weights that it has cast.
        with lent(self.parameters, self.reference), self.precision():
            reference = [recall(part) for part in parts]
        return replace(
            batch,
            rollout_logprobs=torch.cat([part.logprobs for part in policy]).cpu(),
            values=torch.cat([part.values for part in policy]).cpu(),
            reference_logprobs=torch.cat([part.logprobs for part in reference]).cpu(),
        )

    def advised(self, batch: PolicyBatch, total: Tensor, kept: Sequence[int]) -> PolicyBatch:
        """Add advantages and returns, given the rewards of all rollouts `(B,)` and which of them are in the batch."""
        settings, mask = self.recipe.rl, batch.loss_mask
        if settings.algorithm == "grpo":
            advantages = group_advantages(total, settings.group_size, by_std=settings.by_std)[list(kept)]
            return replace(batch, advantages=advantages[:, None] * mask)
        rewards = penalised_rewards(
            total[list(kept)], batch.rollout_logprobs, batch.reference_logprobs, mask, settings.kl_coeff
        )
        found = generalised_advantages(rewards, batch.values, mask, gae_lambda=settings.gae_lambda)
        return replace(batch, advantages=whiten(found.advantages, mask), returns=found.returns)

    def spans(self, num_rows: int) -> list[tuple[int, int]]:
        """Cut rows into micro-batches of about the same size."""
        edges = [round(place * num_rows / self.num_micro) for place in range(self.num_micro + 1)]
        return list(pairwise(edges))

    @property
    def num_micro(self) -> int:
        """Count the micro-batches of a step."""
        return self.recipe.optim.num_accumulation

    @property
    def device(self) -> torch.device:
        """Where the policy is."""
        return self.learner.backbone.embedding.weight.device

    def precision(self) -> AbstractContextManager[Any]:
        """Compute as the training step does."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.optim.precision == "bf16")


def statistics(found: Sequence[Rollout], measured: Measured, batch: PolicyBatch) -> Statistics:
    """Say what the alarms look at; the divergence is that of the rollouts that are learnt from."""
    divergence = kl_k3(batch.rollout_logprobs, batch.reference_logprobs)[batch.loss_mask]
    return Statistics(
        kl=float(divergence.mean()),
        num_tokens=sum(rollout.num_chosen for rollout in found) / len(found),
        silence_share=measured.silence_share,
        similarity=measured.similarity,
        judge=measured.mean("judge"),
        verifier=measured.verifier,
    )


def report(found: Round, agreed_share: float) -> list[tuple[str, float]]:
    """Name what goes into the log of a round."""
    statistics = {f"rollout/{name}": value for name, value in asdict(found.statistics).items() if value is not None}
    for twice in ("rollout/judge", "rollout/verifier"):  # they are rewards already
        statistics.pop(twice, None)
    rewards = {f"reward/{name}": value for name, value in found.rewards.items()}
    return [*rewards.items(), *statistics.items(), ("rollout/agreed", agreed_share)]


def shown_answer(rollout: Rollout, measured: Measured, place: int) -> str:
    """Write an answer with what it earned, for people."""
    earned = ", ".join(f"{name} {float(part[place]):.3f}" for name, part in measured.rewards.items())
    answer = rollout.answer
    if isinstance(answer, Transcribed):
        return f"{earned}: {answer.text!r} for {answer.reference!r}"
    if isinstance(answer, Replied):
        return f"{earned}: {answer.text!r} to {answer.exchange.text!r}, where another said {answer.exchange.answer!r}"
    asked = answer.asked
    return f"{earned}: {len(answer.utterance.codes)} codes for {asked.text!r}, {asked.direction.instructions!r}"


def evaluate(model: nn.Module, taken: Exercise, precision: Literal["fp32", "bf16"] = "fp32") -> dict[str, float]:
    """Answer the held-out prompts, and say what that earns; for transcripts WER too."""
    assert isinstance(model, Learner)
    found, actor = list[Rollout](), acting(model.backbone, precision)
    for start in range(0, taken.num_dev, DEV_BATCH):
        indices = range(start, min(start + DEV_BATCH, taken.num_dev))
        found += taken.dev.roll_out(actor, indices, [[index] for index in indices], taken.dev_temperature)
    measured = taken.measure(found)
    measures = {name: float(part.mean()) for name, part in measured.rewards.items()}
    heard = [rollout.answer for rollout in found if isinstance(rollout.answer, Transcribed)]
    for language in dict.fromkeys(answer.language for answer in heard):
        own = [answer for answer in heard if answer.language == language]
        references, texts = [answer.reference for answer in own], [answer.text for answer in own]
        measures[f"wer_{language}"] = error_rate(references, texts, language).rate
    return measures


def run_rlhf(
    recipe_path: Path,
    out: Path,
    steps: int | None = None,
    data_root: Path = Path("data"),
    listeners: Listeners | Hire = Listeners,
) -> dict[str, float]:
    """Let a policy learn from rewards as a recipe says, and write the whole model to `out/model`.

    Args:
        recipe_path: A TOML file with a table `[rl]`.
        out: The run's folder; a run that was stopped goes on where it was.
        steps: Stop after this many steps instead of the recipe's: a multiple of `rl.updates`.
        data_root: Folder that the recipe's manifests are relative to.
        listeners: Who hears and judges, where a reward needs it, or what loads them: each actor its own, where the
            recipe asks for a crew.

    Returns:
        The last evaluation.

    Raises:
        ValueError: If the recipe, or what it names, does not fit.
        AlarmError: If an alarm stopped the run.
    """
    recipe = stages.load_recipe(recipe_path)
    if not isinstance(recipe, RewardedRecipe):
        raise ValueError(f"{recipe_path.name} has no table [rl]: it is no recipe that learns from rewards")
    if distributed.start().size > 1:
        raise ValueError("learning from rewards takes one process: start it without torchrun")
    if steps is not None and steps % recipe.rl.updates:
        raise ValueError(f"{steps} steps are no whole rounds of {recipe.rl.updates} updates: take a multiple")
    backbone, tokenizer = stages.prepare(recipe, data_root, out)
    learner = Learner(backbone.eval(), recipe.rl.algorithm == "ppo")
    learner.to(distributed.device())
    chat = Chat(backbone.vocab, tokenizer)
    hire: Hire = listeners if callable(listeners) else lambda: listeners
    taken = exercise(recipe, chat, backbone, data_root, hire())
    lesson = stages.teach(rehearsed(recipe), chat, backbone, data_root) if recipe.rl.rehearsal else None
    groups = stages.parameter_groups(backbone, recipe.learn)
    if learner.critic is not None:
        groups.append({"name": "critic", "lr": recipe.rl.critic_lr, "params": list(learner.critic.parameters())})
    losses = partial(policy_losses, rollouts=taken.rollouts, settings=recipe.rl, lesson=lesson)
    measured = partial(evaluate, taken=taken, precision=recipe.optim.precision)
    with hired(recipe, data_root, out, taken, hire) as crew:
        rounds = Rounds(learner, taken.rollouts, taken.measure, recipe, out, lesson, crew)
        task = Task(learner, losses, rounds.batch_at, measured, groups, round_steps=recipe.rl.updates)
        before(task, out)
        measures = train(task, recipe.optim, recipe.loop, out, steps)
    save_trained(recipe, data_root, out)
    return measures


def rehearsed(recipe: RewardedRecipe) -> RewardedRecipe:
    """Return a recipe that teaches what another one rehearses."""
    if not isinstance(recipe, RewardedSpeaking) or not recipe.rehearsed:
        return recipe
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"corpora": recipe.rehearsed})})


@contextmanager
def hired(recipe: RewardedRecipe, data_root: Path, out: Path, taken: Exercise, hire: Hire) -> Iterator[Crew | None]:
    """Start the actors that a recipe asks for, and stop them at the end; none without a number in `[scale]`."""
    if not recipe.scale.rollout_actors:
        yield None
        return
    from tristep.training import on_ray

    with on_ray.started(recipe, data_root, out, taken, hire) as crew:
        yield crew


@torch.no_grad()
def before(task: Task, out: Path) -> None:
    """Write down, once, how good the model is before it learns."""
    if not (out / "metrics.jsonl").exists():
        out.mkdir(parents=True, exist_ok=True)
        append_metrics(out / "metrics.jsonl", {"step": 0, "kind": "eval", **task.evaluate(task.model)})


def save_trained(recipe: RewardedRecipe, data_root: Path, out: Path) -> None:
    """Write `out/model`, without the critic."""
    backbone, tokenizer = stages.prepare(recipe, data_root, out)
    load_trained(Learner(backbone, recipe.rl.algorithm == "ppo"), out / "trained.safetensors")
    stages.write_model(recipe, backbone, tokenizer, out)
