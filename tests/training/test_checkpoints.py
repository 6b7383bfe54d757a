from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training import tiny

from tristep.training.checkpoints import (
    checkpoints,
    load_trained,
    remove_partial,
    restore_checkpoint,
    save_checkpoint,
)
from tristep.training.step import TrainState, new_state, train_step


def stepped(num_steps: int) -> TrainState:
    task = tiny.tiny_task()
    state = new_state(task, tiny.OPTIM)
    for step in range(num_steps):
        train_step(state, task.losses, [tiny.batch(step, 8)], tiny.OPTIM)
    return state


def test_a_checkpoint_gives_back_weights_moments_averages_and_counters(tmp_path: Path) -> None:
    state, other = stepped(3), stepped(0)
    save_checkpoint(state, tmp_path, keep=2)
    restore_checkpoint(other, checkpoints(tmp_path)[-1])
    for name, tensor in state.model.state_dict().items():
        assert torch.equal(tensor, other.model.state_dict()[name]), name
    for name, parameter in state.trainables.items():
        assert torch.equal(state.ema[name], other.ema[name])
        for key, moment in state.optimizer.state[parameter].items():
            assert torch.equal(moment, other.optimizer.state[other.trainables[name]][key])
    assert (other.step, other.num_targets, other.seconds) == (3, 24, state.seconds)


def test_frozen_weights_are_not_saved_but_buffers_are(tmp_path: Path) -> None:
    save_checkpoint(stepped(1), tmp_path, keep=2)
    (folder,) = checkpoints(tmp_path)
    names = load_file(folder / "model.safetensors").keys()
    assert not [name for name in names if name.startswith("frozen")]
    described = json.loads((folder / "state.json").read_text())
    assert set(described["trainables"]) | set(described["buffers"]) == names
    assert "block.1.running_mean" in described["buffers"]


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    state = stepped(0)
    for step in (1, 2, 3, 1_000_000):
        state.step = step
        save_checkpoint(state, tmp_path, keep=2)
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step-000003", "step-1000000"]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("fails_at", range(6))
def test_a_save_that_breaks_off_anywhere_leaves_a_whole_checkpoint(
    call: str, fails_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(stepped(1), tmp_path, keep=1)
    state = stepped(2)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing(getattr(os, call), fails_at))
        try:
            save_checkpoint(state, tmp_path, keep=1)
        except OSError:
            broke_off = True
        else:
            broke_off = False
    assert broke_off == (call == "fsync" or fails_at < 3)
    remove_partial(tmp_path)
    restored = stepped(0)
    restore_checkpoint(restored, checkpoints(tmp_path)[-1])
    assert restored.step in (1, 2)
    assert not list((tmp_path / "checkpoints").glob("*.partial"))
    save_checkpoint(state, tmp_path, keep=1)
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step-000002"]


def failing(function: Callable[..., Any], fails_at: int) -> Callable[..., Any]:
    calls = iter(range(1000))

    def maybe(*args: Any) -> Any:
        if next(calls) == fails_at:
            raise OSError("the disk is full")
        return function(*args)

    return maybe


def test_a_checkpoint_of_other_parameters_is_refused(tmp_path: Path) -> None:
    save_checkpoint(stepped(1), tmp_path, keep=2)
    task = tiny.tiny_task()
    task.model.head.bias.requires_grad_(False)
    task.parameter_groups[1]["params"] = [task.model.head.weight]
    with pytest.raises(ValueError, match=r"trains 6 parameters, this run 5; 'head.bias' is in only one"):
        restore_checkpoint(new_state(task, tiny.OPTIM), checkpoints(tmp_path)[-1])


def test_trained_weights_are_the_running_averages(tmp_path: Path) -> None:
    state = stepped(3)
    save_checkpoint(state, tmp_path, keep=2)
    model = tiny.tiny_task().model
    load_trained(model, tmp_path / "trained.safetensors")
    assert torch.equal(model.head.weight, state.ema["head.weight"])
    assert torch.equal(model.block[1].running_mean, state.model.block[1].running_mean)
    with pytest.raises(ValueError, match="which the model lacks"):
        load_trained(torch.nn.Linear(2, 2), tmp_path / "trained.safetensors")
