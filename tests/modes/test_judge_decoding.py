from __future__ import annotations

import pytest

from tristep.config import VocabConfig
from tristep.modes.judge.decoding import Constraint, Deliberation, level_tokens
from tristep.vocab import TextTokenizer, Vocab, byte_tokenizer

VOCAB = Vocab(VocabConfig(num_text=256, num_codes=8))
LEVELS = level_tokens(byte_tokenizer())


def test_each_level_is_one_digit() -> None:
    assert [byte_tokenizer().decode([token]) for token in LEVELS] == ["1", "2", "3", "4", "5"]


class Split(TextTokenizer):
    """Writes every digit as two tokens."""

    def __init__(self) -> None:
        super().__init__(byte_tokenizer().tokenizer)

    def encode(self, text: str) -> list[int]:
        return super().encode(text + " ")


def test_a_tokenizer_that_does_not_write_a_level_as_one_token_is_refused() -> None:
    with pytest.raises(ValueError, match="has to be one token"):
        level_tokens(Split())


def test_reasons_are_text_until_they_end_and_the_level_is_one_of_five() -> None:
    constraint = Constraint(VOCAB, LEVELS)
    reasons, level = constraint.reasons(), constraint.level()
    assert reasons[:256].all()
    assert reasons.nonzero().flatten().tolist()[256:] == [VOCAB.control("think_end")]
    assert level.nonzero().flatten().tolist() == sorted(LEVELS)


def test_a_deliberation_ends_by_itself_or_when_its_budget_is_used_up() -> None:
    end = VOCAB.control("think_end")
    deliberation = Deliberation(end, budget=2)
    assert [deliberation.write(5), deliberation.write(end)] == [5, end]
    assert deliberation.is_decided
    assert deliberation.tokens == [5]
    endless = Deliberation(end, budget=2)
    assert [endless.write(token) for token in (5, 6, 7)] == [5, 6, end]
    assert endless.is_decided
    assert endless.tokens == [5, 6]
