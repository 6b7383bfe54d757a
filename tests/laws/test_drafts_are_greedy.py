"""A law: what is written with drafts is what greedy decoding writes without, token for token.

Whatever guesses, right or wrong, and however much of it: in batches of any sizes, under any constraint.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tristep.backbone.model import Backbone
from tristep.backbone.precision import MANY_TOKENS, Int8Linear, Kind, compute_in_few_bits, four_bits
from tristep.backbone.transformer import FEW_TOKENS
from tristep.config import load_backbone_config
from tristep.engine.drafting import MOST_DRAFTS, DraftSources, Hypothesis, PassCosts
from tristep.engine.engine import Engine
from tristep.engine.sampling import Bias, Completion, greedy
from tristep.modes.asr.decoding import Constraint, repetition_start
from tristep.modes.asr.letters import LetterBias, LetterPaths
from tristep.text import LETTERS
from tristep.vocab import byte_tokenizer

SEEDS = st.integers(0, 10_000)
LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=4)
LANGUAGES = st.sampled_from([None, "en", "de"])
FREE = PassCosts(token=0.0)
DEAR = PassCosts(token=1.0)
COSTS = st.sampled_from([FREE, PassCosts(token=0.1, block=0.1), DEAR])


class Letters(Constraint):
    """Plain letters only, so that what a toy of bytes writes is a text that can be guessed; it can't stop by itself."""

    endless = True

    def body(self, num_tokens: int) -> Tensor:
        letters = torch.zeros(num_tokens, dtype=torch.bool)
        letters[byte_tokenizer().encode(" abcdefghijklmnopqrstuvwxyz")] = True
        letters[self.vocab.control("turn_end")] = not self.endless
        return super().body(num_tokens) & letters


class Words(Letters):
    """Letters, and an end that it writes soon."""

    endless = False


@cache
def toy(num_heads: int, kind: Kind | None = None) -> Backbone:
    """A toy whose answers depend on what it reads, and whose draft heads are random, or copies that are often right."""
    torch.manual_seed(0)
    backbone = Backbone(load_backbone_config("toy"))
    for parameter in backbone.decoder.parameters():
        parameter.data *= 2
    if num_heads:
        backbone.add_draft_heads(num_heads)
    if kind is not None:
        compute_in_few_bits(backbone, kind)
    return backbone.eval().requires_grad_(False)


def random_prompts(lengths: list[int], seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (length,), generator=generator).tolist() for length in lengths]


def completions_of(num_rows: int, seed: int) -> list[Completion]:
    """Rows that leave the batch at different steps, two of three with a bias that depends on what they wrote."""
    rows = [Completion(1 + (seed + 7 * index) % 23) for index in range(num_rows)]
    for row in rows[1::3]:
        row.bias = favour_what_was_written(seed)
    for row in rows[2::3]:
        row.bias = agree_with_letters(seed)
    return rows


def favour_what_was_written(seed: int) -> Bias:
    return lambda written, logits: {written[-1]: 1.0, 97 + (seed + len(written)) % 20: 2.0} if written else {}


def agree_with_letters(seed: int) -> Bias:
    heard = torch.randn(60, len(LETTERS) + 1, generator=torch.Generator().manual_seed(seed)).log_softmax(dim=-1)
    return LetterBias(LetterPaths(heard), byte_tokenizer(), toy(0).vocab.control("turn_end"))


def write(
    prompts: list[list[int]], seed: int, language: str | None, sources: DraftSources | None = None
) -> list[Completion]:
    backbone = toy(sources.num_heads if sources else 0)
    rows = completions_of(len(prompts), seed)
    constraint = (Words if seed % 3 == 0 else Letters)(backbone.vocab, language)
    budgets = [row.budget for row in rows]
    return greedy(backbone, prompts, None, constraint, budgets, repetition_start, rows, sources)


