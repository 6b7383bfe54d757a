from __future__ import annotations

import pytest

from tristep.corpus.vote import GAP, aligned, surface, vote, vote_texts

TEXTS = ("I'd like a large mocha, please.", "id like the large mocha please", "I'd like a large maca")


def test_errors_that_only_one_makes_are_outvoted() -> None:
    result = vote_texts(TEXTS, "en")
    assert " ".join(result.units) == surface(TEXTS[0], "en")
    assert result.disagreement == 0


def test_words_that_only_one_heard_are_left_out_and_words_that_one_missed_are_kept() -> None:
    result = vote_texts(["so two shots", "two shots", "two"], "en")
    assert result.columns == (("so", GAP, GAP), ("2", "2", "2"), ("shots", "shots", GAP))
    assert result.units == ("2", "shots")


def test_a_place_without_a_majority_is_disputed_and_the_first_is_believed() -> None:
    result = vote_texts(["a dark roast", "a park roast", "a bark roast"], "en")
    assert result.units == ("a", "dark", "roast")
    assert result.disputed == (False, True, False)
    assert result.disagreement == pytest.approx(1 / 3)


def test_two_voters_have_to_agree_and_one_agrees_with_itself() -> None:
    assert vote_texts(["a latte", "a lotte"], "en").disagreement == 0.5
    assert vote_texts(["a latte"], "en").disagreement == 0


def test_looks_are_no_disagreement() -> None:
    assert vote_texts(["It's $5, OK?", "it is five dollars ok"], "en").disagreement == 0


def test_words_that_sound_alike_go_together() -> None:
    result = vote_texts(["a maca please", "a mocha", "a mocha please"], "en")
    assert result.columns == (("a", "a", "a"), ("maca", "mocha", "mocha"), ("please", GAP, "please"))


def test_characters_vote_where_there_are_no_spaces() -> None:
    result = vote_texts(["今天天气很好", "今天天汽很好", "今天天器很好"], "zh")
    assert "".join(result.units) == "今天天气很好"
    assert result.disagreement == pytest.approx(1 / 6)
    assert vote_texts(["今天3点", "今天3点"], "zh").disagreement == 0


def test_silence_is_agreed_upon_and_words_out_of_nowhere_are_not() -> None:
    assert vote_texts(["", "", ""], "en").units == ()
    assert vote_texts(["", "", "thank you"], "en").units == ()
    assert vote_texts(["thanks for watching", "bye", ""], "en").disagreement == 1


def test_a_voter_agrees_at_its_share_of_places() -> None:
    result = vote(aligned([["a", "b"], ["a", "b"], ["a", "c"]]))
    assert result.agreement() == [1, 1, 0.5]
    assert vote([]).agreement() == []
