from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from training import tiny

from tristep.training.settings import OptimSettings
from tristep.training.step import (
    averaged_weights,
    lr_scale,
    means,
    new_state,
    to_device,
    train_step,
)


def test_the_learning_rate_rises_to_its_peak_and_falls_to_its_floor() -> None:
    optim = OptimSettings(steps=110, warmup_steps=10, min_lr_ratio=0.1)
    scales = [lr_scale(step, optim) for step in range(130)]
    assert scales[0] == pytest.approx(0.1)
    assert scales[9] == scales[10] == 1.0
    assert scales[60] == pytest.approx(0.55)
    assert scales[110:] == pytest.approx([0.1] * 20)
    assert sorted(scales[10:], reverse=True) == scales[10:]


def test_the_learning_rate_is_as_far_as_the_time_is_where_that_is_further() -> None:
    optim = OptimSettings(steps=110, warmup_steps=10, min_lr_ratio=0.1)
    assert lr_scale(5, optim, elapsed=0.5) == lr_scale(5, optim)
    assert lr_scale(20, optim, elapsed=0.5) == pytest.approx(0.55)
    assert lr_scale(100, optim, elapsed=0.5) == lr_scale(100, optim)
    assert lr_scale(10, optim, elapsed=1.0) == pytest.approx(0.1)


def test_groups_keep_their_own_learning_rates_and_weight_decays() -> None:
    task = tiny.tiny_task()
    state = new_state(task, tiny.OPTIM)
    train_step(state, task.losses, [tiny.batch(0, 8)], tiny.OPTIM)
    assert [group["lr"] for group in state.optimizer.param_groups] == [0.01, 0.005]
    assert [group["weight_decay"] for group in state.optimizer.param_groups] == [0.1, 0.0]


def test_what_is_frozen_stays_as_it_is() -> None:
    task = tiny.tiny_task()
    state = new_state(task, tiny.OPTIM)
    before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    train_step(state, task.losses, [tiny.batch(0, 8)], tiny.OPTIM)
    unchanged = {name for name, p in task.model.named_parameters() if torch.equal(p, before[name])}
    assert {name for name in unchanged if name.startswith("frozen")} == {"frozen.weight", "frozen.bias"}
    assert "head.weight" not in unchanged
    assert state.trainables.keys() == before.keys() - {"frozen.weight", "frozen.bias"}


def spoilt_losses(model: nn.Module, pair: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    sums = tiny.losses(model, pair)
    return {**sums, "loss": sums["loss"] * float("nan")}


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted() -> None:
    task = tiny.tiny_task(dropout=0.0)
    state = new_state(task, tiny.OPTIM)
    before = {name: p.detach().clone() for name, p in state.trainables.items()}
    report = train_step(state, spoilt_losses, [tiny.batch(0, 8)], tiny.OPTIM)
    assert not report.applied
    assert (state.step, state.num_skipped, state.num_skipped_in_a_row, state.num_targets) == (1, 1, 1, 0)
    for name, parameter in state.trainables.items():
        assert torch.equal(parameter, before[name])
        assert torch.equal(state.ema[name], before[name])
    assert train_step(state, tiny.losses, [tiny.batch(1, 8)], tiny.OPTIM).applied
    assert (state.num_skipped, state.num_skipped_in_a_row) == (1, 0)


def test_running_averages_lag_behind_and_are_only_lent() -> None:
    task = tiny.tiny_task()
    state = new_state(task, tiny.OPTIM)
    started = state.trainables["head.weight"].detach().clone()
    train_step(state, task.losses, [tiny.batch(0, 8)], tiny.OPTIM)
    trained = state.trainables["head.weight"].detach().clone()
    expected = started.lerp(trained, 0.9)  # In the first step the average forgets nine tenths.
    with averaged_weights(state) as model:
        torch.testing.assert_close(model.head.weight.detach(), expected)
    assert torch.equal(state.trainables["head.weight"], trained)


def test_the_gradient_norm_is_reported_before_it_is_clipped() -> None:
    task = tiny.tiny_task(dropout=0.0, losses=tiny.losses)
    optim = OptimSettings(steps=4, clip_norm=1e-3)
    state = new_state(task, optim)
    assert train_step(state, task.losses, [tiny.batch(0, 8)], optim).grad_norm > 0.01
    norms = torch.stack([p.grad.norm() for p in state.trainables.values() if p.grad is not None])
    assert norms.norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_bf16_computes_in_bf16_and_keeps_the_weights_in_float32() -> None:
    seen: list[torch.dtype] = []

    def losses(model: nn.Module, pair: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        seen.append(model(pair[0]).dtype)
        return tiny.losses(model, pair)

    task = tiny.tiny_task(dropout=0.0, losses=losses)
    optim = OptimSettings(steps=4, precision="bf16")
    state = new_state(task, optim)
    train_step(state, task.losses, [tiny.batch(0, 8)], optim)
    assert seen == [torch.bfloat16]
    assert {p.dtype for p in state.trainables.values()} == {torch.float32}


def test_sums_are_divided_by_their_own_targets() -> None:
    sums = {"loss": 12.0, "num_targets": 4.0, "ctc": 10.0, "ctc_targets": 5.0, "next_token": 2.0}
    assert means(sums) == {"loss": 3.0, "ctc": 2.0, "next_token": 0.5}


class Pair(NamedTuple):
    vectors: Tensor
    name: str


def test_batches_of_any_usual_shape_move_to_the_device() -> None:
    moved = to_device({"a": [torch.ones(2)], "b": Pair(torch.ones(3), "x"), "c": 5}, torch.device("meta"))
    assert moved["a"][0].device.type == moved["b"].vectors.device.type == "meta"
    assert (moved["b"].name, moved["c"]) == ("x", 5)


def test_a_trainable_parameter_without_a_group_is_refused() -> None:
    task = tiny.tiny_task()
    task.parameter_groups.pop()
    with pytest.raises(ValueError, match=r"2 trainable parameters are in no parameter group, 'head.weight'"):
        new_state(task, tiny.OPTIM)


def test_a_frozen_parameter_in_a_group_is_refused() -> None:
    task = tiny.tiny_task()
    task.parameter_groups[0]["params"].append(task.model.frozen.weight)
    with pytest.raises(ValueError, match="1 parameters in the parameter groups are not trainable"):
        new_state(task, tiny.OPTIM)


def test_a_model_with_nothing_to_train_is_refused() -> None:
    task = tiny.tiny_task()
    task.model.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter of the model has requires_grad"):
        new_state(task, tiny.OPTIM)
