from __future__ import annotations

import torch
from torch import Tensor

from tristep.backbone.transformer import MixtureOfExperts, load_loss
from tristep.config import DecoderConfig


def experts(num_experts: int = 5, num_active: int = 2) -> MixtureOfExperts:
    torch.manual_seed(0)
    config = DecoderConfig(
        vocab_size=1, dim=12, num_layers=1, num_heads=2, num_kv_heads=2, ffn_dim=16,
        num_experts=num_experts, num_active_experts=num_active,
    )  # fmt: skip
    return MixtureOfExperts(config)


def slowly(module: MixtureOfExperts, token: Tensor) -> Tensor:
    """One token at a time: its best experts, weighted by their probabilities among themselves."""
    probs = module.router(token).softmax(dim=-1)
    best = sorted(range(len(probs)), key=lambda expert: -float(probs[expert]))[: module.num_active]
    total = sum(probs[expert] for expert in best)
    return sum((module.experts[e](token[None])[0] * probs[e] / total for e in best), torch.zeros_like(token))


def test_each_token_gets_what_it_would_get_alone() -> None:
    module = experts().requires_grad_(False)
    hidden = torch.randn(3, 7, 12)
    expected = torch.stack([torch.stack([slowly(module, token) for token in row]) for row in hidden])
    torch.testing.assert_close(module(hidden), expected, atol=1e-5, rtol=1e-5)


def test_gradients_reach_the_router_and_the_experts_that_were_visited() -> None:
    module = experts()
    module(torch.randn(2, 9, 12)).square().sum().backward()
    assert module.router.weight.grad is not None
    assert float(module.router.weight.grad.abs().sum()) > 0
    assert all(expert.up_proj.weight.grad is not None for expert in module.experts)


def test_an_even_load_costs_one_and_a_collapsed_one_costs_the_number_of_experts() -> None:
    even = torch.full((8, 4), 0.25)
    chosen = torch.arange(8)[:, None] % 4
    assert torch.isclose(load_loss(even, chosen), torch.tensor(1.0))
    collapsed = torch.tensor([[1.0, 0.0, 0.0, 0.0]]).expand(8, 4)
    assert torch.isclose(load_loss(collapsed, torch.zeros(8, 1, dtype=torch.long)), torch.tensor(4.0))
