from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training import tiny

from tristep.training.checkpoints import checkpoints
from tristep.training.metrics import read_metrics
from tristep.training.settings import LoopSettings, OptimSettings
from tristep.training.supervised import train


def test_a_run_learns_and_leaves_metrics_a_picture_and_weights(tmp_path: Path) -> None:
    optim = OptimSettings(steps=60, warmup_steps=5, num_accumulation=2)
    loop = LoopSettings(log_every=5, evaluate_every=20, save_every=30)
    measures = train(tiny.tiny_task(dropout=0.0, losses=tiny.losses), optim, loop, tmp_path)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(5, 61, 5))
    evaluations = [line for line in lines if line["kind"] == "eval"]
    assert [line["step"] for line in evaluations] == [20, 40, 60]
    assert measures == {key: value for key, value in evaluations[-1].items() if key != "kind"}
    assert measures["loss"] < 0.8 < evaluations[0]["loss"]
    assert {"loss", "first", "lr/block", "lr/head", "grad_norm", "seconds", "targets_per_s"} <= lines[0].keys()
    assert (tmp_path / "metrics.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "trained.safetensors").exists()
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step-000030", "step-000060"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_saves_says_how_to_go_on_and_goes_on(
    number: signal.Signals, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupting(step: int, micro: int, *place: int) -> Any:
        if (step, micro) == (2, 0):
            os.kill(os.getpid(), number)
        return tiny.batch_at(step, micro, *place)

    before = signal.getsignal(number)
    loop = LoopSettings(log_every=1, evaluate_every=100, save_every=100)
    assert train(tiny.tiny_task(batch_at=interrupting), tiny.OPTIM, loop, tmp_path)["step"] == 3
    assert "stopped and saved at step 3 of 6: run the same command again to go on" in capfd.readouterr().err
    assert signal.getsignal(number) is before
    assert train(tiny.tiny_task(), tiny.OPTIM, loop, tmp_path)["step"] == 6
    assert "at step 3" in capfd.readouterr().err


def test_ten_steps_in_a_row_that_are_not_finite_end_the_run(tmp_path: Path) -> None:
    def losses(model: nn.Module, pair: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        sums = tiny.losses(model, pair)
        return {**sums, "loss": sums["loss"] / 0}

    optim = OptimSettings(steps=50)
    with pytest.raises(FloatingPointError, match=r"10 steps in a row, up to step 10, .*lower the learning rate"):
        train(tiny.tiny_task(losses=losses), optim, LoopSettings(save_every=4, log_every=4), tmp_path)
    line = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert (line["step"], line["num_skipped"], line["grad_norm"]) == (8, 8, None)


def test_no_step_is_twice_in_the_metrics_and_half_a_line_is_dropped(tmp_path: Path) -> None:
    train(tiny.tiny_task(), tiny.OPTIM, tiny.LOOP, tmp_path, steps=2)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 3, "kind": "train", "loss": 9.0}) + '\n{"step": 4, "ki')
    train(tiny.tiny_task(), tiny.OPTIM, tiny.LOOP, tmp_path)
    steps = [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl") if line["kind"] == "train"]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    measures = train(tiny.tiny_task(), tiny.OPTIM, tiny.LOOP, tmp_path)
    written = (tmp_path / "metrics.jsonl").read_text()
    assert train(tiny.tiny_task(), tiny.OPTIM, tiny.LOOP, tmp_path) == measures
    assert (tmp_path / "metrics.jsonl").read_text() == written


def test_a_folder_with_a_run_is_refused_when_it_may_not_resume(tmp_path: Path) -> None:
    train(tiny.tiny_task(), tiny.OPTIM, tiny.LOOP, tmp_path, steps=2)
    with pytest.raises(ValueError, match="already holds step-000002: resume it, or train into another folder"):
        train(tiny.tiny_task(), tiny.OPTIM, tiny.LOOP, tmp_path, resume=False)


def test_evaluation_sees_the_averages_in_evaluation_mode_and_leaves_no_trace(tmp_path: Path) -> None:
    seen: list[tuple[bool, bool]] = []

    def evaluate(model: nn.Module) -> dict[str, float]:
        seen.append((model.training, torch.is_grad_enabled()))
        torch.rand(1000)
        return {"loss": 1.0}

    task = tiny.tiny_task()
    task.model.frozen.eval()
    train(replace(task, evaluate=evaluate), tiny.OPTIM, tiny.LOOP, tmp_path)
    assert seen == [(False, False)] * 2
    assert task.model.training
    assert not task.model.frozen.training


def test_an_error_while_building_a_batch_ahead_reaches_the_user(tmp_path: Path) -> None:
    def broken(*place: int) -> Any:
        raise ValueError("clip 17 is missing")

    loop = LoopSettings(prefetch=2)
    with pytest.raises(ValueError, match="clip 17 is missing"):
        train(tiny.tiny_task(batch_at=broken), tiny.OPTIM, loop, tmp_path)


def test_a_run_that_is_out_of_time_ends_measured_and_saved_with_small_steps_and_may_go_on(tmp_path: Path) -> None:
    optim = OptimSettings(steps=100_000, min_lr_ratio=0.1)
    loop = LoopSettings(log_every=1, evaluate_every=100_000, save_every=100_000, minutes=0.003)
    measures = train(tiny.tiny_task(), optim, loop, tmp_path)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    rates = [line["lr/block"] for line in lines if line["kind"] == "train"]
    assert 1 < measures["step"] == len(rates) < 100_000
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.1 * 0.02)
    assert [folder.name for folder in checkpoints(tmp_path)] == [f"step-{len(rates):06d}"]
    assert "loss" in measures
    assert train(tiny.tiny_task(), optim, loop, tmp_path)["step"] > measures["step"]


def test_an_error_in_a_process_that_builds_batches_reaches_the_user(tmp_path: Path) -> None:
    def broken(*place: int) -> Any:
        raise ValueError("clip 17 is missing")

    with pytest.raises(ValueError, match="clip 17 is missing"):
        train(tiny.tiny_task(batch_at=broken), tiny.OPTIM, LoopSettings(workers=1), tmp_path)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_run_on_a_gpu_resumes(tmp_path: Path) -> None:
    optim = tiny.OPTIM.model_copy(update={"precision": "bf16"})
    for steps in (3, 6):
        task = tiny.tiny_task()
        task.model.cuda()
        assert train(task, optim, tiny.LOOP, tmp_path, steps)["step"] == steps
