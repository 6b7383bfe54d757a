from __future__ import annotations

import numpy as np
import pytest

from tristep.corpus.annotate import CUES, PHRASES
from tristep.corpus.directed import CUED, SETTLED, directed, directions
from tristep.modes.tts.data import DEGREES

TEXTS = [f"Sentence number {number}." for number in range(300)]


def test_what_is_asked_for_is_what_settles_the_manner() -> None:
    for asked in directions(400, np.random.default_rng(0)):
        words = f"{asked['text']} {asked['cue']}".lower()
        for feature, degree in asked["manner"].items():
            assert degree in DEGREES[feature]
            styles = [style for style, (of, degrees) in SETTLED.items() if of == feature and degree in degrees]
            said = [phrase for style in styles for phrase in (*PHRASES[style], *CUES.get(style, ()))]
            assert degree == 3 or any(phrase in words for phrase in said)


def test_cues_instructions_both_and_neither_are_drawn() -> None:
    drawn = list(directions(200, np.random.default_rng(1)))
    assert {(bool(row["text"]), bool(row["cue"])) for row in drawn} == {(a, b) for a in (0, 1) for b in (0, 1)}
    assert {row["cue"] for row in drawn} <= {"", *(cue for style in CUED for cue in CUES[style])}


def test_rows_have_words_and_no_codes_and_the_last_ones_are_held_out() -> None:
    rows = list(directed(TEXTS, 2, 10, seed=0))
    assert rows[0]["words"] == [["Sentence", 0], ["number", 0], ["zero.", 0]]
    assert not any(row["codes"] for row in rows)
    assert [row["split"] for row in rows] == ["train"] * 290 + ["dev"] * 10


@pytest.mark.parametrize("text", ["...", "word " * 40])
def test_what_can_not_be_spoken_in_one_go_is_passed_over(text: str) -> None:
    assert not list(directed([text], 2, 0, seed=0))
