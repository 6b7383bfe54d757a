"""Rollouts and rewards on a Ray cluster: actors work on the pieces of a round, the learner stays where it is.

    [scale]
    rollout_actors = 4
    reward_actors = 2

Each actor builds what it needs from the recipe, so the folder of data has to be the same on every machine. The weights
that learn are sent once a round, and come along with every piece: an actor that died is started again and goes on
without a trace. What comes of a piece follows from weights, prompts and seeds, so a round on actors is the round in one
process, bit for bit, where both compute with as many threads on the same kind of processor.

Ray is imported only when a recipe asks for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tristep.chat import Chat
from tristep.training import stages
from tristep.training.exercises import Exercise, exercise, measure_of
from tristep.training.policies import RewardedRecipe, ScaleSettings
from tristep.training.reward_workers import Listeners, Measured
from tristep.training.rlhf import Done, Hire, Piece
from tristep.training.rollouts import Rollout, acting

RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",
}
"""Unless the environment says otherwise nothing is reported to anybody, an actor without GPUs is not warned of it, and
actors are as urgent as the learner, which waits for them."""
Weights = Mapping[str, np.ndarray]
"""Parameters by name, as arrays that processes of one machine share."""


class RolloutActor:
    """Answers prompts with a copy of the policy."""

    def __init__(self, recipe: RewardedRecipe, data_root: Path, out: Path) -> None:
        torch.set_num_threads(recipe.scale.cpus)
        backbone, tokenizer = stages.prepare(recipe, data_root, out)
        self.backbone = backbone.eval().to("cuda" if recipe.scale.gpus else "cpu")
        self.learning = {name: p for name, p in self.backbone.named_parameters() if p.requires_grad}
        chat = Chat(backbone.vocab, tokenizer)
        self.rollouts = exercise(recipe, chat, self.backbone, data_root, Listeners()).rollouts
        self.temperature, self.precision = recipe.rl.temperature, recipe.optim.precision

    def roll_out(self, weights: Weights, piece: Piece) -> list[Rollout]:
        """Answer the prompts of a piece as the policy with these weights does."""
        with torch.no_grad():
            for name, parameter in self.learning.items():
                parameter.copy_(torch.tensor(weights[name]))
        actor = acting(self.backbone, self.precision)
        found = self.rollouts.roll_out(actor, *piece, self.temperature)
        return [replace(rollout, audio_embeddings=at_home(rollout.audio_embeddings)) for rollout in found]


class RewardActor:
    """Measures what was answered, with listeners of its own."""

    def __init__(self, recipe: RewardedRecipe, hire: Hire) -> None:
        torch.set_num_threads(recipe.scale.cpus)
        self.measure_all = measure_of(recipe, hire())

    def measure(self, found: Sequence[Rollout]) -> Measured:
        """Measure the rollouts of a piece."""
        return self.measure_all(found)


def at_home(sound: Tensor | None) -> Tensor | None:
    """Bring audio embeddings to where every process can read them."""
    return None if sound is None else sound.cpu()


class RayCrew:
    """The actors of a run. Pieces go round, so that who works on which is always the same."""

    def __init__(
        self, ray: Any, recipe: RewardedRecipe, data_root: Path, out: Path, taken: Exercise, hire: Hire
    ) -> None:
        """Start them.

        Args:
            ray: The module, connected to a cluster.
            recipe: What they work for; without reward actors the learner's process measures.
            data_root: The folder of data.
            out: The run's folder.
            taken: What the learner's process works with.
            hire: Loads the listeners of each reward actor.
        """
        scale = recipe.scale
        again = {"num_cpus": scale.cpus, "max_restarts": scale.restarts, "max_task_retries": scale.restarts}
        roller = ray.remote(RolloutActor).options(num_gpus=scale.gpus, **again)
        measurer = ray.remote(RewardActor).options(**again)
        self.ray, self.scale, self.measure = ray, scale, taken.measure
        self.rollers = [roller.remote(recipe, data_root, out) for _ in range(scale.rollout_actors)]
        self.measurers = [measurer.remote(recipe, hire) for _ in range(scale.reward_actors)]

    def wait(self) -> None:
        """Wait until all actors are ready.

        Raises:
            ValueError: If one can't start.
        """
        with self.plainly("could not start"):
            self.ray.get([actor.__ray_ready__.remote() for actor in (*self.rollers, *self.measurers)])

    def work(self, weights: Mapping[str, Tensor], pieces: Sequence[Piece]) -> list[Done]:
        """Answer and measure the pieces of a round: each is measured as soon as it is answered.

        Raises:
            ValueError: If an actor died more often than it may.
        """
        sent = self.ray.put({name: tensor.cpu().numpy() for name, tensor in weights.items()})
        with self.plainly(f"died, though it may be started again {self.scale.restarts} times"):
            found = [actor.roll_out.remote(sent, piece) for actor, piece in zip(cycle(self.rollers), pieces)]
            if not self.measurers:
                return [(rollouts, self.measure(rollouts)) for rollouts in self.ray.get(found)]
            measured = [actor.measure.remote(each) for actor, each in zip(cycle(self.measurers), found)]
            return list(zip(self.ray.get(found), self.ray.get(measured), strict=True))

    @contextmanager
    def plainly(self, what: str) -> Iterator[None]:
        """Raise what went wrong in an actor as if it had been here, and say what became of one that is no more."""
        try:
            yield
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self.ray.exceptions.RayActorError as error:
            reason = str(error).strip().splitlines()[-1].strip().rstrip(".")
            raise ValueError(
                f"an actor {what}: {reason}. The last checkpoint is as it was: run the same command again to go on"
            ) from error

    def dismiss(self) -> None:
        """End all actors."""
        for actor in (*self.rollers, *self.measurers):
            self.ray.kill(actor)


@contextmanager
def started(recipe: RewardedRecipe, data_root: Path, out: Path, taken: Exercise, hire: Hire) -> Iterator[RayCrew]:
    """Start the actors that a recipe asks for, in a cluster of this machine's own unless one is named or joined.

    Raises:
        ValueError: If Ray is not installed, or the cluster is too small for them.
    """
    for name, value in RAY_SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ValueError(
            "[scale] asks for actors and Ray is not installed: run pip install 'tristep[scale]'"
        ) from error
    own = not ray.is_initialized()
    if own:
        join(ray, recipe.scale)
    try:
        check_room(ray.cluster_resources(), recipe.scale)  # type: ignore[no-untyped-call, unused-ignore]
        crew = RayCrew(ray, recipe, data_root.resolve(), out.resolve(), taken, hire)
        try:
            crew.wait()
            yield crew
        finally:
            crew.dismiss()
    finally:
        if own:
            ray.shutdown()


def join(ray: Any, scale: ScaleSettings) -> None:
    """Join the cluster that is named, or make one on this machine with room for the actors."""
    if scale.address is not None:
        ray.init(address=scale.address, log_to_driver=False)
        return
    num_cpus = scale.cpus * (scale.rollout_actors + scale.reward_actors)
    ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False)


def check_room(resources: Mapping[str, float], scale: ScaleSettings) -> None:
    """Refuse a cluster on which the actors would wait for ever.

    Raises:
        ValueError: If it has too few processors or GPUs.
    """
    cpus, gpus = scale.cpus * (scale.rollout_actors + scale.reward_actors), scale.gpus * scale.rollout_actors
    found = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    if cpus > found[0] or gpus > found[1]:
        raise ValueError(
            f"the actors of [scale] need {cpus} processors and {gpus:g} GPUs, the cluster has {found[0]:.0f} and "
            f"{found[1]:.0f}: ask for fewer, or add machines"
        )
