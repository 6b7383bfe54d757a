"""Random weights learn from a judge through the whole loop, rollouts by the engine included: seeded, in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
from training import toys

from tristep.corpus.tones import write_corpus
from tristep.training.metrics import read_metrics
from tristep.training.rlhf import run_rlhf

CONVERSING = Path(__file__).parents[2] / "recipes" / "toy" / "5_rlhf_realtime.toml"
LENGTHENED = {
    "decoder = 1e-2": "decoder = 3e-3\nembedding = 1e-2\ngrown = 1e-2",
    "group_size = 3": "group_size = 4",
    "steps = 4": "steps = 24",
    "log_every = 1": "log_every = 4",
    "evaluate_every = 4": "evaluate_every = 24",
    "save_every = 2": "save_every = 24",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "updates", "warmup", "rise"), [("grpo", 1, 0, 0.15), ("ppo", 2, 2, 0.05)], ids=["grpo", "ppo"]
)
def test_a_toy_learns_what_its_judge_likes(
    algorithm: str, updates: int, warmup: int, rise: float, tmp_path: Path
) -> None:
    write_corpus(tmp_path / "tones", num_clips=20, seed=0)
    settings = {"algorithm": algorithm, "updates": updates, "critic_warmup": warmup, "alarms": "window = 0"}
    recipe = toys.hearing_recipe(tmp_path, **settings)
    text = recipe.read_text()
    for old, new in LENGTHENED.items():
        text = text.replace(old, new)
    recipe.write_text(text)
    run_rlhf(recipe, tmp_path / "out", data_root=tmp_path, listeners=toys.LISTENERS)
    lines = [line for line in read_metrics(tmp_path / "out" / "metrics.jsonl") if line["kind"] == "train"]
    assert lines[-1]["reward/judge"] > lines[0]["reward/judge"] + rise
    assert lines[-1]["rollout/kl"] > lines[0]["rollout/kl"]


@pytest.mark.slow
def test_a_toy_learns_to_end_its_replies_and_most_still_say_something_in_character(tmp_path: Path) -> None:
    write_corpus(tmp_path / "tones", num_clips=60, seed=0)
    run_rlhf(CONVERSING, tmp_path / "out", data_root=tmp_path)
    lines = [line for line in read_metrics(tmp_path / "out" / "metrics.jsonl") if line["kind"] == "train"]
    assert lines[0]["reward/ending"] < 0.2
    assert lines[-1]["reward/ending"] > 0.7
    assert lines[-1]["reward/character"] > 0.7
