from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tristep.engine.words import Word, carried, fits, read_as, spread, with_confidence, words_said
from tristep.text import LETTERS
from tristep.vocab import byte_tokenizer


def clip_that_says(frames: str) -> Tensor:
    """Log-probabilities that are sure of one letter a frame, of 40 ms; `_` is blank."""
    labels = torch.tensor([len(LETTERS) if letter == "_" else LETTERS.index(letter) for letter in frames])
    return (10 * torch.nn.functional.one_hot(labels, len(LETTERS) + 1).float()).log_softmax(dim=-1)


def said(text: str, frames: str) -> list[Word]:
    (words,) = words_said([text], clip_that_says(frames)[None], [len(frames)], [len(frames) / 25])
    return words


def times(words: list[Word]) -> list[tuple[str, float, float]]:
    return [(word.text, round(25 * word.start_s, 3), round(25 * word.end_s, 3)) for word in words]


def test_words_begin_and_end_with_their_letters() -> None:
    assert times(said("oh no", "__o_h__  __n_o_")) == [("oh", 2, 5), ("no", 11, 14)]


def test_punctuation_and_capitals_stay_with_their_words() -> None:
    assert times(said("Oh, no!", "__o_h__  __n_o_")) == [("Oh,", 2, 5), ("no!", 11, 14)]


def test_digits_are_timed_as_they_are_read_aloud() -> None:
    words = said("at 23 Elm", "_at_ twen_ty_ th_re_e__  elm_")
    assert times(words) == [("at", 1, 3), ("23", 5, 21), ("Elm", 25, 28)]


def test_digits_at_the_edges_take_what_is_left() -> None:
    assert times(said("5", "__fi_ve__")) == [("5", 2, 7)]


@pytest.mark.parametrize("text", ["你 好 吗", "a" * 30 + " b", "... ! ?"])
def test_what_can_not_be_spelt_is_spread_over_the_clip(text: str) -> None:
    words = said(text, "_" * 20)
    assert [word.text for word in words] == text.split()
    assert words[0].start_s == 0
    assert words[-1].end_s == pytest.approx(20 / 25)
    assert all(a.end_s == b.start_s for a, b in pairwise(words))


def test_no_text_has_no_words() -> None:
    assert said("", "__a__") == []
    assert words_said([], torch.zeros(0, 5, 29), [], []) == []


@settings(deadline=None, max_examples=60)
@given(
    text=st.text("ab' 7$.,%?", max_size=25),
    num_frames=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
def test_words_are_the_text_in_order_and_inside_the_clip(text: str, num_frames: int, seed: int) -> None:
    noise = torch.randn(1, 40, 29, generator=torch.Generator().manual_seed(seed))
    duration_s = num_frames / 25 - 0.02
    (words,) = words_said([text], (3 * noise).log_softmax(dim=-1), [num_frames], [duration_s])
    assert [word.text for word in words] == text.split()
    edges = [edge for word in words for edge in (word.start_s, word.end_s)]
    assert edges == sorted(edges)
    assert all(-1e-9 <= edge <= duration_s + 1e-9 for edge in edges)


def test_clips_of_a_batch_are_timed_as_alone() -> None:
    texts, frames = ["oh no", "", "7", "oh"], ["__o_h__  __n_o_", "__", "_se_ven__", "_o_"]
    logprobs = torch.nn.utils.rnn.pad_sequence(list(map(clip_that_says, frames)), batch_first=True)
    together = words_said(texts, logprobs, list(map(len, frames)), [len(row) / 25 for row in frames])
    assert together == [said(text, row) for text, row in zip(texts, frames, strict=True)]


def test_a_text_is_read_as_it_is_where_it_can_be() -> None:
    assert read_as("Hello there.") == "Hello there."
    assert read_as("5 men") == "five men"
    assert read_as("你好") is None
    assert read_as("") is None


def test_equal_letters_need_a_frame_between() -> None:
    assert fits("add", 4)
    assert not fits("add", 3)


WORDS = [
    Word("call", 0.0, 0.4, 0.9),
    Word("twenty", 0.5, 0.8, 0.6),
    Word("three", 0.8, 1.2, 0.8),
    Word("now", 1.5, 1.8, 1.0),
]


def test_several_words_that_become_one_give_it_their_time_and_mean_confidence() -> None:
    call, number, now = carried(WORDS, ["call", "23", "now"])
    assert (call, now) == (WORDS[0], WORDS[-1])
    assert (number.text, number.start_s, number.end_s) == ("23", 0.5, 1.2)
    assert number.confidence == pytest.approx(0.7)


def test_words_that_stand_for_one_share_its_time_by_length() -> None:
    words = carried([Word("$5", 1.0, 2.0, 0.5)], ["five", "dollars!"])
    assert [(word.start_s, word.end_s) for word in words] == [(1.0, pytest.approx(4 / 3)), (pytest.approx(4 / 3), 2.0)]


def test_words_that_nobody_said_take_no_time_where_there_is_none() -> None:
    assert carried([], ["new"]) == [Word("new", 0.0, 0.0, 0.0)]
    assert carried(WORDS, []) == []


@given(st.lists(st.sampled_from(["a", "bb", "c"]), max_size=6), st.lists(st.sampled_from(["a", "bb", "d"]), max_size=6))
def test_carried_words_stay_in_order(old: list[str], new: list[str]) -> None:
    words = [Word(text, float(place), place + 0.5, 1.0) for place, text in enumerate(old)]
    result = carried(words, new)
    assert [word.text for word in result] == new
    edges = [edge for word in result for edge in (word.start_s, word.end_s)]
    assert edges == sorted(edges)


def test_time_is_spread_by_length() -> None:
    assert spread(["a", "bcd"], 1.0, 3.0) == [Word("a", 1.0, 1.5, 0.0), Word("bcd", 1.5, 3.0, 0.0)]
    assert spread([], 1.0, 3.0) == []


def test_a_word_is_as_sure_as_the_mean_of_its_tokens() -> None:
    words = [Word("ab", 0, 1, 0), Word("c", 1, 2, 0)]
    sure = with_confidence(words, byte_tokenizer().encode("ab c"), [0.2, 0.4, 0.9, 0.5, 1.0], byte_tokenizer())
    assert [word.confidence for word in sure] == pytest.approx([0.5, 0.5])


def test_words_move_with_their_sound() -> None:
    assert Word("a", 1.0, 2.0, 0.5).later(3.0) == Word("a", 4.0, 5.0, 0.5)
