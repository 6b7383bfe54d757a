"""A tiny task that the training tests share: a classifier of random vectors with dropout and a frozen layer.

As a program, `tiny.py alone OUT [STEP_TO_DIE]` trains it and may kill itself on the way, and
`torchrun tiny.py shared OUT` trains it in several processes.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tristep.training import distributed
from tristep.training.settings import LoopSettings, OptimSettings
from tristep.training.step import Task
from tristep.training.supervised import train

OPTIM = OptimSettings(steps=6, warmup_steps=2, num_accumulation=2, ema_decay=0.9, weight_decay=0.1, seed=3)
SHARED_OPTIM = OptimSettings(steps=5, warmup_steps=2, ema_decay=0.9, clip_norm=0.5)
LOOP = LoopSettings(log_every=1, evaluate_every=3, save_every=2)


class Tiny(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.block = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16) if dropout else nn.Identity(), nn.GELU())
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(16, 3)

    def forward(self, vectors: Tensor) -> Tensor:
        return self.head(self.dropout(self.block(self.frozen(vectors))))


def batch(step: int, size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    vectors = torch.randn(size, 6, generator=generator)
    return vectors, vectors[:, :3].argmax(dim=1)


def part(step: int, sizes: list[int], index: int) -> tuple[Tensor, Tensor]:
    """One part of the step's batch; the parts have different numbers of targets."""
    vectors, targets = batch(step, sum(sizes))
    return vectors.split(sizes)[index], targets.split(sizes)[index]


def batch_at(step: int, micro: int, rank: int, world_size: int) -> tuple[Tensor, Tensor]:
    return part(step, [5, 11], micro % 2)


def losses(model: nn.Module, pair: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    vectors, targets = pair
    logits = model(vectors)
    cross_entropy = nn.functional.cross_entropy(logits.float(), targets, reduction="sum")
    first = logits[targets == 0].float().square().sum()
    return {
        "loss": cross_entropy + 0.1 * first,
        "num_targets": torch.tensor(len(targets)),
        "cross_entropy": cross_entropy,
        "first": first,
        "first_targets": (targets == 0).sum(),
    }


def noisy_losses(model: nn.Module, pair: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Losses that use all three global generators, as augmentation may."""
    vectors, targets = pair
    vectors = vectors + 0.1 * torch.randn_like(vectors) + 0.1 * float(np.random.randn())
    return losses(model, (vectors, targets))


def evaluate(model: nn.Module) -> dict[str, float]:
    vectors, targets = batch(10**6, 64)
    logits = model(vectors)
    loss = nn.functional.cross_entropy(logits, targets)
    return {"loss": loss.item(), "error_rate": (logits.argmax(dim=1) != targets).float().mean().item()}


def tiny_task(dropout: float = 0.2, losses: Callable[..., Any] = noisy_losses, batch_at: Any = batch_at) -> Task:
    torch.manual_seed(1)
    model = Tiny(dropout)
    return Task(model, losses, batch_at, evaluate, groups_of(model))


def groups_of(model: Tiny) -> list[dict[str, Any]]:
    return [
        {"name": "block", "params": list(model.block.parameters()), "lr": 0.02},
        {"name": "head", "params": list(model.head.parameters()), "lr": 0.01, "weight_decay": 0.0},
    ]


def killed_at(step_to_die: int) -> Any:
    """A `batch_at` under which the process dies as by `kill -9` when it reaches a step."""

    def deadly(step: int, micro: int, rank: int, world_size: int) -> tuple[Tensor, Tensor]:
        if (step, micro) == (step_to_die, 1):
            os.kill(os.getpid(), signal.SIGKILL)
        return batch_at(step, micro, rank, world_size)

    return deadly


def share_at(step: int, micro: int, rank: int, world_size: int) -> tuple[Tensor, Tensor]:
    """The step's batch whole for one process, in uneven shares for two."""
    return part(step, [16] if world_size == 1 else [5, 11], rank)


def train_shared(out: Path) -> None:
    """Train without randomness for three steps and then two more, alone or as one of torchrun's processes."""
    distributed.start()
    for steps in (3, 5):
        task = tiny_task(0.0, losses, share_at)
        distributed.shard(task.model, [task.model.block])
        train(replace(task, parameter_groups=groups_of(task.model)), SHARED_OPTIM, LOOP, out, steps)
    distributed.stop()


def main(verb: str, out: Path, step_to_die: int = -1) -> None:
    if verb == "shared":
        torch.set_num_threads(1)
        train_shared(out)
    else:
        train(tiny_task(batch_at=killed_at(step_to_die)), OPTIM, LOOP, out)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))
