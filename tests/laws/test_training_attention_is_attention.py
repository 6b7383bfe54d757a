"""A law: what training attends by, all weights in memory, == the attention of inference, values and gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tristep.backbone.transformer import causal_mask, plain_attention


def heads(shape: tuple[int, ...], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).requires_grad_() for _ in range(3)]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 20), st.integers(0, 10_000))
def test_plain_attention_is_attention(num_rows: int, num_tokens: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    segments = torch.randint(-1, 3, (num_rows, num_tokens), generator=generator).sort(dim=1).values
    mask = causal_mask(segments)
    outputs, gradients = [], []
    for attend in (plain_attention, F.scaled_dot_product_attention):
        tensors = heads((num_rows, 2, num_tokens, 8), seed)
        out = attend(*tensors, mask)
        out.square().sum().backward()
        outputs.append(out.detach())
        gradients.append(torch.cat([tensor.grad.flatten() for tensor in tensors if tensor.grad is not None]))
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-4, rtol=1e-4)
