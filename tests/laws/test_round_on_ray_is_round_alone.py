"""Law: rounds that actors of a Ray cluster have worked on are those of one process, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training import toys

from tristep.corpus.tones import write_corpus
from tristep.training.rlhf import run_rlhf

pytest.importorskip("ray", reason="Ray is not installed: pip install 'tristep[scale]'")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute with as many threads as an actor has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_a_run_on_actors_equals_a_run_in_one_process(
    one_thread: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toys.known_to_processes(monkeypatch)
    write_corpus(tmp_path / "tones", num_clips=20, seed=0)
    for name, scale in (("alone", ""), ("actors", "rollout_actors = 2\nreward_actors = 1")):
        recipe = toys.conversing_recipe(tmp_path, f"{name}.toml", prompts_at_once=2, scale=scale)
        run_rlhf(recipe, tmp_path / name, steps=2, data_root=tmp_path, listeners=toys.LISTENERS)
    alone, actors = (load_file(tmp_path / name / "trained.safetensors") for name in ("alone", "actors"))
    assert alone.keys() == actors.keys()
    assert all(torch.equal(alone[name], actors[name]) for name in alone)
    rounds = [(tmp_path / name / "rollouts.jsonl").read_text() for name in ("alone", "actors")]
    assert rounds[0] == rounds[1]
    assert len(rounds[0].splitlines()) == 2
