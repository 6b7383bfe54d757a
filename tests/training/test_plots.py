from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tristep.training.metrics import append_metrics, read_metrics
from tristep.training.plots import draw_metrics, running_mean


def lines(num_steps: int) -> list[dict[str, Any]]:
    train = [
        {
            "step": s,
            "kind": "train",
            "loss": 2 / s,
            "ctc": 3 / s,
            "lr/adaptor": 1e-3,
            "grad_norm": None if s == 3 else 0.5,
        }
        for s in range(1, num_steps + 1)
    ]
    return [
        *train,
        {"step": num_steps, "kind": "eval", "loss": 1.0, "wer": None},
        {"step": 9, "kind": "eval", "wer": 0.2},
    ]


@pytest.mark.parametrize("drawn", [[], lines(1), lines(8)], ids=["nothing", "one step", "a run"])
def test_a_run_of_any_length_is_drawn(drawn: list[dict[str, Any]], tmp_path: Path) -> None:
    draw_metrics(drawn, tmp_path / "metrics.png", "a run")
    assert (tmp_path / "metrics.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.png"]


def test_the_running_mean_of_a_constant_is_the_constant() -> None:
    assert running_mean([2.5] * 20) == pytest.approx([2.5] * 20)


def test_a_running_mean_starts_at_the_first_value_and_follows() -> None:
    smooth = running_mean([1.0] + [0.0] * 30)
    assert smooth[0] == 1.0
    assert smooth[-1] < 0.01


def test_a_measure_that_is_not_finite_is_written_as_null(tmp_path: Path) -> None:
    append_metrics(tmp_path / "metrics.jsonl", {"step": 1, "wer": float("nan"), "loss": float("inf"), "cer": 0.5})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "wer": None, "loss": None, "cer": 0.5}]
