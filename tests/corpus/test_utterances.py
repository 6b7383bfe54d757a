from __future__ import annotations

from typing import Any

import pytest
import torch

from tristep.backbone.model import Backbone
from tristep.codec.tokenizer import SpeechTokenizer
from tristep.config import load_backbone_config, load_codec_config
from tristep.corpus.utterances import UtteranceBuilder, align_words, paces, with_instructions
from tristep.text import LETTERS, written_words


def heard(letters: str) -> torch.Tensor:
    """Return log-probabilities that are sure of one letter a frame, `_` being blank."""
    classes = [len(LETTERS) if letter == "_" else LETTERS.index(letter) for letter in letters]
    logits = torch.full((len(letters), len(LETTERS) + 1), -9.0)
    logits[torch.arange(len(letters)), torch.tensor(classes)] = 9.0
    return logits.log_softmax(dim=-1)


def test_a_word_starts_where_its_first_letter_is_heard() -> None:
    aligned = align_words(["It's", "a", "mother-in-law!"], heard("__it's_ _a _mother in law__"), letter_rate_hz=25.0)
    assert aligned is not None
    assert aligned.starts_s == pytest.approx((2 / 25, 9 / 25, 12 / 25))
    assert aligned.logprob == pytest.approx(0.0, abs=0.01)


def test_a_text_that_was_not_said_aligns_badly() -> None:
    sounds = heard("__go_od_ day__________")
    right, wrong = align_words(["good", "day"], sounds, 25.0), align_words(["bad", "night"], sounds, 25.0)
    assert right is not None
    assert wrong is not None
    assert wrong.logprob < -1 < right.logprob


def test_a_word_that_is_not_spelt_in_letters_aligns_with_nothing() -> None:
    assert align_words(["in", "1984"], heard("in_____"), 25.0) is None


def test_a_text_with_more_letters_than_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="need at least"):
        align_words(["impossible"], heard("imp"), 25.0)


def test_what_has_no_letters_stays_with_the_word_before() -> None:
    assert written_words("Well \u2014 no, ... never !") == ["Well \u2014", "no, ...", "never !"]
    assert written_words("\u2026 ?") == []


def clip(text: str, num_codes: int) -> dict[str, Any]:
    return {"text": text, "codes": [0] * num_codes, "duration": num_codes / 12.5}


def test_pace_is_relative_to_the_corpus() -> None:
    rows = [clip("x" * 20, num_codes) for num_codes in range(20, 40)]
    degrees = paces(rows)
    assert degrees == sorted(degrees, reverse=True)
    assert set(degrees) == {1, 2, 3, 4, 5}
    assert degrees.count(3) == 8


def test_an_instruction_never_contradicts_the_pace_of_its_utterance() -> None:
    rows = [clip("x" * 20, num_codes) for num_codes in range(20, 40)]
    for row in with_instructions(rows, seed=0):
        assert all(asked["manner"]["pace"] == row["manner"]["pace"] for asked in row["instructions"])
        assert all(asked["text"] for asked in row["instructions"])


def test_a_clip_that_says_nothing_of_its_text_is_dropped() -> None:
    torch.manual_seed(0)
    backbone = Backbone(load_backbone_config("toy"))
    config = load_codec_config("codec-toy").tokenizer
    builder = UtteranceBuilder(backbone, SpeechTokenizer(config))
    assert builder.build(torch.randn(16_000) * 0.1, "Hello there.") is None
