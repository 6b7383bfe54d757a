# ruff: noqa: RUF001
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tristep.corpus.pronunciations import learn, mistakes, words_and_phones
from tristep.phones import PHONES
from tristep.pronouncing import SPELLING, Pronouncer, english, spelling

REGULAR = {word: word.replace("c", "k") for word in ("bad", "cab", "dab", "fad", "cad", "bat", "cat", "tab", "daft")}


def test_a_table_is_learnt_but_for_its_exceptions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    table, pronouncer = {**REGULAR, "tad": "tuud"}, Pronouncer()
    learn(pronouncer, REGULAR, num_steps=60)
    pronouncer.exceptions = mistakes(pronouncer, table)
    assert pronouncer.exceptions == {"tad": "tuud"}
    pronouncer.save(tmp_path)
    loaded = Pronouncer.load(tmp_path)
    assert {word: loaded.pronounce(word) for word in table} == table


@given(st.lists(st.text(SPELLING, min_size=1, max_size=9), min_size=1, max_size=5))
def test_a_word_is_said_among_others_as_it_is_alone(words: list[str]) -> None:
    pronouncer = english()
    assert pronouncer.guess(words) == [pronouncer.guess([word])[0] for word in words]


def test_english_comes_with_the_package() -> None:
    said = {word: english().pronounce(word) for word in ("Through", "knight,", "don't", "the")}
    assert said == {"Through": "θɹu", "knight,": "naɪt", "don't": "doʊnt", "the": "ðə"}


def test_a_word_that_nobody_knows_is_guessed() -> None:
    phones = english().pronounce("glorptastic")
    assert phones
    assert set(phones) <= set(PHONES)


@pytest.mark.parametrize("nothing", ["", "...", "1984", "'"])
def test_what_has_no_letters_is_not_said(nothing: str) -> None:
    assert english().pronounce(nothing) == ""


def test_the_table_takes_what_is_said_most_often_and_only_from_lines_that_match() -> None:
    lines = [("The cat", "ðə kˈæt"), ("the end", "ðɪ ˈɛnd"), ("the hat", "ðə hˈæt"), ("of the sea", "ʌvðə sˈiː")]
    assert words_and_phones(lines) == {"the": "ðə", "cat": "kæt", "end": "ɛnd", "hat": "hæt"}


def test_spelling_pads_behind() -> None:
    letters, num_letters = spelling(["ab", "a"])
    assert letters.tolist() == [[0, 1], [0, len(SPELLING)]]
    assert num_letters.tolist() == [2, 1]
