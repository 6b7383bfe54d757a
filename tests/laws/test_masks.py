"""A law: changing an ignored position changes no loss and no gradient."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tristep.backbone.model import Backbone
from tristep.config import load_backbone_config
from tristep.objectives.likelihood import ctc_loss, next_token_loss, shifted_targets

SEEDS = st.integers(0, 10_000)


def loss_and_gradient(tokens: Tensor, loss_mask: Tensor, segments: Tensor) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(0)
    backbone = Backbone(load_backbone_config("toy"))
    predicting, targets = shifted_targets(tokens, loss_mask, segments)
    hidden = backbone(tokens, segments=segments)
    loss = next_token_loss(backbone.logits(hidden[predicting]), targets)
    loss.backward()
    return loss.detach(), [p.grad for p in backbone.parameters() if p.grad is not None]


def assert_same(first: tuple[Tensor, list[Tensor]], second: tuple[Tensor, list[Tensor]]) -> None:
    torch.testing.assert_close(first[0], second[0])
    for one, two in zip(first[1], second[1], strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(2, 7), min_size=1, max_size=3), st.integers(1, 8), SEEDS)
def test_padding_counts_in_no_loss_and_no_gradient(lengths: list[int], num_padding: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    numbers = [row for row, length in enumerate(lengths) for _ in range(length)] + [99] * num_padding
    segments = torch.tensor([numbers])
    tokens = torch.randint(0, 256, segments.shape, generator=generator)
    inside = segments != 99
    loss_mask = (torch.rand(segments.shape, generator=generator) < 0.6) & inside
    if not shifted_targets(tokens, loss_mask, segments)[0].any():
        loss_mask[0, 1] = True
    changed = torch.where(inside, tokens, (tokens + 1) % 256)
    assert_same(loss_and_gradient(tokens, loss_mask, segments), loss_and_gradient(changed, loss_mask, segments))


def test_only_what_the_mask_keeps_is_a_target() -> None:
    tokens = torch.tensor([[10, 11, 12, 20, 21, 22]])
    loss_mask = torch.tensor([[True, False, True, True, True, False]])
    segments = torch.tensor([[0, 0, 0, 1, 1, 1]])
    predicting, targets = shifted_targets(tokens, loss_mask, segments)
    # 10 and 20 open their sequences: nothing before them may predict them.
    assert targets.tolist() == [12, 21]
    assert predicting.tolist() == [[False, True, False, True, False, False]]


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_the_last_token_of_a_sequence_is_a_target_and_never_an_input(seed: int) -> None:
    """Changing it changes the loss, but no other position's hidden state."""
    torch.manual_seed(seed)
    backbone = Backbone(load_backbone_config("toy")).requires_grad_(False)
    tokens = torch.randint(0, 255, (1, 8))
    changed = tokens.clone()
    changed[0, -1] += 1
    assert torch.equal(backbone(tokens)[:, :-1], backbone(changed)[:, :-1])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=4), SEEDS)
def test_frames_beyond_a_clip_count_in_no_ctc_loss_and_get_no_gradient(counts: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    num_targets = torch.tensor(counts)
    num_frames = 2 * num_targets + 3
    targets = torch.randint(0, 6, (sum(counts),), generator=generator)
    logits = torch.randn(len(counts), int(num_frames.max()) + 2, 7, generator=generator)
    beyond = torch.arange(logits.shape[1]) >= num_frames[:, None]
    changed = torch.where(beyond[..., None], logits + 3 * torch.randn(logits.shape, generator=generator), logits)
    logits.requires_grad_()
    loss = ctc_loss(logits, num_frames, targets, num_targets)
    torch.testing.assert_close(ctc_loss(changed, num_frames, targets, num_targets), loss.detach())
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad[beyond].any()
