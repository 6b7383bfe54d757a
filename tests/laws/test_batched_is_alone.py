"""A law: what a row writes in a batch is what it writes alone, and what uncached greedy decoding writes."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tristep.audio import LISTEN_HZ
from tristep.backbone.model import Backbone
from tristep.config import load_backbone_config
from tristep.engine.engine import Engine
from tristep.engine.sampling import Completion, greedy
from tristep.modes.asr.decoding import Constraint, repetition_start
from tristep.vocab import byte_tokenizer

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=5)
SEEDS = st.integers(0, 10_000)


@cache
def toy() -> Backbone:
    """A toy whose answers depend on what it reads: larger weights than an untrained model has."""
    torch.manual_seed(0)
    backbone = Backbone(load_backbone_config("toy")).eval()
    for parameter in backbone.decoder.parameters():
        parameter.data *= 2
    return backbone.requires_grad_(False)


def random_prompts(lengths: list[int], seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (length,), generator=generator).tolist() for length in lengths]


def slow_greedy(prompt: list[int], budget: int) -> list[int]:
    """The obvious way: read everything again for every token, and ask the constraint what may come next."""
    backbone, written = toy(), list[int]()
    constraint = Constraint(backbone.vocab)
    for _ in range(budget):
        logits = backbone.logits(backbone(torch.tensor([prompt + written]))[0, -1])
        allowed = constraint.allowed(written, len(logits))
        token = int(torch.where(allowed, logits, -torch.inf).argmax())
        if token == backbone.vocab.control("turn_end"):
            break
        written.append(token)
        if (kept := repetition_start(written)) is not None:
            return written[:kept]
    return written


def written_by(prompts: list[list[int]], budgets: list[int]) -> list[Completion]:
    constraint = Constraint(toy().vocab)
    return greedy(toy(), prompts, None, constraint, budgets, repetition_start)


@settings(max_examples=20, deadline=None)
@given(LENGTHS, SEEDS)
def test_a_row_writes_in_a_batch_what_it_writes_alone(lengths: list[int], seed: int) -> None:
    prompts = random_prompts(lengths, seed)
    budgets = [5 + 7 * (index % 3) for index in range(len(prompts))]  # rows leave the batch at different steps
    batched = written_by(prompts, budgets)
    for prompt, budget, together in zip(prompts, budgets, batched, strict=True):
        (alone,) = written_by([prompt], [budget])
        assert together.tokens == alone.tokens
        assert together.finish_reason == alone.finish_reason
        torch.testing.assert_close(together.probs, alone.probs, atol=1e-5, rtol=1e-4)


@settings(max_examples=15, deadline=None)
@given(LENGTHS, SEEDS)
def test_a_batch_with_a_cache_writes_what_reading_everything_again_writes(lengths: list[int], seed: int) -> None:
    prompts = random_prompts(lengths, seed)
    completions = written_by(prompts, [15] * len(prompts))
    assert [row.tokens for row in completions] == [slow_greedy(prompt, 15) for prompt in prompts]


def tones(durations_s: list[float]) -> list[Tensor]:
    times = [torch.arange(round(duration_s * LISTEN_HZ)) / LISTEN_HZ for duration_s in durations_s]
    return [torch.sin(2 * torch.pi * 200 * (1 + index) * time) for index, time in enumerate(times)]


@settings(max_examples=8, deadline=None)
@given(st.lists(st.floats(0.1, 6.0), min_size=2, max_size=4))
def test_a_sound_is_answered_in_a_batch_as_it_is_alone(durations_s: list[float]) -> None:
    engine = Engine(toy(), byte_tokenizer())
    waveforms = tones(durations_s)
    for together, waveform in zip(engine.decode(waveforms), waveforms, strict=True):
        assert_same_but_for_ties(together, engine.decode([waveform])[0])


def assert_same_but_for_ties(together: Completion, alone: Completion) -> None:
    """Compare what was written; the ear's float32 sums differ by 1e-6, so it may go on otherwise from a tie."""
    pairs = enumerate(zip(together.tokens, alone.tokens, strict=False))
    parted = next((place for place, (one, other) in pairs if one != other), None)
    if parted is None:
        assert together.tokens == alone.tokens
    else:
        assert together.probs[parted] == pytest.approx(alone.probs[parted], abs=1e-6)
