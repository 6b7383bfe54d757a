"""A law: sequences packed into one row == the same sequences in padded rows == each alone."""

from __future__ import annotations

from functools import cache

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tristep.backbone.model import Backbone
from tristep.config import load_backbone_config

LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=5)


@cache
def toy() -> Backbone:
    torch.manual_seed(0)
    return Backbone(load_backbone_config("toy")).requires_grad_(False)


def sequences(lengths: list[int], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (length,), generator=generator) for length in lengths]


def packed(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    segments = torch.cat([torch.full((len(row),), number) for number, row in enumerate(rows)])[None]
    return torch.cat(rows)[None], segments


@settings(max_examples=25, deadline=None)
@given(LENGTHS, st.integers(0, 10_000))
def test_packed_is_padded_is_alone(lengths: list[int], seed: int) -> None:
    backbone, rows = toy(), sequences(lengths, seed)
    tokens, segments = packed(rows)
    together = backbone(tokens, segments=segments)[0].split(lengths)
    padded = backbone(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True))
    for row, tokens in enumerate(rows):
        alone = backbone(tokens[None])[0]
        torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(padded[row, : len(tokens)], alone, atol=1e-5, rtol=1e-5)


def test_packing_without_segments_would_leak() -> None:
    backbone, rows = toy(), sequences([4, 6], seed=0)
    leaking = backbone(packed(rows)[0], positions=torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5]]))[0, 4:]
    assert not torch.allclose(leaking, backbone(rows[1][None])[0], atol=1e-2)


def test_sounds_of_packed_sequences_find_their_slots() -> None:
    backbone = toy()
    slot = backbone.vocab.control("audio_slot")
    rows = [torch.tensor([1, slot, slot, 2]), torch.tensor([slot, 3])]
    sound = torch.randn(3, 64)
    tokens, segments = packed(rows)
    together = backbone(tokens, sound, segments=segments)[0].split([4, 2])
    for row, own in zip(range(2), (sound[:2], sound[2:]), strict=True):
        torch.testing.assert_close(together[row], backbone(rows[row][None], own)[0], atol=1e-5, rtol=1e-5)
