"""Laws of the decode step: layers fused into fewer calls == apart; heads and queries that share keys == one by one."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tristep.backbone.model import Backbone
from tristep.backbone.precision import Int8Linear, compute_in_few_bits
from tristep.backbone.transformer import FEW_TOKENS, RMSNorm, attend_cached, fuse_layers
from tristep.config import load_backbone_config


@pytest.mark.parametrize("qkv_bias", [False, True])
def test_a_decoder_with_fused_projections_computes_what_it_did(qkv_bias: bool) -> None:
    torch.manual_seed(0)
    config = load_backbone_config("toy")
    config = config.model_copy(update={"decoder": config.decoder.model_copy(update={"qkv_bias": qkv_bias})})
    apart = Backbone(config).eval().requires_grad_(False)
    fused = copy.deepcopy(apart)
    fuse_layers(fused.decoder)
    tokens = torch.randint(0, 250, (2, 17))
    torch.testing.assert_close(fused(tokens), apart(tokens), atol=1e-5, rtol=1e-5)
    fuse_norms(apart)
    for backbone in (apart, fused):
        compute_in_few_bits(backbone, Int8Linear)
    assert torch.equal(fused(tokens), apart(tokens))


def fuse_norms(backbone: Backbone) -> None:
    """Fuse the norms alone: the rest is what is compared, bit for bit."""
    for part in backbone.decoder.modules():
        if isinstance(part, RMSNorm):
            part.fuse()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.sampled_from([(4, 4), (6, 2), (4, 1)]), st.integers(1, 40), st.integers(0, 10_000))
def test_one_query_attends_as_by_the_kernel_for_many(
    num_rows: int, num_heads: tuple[int, int], num_keys: int, seed: int
) -> None:
    query, keys, values, penalty = random_attention((num_rows, *num_heads, 1, num_keys), seed)
    expected = F.scaled_dot_product_attention(query, keys, values, attn_mask=penalty, enable_gqa=True)
    torch.testing.assert_close(attend_cached(query, keys, values, penalty), expected, atol=1e-5, rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(2, FEW_TOKENS - 1), st.integers(1, 40), st.integers(0, 10_000))
def test_the_tokens_of_a_draft_attend_bit_for_bit_as_one_at_a_time(
    num_rows: int, num_tokens: int, num_keys: int, seed: int
) -> None:
    tensors = random_attention((num_rows, 6, 2, num_tokens, num_keys), seed)
    queries, keys, values, penalty = (tensor.bfloat16() for tensor in tensors)
    together = attend_cached(queries, keys, values, penalty)
    places = zip(queries.split(1, dim=2), penalty.split(1, dim=2), strict=True)
    apart = torch.cat([attend_cached(query, keys, values, own) for query, own in places], dim=2)
    assert torch.equal(together, apart)


def random_attention(sizes: tuple[int, int, int, int, int], seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw queries, keys, values and a penalty for sizes `(B, H, G, T, S)`; every query sees some key."""
    B, H, G, T, S = sizes
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(B, H, T, 8, generator=generator)
    keys, values = torch.randn(2, B, G, S, 8, generator=generator)
    hidden = torch.rand(B, 1, T, S, generator=generator) > 0.7
    hidden[..., 0] = False
    return queries, keys, values, torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 9), st.floats(1e-3, 1e3), st.integers(0, 10_000))
def test_a_norm_in_one_kernel_is_the_norm(num_rows: int, num_tokens: int, level: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    norm = RMSNorm(48, 1e-5).requires_grad_(False)
    norm.weight.copy_(torch.randn(48, generator=generator))
    norm.bfloat16()
    hidden = (level * torch.randn(num_rows, num_tokens, 48, generator=generator)).bfloat16()
    expected = norm(hidden)
    norm.fuse()
    together = norm(hidden)
    torch.testing.assert_close(together, expected, atol=1e-6, rtol=1e-2)  # bfloat16 has steps of 0.8 %
    assert torch.equal(together, torch.stack([norm(row[None])[0] for row in hidden]))
