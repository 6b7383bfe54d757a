"""Law: two processes with sharded weights and uneven shares of each batch train what one process trains."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training import tiny

from tristep.training.checkpoints import checkpoints
from tristep.training.metrics import read_metrics


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    tiny.train_shared(one)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, tiny.__file__, "shared", str(two)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return one, two


def test_losses_and_gradient_norms_of_two_processes_equal_those_of_one(
    one_and_two: tuple[Path, Path],
) -> None:
    one, two = (read_metrics(out / "metrics.jsonl") for out in one_and_two)
    assert [line["step"] for line in two] == [1, 2, 3, 3, 4, 5, 5]
    for line, other in zip(one, two, strict=True):
        kept = line.keys() - {"seconds", "targets_per_s", "kind"}
        assert {k: other[k] for k in kept} == pytest.approx({k: line[k] for k in kept}, abs=1e-5)


def test_weights_of_two_processes_equal_those_of_one(one_and_two: tuple[Path, Path]) -> None:
    for file in ("model.safetensors", "ema.safetensors"):
        one, two = (load_file(checkpoints(out)[-1] / file) for out in one_and_two)
        assert one.keys() == two.keys()
        for name, weight in one.items():
            torch.testing.assert_close(two[name], weight, rtol=0, atol=1e-5)


def test_one_process_resumes_what_two_began(one_and_two: tuple[Path, Path]) -> None:
    optim = tiny.SHARED_OPTIM.model_copy(update={"steps": 8})
    for out in one_and_two:
        task = tiny.tiny_task(0.0, tiny.losses, tiny.share_at)
        tiny.train(task, optim, tiny.LOOP, out)
    one, two = (load_file(out / "trained.safetensors") for out in one_and_two)
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=0, atol=1e-5)
