from __future__ import annotations

import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from tristep.backbone.checkpoints import load_backbone, save_backbone
from tristep.backbone.low_rank import add_low_rank
from tristep.backbone.model import Backbone
from tristep.config import load_backbone_config
from tristep.training.between import bring_between, main
from tristep.vocab import byte_tokenizer


def pair() -> tuple[Backbone, Backbone]:
    torch.manual_seed(0)
    start = Backbone(load_backbone_config("toy")).eval()
    add_low_rank(start.decoder, 2, ["q_proj"])
    learnt = deepcopy(start)
    for name, parameter in learnt.named_parameters():
        if name.endswith((".up", ".down")):
            torch.nn.init.normal_(parameter)
    return start, learnt


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_updates_go_a_share_of_the_way(share: float) -> None:
    start, learnt = pair()
    before = deepcopy(start)
    bring_between(start, learnt, share)
    for own, first, last in zip(start.parameters(), before.parameters(), learnt.parameters(), strict=True):
        torch.testing.assert_close(own, torch.lerp(first, last, share))


def test_models_that_share_too_little_are_refused() -> None:
    start, learnt = pair()
    torch.nn.init.normal_(learnt.decoder.norm.weight)
    with pytest.raises(ValueError, match=r"decoder.norm.weight differs"):
        bring_between(start, learnt, 0.5)


def test_a_model_between_two_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start, learnt = pair()
    for name, backbone in (("start", start), ("learnt", learnt)):
        save_backbone(backbone, byte_tokenizer(), tmp_path / name, "fp32")
    folders = [str(tmp_path / name) for name in ("start", "learnt")]
    monkeypatch.setattr(sys, "argv", ["between", *folders, "--share", "0.5", "--out", str(tmp_path / "out")])
    main()
    bring_between(start, learnt, 0.5)
    written = dict(load_backbone(tmp_path / "out")[0].named_parameters())
    own = {name: p for name, p in start.named_parameters() if name.endswith((".up", ".down"))}
    assert own
    for name, parameter in own.items():
        torch.testing.assert_close(written[name], parameter, atol=1e-2, rtol=1e-2)
