from __future__ import annotations

import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tristep.backbone.checkpoints import load_backbone, save_backbone
from tristep.backbone.low_rank import add_low_rank
from tristep.backbone.model import Backbone
from tristep.config import load_backbone_config
from tristep.training.between import blended, bring_between, main
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


def test_a_part_of_a_codec_goes_a_share_of_the_way_and_new_blocks_begin_as_nothing() -> None:
    start = {"blocks.0.weight": torch.zeros(2, dtype=torch.bfloat16)}
    learnt = {
        **start,
        "blocks.0.weight": torch.ones(2),
        "blocks.1.weight": torch.ones(2),
        "blocks.1.scale": torch.ones(2),
    }
    found = blended(start, learnt, 0.25)
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        "blocks.0.weight": [0.25, 0.25], "blocks.1.weight": [1, 1], "blocks.1.scale": [0.25, 0.25]
    }  # fmt: skip
    assert all(torch.equal(blended(start, learnt, 1.0)[name], tensor) for name, tensor in learnt.items())


def test_parts_that_are_not_of_a_kind_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^weight is missing or has another shape"):
        blended({"weight": torch.zeros(2)}, {"weight": torch.zeros(3)}, 0.5)


def test_the_command_reads_and_writes_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("start", 0.0), ("learnt", 1.0)):
        save_file({"weight": torch.full((2,), value)}, tmp_path / f"{name}.safetensors")
    paths = [str(tmp_path / f"{name}.safetensors") for name in ("start", "learnt", "half")]
    monkeypatch.setattr(sys, "argv", ["between", *paths[:2], "--share", "0.5", "--out", paths[2]])
    main()
    assert load_file(paths[2])["weight"].tolist() == [0.5, 0.5]
