from __future__ import annotations

import pytest

from tristep.modes.tts.data import Manner
from tristep.modes.tts.pauses import Pauses, is_pause, phrase_openings

PLAIN, PAUSING = Manner(), Manner(pauses=4)


def num_silent(piece: str, manner: Manner = PLAIN) -> list[int]:
    pauses = Pauses.of(piece, silence=7, code_rate_hz=10.0)
    found = [pauses.before(word, manner) for word in range(len(pauses.opens))]
    assert {code for codes in found for code in codes} <= {7}
    return [len(codes) for codes in found]


def test_a_cue_silences_what_follows_it() -> None:
    assert num_silent("one (long pause) two three (pause), four (whispering) five") == [0, 10, 0, 5, 0]
    assert num_silent("one two three") == [0, 0, 0]


def test_cues_add_up_and_nobody_pauses_before_the_first_word() -> None:
    assert num_silent("(pause) one (pause) (long silence) two (pause)") == [0, 15]


def test_a_pausing_manner_parts_phrases() -> None:
    assert num_silent("Rice is often served in round bowls.", PAUSING) == [0, 0, 0, 0, 5, 0, 0]
    assert num_silent("Wait, we were here.", PAUSING) == [0, 5, 0, 0]


@pytest.mark.parametrize(
    ("words", "opening"),
    [("four hours steady work", [2]), ("two words", []), ("he ran to the store and left", [5]), ("a, b", [1])],
)
def test_a_phrase_opens_after_a_mark_at_an_opener_or_in_the_middle(words: str, opening: list[int]) -> None:
    assert [number for number, opens in enumerate(phrase_openings(words.split())) if opens] == opening


def test_there_is_room_for_every_pause() -> None:
    pauses = Pauses.of("one (long pause) two, three", silence=7, code_rate_hz=10.0)
    assert (pauses.longest, pauses.most) == (10, 15)
    assert (Pauses().longest, Pauses().most) == (0, 0)


@pytest.mark.parametrize("directive", ["pause", "a long silence", "Speak with long pauses.", "Pausing often."])
def test_pauses_are_asked_for_by_name(directive: str) -> None:
    assert is_pause(directive)


@pytest.mark.parametrize("directive", ["whispering", "paused", "Read without pauses.", "no pause", "with few pauses"])
def test_other_directives_ask_for_none(directive: str) -> None:
    assert not is_pause(directive)