def corrupted(text: str, seed: int) -> str:
    """Put some letters in, leave some out, change some."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randint(0, 12, (len(text),), generator=generator).tolist()
    changes = {0: "", 1: "e", 2: " q", 3: "zz"}
    return "".join(changes.get(number, letter) for number, letter in zip(draw, text, strict=True))


def guessed(rows: list[Completion], seed: int) -> list[Hypothesis | None]:
    """Guess what was written, with errors; one row of three has no guess, one has a wild one."""
    tokenizer, vocab = byte_tokenizer(), toy(0).vocab
    texts = [corrupted(tokenizer.decode(row.tokens[1:]), seed + index) for index, row in enumerate(rows)]
    guesses = [Hypothesis(text, vocab, tokenizer) for text in texts]
    wild = Hypothesis("nothing of the kind was ever said", vocab, tokenizer)
    return [None if index % 3 == 2 else wild if index % 5 == 4 else each for index, each in enumerate(guesses)]


def assert_same(drafted: list[Completion], plain: list[Completion]) -> None:
    for row, expected in zip(drafted, plain, strict=True):
        assert row.tokens == expected.tokens
        assert row.finish_reason == expected.finish_reason
        torch.testing.assert_close(row.probs, expected.probs, atol=1e-4, rtol=1e-3)
        assert row.counts.num_settled == expected.counts.num_settled
        assert row.counts.num_passes <= expected.counts.num_passes


@settings(max_examples=40, deadline=None)
@given(LENGTHS, SEEDS, LANGUAGES, COSTS)
def test_a_hypothesis_of_the_transcript_changes_nothing(
    lengths: list[int], seed: int, language: str | None, costs: PassCosts
) -> None:
    prompts = random_prompts(lengths, seed)
    plain = write(prompts, seed, language)
    assert_same(write(prompts, seed, language, DraftSources(guessed(plain, seed), costs=costs)), plain)


@settings(max_examples=40, deadline=None)
@given(LENGTHS, SEEDS, st.integers(1, 7), COSTS)
def test_draft_heads_change_nothing(lengths: list[int], seed: int, num_heads: int, costs: PassCosts) -> None:
    prompts = random_prompts(lengths, seed)
    assert_same(write(prompts, seed, None, DraftSources(num_heads=num_heads, costs=costs)), write(prompts, seed, None))


@settings(max_examples=25, deadline=None)
@given(LENGTHS, SEEDS, COSTS)
def test_both_together_change_nothing(lengths: list[int], seed: int, costs: PassCosts) -> None:
    prompts = random_prompts(lengths, seed)
    plain = write(prompts, seed, None)
    assert_same(write(prompts, seed, None, DraftSources(guessed(plain, seed), 5, costs)), plain)


@settings(max_examples=20, deadline=None)
@given(LENGTHS, SEEDS, st.integers(1, 6))
def test_rows_that_go_on_with_what_they_wrote_write_what_they_would_have(
    lengths: list[int], seed: int, num_written: int
) -> None:
    prompts, constraint, budgets = random_prompts(lengths, seed), Letters(toy(0).vocab), [20] * len(lengths)
    plain = greedy(toy(0), prompts, None, constraint, budgets, repetition_start)
    rows = [Completion(20, row.tokens[:num_written], row.probs[:num_written]) for row in plain]
    silent = toy(0).vocab.control("nospeech")
    going_on = [place for place, row in enumerate(rows) if row.tokens != [silent]]  # after which there is nothing
    begun = [prompts[place] + rows[place].tokens for place in going_on]
    sources = DraftSources([guessed(plain, seed)[place] for place in going_on], 2)
    some = [rows[place] for place in going_on]
    greedy(toy(2), begun, None, constraint, budgets[: len(some)], repetition_start, some, sources)
    assert [row.tokens for row in rows] == [row.tokens for row in plain]


@pytest.mark.parametrize("kind", [Int8Linear, four_bits], ids=["int8", "int4"])
@settings(max_examples=20, deadline=None)
@given(lengths=LENGTHS, seed=SEEDS)
def test_in_few_bits_drafts_change_nothing_either(kind: Kind, lengths: list[int], seed: int) -> None:
    assert min(MANY_TOKENS, FEW_TOKENS) > MOST_DRAFTS + 1  # a row is computed alike in passes of any such width
    backbone, prompts = toy(3, kind), random_prompts(lengths, seed)
    constraint, budgets = Letters(backbone.vocab), [20] * len(prompts)
    plain = greedy(backbone, prompts, None, constraint, budgets, repetition_start)
    sources = DraftSources(guessed(plain, seed), 3, FREE)
    drafted = greedy(backbone, prompts, None, constraint, budgets, repetition_start, sources=sources)
    assert [row.tokens for row in drafted] == [row.tokens for row in plain]
    assert [row.probs for row in drafted] == [row.probs for row in plain]


def test_a_right_hypothesis_is_written_in_few_passes() -> None:
    prompts = random_prompts([9, 17, 4], seed=1)
    backbone, tokenizer = toy(0), byte_tokenizer()
    constraint, budgets = Letters(backbone.vocab, "en"), [40] * 3
    plain = greedy(backbone, prompts, None, constraint, budgets)
    right = [Hypothesis(tokenizer.decode(row.tokens[1:]), backbone.vocab, tokenizer) for row in plain]
    drafted = greedy(backbone, prompts, None, constraint, budgets, sources=DraftSources(right, costs=FREE))
    for row, expected in zip(drafted, plain, strict=True):
        assert row.tokens == expected.tokens
        assert row.counts.num_settled == 39
        assert row.counts.num_passes == -(-39 // (MOST_DRAFTS + 1))
        assert row.counts.drafted == row.counts.accepted


def test_where_passes_are_dear_nothing_is_drafted() -> None:
    prompts = random_prompts([9, 17], seed=1)
    rows = write(prompts, 1, None, DraftSources(guessed(write(prompts, 1, None), 1), costs=DEAR))
    assert all(not any(row.counts.drafted) for row in rows)


def test_an_engine_says_the_same_with_drafts_and_without() -> None:
    engine = Engine(toy(3), byte_tokenizer())
    times = [torch.arange(num_samples) / 16_000 for num_samples in (9000, 40_000)]
    waveforms = [torch.sin(2 * torch.pi * 200 * (1 + index) * time) for index, time in enumerate(times)]
    drafted, plain = engine.decode(waveforms), engine.decode(waveforms, drafts="none")
    assert_same(drafted, plain)
    assert any(sum(row.counts.drafted) for row in drafted)
    assert not any(sum(row.counts.drafted) for row in plain)
