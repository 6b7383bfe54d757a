from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tristep.backbone.model import Backbone
from tristep.chat import Chat
from tristep.codec.tokenizer import Lattice
from tristep.config import load_backbone_config
from tristep.modes.tts.data import IGNORED, Sample
from tristep.training.settings import OptimSettings
from tristep.training.speaking import (
    CodesSettings,
    SpeakingData,
    UtteranceSettings,
    UtteranceSource,
    collate,
    grow,
    read_clips,
)
from tristep.vocab import byte_tokenizer

CODES = CodesSettings(levels=(4, 4), rate_hz=12.5)
CORPUS = UtteranceSettings(path="utterances.jsonl")


def row(number: int, speaker: str, num_codes: int, split: str = "train") -> dict[str, Any]:
    return {
        "id": str(number), "speaker": speaker, "split": split, "words": [["hi", 0], [f"w{number}", 1]],
        "codes": [number % 16] * num_codes, "manner": {"pace": 2},
        "instructions": [{"text": "Whisper.", "manner": {"volume": 1}}],
    }  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rows = [row(number, "ab"[number % 2], 3 + number) for number in range(8)] + [
        row(9, "a", 300),
        row(10, "c", 4, "dev"),
    ]
    (tmp_path / "utterances.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return tmp_path


def source(root: Path, **settings: float) -> UtteranceSource:
    backbone = Backbone(load_backbone_config("toy"))
    grow(backbone, CODES)
    data = SpeakingData(corpora=(CORPUS,), dev=(CORPUS,), **settings)
    return UtteranceSource(Chat(backbone.vocab, byte_tokenizer()), read_clips([CORPUS], root, CODES, 20.0), data, CODES)


def text_of(sample: Sample) -> str:
    return byte_tokenizer().decode(token for token in sample.tokens if token < 256)


def test_only_utterances_of_the_split_and_of_an_honest_length_are_read(root: Path) -> None:
    assert len(read_clips([CORPUS], root, CODES, 20.0)) == 8
    assert len(read_clips([CORPUS.model_copy(update={"split": "dev"})], root, CODES, 20.0)) == 1
    with pytest.raises(ValueError, match="no utterance of split 'test' up to 20 s"):
        read_clips([CORPUS.model_copy(update={"split": "test"})], root, CODES, 20.0)
    with pytest.raises(ValueError, match=r"make them with `python -m tristep.corpus.utterances`"):
        read_clips([UtteranceSettings(path="nowhere.jsonl")], root, CODES, 20.0)


def test_an_instruction_settles_the_degrees_that_it_names_and_no_other(root: Path) -> None:
    speaking = source(root, instructed_share=1.0, cloned_share=0.0)
    sample = speaking.sample(0, np.random.default_rng(0))
    assert "Speak the text. Whisper." in text_of(sample)
    control = speaking.chat.vocab.control
    assert [control("pace_2"), control("pitch_3"), control("volume_1")] == [t for t in sample.targets if t != IGNORED][
        :3
    ]


def test_a_reference_is_another_utterance_of_the_same_speaker(root: Path) -> None:
    speaking = source(root, instructed_share=0.0, cloned_share=1.0)
    for seed in range(5):
        reference = speaking.reference(0, np.random.default_rng(seed))
        assert reference is not None
        assert int(reference.words[1].text[1:]) in (2, 4, 6)


def test_held_out_utterances_are_measured_plain(root: Path) -> None:
    speaking = source(root, instructed_share=1.0, cloned_share=1.0)
    assert "Whisper" not in text_of(speaking.sample(0, None))


def test_a_batch_is_a_function_of_its_step(root: Path) -> None:
    batch_at = source(root).batches(OptimSettings(steps=9))
    first, again, other = batch_at(3, 0, 0, 1), batch_at(3, 0, 0, 1), batch_at(4, 0, 0, 1)
    assert torch.equal(first.tokens, again.tokens)
    assert first.tokens.shape != other.tokens.shape or not torch.equal(first.tokens, other.tokens)


def test_collating_keeps_tokens_and_targets_side_by_side_and_numbers_the_sequences() -> None:
    batch = collate([Sample([1, 2, 3], [IGNORED, 8, 9]), Sample([4], [7]), Sample([5, 6], [6, 5])], row_tokens=4)
    assert batch.tokens.tolist() == [[1, 2, 3, 4], [5, 6, 0, 0]]
    assert batch.targets.tolist() == [[IGNORED, 8, 9, 7], [6, 5, IGNORED, IGNORED]]
    assert batch.segments.tolist() == [[0, 0, 0, 1], [0, 0, -1, -1]]


def test_codes_that_are_neighbours_in_the_lattice_start_close_together() -> None:
    torch.manual_seed(0)
    backbone = Backbone(load_backbone_config("toy"))
    grow(backbone, CodesSettings(levels=(8, 8), rate_hz=12.5))
    rows = backbone.embedding.grown.detach()[-64:]
    points = Lattice((8, 8)).points(torch.arange(64))
    near, far = torch.cdist(points, points) < 0.3, torch.cdist(points, points) > 1.5
    distances = torch.cdist(rows, rows)
    assert distances[near & ~torch.eye(64, dtype=torch.bool)].mean() < 0.5 * distances[far].mean()


def test_growing_twice_changes_nothing_and_other_codes_are_refused() -> None:
    backbone = Backbone(load_backbone_config("toy"))
    grow(backbone, CODES)
    before = backbone.embedding.grown.detach().clone()
    grow(backbone, CODES)
    assert torch.equal(backbone.embedding.grown, before)
    with pytest.raises(ValueError, match="has 16 codes, the recipe's levels make 25"):
        grow(backbone, CodesSettings(levels=(5, 5), rate_hz=12.5))
