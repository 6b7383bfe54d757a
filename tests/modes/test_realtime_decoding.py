from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tristep.backbone.model import Backbone
from tristep.config import load_backbone_config
from tristep.modes.realtime.decoding import (
    CLOSE,
    LONG_CLAUSE,
    OPEN,
    Call,
    Clauses,
    Reader,
    allowed,
    call_text,
    forced_opening,
    read_call,
    tools_text,
)


def clauses(text: str, size: int = 1) -> list[str]:
    cutter = Clauses()
    pieces = [text[first : first + size] for first in range(0, len(text), size)]
    return [clause for piece in pieces for clause in cutter.push(piece)] + cutter.finish()


def read(text: str, names: list[str], size: int = 1) -> list[str | Call]:
    """Return what is read, neighbouring text joined."""
    reader, found = Reader(names), []
    for first in range(0, len(text), size):
        found += reader.push(text[first : first + size])
    found += reader.finish()
    joined: list[str | Call] = []
    for piece in found:
        if isinstance(piece, str) and joined and isinstance(joined[-1], str):
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


@given(st.text(alphabet="ab A.,!?\n1M", max_size=400), st.integers(1, 9))
def test_clauses_joined_are_the_text(text: str, size: int) -> None:
    assert "".join(clauses(text, size)) == text


def test_clauses_do_not_depend_on_how_the_text_comes() -> None:
    text = "Well, that depends, my friend. Mr. Smith has 3.5 dogs! And you? " + "word " * 60
    assert clauses(text, 1) == clauses(text, 7)


def test_the_first_clause_may_end_at_a_comma_and_later_ones_do_not() -> None:
    text = "Well, that depends on it, my friend. He came, and he saw. Yes"
    assert clauses(text) == ["Well, that depends on it,", " my friend.", " He came, and he saw.", " Yes"]


def test_titles_initials_and_numbers_end_no_clause() -> None:
    text = "Mr. Ray and Dr. J. Smith paid 3.50 to Mrs. Lee. 1. One"
    assert clauses(text) == ["Mr. Ray and Dr. J. Smith paid 3.50 to Mrs. Lee.", " 1. One"]


def test_a_text_without_an_end_is_cut_all_the_same() -> None:
    pieces = clauses("word " * 100)
    assert len(pieces) > 2
    assert max(map(len, pieces)) <= LONG_CLAUSE + 6


def test_other_scripts_need_no_space_after_a_sentence() -> None:
    assert clauses("\u4f60\u597d\u3002\u6211\u662f")[0] == "\u4f60\u597d\u3002"


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_calls_are_told_from_text(size: int) -> None:
    text = "Let me look. " + call_text("weather", '{"city": "Oslo"}') + "\n" + call_text("time", "")
    calls = [Call("weather", '{"city": "Oslo"}'), Call("time", "{}")]
    assert read(text, ["weather", "time"], size) == ["Let me look. ", calls[0], "\n", calls[1]]


def test_text_that_only_looks_like_a_call_stays_text() -> None:
    assert read("a < b <tool", ["weather"]) == ["a < b <tool"]
    assert read(call_text("weather", "{}"), []) == [call_text("weather", "{}")]


def test_a_last_call_may_lack_its_mark() -> None:
    assert read(call_text("weather", "{}").removesuffix(CLOSE), ["weather"]) == [Call("weather", "{}")]


@pytest.mark.parametrize(
    ("text", "message"),
    [("weather(Oslo)", "which is no JSON"), ("[1]", "expected one of weather"), ('{"name": "x"}', "expected one of")],
)
def test_a_call_that_can_not_be_read_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_call(text, ["weather"])


def test_a_forced_answer_begins_as_a_call() -> None:
    assert forced_opening("auto", ["weather"]) == forced_opening("required", []) == ""
    named = forced_opening("required", ["weather"])
    assert named == forced_opening("weather", ["weather", "time"])
    assert read(named + '{"city": "Oslo"}}' + CLOSE, ["weather"]) == [Call("weather", '{"city": "Oslo"}')]
    any_of_them = forced_opening("required", ["weather", "time"]) + 'time", "arguments": {}}' + CLOSE
    assert read(any_of_them, ["weather", "time"]) == [Call("time", "{}")]


def test_tools_are_listed_as_json_lines() -> None:
    first, last = tools_text([("weather", "Tells it.", {"type": "object"})]).splitlines()
    assert json.loads(first)["function"]["name"] == "weather"
    assert OPEN in last


def test_an_answer_is_text_and_its_end() -> None:
    vocab = Backbone(load_backbone_config("toy")).vocab
    mask = allowed(vocab)
    assert mask.shape == (vocab.size,)
    written = {token for token, keep in enumerate(mask.tolist()) if keep}
    assert written == {*range(vocab.config.num_text), vocab.control("turn_end")} - (
        vocab.control_ids - {vocab.control("turn_end")}
    )
