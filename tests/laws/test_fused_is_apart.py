"""Laws of the decode step: projections fused into one == apart, and heads that share keys at once == one by one."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tristep.backbone.int8 import compute_in_int8
from tristep.backbone.model import Backbone
from tristep.backbone.transformer import attend_once, fuse_projections
from tristep.config import load_backbone_config


@pytest.mark.parametrize("qkv_bias", [False, True])
def test_a_decoder_with_fused_projections_computes_what_it_did(qkv_bias: bool) -> None:
    torch.manual_seed(0)
    config = load_backbone_config("toy")
    config = config.model_copy(update={"decoder": config.decoder.model_copy(update={"qkv_bias": qkv_bias})})
    apart = Backbone(config).eval().requires_grad_(False)
    fused = copy.deepcopy(apart)
    fuse_projections(fused.decoder)
    tokens = torch.randint(0, 250, (2, 17))
    torch.testing.assert_close(fused(tokens), apart(tokens), atol=1e-5, rtol=1e-5)
    for backbone in (apart, fused):
        compute_in_int8(backbone)
    assert torch.equal(fused(tokens), apart(tokens))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.sampled_from([(4, 4), (6, 2), (4, 1)]), st.integers(1, 40), st.integers(0, 10_000))
def test_one_query_attends_as_by_the_kernel_for_many(
    num_rows: int, num_heads: tuple[int, int], num_keys: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(num_rows, num_heads[0], 1, 8, generator=generator)
    keys, values = torch.randn(2, num_rows, num_heads[1], num_keys, 8, generator=generator)
    mask = torch.rand(num_rows, 1, 1, num_keys, generator=generator) < 0.7
    mask[..., 0] = True
    expected = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, enable_gqa=True)
    torch.testing.assert_close(attend_once(query, keys, values, mask), expected, atol=1e-5, rtol=1e-5)
