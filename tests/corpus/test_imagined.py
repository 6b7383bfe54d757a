from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tristep.corpus.imagined import (
    USUAL_VOICE,
    imagined_pairs,
    imagined_reading,
    imagined_takes,
    misheard,
    without_some,
)
from tristep.corpus.judged import STYLES, Take
from tristep.engine.witness import Evidence, SpeechPrompt, evidence_of
from tristep.modes.judge.data import read_known, write_known

TEXT = "The birch canoe slid on those smooth planks."
STILL = {"pace": 0.0, "pitch": 0.0, "volume": 0.0}


def imagine(take: Take, rng: np.random.Generator) -> Evidence:
    return evidence_of(SpeechPrompt(TEXT, USUAL_VOICE), imagined_reading(take, TEXT.split(), STILL, rng))


@pytest.mark.parametrize("style", sorted(STYLES))
def test_an_imagined_style_is_heard_as_one(style: str) -> None:
    rng = np.random.default_rng(0)
    feature, degree = STYLES[style]
    imagined = [imagine(Take(np.zeros(0, np.float32), style), rng) for _ in range(40)]
    side = np.sign(degree - 3)
    assert np.mean([np.sign(evidence.degree(feature) - 3) == side for evidence in imagined]) > 0.9


def test_dropped_words_and_other_voices_are_noticed() -> None:
    rng = np.random.default_rng(0)
    takes = imagined_takes(rng)
    dropped = imagine(takes[4], rng)
    other = imagine(takes[5], rng)
    assert dropped.num_right < dropped.num_words == 8
    assert other.voice != "same"
    assert other.num_right >= 7


def test_a_stretch_of_words_is_dropped_and_a_word_misheard() -> None:
    words = TEXT.split()
    for seed in range(30):
        rng = np.random.default_rng(seed)
        left = without_some(words, rng)
        assert 0 < len(left) < len(words)
        assert left == [word for word in words if word in left]
        assert sum(a != b for a, b in zip(misheard(words, 1.0, rng), words, strict=True)) == 1
        assert misheard(words, 0.0, rng) == words


def test_imagined_pairs_are_for_training_and_have_no_sound(tmp_path: Path) -> None:
    pairs = list(imagined_pairs([TEXT, "A king ruled the state in the early days."]))
    assert {known.split for known in pairs} == {"train"}
    assert all(known.sounds == () for known in pairs)
    assert {"words", "voice", "alike"} < {known.kind for known in pairs}
    assert pairs == list(imagined_pairs([TEXT, "A king ruled the state in the early days."]))
    write_known(tmp_path / "imagined.jsonl", pairs)
    assert read_known(tmp_path / "imagined.jsonl") == pairs
