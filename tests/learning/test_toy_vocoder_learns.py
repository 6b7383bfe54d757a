"""A toy vocoder learns: random weights, tones, the recipe that ships, under a minute."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tristep.corpus.tones import write_corpus
from tristep.training.codec import run_codec
from tristep.training.metrics import read_metrics

RECIPE = Path(__file__).parents[2] / "recipes" / "toy" / "codec.toml"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.mark.slow
def test_a_toy_learns_to_sound_tones_as_they_look(tmp_path: Path) -> None:
    write_corpus(tmp_path / "tones", num_clips=200, seed=0)
    started = run_codec(RECIPE, tmp_path / "out", steps=1, data_root=tmp_path)
    learnt = run_codec(RECIPE, tmp_path / "out", data_root=tmp_path)
    losses = [line["loss"] for line in read_metrics(tmp_path / "out" / "metrics.jsonl") if line["kind"] == "train"]
    assert losses[-1] < 0.8 * losses[0]
    assert learnt["spectral"] < 0.96 * started["spectral"]  # two draws of noise are never alike
    assert started["pitch_off"] > 0.6
    assert learnt["pitch_off"] < 0.35
