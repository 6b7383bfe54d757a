"""Law: a run of learning from rewards that was stopped and resumed ends bit for bit where an uninterrupted one ends."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training import toys

from tristep.corpus.tones import write_corpus
from tristep.training.rlhf import run_rlhf


@pytest.mark.parametrize("write", [toys.hearing_recipe, toys.conversing_recipe], ids=["asr", "realtime"])
@pytest.mark.parametrize(
    ("algorithm", "updates", "critic_warmup"), [("grpo", 1, 0), ("ppo", 2, 2)], ids=["grpo", "ppo in two updates"]
)
def test_a_run_in_two_halves_equals_one_run(
    write: Callable[..., Path], algorithm: str, updates: int, critic_warmup: int, tmp_path: Path
) -> None:
    write_corpus(tmp_path / "tones", num_clips=20, seed=0)
    recipe = write(tmp_path, algorithm=algorithm, updates=updates, critic_warmup=critic_warmup)
    go_on = partial(run_rlhf, recipe, data_root=tmp_path, listeners=toys.LISTENERS)
    go_on(out=tmp_path / "whole")
    go_on(out=tmp_path / "halves", steps=2)
    torch.manual_seed(999)
    go_on(out=tmp_path / "halves")
    whole, halves = (load_file(tmp_path / name / "trained.safetensors") for name in ("whole", "halves"))
    assert whole.keys() == halves.keys()
    assert all(torch.equal(whole[name], halves[name]) for name in whole)
    rounds = [(tmp_path / name / "rollouts.jsonl").read_text() for name in ("whole", "halves")]
    assert rounds[0] == rounds[1]
    assert len(rounds[0].splitlines()) == 4 // updates
    start = load_file(tmp_path / "halves" / "checkpoints" / "step-000002" / "model.safetensors")
    assert any(not torch.equal(start[name], whole[name]) for name in whole)
