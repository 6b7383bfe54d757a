"""Law: n micro-batches, however unevenly the targets fall, take the step that one big batch takes."""

from __future__ import annotations

import pytest
import torch
from training import tiny

from tristep.training.settings import OptimSettings
from tristep.training.step import StepReport, TrainState, means, new_state, train_step

OPTIM = OptimSettings(steps=4, clip_norm=0.5)


def trained(sizes: list[int]) -> tuple[TrainState, list[StepReport]]:
    task = tiny.tiny_task(dropout=0.0, losses=tiny.losses)
    state = new_state(task, OPTIM)
    batches = ([tiny.part(step, sizes, micro) for micro in range(len(sizes))] for step in range(4))
    return state, [train_step(state, task.losses, parts, OPTIM) for parts in batches]


@pytest.mark.parametrize("sizes", [[8, 8], [1, 15], [3, 0, 6, 7], [1] * 16], ids=str)
def test_accumulated_steps_equal_steps_on_one_big_batch(sizes: list[int]) -> None:
    (state, reports), (reference, expected) = trained(sizes), trained([16])
    for report, other in zip(reports, expected, strict=True):
        assert means(report.sums) == pytest.approx(means(other.sums), abs=1e-5)
        assert report.grad_norm == pytest.approx(other.grad_norm, abs=1e-5)
    for name, parameter in state.trainables.items():
        torch.testing.assert_close(parameter, reference.trainables[name], rtol=0, atol=1e-5)


def test_the_step_is_the_one_of_plain_adamw_on_the_mean_loss() -> None:
    state, _ = trained([5, 11])
    model = tiny.tiny_task(dropout=0.0).model
    optimizer = torch.optim.AdamW(tiny.groups_of(model), betas=(0.9, 0.95), weight_decay=0.0, foreach=False)
    peaks = [group["lr"] for group in optimizer.param_groups]
    for step in range(4):
        scale = 0.05 + 0.95 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / 4)).item())
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * scale
        sums = tiny.losses(model, tiny.batch(step, 16))
        optimizer.zero_grad()
        (sums["loss"] / 16).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    for name, parameter in state.trainables.items():
        torch.testing.assert_close(parameter, model.get_parameter(name), rtol=0, atol=1e-5)
