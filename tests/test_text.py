from __future__ import annotations

from importlib.metadata import version

import numpy as np
import pytest

from tristep.text import (
    NORMALISER,
    WordErrors,
    bootstrap_interval,
    error_rate,
    normalise,
    scored_by_character,
    word_errors,
)


@pytest.mark.parametrize(
    ("written", "scored"),
    [
        ("He won't pay twenty-five dollars.", "he will not pay $25"),
        ("He won\u2019t.", "he will not"),
        ("Colour, um, and honour!", "color and honor"),
        ("  Mr.  Smith\n", "mister smith"),
        ("", ""),
        ("[noise] (laughs)", ""),
    ],
)
def test_english_is_scored_in_whispers_normal_form(written: str, scored: str) -> None:
    assert normalise(written, "en") == scored


@pytest.mark.parametrize("language", ["en", "EN", "en-GB", "en_us"])
def test_a_region_does_not_change_the_normaliser(language: str) -> None:
    assert normalise("I'm here", language) == "i am here"


def test_other_languages_lose_case_and_punctuation_only() -> None:
    assert normalise("¿Dónde está, señor?", "es") == "dónde está señor"
    assert normalise("It's twenty", "de") == "it s twenty"


def test_languages_without_spaces_are_split_into_characters() -> None:
    assert normalise("今天,天气很好。", "zh-CN") == "今 天 天 气 很 好"
    assert normalise("客観的", "ja") == "客 観 的"
    assert scored_by_character("cmn_hans_cn")
    assert scored_by_character("yue")
    assert not scored_by_character("en")
    assert not scored_by_character("ko")


def test_the_normaliser_is_named_with_its_version() -> None:
    assert NORMALISER.split() == ["whisper-normalizer", version("whisper-normalizer")]


def test_each_kind_of_error_is_counted_as_itself() -> None:
    assert word_errors("a b c", "a x c") == WordErrors(1, 0, 0, 3)
    assert word_errors("a b c", "a c") == WordErrors(0, 1, 0, 3)
    assert word_errors("a b c", "a b c d e") == WordErrors(0, 0, 2, 3)
    assert word_errors("a b", "") == WordErrors(0, 2, 0, 2)


def test_words_heard_in_a_clip_without_speech_are_insertions() -> None:
    assert word_errors("", "a b") == WordErrors(0, 0, 2, 0)
    scored = error_rate(["", "four words are here"], ["thank you", "four words are here"], "en")
    assert (scored.insertions, scored.num_units, scored.rate) == (2, 4, 0.5)


def test_the_rate_of_clips_without_any_speech_is_finite() -> None:
    assert error_rate([""], [""], "en").rate == 0.0
    silent = error_rate(["", ""], ["hm", "thank you"], "zh")
    assert silent.num_units == 0
    assert silent.rate == silent.insertions


def test_the_rate_is_weighted_by_words_and_not_by_clips() -> None:
    scored = error_rate(["one", "a b c d e f g h i"], ["two", "a b c d e f g h i"], "de")
    assert scored.rate == pytest.approx(0.1)


def test_what_normalisation_removes_is_no_error() -> None:
    assert error_rate(["He won't!"], ["he will not"], "en").rate == 0.0


def test_the_interval_holds_the_rate_and_narrows_with_more_clips() -> None:
    references, hypotheses = ["a b c d"] * 10, ["a b c d"] * 5 + ["a b c x"] * 5
    few = error_rate(references, hypotheses, "de")
    many = error_rate(references * 20, hypotheses * 20, "de")
    assert few.low < few.rate < few.high
    assert few.rate == many.rate == 0.125
    assert many.high - many.low < 0.5 * (few.high - few.low)


def test_the_interval_of_clips_that_are_alike_has_no_width() -> None:
    scored = error_rate(["a b"] * 7, ["a x"] * 7, "de")
    assert scored.low == scored.rate == scored.high == 0.5


def test_the_interval_is_near_the_one_of_theory_and_the_same_every_time() -> None:
    random = np.random.default_rng(3)
    errors, units = random.binomial(10, 0.2, size=400), np.full(400, 10)
    half_width = 1.96 * errors.std() / 10 / np.sqrt(400)
    low, high = bootstrap_interval(errors, units)
    assert (low, high) == bootstrap_interval(errors, units)
    assert high - low == pytest.approx(2 * half_width, rel=0.15)


@pytest.mark.parametrize(("references", "hypotheses"), [([], []), (["a"], []), (["a"], ["a", "b"])])
def test_lists_that_do_not_pair_are_refused(references: list[str], hypotheses: list[str]) -> None:
    with pytest.raises(ValueError, match="expected one hypothesis for each"):
        error_rate(references, hypotheses, "en")
