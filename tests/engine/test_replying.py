"""What of an answer is remembered: the words that were heard."""

from __future__ import annotations

import pytest

from tristep.engine.conversing import Clause
from tristep.engine.replying import Playback, words_until


@pytest.mark.parametrize(
    ("num_samples", "words"), [(0, ""), (100, ""), (127, ""), (128, "one"), (199, "one two"), (200, "one two six")]
)
def test_words_take_time_by_their_letters(num_samples: int, words: str) -> None:
    assert words_until(Clause("one two six", 100, 200), num_samples) == words


def test_a_clause_without_words_takes_no_time_and_can_be_cut_before_it() -> None:
    playback = Playback("item", 0.0)
    playback.clauses = [Clause("One. ", 0, 100), Clause("\n", 100, 100)]
    assert [playback.text(num_samples) for num_samples in (0, 50, 100)] == ["", "", "One."]
