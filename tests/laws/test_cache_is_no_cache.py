"""A law: with a cache of keys and values == without; batched == alone."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tristep.backbone.model import Backbone
from tristep.config import load_backbone_config

LENGTHS = st.lists(st.integers(1, 20), min_size=1, max_size=4)
CHUNKS = st.lists(st.integers(1, 7), min_size=1, max_size=20)
SEEDS = st.integers(0, 10_000)


@cache
def toy(num_experts: int = 0) -> Backbone:
    torch.manual_seed(0)
    config = load_backbone_config("toy")
    decoder = config.decoder.model_copy(update={"num_experts": num_experts, "qkv_bias": True})
    return Backbone(config.model_copy(update={"decoder": decoder})).requires_grad_(False)


def random_tokens(batch_size: int, num_tokens: int, seed: int) -> Tensor:
    return torch.randint(0, 256, (batch_size, num_tokens), generator=torch.Generator().manual_seed(seed))


def assert_close(first: Tensor, second: Tensor) -> None:
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)


@settings(max_examples=15, deadline=None)
@given(CHUNKS, SEEDS)
@pytest.mark.parametrize("num_experts", [0, 3])
def test_reading_in_any_chunks_is_reading_at_once(num_experts: int, chunks: list[int], seed: int) -> None:
    backbone = toy(num_experts)
    tokens = random_tokens(2, sum(chunks), seed)
    kv_cache = backbone.new_cache(2, sum(chunks))
    hidden = torch.cat([backbone(chunk, kv_cache=kv_cache) for chunk in tokens.split(chunks, dim=1)], dim=1)
    assert_close(hidden, backbone(tokens))
    assert kv_cache.lengths.tolist() == [sum(chunks)] * 2


@settings(max_examples=15, deadline=None)
@given(LENGTHS, st.integers(1, 6), SEEDS)
def test_rows_of_unequal_prompts_go_on_as_they_would_alone(lengths: list[int], num_steps: int, seed: int) -> None:
    backbone = toy()
    B, longest = len(lengths), max(lengths)
    prompts, steps = random_tokens(B, longest, seed), random_tokens(B, num_steps, seed + 1)
    kv_cache = backbone.new_cache(B, longest + num_steps)
    prefilled = backbone(prompts, kv_cache=kv_cache)
    kv_cache.lengths = torch.tensor(lengths)  # what was padded on the right is forgotten
    decoded = torch.cat([backbone(steps[:, t : t + 1], kv_cache=kv_cache) for t in range(num_steps)], dim=1)
    for row, length in enumerate(lengths):
        alone = backbone(torch.cat([prompts[row, :length], steps[row]])[None])[0]
        assert_close(prefilled[row, :length], alone[:length])
        assert_close(decoded[row], alone[length:])


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=5), SEEDS)
def test_what_was_rolled_back_and_rewritten_was_never_there(steps: list[tuple[int, int]], seed: int) -> None:
    """Each step drafts some tokens, keeps fewer, and the next step writes over the rest."""
    backbone = toy()
    kv_cache = backbone.new_cache(2, 40)
    kept = torch.zeros(2, 0, dtype=torch.long)
    for number, (num_drafted, num_kept) in enumerate(steps):
        draft = random_tokens(2, num_drafted, seed + number)
        hidden = backbone(draft, kv_cache=kv_cache)
        assert_close(hidden, backbone(torch.cat([kept, draft], dim=1))[:, kept.shape[1] :])
        kept = torch.cat([kept, draft[:, :num_kept]], dim=1)
        kv_cache.lengths = torch.full((2,), kept.shape[1])


def test_sound_reads_the_same_through_a_cache() -> None:
    backbone = toy()
    slot = backbone.vocab.control("audio_slot")
    tokens = torch.tensor([[1, slot, slot, slot, 2, 3]])
    audio_embeddings = torch.randn(3, 64)
    kv_cache = backbone.new_cache(1, 6)
    first = backbone(tokens[:, :3], audio_embeddings[:2], kv_cache=kv_cache)
    second = backbone(tokens[:, 3:], audio_embeddings[2:], kv_cache=kv_cache)
    assert_close(torch.cat([first, second], dim=1), backbone(tokens, audio_embeddings))


def test_forgetting_activations_in_training_changes_no_gradient() -> None:
    def gradients(recompute: bool) -> list[Tensor]:
        torch.manual_seed(0)
        backbone = Backbone(load_backbone_config("toy"))
        backbone.decoder.recompute = recompute
        backbone.logits(backbone(random_tokens(2, 9, 0))).square().mean().backward()
        return [p.grad for p in backbone.decoder.parameters() if p.grad is not None]

    for plain, recomputed in zip(gradients(False), gradients(True), strict=True):
        assert torch.equal(plain, recomputed)
