"""One optimizer step: accumulate, clip, AdamW on a cosine, running average.

Losses are *sums* over targets, and gradients are divided once, by the number of targets in all micro-batches
of all processes. So n micro-batches equal one big batch and n processes equal one, however unevenly the
targets fall. Randomness is a function of the step: the generators are seeded anew from (seed, step, process),
so a resumed run needs no generator's state and an evaluation cannot disturb the steps after it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tristep.training import distributed
from tristep.training.settings import OptimSettings

Losses = Callable[[nn.Module, Any], dict[str, Tensor]]


@dataclass(frozen=True)
class Task:
    """What a stage hands to the loop."""

    model: nn.Module
    """The model on its device, its modules already in training or evaluation mode; what has `requires_grad`
    is trained."""

    losses: Losses
    """`(model, batch)` to sums over targets, the same names at every call: `loss` is minimised, `num_targets`
    divides it. Any other sum is reported, divided by `<name>_targets` if given, else by `num_targets`."""

    batch_at: Callable[[int, int, int, int], Any]
    """`(step, micro, rank, world_size)` to a batch: a pure function, it must not use global randomness."""

    evaluate: Callable[[nn.Module], dict[str, float]]
    """Measure the model; it comes in evaluation mode, without gradients, to every process."""

    parameter_groups: list[dict[str, Any]]
    """Each with `params`, `lr` (the peak), `name`, and optionally `weight_decay`; together they hold every
    trainable parameter once."""

    round_steps: int = 1
    """Steps that belong together, because their batches were made at once: a run stops between such rounds only."""


@dataclass
class TrainState:
    """What a step changes, and what a checkpoint therefore holds."""

    model: nn.Module
    trainables: dict[str, nn.Parameter]
    """The parameters with `requires_grad`, by name."""
    optimizer: torch.optim.AdamW
    ema: dict[str, Tensor]
    """Running averages of the trainables, by name; empty when there are none."""
    step: int = 0
    """Steps taken, the skipped ones included."""
    num_skipped: int = 0
    """Steps skipped because a loss or a gradient was not finite."""
    num_skipped_in_a_row: int = 0
    num_targets: int = 0
    """Targets trained on so far."""
    seconds: float = 0.0
    """Time spent in steps so far."""


@dataclass(frozen=True)
class StepReport:
    """What happened in one step, over all micro-batches and processes."""

    sums: dict[str, float] = field(repr=False)
    grad_norm: float
    """Norm of the mean gradient before clipping."""
    applied: bool
    """False if the step was skipped because a loss or a gradient was not finite."""


def new_state(task: Task, optim: OptimSettings) -> TrainState:
    """Build the optimizer and the running averages for a task that has taken no step.

    Raises:
        ValueError: If the parameter groups do not hold every trainable parameter exactly once.
    """
    trainables = {name: p for name, p in task.model.named_parameters() if p.requires_grad}
    _check_groups(task.parameter_groups, trainables)
    groups = [{"weight_decay": optim.weight_decay, **group, "peak_lr": group["lr"]} for group in task.parameter_groups]
    optimizer = torch.optim.AdamW(groups, betas=optim.betas, fused=True)
    ema = {name: p.detach().clone() for name, p in trainables.items()} if optim.ema_decay else {}
    return TrainState(task.model, trainables, optimizer, ema)


def train_step(
    state: TrainState, losses: Losses, batches: Iterable[Any], optim: OptimSettings, elapsed: float = 0.0
) -> StepReport:
    """Take one step on the micro-batches given.

    A step whose loss or gradient is not finite changes no weight; it is counted and the next one goes on.
    `elapsed` is the part of the run's time that is over, where it has a limit.
    """
    seed_generators(optim.seed, state.step)
    state.optimizer.zero_grad(set_to_none=True)
    sums = accumulate(state.model, losses, batches, optim.precision)
    grad_norm = clip_mean_gradient(state.trainables.values(), sums["num_targets"], optim.clip_norm)
    applied = math.isfinite(sums["loss"]) and math.isfinite(grad_norm)
    if applied:
        set_learning_rates(state.optimizer, lr_scale(state.step, optim, elapsed))
        state.optimizer.step()
        update_ema(state, optim.ema_decay)
        state.num_targets += int(sums["num_targets"])
    state.num_skipped += not applied
    state.num_skipped_in_a_row = 0 if applied else state.num_skipped_in_a_row + 1
    state.step += 1
    return StepReport(sums, grad_norm, applied)


def accumulate(model: nn.Module, losses: Losses, batches: Iterable[Any], precision: str) -> dict[str, float]:
    """Add up the gradients of the loss sums of all micro-batches.

    Returns:
        The sums over the micro-batches of all processes, by name.
    """
    device = device_of(model)
    totals: dict[str, Tensor] = {}
    for batch in batches:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            sums = losses(model, to_device(batch, device))
        torch.autograd.backward(sums["loss"])
        for name, value in sums.items():
            value = torch.as_tensor(value, device=device).detach().double()
            totals[name] = totals[name] + value if name in totals else value
    values = distributed.sum_over_processes(torch.stack(list(totals.values())))
    return dict(zip(totals, values.tolist(), strict=True))


def clip_mean_gradient(parameters: Iterable[nn.Parameter], num_targets: float, clip_norm: float) -> float:
    """Divide the summed gradients by the number of targets and clip their norm.

    Where the weights are sharded, FSDP has averaged the gradients over the processes; as they are meant to
    be sums, the number of processes comes back as a factor.

    Returns:
        The norm of the mean gradient before clipping.
    """
    parameters = [p for p in parameters if p.grad is not None]
    scale = distributed.world().size / max(num_targets, 1.0)
    for parameter in parameters:
        assert parameter.grad is not None
        distributed.local(parameter.grad).mul_(scale)
    return float(distributed.full(nn.utils.clip_grad_norm_(parameters, clip_norm)))


def lr_scale(step: int, optim: OptimSettings, elapsed: float = 0.0) -> float:
    """Return the learning rate at a step as a fraction of its peak: a linear rise, then a cosine.

    The first step (0) already moves, and steps beyond the schedule keep its last value. The cosine is as far as the
    steps are, or as the time `elapsed` (0 to 1) is, whichever is further: a run on rented time ends with small steps
    however fast the machine was.
    """
    if step < optim.warmup_steps:
        return (step + 1) / optim.warmup_steps
    progress = min(1.0, (step - optim.warmup_steps) / max(1, optim.steps - optim.warmup_steps))
    progress = max(progress, elapsed)
    return optim.min_lr_ratio + (1 - optim.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rates(optimizer: torch.optim.Optimizer, scale: float) -> None:
    """Set each group's learning rate to a fraction of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * scale


