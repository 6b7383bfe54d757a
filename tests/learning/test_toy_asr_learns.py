"""A toy recogniser learns: random weights, 1200 short clips of tones, the recipe that ships, under a minute."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lhotse import MonoCut

from tristep.audio import read_audio
from tristep.backbone.checkpoints import load_backbone
from tristep.backbone.foreign import start_backbone
from tristep.config import load_backbone_config
from tristep.corpus.tones import write_corpus
from tristep.engine.engine import Engine
from tristep.modes.asr.decoding import parse
from tristep.text import error_rate
from tristep.training.mixture import CorpusSettings, read_corpus
from tristep.training.stages import run

RECIPE = Path(__file__).parents[2] / "recipes" / "toy" / "asr.toml"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def spelt(text: str) -> str:
    """Write letters apart, so that each counts as a word."""
    return " ".join(text.replace(" ", ""))


def letter_error_rate(engine: Engine, cuts: list[MonoCut]) -> float:
    """Decode by the engine's own greedy loop; its speech detector would take tones for what they are."""
    waveforms = [read_audio(cut.recording.sources[0].source) for cut in cuts]
    vocab, tokenizer = engine.backbone.vocab, engine.chat.tokenizer
    heard = [parse(completion.tokens, vocab, tokenizer).text for completion in engine.decode(waveforms)]
    return error_rate([spelt(cut.supervisions[0].text) for cut in cuts], [spelt(text) for text in heard], "en").rate


@pytest.mark.slow
def test_a_toy_learns_to_read_tones_it_has_not_heard(tmp_path: Path) -> None:
    write_corpus(tmp_path / "tones", num_clips=1200, seed=0)
    measures = run(RECIPE, tmp_path / "out", data_root=tmp_path)
    held_out = read_corpus(CorpusSettings(path="tones/manifest.jsonl", split="dev"), tmp_path)
    assert measures["ctc_wer"] < 0.1
    untrained = Engine(*start_backbone(load_backbone_config("toy"), None, None, seed=0))
    assert letter_error_rate(untrained, held_out) > 0.7
    assert letter_error_rate(Engine(*load_backbone(tmp_path / "out" / "model")), held_out) < 0.1
