from __future__ import annotations

import json
from pathlib import Path

import pytest

from tristep.training.learnt import Bar, missed, row, sentence

FROM_90_TO_25: tuple[dict[str, object], ...] = (
    {"step": 0, "kind": "eval", "wer": 0.9},
    {"step": 9, "kind": "eval", "wer": 0.25},
)


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


def test_rewards_of_what_was_drawn_are_told_beside_what_was_held_out(tmp_path: Path) -> None:
    out = run_with(
        tmp_path / "rlhf",
        {"step": 1, "kind": "train", "reward/spelling": 0.125},
        {"step": 2, "kind": "train", "reward/spelling": 0.5},
        {"step": 2, "kind": "eval", "wer": 0.25},
    )
    assert sentence(out) == "rlhf, 2 steps: wer 0.25 -> 0.25, reward/spelling 0.125 -> 0.5"


def test_a_run_without_an_evaluation_has_nothing_to_say(tmp_path: Path) -> None:
    out = run_with(tmp_path / "begun", {"step": 5, "kind": "train", "loss": 4.0})
    with pytest.raises(ValueError, match="begun holds no evaluation: run its training to the end first"):
        sentence(out)


def test_a_row_names_the_measure_of_a_bar(tmp_path: Path) -> None:
    out = run_with(tmp_path / "align", *FROM_90_TO_25)
    assert row(out, Bar.parse("wer < 0.5")) == "align\twer\t0.9\t0.25"
    with pytest.raises(ValueError, match=r"align does not measure 'cer': expected one of wer"):
        row(out, Bar.parse("cer < 0.5"))


@pytest.mark.parametrize(
    ("bar", "late"),
    [("wer < 0.5", False), ("wer < 0.1", True), ("wer < before", False), ("wer > before", True), ("cer < 1", True)],
)
def test_a_bar_is_missed_where_a_measure_ends_on_the_wrong_side(tmp_path: Path, bar: str, late: bool) -> None:
    out = run_with(tmp_path / "align", *FROM_90_TO_25)
    assert missed(out, Bar.parse(bar)) is late


def test_a_bar_that_cannot_be_read_says_what_is_expected() -> None:
    with pytest.raises(ValueError, match=r"'wer 0\.5' is no bar: expected a measure, < or >, and a number or `before`"):
        Bar.parse("wer 0.5")
