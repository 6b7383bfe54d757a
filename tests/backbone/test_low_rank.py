from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tristep.backbone.low_rank import add_low_rank, merge_low_rank
from tristep.backbone.model import Backbone
from tristep.config import load_backbone_config

NAMES = ("q_proj", "v_proj", "down_proj")


def backbone() -> Backbone:
    torch.manual_seed(0)
    return Backbone(load_backbone_config("toy"))


def logits(model: Backbone) -> Tensor:
    tokens = torch.arange(20).view(2, 10)
    with torch.no_grad():
        return model.logits(model(tokens))


def test_an_update_that_has_learnt_nothing_changes_nothing() -> None:
    model = backbone()
    before = logits(model)
    new = add_low_rank(model.decoder, 4, NAMES)
    assert len(new) == 2 * 2 * len(NAMES)
    assert torch.equal(logits(model), before)


def test_merging_keeps_what_was_learnt() -> None:
    model = backbone()
    before = logits(model)
    with torch.no_grad():
        for parameter in add_low_rank(model.decoder, 4, NAMES):
            parameter.normal_(std=0.1)
    learnt = logits(model)
    names = {name for name, _ in model.named_parameters()}
    merge_low_rank(model)
    assert not torch.allclose(learnt, before)
    torch.testing.assert_close(logits(model), learnt, atol=1e-4, rtol=1e-4)
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in backbone().named_parameters()}
    assert names != {name for name, _ in model.named_parameters()}


def test_only_the_update_learns() -> None:
    model = backbone()
    new = add_low_rank(model.decoder, 4, NAMES)
    model.logits(model(torch.arange(6)[None])).square().sum().backward()
    assert all(parameter.grad is not None for parameter in new)
    attention = model.decoder.blocks[0].attention
    assert attention.q_proj.base.weight.grad is None
    assert attention.k_proj.weight.grad is not None


def test_names_that_no_projection_has_are_an_error() -> None:
    with pytest.raises(ValueError, match="no projection is called any of w1"):
        add_low_rank(backbone().decoder, 4, ["w1"])
