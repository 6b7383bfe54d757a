from __future__ import annotations

import pytest
import torch

from tristep.backbone.low_rank import add_low_rank, merge_low_rank
from tristep.backbone.model import Backbone
from tristep.config import load_backbone_config


def toy(num_heads: int = 3) -> Backbone:
    torch.manual_seed(0)
    backbone = Backbone(load_backbone_config("toy").model_copy(update={"num_draft_heads": num_heads}))
    return backbone.eval().requires_grad_(False)


def look_ahead(backbone: Backbone, tokens: torch.Tensor, segments: torch.Tensor) -> list[torch.Tensor]:
    return backbone.look_ahead(backbone(tokens, segments=segments), tokens, None, segments)


def test_a_head_reads_the_token_before_the_one_that_it_guesses_and_none_beyond() -> None:
    backbone, segments = toy(), torch.zeros(1, 9, dtype=torch.long)
    tokens = torch.randint(0, 256, (1, 9))
    changed = tokens.clone()
    changed[0, 6] += 1
    before, after = look_ahead(backbone, tokens, segments), look_ahead(backbone, changed, segments)
    for depth, (one, other) in enumerate(zip(before, after, strict=True), start=1):
        # Head h at position t knows tokens 0..t + h: the change at 6 reaches it from t = 6 - h on.
        assert torch.equal(one[:, : 6 - depth], other[:, : 6 - depth])
        assert not torch.equal(one[:, 6 - depth], other[:, 6 - depth])


def test_packed_sequences_do_not_see_one_another() -> None:
    backbone = toy()
    tokens = torch.randint(0, 256, (1, 12))
    segments = torch.tensor([[0] * 7 + [1] * 5])
    packed = look_ahead(backbone, tokens, segments)
    alone = look_ahead(backbone, tokens[:, 7:], segments[:, 7:])
    for depth, (one, other) in enumerate(zip(packed, alone, strict=True), start=1):
        torch.testing.assert_close(one[:, 7 : 12 - depth], other[:, : 5 - depth], atol=1e-5, rtol=1e-4)


def test_new_heads_begin_as_the_last_block_with_its_low_rank_updates() -> None:
    backbone = toy(0)
    for parameter in add_low_rank(backbone.decoder, 2, ["q_proj", "down_proj"]):
        torch.nn.init.normal_(parameter, std=0.1)
    backbone.add_draft_heads(2)
    assert backbone.config.num_draft_heads == 2
    assert backbone.draft_heads is not None
    merge_low_rank(backbone.decoder)
    last = backbone.decoder.blocks[-1].state_dict()
    for head in backbone.draft_heads:
        own = head.block.state_dict()
        assert own.keys() == last.keys()
        assert all(torch.equal(own[name], last[name]) for name in own)


@pytest.mark.parametrize("num_heads", [1, 7])
def test_the_number_of_heads_is_a_setting(num_heads: int) -> None:
    segments = torch.zeros(2, 10, dtype=torch.long)
    branches = look_ahead(toy(num_heads), torch.randint(0, 256, (2, 10)), segments)
    assert [branch.shape for branch in branches] == [(2, 10, 64)] * num_heads
