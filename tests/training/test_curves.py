from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from training import toys

from tristep.objectives.rewards import Limits
from tristep.training.curves import draw_curves, length_limits, main

TRAIN = [
    {
        "step": step,
        "kind": "train",
        "reward/habit": step / 10,
        "rollout/kl": step / 100,
        "rollout/num_tokens": 10.0 + step,
    }
    for step in range(1, 9)
]
LINES = [{"step": 0, "kind": "eval", "habit": 0.2}, *TRAIN, {"step": 8, "kind": "alarm", "reason": "enough"}]


@pytest.mark.parametrize("lines", [[], LINES[:1], LINES], ids=["nothing", "not begun", "a run"])
def test_a_run_is_drawn_the_same_every_time(lines: list[dict[str, object]], tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg"):
        draw_curves(lines, Limits(), 2, tmp_path / name)
    assert (tmp_path / "one.svg").read_text() == (tmp_path / "two.svg").read_text()
    assert "divergence" in (tmp_path / "one.svg").read_text()


def test_answers_are_to_stay_near_the_lengths_that_they_began_with() -> None:
    assert length_limits(TRAIN, Limits(window=2, max_length_ratio=2.0)) == [5.75, 23.0]
    assert length_limits([], Limits()) == []


def test_a_runs_folder_becomes_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    recipe = toys.conversing_recipe(tmp_path)
    monkeypatch.setattr(sys, "argv", ["curves", str(recipe), str(tmp_path), "--out", str(tmp_path / "run.svg")])
    main()
    assert (tmp_path / "run.svg").read_text().count("<svg") == 1


def test_a_recipe_without_rewards_has_no_such_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "toy" / "1_align.toml"
    monkeypatch.setattr(sys, "argv", ["curves", str(recipe), str(tmp_path), "--out", str(tmp_path / "run.svg")])
    with pytest.raises(SystemExit):
        main()
