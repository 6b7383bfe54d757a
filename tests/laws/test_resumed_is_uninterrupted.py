"""Law: a run that was stopped, or killed, and resumed ends bit for bit where an uninterrupted one ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training import tiny

from tristep.training.checkpoints import checkpoints
from tristep.training.metrics import read_metrics
from tristep.training.supervised import train


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted")
    train(tiny.tiny_task(), tiny.OPTIM, tiny.LOOP, out)
    return out


def same_tensors(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        same_tensors(one[k], other[k]) if isinstance(one[k], dict) else torch.equal(one[k], other[k]) for k in one
    )


def assert_same_run(one: Path, other: Path) -> None:
    newest, others = checkpoints(one)[-1], checkpoints(other)[-1]
    assert newest.name == others.name == "step-000006"
    for file in ("model.safetensors", "ema.safetensors"):
        assert same_tensors(load_file(newest / file), load_file(others / file)), file
    assert same_tensors(*(torch.load(f / "optimizer.pt", weights_only=True) for f in (newest, others)))
    assert same_tensors(load_file(one / "trained.safetensors"), load_file(other / "trained.safetensors"))


def losses_by_step(out: Path) -> list[tuple[int, str, float]]:
    return [(line["step"], line["kind"], line["loss"]) for line in read_metrics(out / "metrics.jsonl")]


def test_a_run_in_two_halves_equals_one_run(uninterrupted: Path, tmp_path: Path) -> None:
    train(tiny.tiny_task(), tiny.OPTIM, tiny.LOOP, tmp_path, steps=3)
    torch.manual_seed(12345)
    train(tiny.tiny_task(), tiny.OPTIM, tiny.LOOP, tmp_path)
    assert_same_run(tmp_path, uninterrupted)
    assert losses_by_step(tmp_path) == losses_by_step(uninterrupted)


def test_a_killed_run_loses_at_most_one_interval_and_equals_an_uninterrupted_one(
    uninterrupted: Path, tmp_path: Path
) -> None:
    # Torch draws dropout differently with another number of threads: a resumed run needs the same.
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    environment = {**os.environ, **threads, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, tiny.__file__, "alone", str(tmp_path), "5"]
    killed = subprocess.run(command, env=environment, capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert losses_by_step(tmp_path)[-1][0] == 5
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step-000002", "step-000004"]
    train(tiny.tiny_task(), tiny.OPTIM, tiny.LOOP, tmp_path)
    assert_same_run(tmp_path, uninterrupted)
    assert losses_by_step(tmp_path) == losses_by_step(uninterrupted)


@pytest.mark.parametrize("ahead", [{"prefetch": 3}, {"workers": 2}], ids=str)
def test_batches_built_ahead_change_nothing(uninterrupted: Path, tmp_path: Path, ahead: dict[str, int]) -> None:
    train(tiny.tiny_task(), tiny.OPTIM, tiny.LOOP.model_copy(update=ahead), tmp_path)
    assert_same_run(tmp_path, uninterrupted)


def test_another_seed_is_another_run(uninterrupted: Path, tmp_path: Path) -> None:
    train(tiny.tiny_task(), tiny.OPTIM.model_copy(update={"seed": 4}), tiny.LOOP, tmp_path)
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path, uninterrupted)
