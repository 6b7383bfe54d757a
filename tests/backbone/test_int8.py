from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tristep.backbone.int8 import MANY_TOKENS, Int8Linear, compute_in_int8
from tristep.backbone.model import Backbone
from tristep.config import load_backbone_config


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())


@pytest.mark.parametrize("num_tokens", [1, MANY_TOKENS - 1, MANY_TOKENS])
@pytest.mark.parametrize("bias", [False, True])
def test_a_projection_is_nearly_what_it_was(num_tokens: int, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(96, 64, bias=bias).requires_grad_(False)
    hidden = torch.randn(2, num_tokens, 96)
    packed = Int8Linear(linear.weight, linear.bias)
    assert relative_error(packed(hidden.bfloat16()), linear(hidden)) < 0.01


def test_a_row_of_zeros_stays_zero() -> None:
    assert not Int8Linear(torch.zeros(32, 64))(torch.randn(2, 64).bfloat16()).any()


@pytest.fixture
def pair() -> tuple[Backbone, Backbone]:
    torch.manual_seed(0)
    plain = Backbone(load_backbone_config("toy")).eval().requires_grad_(False)
    packed = copy.deepcopy(plain)
    compute_in_int8(packed)
    return plain, packed


def test_hidden_states_and_scores_are_nearly_what_they_were(pair: tuple[Backbone, Backbone]) -> None:
    plain, packed = pair
    tokens = torch.randint(0, 250, (2, 17))
    expected, found = plain(tokens), packed(tokens)
    assert relative_error(found, expected) < 0.05
    assert relative_error(packed.logits(found), plain.logits(expected)) < 0.05


def test_the_best_scores_are_not_rounded(pair: tuple[Backbone, Backbone]) -> None:
    _, packed = pair
    hidden = packed(torch.randint(0, 250, (2, 5)))
    logits = packed.logits(hidden)
    best = logits.topk(3, dim=-1)
    exact = (packed.embedding(best.indices).float() * hidden.float()[..., None, :]).sum(dim=-1)
    torch.testing.assert_close(best.values, exact)
    assert logits.dtype == torch.float32


def test_a_row_does_not_depend_on_the_rows_beside_it(pair: tuple[Backbone, Backbone]) -> None:
    _, packed = pair
    hidden = torch.randn(9, packed.config.decoder.dim).bfloat16()
    together = packed.logits(hidden)
    alone = torch.cat([packed.logits(row[None]) for row in hidden])
    assert torch.equal(together, alone)


def test_a_tied_output_layer_stays_tied_and_the_ear_is_left_alone(pair: tuple[Backbone, Backbone]) -> None:
    plain, packed = pair
    assert packed.head is packed.embedding
    assert packed.audio_encoder.conv1.weight.dtype == torch.float32
    for before, after in zip(plain.adaptor.parameters(), packed.adaptor.parameters(), strict=True):
        assert torch.equal(before, after)
