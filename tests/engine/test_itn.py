from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tristep.engine.itn import check_itn, inverse_normalised

SPOKEN = ["a", "one", "two", "twenty", "hundred", "dollars", "percent", "o'clock", "it's", "first", "half", "past", "x"]


@pytest.mark.parametrize(
    ("text", "language", "written"),
    [
        ("he paid twenty three dollars", "en", "he paid $23"),
        ("in nineteen eighty four", "en", "in 1984"),
        ("nobody counts here", "en", "nobody counts here"),
        ("二十三块钱", "zh", "23块钱"),
        ("二十三円", "ja", "23円"),
        ("", "en", ""),
    ],
)
def test_numbers_are_written_in_digits(text: str, language: str, written: str) -> None:
    assert inverse_normalised(text, language) == written


@pytest.mark.parametrize("language", ["fr", None])
def test_a_text_in_a_language_without_rules_stays_as_it_is(language: str | None) -> None:
    assert inverse_normalised("twenty three", language) == "twenty three"


def test_what_the_rules_can_not_read_stays_as_it_is() -> None:
    assert inverse_normalised("Zoë said five hundred 你好 times", "en") == "Zoë said 500 你好 times"


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(SPOKEN), min_size=1, max_size=8), st.text(max_size=4))
def test_no_words_are_lost_altogether(words: list[str], other: str) -> None:
    text = " ".join([*words, other])
    assert inverse_normalised(text, "en").strip()


def test_it_is_refused_where_it_would_do_nothing() -> None:
    with pytest.raises(ValueError, match="no rules for 'fr'"):
        check_itn("fr", "spoken")
    with pytest.raises(ValueError, match="the style is 'written'"):
        check_itn("en", "written")
    check_itn(None, "spoken")
