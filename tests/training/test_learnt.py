from __future__ import annotations

import json
from pathlib import Path

import pytest

from tristep.training.learnt import sentence


def run_with(folder: Path, *lines: dict[str, object]) -> Path:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_line_says_from_where_to_where_each_measure_went(tmp_path: Path) -> None:
    out = run_with(
        tmp_path / "align",
        {"step": 5, "kind": "train", "loss": 4.0, "grad_norm": 1.0},
        {"step": 10, "kind": "eval", "loss": 3.0, "wer": 0.9},
        {"step": 20, "kind": "eval", "loss": 1.5, "wer": 0.25, "broken": None},
    )
    assert sentence(out) == "align, 20 steps: loss 4 -> 1.5, wer 0.9 -> 0.25"


def test_a_run_without_an_evaluation_has_nothing_to_say(tmp_path: Path) -> None:
    out = run_with(tmp_path / "begun", {"step": 5, "kind": "train", "loss": 4.0})
    with pytest.raises(ValueError, match="begun holds no evaluation: run its training to the end first"):
        sentence(out)
