from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tristep.backbone.packing import Packing, num_bytes, pack, pack_in_place, packing_of, rounded


def weights(seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(6, 96, generator=torch.Generator().manual_seed(seed))


def relative_error(weight: Tensor, packing: Packing) -> float:
    return float((rounded(weight, packing) - weight).norm() / weight.norm())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1e-6, 1e-3, 1.0, 1e3]))
@pytest.mark.parametrize("packing", ["exact", "fp32", "bf16", "int8", "int4"])
def test_packing_what_was_packed_changes_nothing(packing: Packing, seed: int, scale: float) -> None:
    once = rounded(weights(seed, scale), packing)
    assert torch.equal(rounded(once, packing), once)


@pytest.mark.parametrize(("packing", "bound"), [("fp32", 0.0), ("bf16", 0.003), ("int8", 0.01), ("int4", 0.1)])
def test_the_error_of_gaussian_weights_is_bounded(packing: Packing, bound: float) -> None:
    assert relative_error(weights(0), packing) <= bound


def test_weights_that_come_from_q4_1_are_nearly_kept() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (64, 18, 32), generator=generator)
    codes[..., 0], codes[..., 1] = 0, 15
    step = (0.005 + 0.01 * torch.rand(64, 18, 1, generator=generator)).half().float()
    low = (-7.5 * step + 0.01 * torch.randn(64, 18, 1, generator=generator)).half().float()
    weight = (codes * step + low).flatten(1)
    parts = pack(weight, "int4")
    packed = parts["codes"].view(64, 18, 16)
    assert torch.equal(torch.cat([packed & 15, packed >> 4], dim=2).long(), codes)
    assert relative_error(weight, "int4") < 0.015


def test_constant_rows_and_zeros_survive() -> None:
    weight = torch.zeros(3, 64)
    weight[1] = 0.5
    weight[2, :32] = -2.0
    for packing in ("int8", "int4"):
        torch.testing.assert_close(rounded(weight, packing), weight, atol=0.01, rtol=0.01)


def test_int4_takes_four_and_a_half_bits_a_weight() -> None:
    layer = nn.Linear(1024, 512, bias=False)
    assert num_bytes(layer, "int4") * 8 / layer.weight.numel() == pytest.approx(4.5 + 32 / 1024)


def test_the_first_rule_that_matches_decides() -> None:
    rules: dict[str, Packing] = {"*.up": "bf16", "decoder.*": "int4"}
    assert packing_of("decoder.q.up", torch.zeros(4, 64), rules) == "bf16"
    assert packing_of("decoder.q.weight", torch.zeros(4, 64), rules) == "int4"
    assert packing_of("embedding", torch.zeros(4, 64), rules) == "bf16"


def test_shapes_that_do_not_fit_a_packing_take_the_next_wider_one() -> None:
    assert packing_of("conv", torch.zeros(4, 5, 3), "int4") == "int8"
    assert packing_of("conv", torch.zeros(4, 64, 3), "int4") == "int4"
    assert packing_of("bias", torch.zeros(64), "int4") == "fp32"
    assert packing_of("grown", torch.zeros(0, 64), "int4") == "int4"
    assert packing_of("ids", torch.zeros(4, 64, dtype=torch.long), "int4") == "exact"


def test_an_unknown_packing_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be stored as 'int3': choose exact, fp32, bf16, int8, int4"):
        packing_of("weight", torch.zeros(4, 64), {"*": "int3"})  # type: ignore[dict-item]


def test_a_live_module_is_rounded_to_what_storage_gives_back() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 8)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    pack_in_place(layer, "int4")
    assert torch.equal(layer.weight, rounded(weight, "int4"))
    assert not torch.equal(layer.weight, weight)
    assert torch.equal(layer.bias, bias)
