from __future__ import annotations

from itertools import groupby

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tristep.config import VocabConfig
from tristep.modes.asr.decoding import (
    MIN_TOKENS,
    REFRAIN,
    Constraint,
    ctc_tokens,
    parse,
    repetition_start,
    token_budget,
)
from tristep.vocab import Vocab, byte_tokenizer

VOCAB = Vocab(VocabConfig(num_text=256, num_codes=10))
TOKENS = st.lists(st.integers(0, 3), max_size=60)


def allowed_tokens(mask: torch.Tensor) -> set[int]:
    return set(mask.nonzero().flatten().tolist())


def test_the_first_token_is_any_language_tag_or_nospeech() -> None:
    allowed = allowed_tokens(Constraint(VOCAB).opening(VOCAB.size))
    assert VOCAB.control("nospeech") in allowed
    assert {VOCAB.language_of(token) for token in allowed - {VOCAB.control("nospeech")}} >= {"en", "zh", "de"}
    assert all(VOCAB.region(token) == "control" for token in allowed)
    assert VOCAB.control("turn_end") not in allowed


def test_a_fixed_language_leaves_its_tag_or_nospeech() -> None:
    allowed = allowed_tokens(Constraint(VOCAB, "de").opening(VOCAB.size))
    assert allowed == {VOCAB.control("lang_de"), VOCAB.control("nospeech")}


@pytest.mark.parametrize(
    "config",
    [
        VocabConfig(num_text=256, num_codes=10),
        VocabConfig(num_text=300, layout="chatml"),
        VocabConfig(num_text=151688, layout="step-audio-2", num_codes=10),
    ],
)
def test_the_body_is_text_or_the_end_of_the_turn(config: VocabConfig) -> None:
    vocab = Vocab(config)
    allowed = allowed_tokens(Constraint(vocab).body(vocab.size))
    text = {token for token in range(vocab.size) if vocab.region(token) == "text"}
    assert allowed == text | {vocab.control("turn_end")}


def test_after_nospeech_only_the_end_of_the_turn_may_follow() -> None:
    constraint = Constraint(VOCAB)
    assert allowed_tokens(constraint.closing(VOCAB.size)) == {VOCAB.control("turn_end")}


def test_what_is_allowed_follows_from_what_was_written() -> None:
    constraint, size = Constraint(VOCAB, "en"), VOCAB.size
    tag, nospeech = VOCAB.control("lang_en"), VOCAB.control("nospeech")
    assert torch.equal(constraint.allowed([], size), constraint.opening(size))
    assert torch.equal(constraint.allowed([nospeech], size), constraint.closing(size))
    assert torch.equal(constraint.allowed([tag], size), constraint.body(size))
    assert torch.equal(constraint.allowed([tag, 5, 6], size), constraint.body(size))


def test_the_budget_grows_with_the_sound_and_never_falls_short_of_a_few_words() -> None:
    assert token_budget(0.0) == MIN_TOKENS
    assert token_budget(30.0) > 30 * 5  # twice what a fast speaker says
    assert token_budget(20.0) > token_budget(10.0)


def unrolled(before: list[int], round_: list[int], times: int) -> list[int]:
    return before + round_ * times


@pytest.mark.parametrize("period", [1, 2, 3, 5, 11, 24])
@pytest.mark.parametrize("times", [12, 13, 30])
def test_a_loop_is_cut_after_its_first_round(period: int, times: int) -> None:
    before, round_ = [901, 902, 903], list(range(period))
    assert repetition_start(unrolled(before, round_, times)) == len(before) + period


@pytest.mark.parametrize("period", [15, 26, 48])
def test_a_long_phrase_said_three_times_is_a_loop_and_twice_is_not(period: int) -> None:
    before, round_ = [901, 902, 903], list(range(period))
    assert repetition_start(unrolled(before, round_, 3)) == len(before) + period
    assert repetition_start(unrolled(before, round_, 2)) is None


