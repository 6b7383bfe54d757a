from __future__ import annotations

import torch
from torch.nn.utils import parametrize

from tristep.backbone.model import Backbone
from tristep.codec.tokenizer import Lattice
from tristep.config import load_backbone_config
from tristep.training.lattice_rows import settle_rows, share_rows, shared_features

LATTICE = Lattice((3, 2, 2))


def grown_backbone() -> Backbone:
    torch.manual_seed(0)
    backbone = Backbone(load_backbone_config("toy"))
    backbone.grow_vocabulary(LATTICE.size)
    return backbone


def test_a_code_has_one_level_a_dimension_and_every_pair_of_them() -> None:
    features = shared_features(LATTICE)
    assert features.shape == (12, 7 + 6 + 6 + 4)
    assert features.sum(dim=1).tolist() == [6] * 12
    assert len(features.unique(dim=0)) == 12


def test_sharing_changes_nothing_until_something_is_learnt() -> None:
    backbone = grown_backbone()
    before = backbone.embedding.grown.detach().clone()
    share_rows(backbone, LATTICE)
    torch.testing.assert_close(backbone.embedding.grown, before)


def test_what_one_code_learns_its_neighbours_learn_and_control_tokens_do_not() -> None:
    backbone = grown_backbone()
    share_rows(backbone, LATTICE)
    first_code = backbone.vocab.first_code
    backbone.embedding(torch.tensor([first_code])).sum().backward()
    (shared,) = [p for n, p in backbone.embedding.named_parameters() if n.endswith("directions")]
    with torch.no_grad():
        before = backbone.embedding.grown.clone()
        shared -= shared.grad
        moved = (backbone.embedding.grown - before).abs().sum(dim=1)
    num_common = shared_features(LATTICE) @ shared_features(LATTICE)[0]
    torch.testing.assert_close(moved[-12:] / moved[-12], num_common / 6)
    assert not moved[:-12].any()


def test_settled_rows_are_the_sums_and_learn_alone() -> None:
    backbone = grown_backbone()
    share_rows(backbone, LATTICE)
    with torch.no_grad():
        for parameter in backbone.embedding.parameters():
            parameter += torch.randn_like(parameter)
        sums = backbone.embedding.grown.clone()
    settle_rows(backbone)
    assert not parametrize.is_parametrized(backbone.embedding)
    torch.testing.assert_close(backbone.embedding.grown.detach(), sums)
    assert {name for name, _ in backbone.embedding.named_parameters()} == {"weight", "grown"}
