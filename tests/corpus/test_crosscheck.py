from __future__ import annotations

from pathlib import Path

import pytest

from tristep.corpus.crosscheck import crosscheck, judge

SAID = "The $5 tickets were sold out (sighing) by noon, I hear."


@pytest.mark.parametrize(
    "heard",
    [
        "the five dollar tickets were sold out by noon I hear",
        "The $5 tickets were sold out by noon, I hear.",
        "The five dollars tickets were sold out by nun, I hear.",
    ],
)
def test_a_clip_is_kept_if_it_was_heard_as_it_is_written_but_for_a_word(heard: str) -> None:
    assert judge(SAID, heard, "en", 4.0).kept


@pytest.mark.parametrize(
    "heard",
    [
        "",
        "The five dollar tickets were sold.",
        "The five dollars tickets were sold out sighing by noon and I hear.",
        "The five dollars tickets were sold out by noon, I hear. by noon, I hear. by noon, I hear.",
        "Nobody knows what will come of this in the end.",
    ],
    ids=["nothing", "the end is missing", "the cue is spoken", "a loop", "another sentence"],
)
def test_a_clip_is_dropped_if_something_else_was_heard(heard: str) -> None:
    verdict = judge(SAID, heard, "en", 4.0)
    assert not verdict.kept
    assert verdict.reason == "words"
    assert verdict.error_rate > 0


def test_a_word_alone_has_to_be_right() -> None:
    assert judge("Yes.", "yes", "en", 0.5).kept
    assert not judge("Yes.", "Guess.", "en", 0.5).kept


@pytest.mark.parametrize("duration_s", [0.5, 60.0])
def test_a_clip_is_dropped_if_nobody_can_speak_at_that_rate(duration_s: float) -> None:
    assert judge(SAID, SAID, "en", duration_s).reason == "rate"


def test_a_clip_without_words_can_not_be_checked() -> None:
    assert judge("(laughs)", "", "en", 1.0).reason == "empty"


def test_characters_are_compared_where_there_are_no_spaces() -> None:
    assert judge("今天天气很好", "今天天气很好", "zh", 2.0).kept
    assert judge("今天天气很好", "明天下雨了", "zh", 2.0).error_rate > 0.5


def test_rows_carry_what_was_heard() -> None:
    heard = {"a.flac": "good morning everyone", "b.flac": "see you"}
    rows = [{"audio": name, "text": "Good morning, everyone.", "language": "en", "duration": 1.5} for name in heard]
    (kept, first), (dropped, second) = crosscheck(rows, Path("/data"), lambda path, language: heard[path.name])
    assert (first.kept, kept["heard"], kept["heard_error_rate"]) == (True, "good morning everyone", 0.0)
    assert (second.kept, dropped["heard"]) == (False, "see you")