def test_a_loop_is_found_the_moment_it_has_gone_round_often_enough() -> None:
    before, round_ = [901, 902], [1, 2, 3, 4, 5]
    tokens = unrolled(before, round_, 4)
    assert repetition_start(tokens) == len(before) + 5
    assert repetition_start(tokens[:-1]) is None


def test_a_loop_that_broke_off_in_the_middle_of_a_round_is_still_found() -> None:
    tokens = [9, 9, 8, *[1, 2, 3, 4] * 5, 1, 2]
    assert repetition_start(tokens) == 3 + 4


@pytest.mark.parametrize(
    "words",
    ["no no no no", "no , no , no , no , no", "0 0 0 0 0 0 0", "5 5 5 - 5 5 5 - 1 2 3 4", "bye bye bye bye bye bye",
     "again and again and again and again", "1 , 0 0 0 , 0 0 0 , 0 0 0"],
)  # fmt: skip
def test_honest_repetition_is_not_a_loop(words: str) -> None:
    tokens = [hash(word) for word in words.split()]
    assert repetition_start(tokens) is None
    assert all(repetition_start(tokens[:end]) is None for end in range(len(tokens)))


def test_a_loop_that_has_ended_is_not_one_any_more() -> None:
    assert repetition_start([*[1] * 20, 2, 3, 4]) is None


@given(TOKENS)
@settings(deadline=None)
def test_what_is_cut_is_repetition_of_what_is_kept(tokens: list[int]) -> None:
    kept = repetition_start(tokens)
    if kept is None:
        return
    cut = tokens[kept:]
    assert any(cut == [tokens[kept - period + i % period] for i in range(len(cut))] for period in range(1, kept + 1))
    assert len(cut) >= 3 * (len(cut) // 12 or 1)


def test_a_transcript_is_parsed_into_language_and_text() -> None:
    tokens = [VOCAB.control("lang_fr"), *byte_tokenizer().encode(" ça va "), VOCAB.control("turn_end")]
    transcript = parse(tokens, VOCAB, byte_tokenizer())
    assert (transcript.text, transcript.language) == ("ça va", "fr")


def test_nospeech_and_nothing_at_all_are_parsed_as_silence() -> None:
    for tokens in ([], [VOCAB.control("nospeech")], [VOCAB.control("nospeech"), VOCAB.control("turn_end")]):
        transcript = parse(tokens, VOCAB, byte_tokenizer())
        assert (transcript.text, transcript.language) == ("", None)


def test_codes_and_control_tokens_are_no_part_of_the_text() -> None:
    tokens = [VOCAB.control("lang_en"), ord("a") - 33, VOCAB.code_token(3), VOCAB.control("think_start")]
    expected = byte_tokenizer().decode([ord("a") - 33])
    assert parse(tokens, VOCAB, byte_tokenizer()).text == expected


def slow_ctc_tokens(best: list[int], blank: int) -> list[int]:
    return [index for index, _ in groupby(best) if index != blank]


@given(st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=3), st.data())
@settings(deadline=None)
def test_reading_ctc_merges_repeats_and_drops_blanks(paths: list[list[int]], data: st.DataObject) -> None:
    nums = [data.draw(st.integers(0, 6)) for _ in paths]
    logits = torch.nn.functional.one_hot(torch.tensor(paths), 4).float() * 5
    expected = [slow_ctc_tokens(path[:num], blank=3) for path, num in zip(paths, nums, strict=True)]
    assert ctc_tokens(logits, torch.tensor(nums)) == expected


def test_a_refrain_with_other_words_between_is_a_loop_the_third_time() -> None:
    refrain = list(range(REFRAIN))
    twice = [*refrain, 50, 51, *refrain, 52]
    assert repetition_start([*twice, *refrain[:-1]]) is None
    assert repetition_start([*twice, *refrain]) == REFRAIN + 2