def update_ema(state: TrainState, decay: float) -> None:
    """Move the running averages towards the weights; early on they forget faster, as they began untrained."""
    decay = min(decay, (1 + state.step) / (10 + state.step))
    for name, average in state.ema.items():
        distributed.local(average).lerp_(distributed.local(state.trainables[name].detach()), 1 - decay)


@contextmanager
def averaged_weights(state: TrainState) -> Iterator[nn.Module]:
    """Lend the model with the running averages in place of its weights, if there are any."""
    weights = {name: distributed.local(p.detach()) for name, p in state.trainables.items() if name in state.ema}
    own = {name: weight.clone() for name, weight in weights.items()}
    for name, weight in weights.items():
        weight.copy_(distributed.local(state.ema[name]))
    distributed.forget_gathered(state.model)
    try:
        yield state.model
    finally:
        distributed.forget_gathered(state.model)
        for name, weight in weights.items():
            weight.copy_(own[name])


def means(sums: dict[str, float]) -> dict[str, float]:
    """Divide each named sum by its number of targets."""
    counts = {name for name in sums if name == "num_targets" or name.endswith("_targets")}
    return {
        name: value / max(sums.get(f"{name}_targets", sums["num_targets"]), 1.0)
        for name, value in sums.items()
        if name not in counts
    }


def seed_generators(seed: int, step: int) -> None:
    """Seed torch's, numpy's and Python's generators for one step of this process."""
    words = np.random.SeedSequence([seed, step, distributed.world().rank]).generate_state(2)
    torch.manual_seed(int(words[0]) << 32 | int(words[1]))
    np.random.seed(int(words[0]))
    random.seed(int(words[1]))


def to_device(batch: Any, device: torch.device) -> Any:
    """Move a batch: anything with `.to(device)`, or a tuple, list or dict of such; the rest stays."""
    if hasattr(batch, "to"):
        return batch.to(device)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        values = [to_device(value, device) for value in batch]
        return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)
    return batch


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's parameters."""
    return next(model.parameters()).device


def _check_groups(groups: list[dict[str, Any]], trainables: dict[str, nn.Parameter]) -> None:
    grouped = {id(p) for group in groups for p in group["params"]}
    missing = [name for name, p in trainables.items() if id(p) not in grouped]
    if not trainables:
        raise ValueError("no parameter of the model has requires_grad: name at least one part to train")
    if missing:
        raise ValueError(
            f"{len(missing)} trainable parameters are in no parameter group, {missing[0]!r} first: "
            "add them to a group or freeze them with requires_grad_(False)"
        )
    if frozen := len(grouped - {id(p) for p in trainables.values()}):
        raise ValueError(
            f"{frozen} parameters in the parameter groups are not trainable parameters of the model: "
            "collect the groups after freezing and sharding, from what has requires_grad"
        )
