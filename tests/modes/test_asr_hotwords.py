from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tristep.modes.asr.hotwords import (
    BONUS,
    MAX_COST,
    Hotword,
    HotwordBias,
    beginnings,
    bonus_at,
    listen_for,
    read_hotwords,
)
from tristep.modes.asr.letters import LetterPaths, spelt
from tristep.text import LETTERS
from tristep.vocab import byte_tokenizer

TOKENIZER = byte_tokenizer()
BLANK = len(LETTERS)
TAG = 999
"""Stands for the language tag: its text is never read."""
LOGITS = torch.zeros(256)


def clip_that_says(frames: str, sureness: float = 8.0) -> Tensor:
    """Log-probabilities that are sure of one letter a frame; `_` is blank."""
    labels = torch.tensor([BLANK if letter == "_" else LETTERS.index(letter) for letter in frames])
    return (sureness * torch.nn.functional.one_hot(labels, BLANK + 1).float()).log_softmax(dim=-1)


def read(*texts: str) -> tuple[Hotword, ...]:
    return read_hotwords(texts, TOKENIZER, "spoken")


def bytes_of(text: str) -> list[int]:
    return TOKENIZER.encode(text)


def test_what_is_said_costs_nothing_and_what_is_not_costs_much() -> None:
    paths = LetterPaths(clip_that_says("_i__ sa_w  _a_n_n_"))
    (ann,), (bob,) = read("Ann"), read("Bob")
    assert paths.cost_anywhere(ann.letters) == pytest.approx(0.0, abs=1e-6)
    assert paths.cost_anywhere(bob.letters) > 10


def test_a_hotword_costs_nothing_only_where_it_is_said_next() -> None:
    paths, (ann,) = LetterPaths(clip_that_says("_i__ sa_w  _a_n_n_ go")), read("Ann")
    costs = {text: paths.cost_next(spelt(text) or (), ann.letters) for text in ("", "i", "i saw", "i saw ann")}
    assert costs["i saw"] == pytest.approx(0.0, abs=1e-6)
    assert min(costs[""], costs["i"], costs["i saw ann"]) > 5


def test_a_hotword_is_a_whole_word() -> None:
    paths = LetterPaths(clip_that_says("a_n_n_o_y_ me_"))
    (ann,) = read("Ann")
    assert paths.cost_anywhere(ann.letters) > 5


def test_the_tokens_of_a_hotword_gain_a_bonus_one_after_the_other() -> None:
    bias = listen_for(read("Ann"), LetterPaths(clip_that_says("_i__ sa_w  _a_n_n_")), TOKENIZER)
    assert bias is not None
    for written, following in (("i saw", " "), ("i saw ", "a"), ("i saw a", "n"), ("i saw an", "n")):
        assert bias([TAG, *bytes_of(written)], LOGITS) == {bytes_of(following)[0]: pytest.approx(BONUS)}
    for written in ("i", "i s", "i saw b", "i saw ann", "i saw ann "):
        assert bias([TAG, *bytes_of(written)], LOGITS) == {}
    assert bias([], LOGITS) == {}


def test_a_transcript_can_begin_with_a_hotword() -> None:
    bias = listen_for(read("Ann"), LetterPaths(clip_that_says("_a_n_n_  sa_w")), TOKENIZER)
    assert bias is not None
    assert bias([TAG], LOGITS) == {bytes_of("a")[0]: pytest.approx(BONUS)}
    assert bias([TAG, *bytes_of("an")], LOGITS) == {bytes_of("n")[0]: pytest.approx(BONUS)}
    assert bias([TAG, *bytes_of("ann")], LOGITS) == {}


def test_of_hotwords_that_begin_alike_the_one_that_is_said_gains_more() -> None:
    bias = listen_for(read("Anna", "Anni"), LetterPaths(clip_that_says("a_n_n_a_ go")), TOKENIZER)
    assert bias is not None
    assert bias([TAG, *bytes_of("ann")], LOGITS)[bytes_of("a")[0]] == pytest.approx(BONUS)


def test_a_clip_without_any_hotword_has_no_bias() -> None:
    assert listen_for(read("Ann", "New York"), LetterPaths(clip_that_says("he_l_lo wo_rld")), TOKENIZER) is None
    assert listen_for((), LetterPaths(clip_that_says("he_l_lo")), TOKENIZER) is None


def test_a_bias_depends_on_nothing_but_what_is_written() -> None:
    logprobs = clip_that_says("_i__ sa_w  _a_n_n_", 2.0)
    written = [[TAG, *bytes_of("i saw ann"[:end])] for end in range(10)]
    there, fresh = (listen_for(read("Ann"), LetterPaths(logprobs), TOKENIZER) for _ in range(2))
    assert there is not None
    assert fresh is not None
    forwards = [there(tokens, LOGITS) for tokens in written]
    assert [fresh(tokens, LOGITS) for tokens in reversed(written)] == forwards[::-1]
    assert [there(tokens, LOGITS) for tokens in written] == forwards


def test_the_bonus_falls_with_the_cost_and_ends_at_a_limit() -> None:
    (hotword,) = read("Ann")
    assert bonus_at(0.0, hotword) == BONUS
    assert BONUS / 2 < bonus_at(0.99 * 3 * MAX_COST, hotword) < BONUS
    assert bonus_at(3 * MAX_COST, hotword) == 0


def test_hotwords_are_lower_case_in_the_spoken_style_and_as_given_in_the_written_one() -> None:
    (spoken,), (written,) = read("  New  York "), read_hotwords(["New York"], TOKENIZER, "written")
    assert TOKENIZER.decode(spoken.later) == " new york"
    assert TOKENIZER.decode(written.first) == "New York"
    assert spoken.letters == written.letters


def test_numbers_in_hotwords_are_spelt_as_they_are_read() -> None:
    (hotword,) = read("Studio 54")
    assert "".join(LETTERS[letter] for letter in hotword.letters) == " studio fifty four "


def test_equal_hotwords_count_once() -> None:
    assert len(read("Ann", "Ann")) == 1


@pytest.mark.parametrize("text", ["", " ", "你好", "?!"])
def test_a_hotword_that_can_not_be_spelt_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="can't be spelt"):
        read(text)


@given(written=st.text("an i", max_size=8))
def test_a_hotword_has_begun_wherever_its_first_tokens_end_what_is_written(written: str) -> None:
    (hotword,) = read("ann")
    for start, tokens in beginnings(tuple(bytes_of(written)), hotword):
        begun = TOKENIZER.decode(tokens[: len(written) - start])
        assert written[start:] == begun
        assert len(begun) < len(tokens)
        assert tokens == (hotword.later if start or begun.startswith(" ") else tokens)


def test_text_that_nobody_can_spell_has_no_bonus() -> None:
    (ann,) = read("Ann")
    bias = HotwordBias([ann], LetterPaths(clip_that_says("a_n_n")), TOKENIZER)
    assert bias([TAG, *bytes_of("你")], LOGITS) == {}
