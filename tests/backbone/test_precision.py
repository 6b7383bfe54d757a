from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tristep.backbone.model import Backbone
from tristep.backbone.precision import (
    MANY_TOKENS,
    Int4Linear,
    Int8Linear,
    RoundedLinear,
    compute_in_few_bits,
    few_sizes,
    four_bits,
    hear_in_int8,
    levels_of,
    multiplies_int8,
)
from tristep.config import load_backbone_config

needs_vnni = pytest.mark.skipif(not multiplies_int8(), reason="this processor does not multiply eight-bit numbers")


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


@pytest.mark.parametrize("bias", [False, True])
def test_with_four_bits_it_multiplies_the_levels_that_are_nearest(bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(96, 64, bias=bias).requires_grad_(False)
    codes, levels = levels_of(linear.weight)
    step, middle = levels.float().transpose(0, 1).chunk(2, dim=2)  # (O, groups, 1)
    weight = ((codes.view(64, 3, -1) - 8) * step + middle).view(64, 96)
    assert ((linear.weight - weight).view(64, 3, -1).abs() <= 0.55 * step).all()
    hidden = torch.randn(2, MANY_TOKENS - 1, 96).bfloat16()
    packed = four_bits(linear.weight, linear.bias)
    assert isinstance(packed, Int4Linear)
    expected = hidden.float() @ weight.T + (0 if linear.bias is None else linear.bias)
    assert relative_error(packed(hidden), expected) < 0.01
    many = torch.randn(2, MANY_TOKENS, 96).bfloat16()
    assert torch.equal(packed(many), Int8Linear(linear.weight, linear.bias)(many))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, MANY_TOKENS - 1), st.integers(0, 10_000))
def test_with_four_bits_a_row_does_not_depend_on_how_many_there_are(num_rows: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    packed = four_bits(torch.randn(48, 64, generator=generator))
    rows = torch.randn(num_rows, 64, generator=generator).bfloat16()
    assert torch.equal(packed(rows), torch.cat([packed(row[None]) for row in rows]))


@pytest.mark.parametrize("shape", [(40, 64), (48, 80)])
def test_shapes_that_four_bits_do_not_fit_have_eight(shape: tuple[int, int]) -> None:
    assert type(four_bits(torch.randn(shape))) is Int8Linear


def test_a_row_of_zeros_stays_zero() -> None:
    for kind in (Int8Linear, four_bits):
        assert not kind(torch.zeros(32, 64))(torch.randn(2, 64).bfloat16()).any()


@pytest.fixture
def pair() -> tuple[Backbone, Backbone]:
    torch.manual_seed(0)
    plain = Backbone(load_backbone_config("toy")).eval().requires_grad_(False)
    packed = copy.deepcopy(plain)
    compute_in_few_bits(packed, Int8Linear)
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


@needs_vnni
@pytest.mark.parametrize(("num_bytes", "most"), [(1, 0.02), (2, 0.005)])
@pytest.mark.parametrize("bias", [False, True])
def test_rounded_rows_are_nearly_what_they_were(num_bytes: int, most: float, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(96, 64, bias=bias).requires_grad_(False)
    hidden = torch.randn(2, 37, 96) * torch.linspace(0.1, 10, 37)[:, None]
    packed = RoundedLinear(linear.weight, linear.bias, num_bytes)
    assert relative_error(packed(hidden), linear(hidden)) < most
    assert torch.equal(packed(torch.zeros(3, 96)), linear(torch.zeros(3, 96)))


@needs_vnni
@settings(max_examples=20, deadline=None)
@given(st.integers(1, 70), st.sampled_from([1, 2]), st.integers(0, 10_000))
def test_a_rounded_row_does_not_depend_on_how_many_there_are(num_rows: int, num_bytes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    packed = RoundedLinear(torch.randn(40, 48, generator=generator), None, num_bytes)
    rows = torch.randn(num_rows, 48, generator=generator)
    assert torch.equal(packed(rows), torch.cat([packed(row[None]) for row in rows]))


@given(st.integers(1, 100_000))
def test_there_are_few_sizes_and_little_is_added(num: int) -> None:
    assert num <= few_sizes(num) <= max(num * 9 // 8, num)
    assert few_sizes(few_sizes(num)) == few_sizes(num)


@needs_vnni
def test_an_ear_in_int8_hears_nearly_what_it_did() -> None:
    torch.manual_seed(0)
    plain = Backbone(load_backbone_config("toy")).eval().requires_grad_(False)
    packed = copy.deepcopy(plain)
    hear_in_int8(packed)
    mel, num_frames = torch.randn(2, plain.config.encoder.num_mels, 100), torch.tensor([100, 61])
    heard, expected = packed.encode_audio(mel, num_frames)[0], plain.encode_audio(mel, num_frames)[0]
    assert relative_error(heard, expected) < 0.05
    adapted = (backbone.adapt(expected, num_frames // 2).audio_embeddings for backbone in (packed, plain))
    assert relative_error(*adapted) < 0.01


def test_a_tied_output_layer_stays_tied_and_the_ear_is_left_alone(pair: tuple[Backbone, Backbone]) -> None:
    plain, packed = pair
    assert packed.head is packed.embedding
    assert packed.audio_encoder.conv1.weight.dtype == torch.float32
    for before, after in zip(plain.adaptor.parameters(), packed.adaptor.parameters(), strict=True):
        assert torch.equal(before, after)
