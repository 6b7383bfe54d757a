from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tristep.chat import Chat
from tristep.config import VocabConfig
from tristep.modes.judge.data import (
    RUBRICS,
    Answer,
    Case,
    Clause,
    Known,
    Verdict,
    prompt,
    read_known,
    read_sides,
    render,
    turns,
    write_known,
)
from tristep.vocab import Vocab, byte_tokenizer

CHAT = Chat(Vocab(VocabConfig(num_text=256)), byte_tokenizer())
CASE = Case("speech", 'Text: "Hello."', Answer("hello", num_slots=2), Answer("hullo"))
VERDICT = Verdict({"words": Clause("first", ("1 of 1", "0 of 1")), "pace": Clause("alike", wanted="usual asked")}, 5)

SIDES = st.sampled_from(["first", "second", "alike"])
PHRASES = st.text(st.characters(categories=["L", "N"], include_characters=' "'), min_size=1).map(str.strip).filter(bool)
CLAUSES = st.builds(Clause, SIDES, st.none() | st.tuples(PHRASES, PHRASES), st.just("") | PHRASES)
VERDICTS = st.builds(Verdict, st.dictionaries(st.sampled_from(sorted(RUBRICS["speech"])), CLAUSES), st.integers(1, 5))


def test_the_rubric_stands_in_the_system_turn_and_both_answers_in_the_users() -> None:
    system, user = turns(CASE)
    assert all(aspect in str(system.parts) for aspect in RUBRICS["speech"])
    assert user.parts[0] == CASE.prompt
    tokens = CHAT.prompt(turns(CASE))
    assert tokens.count(CHAT.vocab.control("audio_slot")) == 2


def test_the_loss_counts_the_verdict_and_nothing_else() -> None:
    rendered = render(CHAT, CASE, VERDICT)
    counted = [token for token, counts in zip(rendered.tokens, rendered.loss_mask, strict=True) if counts]
    control = CHAT.vocab.control
    assert counted[0] == control("think_start")
    assert counted[-3:] == [control("think_end"), ord("5") - ord("!"), control("turn_end")]
    assert CHAT.tokenizer.decode(counted[1:-3]) == VERDICT.reasons


def test_a_prompt_ends_where_the_reasons_begin() -> None:
    begun = prompt(CHAT, CASE)
    assert render(CHAT, CASE, VERDICT).tokens[: len(begun)] == begun
    assert begun[-1] == CHAT.vocab.control("think_start")


def test_reasons_say_what_was_asked_what_was_found_and_who_is_better() -> None:
    assert VERDICT.reasons == "words: 1 of 1 and 0 of 1, first; pace: usual asked, alike"


@given(verdict=VERDICTS)
def test_the_sides_of_what_was_written_can_be_read_again(verdict: Verdict) -> None:
    assert read_sides(verdict.reasons) == {aspect: clause.side for aspect, clause in verdict.clauses.items()}


@pytest.mark.parametrize("reasons", ["", "I prefer this one.", "words: neither", "words first"])
def test_reasons_that_say_nothing_readable_are_left_out(reasons: str) -> None:
    assert read_sides(reasons) == {}


@given(verdict=VERDICTS)
def test_swapped_twice_is_the_same_and_once_turns_the_level_around(verdict: Verdict) -> None:
    assert verdict.swapped().level == 6 - verdict.level
    assert verdict.swapped().swapped() == verdict


@pytest.mark.parametrize("level", [0, 6])
def test_a_level_beyond_the_scale_is_refused(level: int) -> None:
    with pytest.raises(ValueError, match="expected 1 to 5"):
        Verdict({}, level)


def test_judged_pairs_are_read_as_they_were_written_split_by_split(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "judged.jsonl"
    known = Known("a", "words", "train", CASE, VERDICT, ("a.wav", "b.wav"))
    assert write_known(path, [known, replace(known, split="held_out")]) == 2
    assert read_known(path, "train") == [known]
    assert len(read_known(path)) == 2
    assert known.swapped().swapped() == known
    assert known.swapped().sounds == ("b.wav", "a.wav")


def test_what_is_no_judged_pair_is_named(tmp_path: Path) -> None:
    path = tmp_path / "judged.jsonl"
    with pytest.raises(ValueError, match=r"no judged pairs at .*: make them"):
        read_known(path)
    write_known(path, [Known("a", "words", "train", CASE, VERDICT)])
    with pytest.raises(ValueError, match=r"no pair of split 'dev': it has \['train'\]"):
        read_known(path, "dev")
    row = json.loads(path.read_text())
    row["verdict"]["level"] = 9
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=r"line 1 is no judged pair: verdict"):
        read_known(path)
