"""The supervised loop: step, log, evaluate, save, until the schedule or the user says stop.

It knows neither sound nor text. A task gives the model, the losses, the batch of any step and an evaluation;
since the batch and the randomness are functions of the step, resuming needs only the newest checkpoint and
gives, on a CPU, bit for bit what an uninterrupted run gives.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from tristep.training import checkpoints, distributed
from tristep.training.ahead import ahead
from tristep.training.metrics import (
    Line,
    ProgressBar,
    append_metrics,
    read_metrics,
    truncate_metrics,
)
from tristep.training.plots import draw_metrics
from tristep.training.settings import LoopSettings, OptimSettings
from tristep.training.step import (
    StepReport,
    Task,
    TrainState,
    averaged_weights,
    device_of,
    means,
    new_state,
    train_step,
)

MAX_SKIPPED_IN_A_ROW = 10


def train(
    task: Task,
    optim: OptimSettings,
    loop: LoopSettings,
    out: Path,
    steps: int | None = None,
    resume: bool = True,
) -> dict[str, float]:
    """Train a task, from the newest checkpoint in `out` if there is one.

    `out` receives `metrics.jsonl`, `metrics.png`, `checkpoints/` and `trained.safetensors`, the weights
    to use.
    An interrupt (ctrl-C or SIGTERM) ends the run after the current step with everything saved, and so does the end
    of `loop.minutes`, after an evaluation.

    Args:
        task: Model, losses, batches, evaluation, parameter groups.
        optim: How steps are taken.
        loop: How often to log, evaluate and save.
        out: The run's folder.
        steps: Stop after this many steps in all; the schedule still spans `optim.steps`.
        resume: False refuses a folder that has checkpoints.

    Returns:
        The last evaluation and `step`, the steps taken in all.

    Raises:
        ValueError: If the folder's run cannot be resumed.
        FloatingPointError: If ten steps in a row had a loss or a gradient that is not finite.
    """
    state = new_state(task, optim)
    _resume(state, out, resume)
    stop_at = optim.steps if steps is None else steps
    leads = distributed.world().rank == 0
    with ProgressBar(stop_at, state.step, leads) as bar, _interruptible() as interrupted:
        if state.step:
            bar.say(f"resuming {out} at step {state.step}")
        _run(state, task, optim, loop, out, stop_at, bar, interrupted)
        if state.step < stop_at:
            bar.say(f"stopped and saved at step {state.step} of {stop_at}: run the same command again to go on")
    return {**_last_evaluation(out), "step": state.step}


def _run(
    state: TrainState,
    task: Task,
    optim: OptimSettings,
    loop: LoopSettings,
    out: Path,
    stop_at: int,
    bar: ProgressBar,
    interrupted: list[int],
) -> None:
    log = _Log(out, state)
    batches = _batches(task, state.step, stop_at, optim.num_accumulation, loop)
    time_given = _TimeGiven(loop.minutes, state.seconds)
    stopping = over = False
    if loop.evaluate_first and not read_metrics(out / "metrics.jsonl"):
        log.write_evaluation(state, task, bar)
    while state.step < stop_at and not stopping and not over:
        began, elapsed = time.monotonic(), distributed.agreed(time_given.share(), device_of(state.model))
        report = train_step(state, task.losses, islice(batches, optim.num_accumulation), optim, elapsed)
        state.seconds += time.monotonic() - began
        log.add(report)
        bar.advance(state.step)
        if state.num_skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise FloatingPointError(_diverged(state.step))
        whole = state.step % task.round_steps == 0
        stopping = distributed.anywhere(whole and bool(interrupted), device_of(state.model))
        over = whole and elapsed >= 1
        ends = state.step == stop_at or (over and not stopping)
        if state.step % loop.log_every == 0 or ends or stopping:
            log.write_losses(state, bar, stop_at)
        if (state.step % loop.evaluate_every == 0 and not stopping) or ends:
            log.write_evaluation(state, task, bar)
        if state.step % loop.save_every == 0 or ends or stopping:
            checkpoints.save_checkpoint(state, out, loop.keep)


@dataclass(frozen=True)
class _TimeGiven:
    """The time that a run may take steps for, and that it took them for under earlier commands."""

    minutes: float | None
    before_s: float
    began: float = field(default_factory=time.monotonic)

    def share(self) -> float:
        """Return the part of the time that is over, from 0 to 1; 0 where there is no limit."""
        if self.minutes is None:
            return 0.0
        now_s = time.monotonic() - self.began
        return min(1.0, (self.before_s + now_s) / (self.before_s + 60 * self.minutes))


@dataclass
class _Log:
    """Gathers losses between two lines of metrics; process 0 writes them."""

    out: Path
    start: TrainState
    sums: dict[str, float] = field(default_factory=dict)
    norms: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.seconds, self.num_targets = self.start.seconds, self.start.num_targets

    def add(self, report: StepReport) -> None:
        if report.applied:
            self.sums = {name: self.sums.get(name, 0.0) + value for name, value in report.sums.items()}
            self.norms.append(report.grad_norm)

    def write_losses(self, state: TrainState, bar: ProgressBar, stop_at: int) -> None:
        seconds = state.seconds - self.seconds
        line: Line = {
            "step": state.step,
            "kind": "train",
            **(means(self.sums) if self.sums else {}),
            **{f"lr/{group['name']}": group["lr"] for group in state.optimizer.param_groups},
            "grad_norm": sum(self.norms) / len(self.norms) if self.norms else None,
            "num_targets": state.num_targets,
            "num_skipped": state.num_skipped,
            "seconds": round(state.seconds, 3),
            "targets_per_s": round((state.num_targets - self.num_targets) / max(seconds, 1e-9), 1),
        }
        if distributed.world().rank == 0:
            append_metrics(self.out / "metrics.jsonl", line)
            bar.report(line, (stop_at - state.step) * state.seconds / state.step)
        self.sums, self.norms = {}, []
        self.seconds, self.num_targets = state.seconds, state.num_targets

    def write_evaluation(self, state: TrainState, task: Task, bar: ProgressBar) -> None:
        measures = _evaluate(state, task)
        if distributed.world().rank == 0:
            path = self.out / "metrics.jsonl"
            append_metrics(path, {"step": state.step, "kind": "eval", **measures})
            draw_metrics(read_metrics(path), self.out / "metrics.png", f"{self.out.resolve().name}, step {state.step}")
            bar.say(f"step {state.step} evaluated: " + ", ".join(f"{k} {v:.4g}" for k, v in measures.items()))


def _evaluate(state: TrainState, task: Task) -> dict[str, float]:
    """Evaluate the weights that would be used, and leave the modules in the modes they were in."""
    modes = [(module, module.training) for module in state.model.modules()]
    state.model.eval()
    with torch.no_grad(), averaged_weights(state) as model:
        measures = task.evaluate(model)
    for module, training in modes:
        module.training = training
    return {name: float(value) for name, value in measures.items()}


def _last_evaluation(out: Path) -> dict[str, float]:
    evaluations = [line for line in read_metrics(out / "metrics.jsonl") if line["kind"] == "eval"]
    measures = {name: value for line in evaluations[-1:] for name, value in line.items() if name != "kind"}
    return {name: math.nan if value is None else value for name, value in measures.items()}


def _resume(state: TrainState, out: Path, resume: bool) -> None:
    out.mkdir(parents=True, exist_ok=True)
    saved = checkpoints.checkpoints(out)
    if saved and not resume:
        raise ValueError(f"{out} already holds {saved[-1].name}: resume it, or train into another folder")
    distributed.barrier()
    if distributed.world().rank == 0:
        checkpoints.remove_partial(out)
        truncate_metrics(out / "metrics.jsonl", int(saved[-1].name[5:]) if saved else 0)
    if saved:
        checkpoints.restore_checkpoint(state, saved[-1])


def _batches(task: Task, start: int, stop: int, num_accumulation: int, loop: LoopSettings) -> Iterator[Any]:
    """Yield the micro-batches of this process, built ahead by processes or by one thread if asked for."""
    world = distributed.world()

    def build(number: int) -> Any:
        step, micro = divmod(number, num_accumulation)
        return task.batch_at(start + step, micro, world.rank, world.size)

    numbers = range((stop - start) * num_accumulation)
    if loop.workers:
        # Forked, they have what the run has read; a batch is a function of its number, so only their order matters.
        yield from DataLoader(
            _Batches(build, len(numbers)),
            batch_size=None,
            num_workers=loop.workers,
            collate_fn=_same,
            generator=torch.Generator(),  # else it would draw from the one that seeds the step
            multiprocessing_context="fork",
        )
    elif loop.prefetch:
        yield from ahead(build, numbers, 1, loop.prefetch)
    else:
        yield from map(build, numbers)


@dataclass(frozen=True)
class _Batches(Dataset[Any]):
    """The batches of a run, by number."""

    build: Callable[[int], Any]
    num: int

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, number: int) -> Any:
        return self.build(number)


def _same(batch: Any) -> Any:
    return batch


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of the first; a second one is obeyed at once."""
    received: list[int] = []
    previous: dict[int, Any] = {}

    def note(number: int, frame: object) -> None:
        received.append(number)
        signal.signal(number, previous[number])

    try:
        if threading.current_thread() is threading.main_thread():  # Others may not handle signals.
            for wanted in (signal.SIGINT, signal.SIGTERM):
                previous[wanted] = signal.signal(wanted, note)
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _diverged(step: int) -> str:
    return (
        f"{MAX_SKIPPED_IN_A_ROW} steps in a row, up to step {step}, had a loss or gradient that is not "
        "finite: lower the learning rate, lengthen the warm-up or train in fp32; the last checkpoint stays"
    )
