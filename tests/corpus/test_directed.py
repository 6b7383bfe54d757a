from __future__ import annotations

import numpy as np
import pytest

from tristep.corpus.annotate import CUES, PHRASES
from tristep.corpus.directed import CUED, SETTLED, directed, directions, worded
from tristep.corpus.wordings import FEATURES, HELD_OUT, TAUGHT, directives
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


def test_a_wording_asks_for_its_style_and_for_nothing_else() -> None:
    for row in worded(TAUGHT, 200, np.random.default_rng(0)):
        feature, degrees = SETTLED.get(row["style"], ("pace", (3,)))
        assert row["text"] in TAUGHT[row["style"]]
        assert row["manner"][feature] in degrees
        assert all(degree == 3 for name, degree in row["manner"].items() if name != feature)


def test_sentences_that_are_held_out_are_asked_for_in_wordings_that_are() -> None:
    for row in directed(TEXTS, 3, 10, seed=0, by_wordings=True):
        known = HELD_OUT if row["split"] == "dev" else TAUGHT
        assert all(asked["text"] in known[asked["style"]] for asked in row["instructions"])


def test_no_wording_is_taught_and_held_out_or_has_a_phrase_of_sft() -> None:
    taught, held_out = ({text for own in wordings.values() for text in own} for wordings in (TAUGHT, HELD_OUT))
    assert not taught & held_out
    phrases = {phrase for own in PHRASES.values() for phrase in own}
    assert not any(phrase in text.lower() for phrase in phrases for text in held_out)


def test_a_held_out_wording_is_measured_by_what_its_style_moves() -> None:
    rows = list(directives(HELD_OUT))
    assert len(rows) == sum(len(HELD_OUT[style]) for style in FEATURES)
    assert {"name": "loud", "wording": "Be loud.", "feature": "level_db", "upwards": True} in rows
