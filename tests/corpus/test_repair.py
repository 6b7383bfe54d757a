from __future__ import annotations

import json

import pytest
from corpus.chat_endpoint import endpoint

from tristep.corpus.repair import repaired, says_the_same

SAID = ["i paid twenty five dollars at jo's", "jos is open till nine"]


def test_looks_are_given_back_and_terms_are_written_alike() -> None:
    written = ["I paid $25 at Jo's.", "Jo's is open till nine."]
    with endpoint(json.dumps({"texts": written})) as (client, asked):
        assert repaired(SAID, "en", client, "m") == [written[0], SAID[1]]  # one of five words is too many
    assert json.loads(asked[0]["messages"][1]["content"]) == {"language": "en", "texts": SAID}


@pytest.mark.parametrize(
    "answer",
    ["", "no", '{"texts": ["one"]}', '{"texts": ["Buy now!", "Really."]}'],
    ids=["nothing", "no object", "too few", "other words"],
)
def test_what_was_not_asked_for_changes_nothing(answer: str) -> None:
    with endpoint(answer) as (client, _):
        assert repaired(SAID, "en", client, "m") == SAID


def test_a_name_in_a_long_text_may_be_set_right() -> None:
    words = " ".join(f"word{letter}" for letter in "abcdefghijklmnopqrstuvwxy")
    assert says_the_same(words, words.replace("worda", "Wörde").capitalize() + ".", "de")
    assert not says_the_same(words, words.replace("word", "term"), "de")
