from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tristep.backbone.checkpoints import load_backbone, save_backbone
from tristep.backbone.low_rank import add_low_rank
from tristep.backbone.model import Backbone
from tristep.backbone.packing import SHIPPED, pack_in_place
from tristep.config import load_backbone_config
from tristep.training.ship import ship, ship_into
from tristep.training.stages import LEARNT_IN_FULL
from tristep.vocab import byte_tokenizer

TOKENS = torch.tensor([[72, 105, 33]])


def trained(folder: Path, seed: int, num_codes: int, shared_seed: int = 0, num_draft_heads: int = 0) -> Backbone:
    """Write what a run leaves: shared weights rounded as they ship, its own updates and rows unrounded."""
    torch.manual_seed(shared_seed)
    backbone = Backbone(load_backbone_config("toy"))
    pack_in_place(backbone, SHIPPED)
    torch.manual_seed(seed)
    for parameter in add_low_rank(backbone.decoder, 2, ["q_proj", "up_proj"]):
        torch.nn.init.normal_(parameter, std=0.1)
    if num_codes:
        backbone.grow_vocabulary(num_codes)
    if num_draft_heads:
        backbone.add_draft_heads(num_draft_heads)
    save_backbone(backbone, byte_tokenizer(), folder, LEARNT_IN_FULL)
    return backbone.eval()


def test_each_mode_answers_as_the_run_that_taught_it(tmp_path: Path) -> None:
    models = {"asr": trained(tmp_path / "asr", 1, 0), "tts": trained(tmp_path / "tts", 2, 8)}
    ship({mode: tmp_path / mode for mode in models}, tmp_path / "nano")
    for mode, backbone in models.items():
        shipped, _ = load_backbone(tmp_path / "nano", mode=mode)
        assert shipped.vocab.size == backbone.vocab.size
        torch.testing.assert_close(shipped.eval()(TOKENS), backbone(TOKENS), atol=0.05, rtol=0.05)


def test_draft_heads_are_for_the_mode_that_learnt_them(tmp_path: Path) -> None:
    listening = trained(tmp_path / "asr", 1, 0, num_draft_heads=2)
    trained(tmp_path / "tts", 2, 8)
    ship({"asr": tmp_path / "asr", "tts": tmp_path / "tts"}, tmp_path / "nano")
    heads = load_backbone(tmp_path / "nano", mode="asr")[0].draft_heads
    assert heads is not None
    assert listening.draft_heads is not None
    for name, tensor in listening.draft_heads.state_dict().items():
        torch.testing.assert_close(heads.state_dict()[name], tensor, atol=0.01, rtol=0.01)
    assert load_backbone(tmp_path / "nano", mode="tts")[0].draft_heads is None
    assert (tmp_path / "nano" / "draft_heads-0.safetensors").exists()


def test_models_on_other_frozen_weights_are_refused(tmp_path: Path) -> None:
    trained(tmp_path / "asr", 1, 0)
    trained(tmp_path / "tts", 2, 8, shared_seed=5)
    with pytest.raises(ValueError, match=r"the tts model has another .*: train all modes on the same frozen weights"):
        ship({"asr": tmp_path / "asr", "tts": tmp_path / "tts"}, tmp_path / "nano")
    assert not (tmp_path / "nano").exists()


def test_a_mode_joins_a_checkpoint_and_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    trained(tmp_path / "asr", 1, 0)
    ship({"asr": tmp_path / "asr"}, tmp_path / "nano")
    kept = {path.name: path.read_bytes() for path in (tmp_path / "nano").glob("*.safetensors")}
    for seed in (2, 3):  # the second takes the place of the first
        speaking = trained(tmp_path / "tts", seed, 8)
        ship_into({"tts": tmp_path / "tts"}, tmp_path / "nano")
        shipped, _ = load_backbone(tmp_path / "nano", mode="tts")
        torch.testing.assert_close(shipped.eval()(TOKENS), speaking(TOKENS), atol=0.05, rtol=0.05)
    assert all((tmp_path / "nano" / name).read_bytes() == content for name, content in kept.items())
    load_backbone(tmp_path / "nano", mode="asr")


def test_a_mode_on_other_frozen_weights_does_not_join(tmp_path: Path) -> None:
    trained(tmp_path / "asr", 1, 0)
    ship({"asr": tmp_path / "asr"}, tmp_path / "nano")
    trained(tmp_path / "tts", 2, 8, shared_seed=5)
    before = (tmp_path / "nano" / "index.json").read_bytes()
    with pytest.raises(ValueError, match="train all modes on the same frozen weights"):
        ship_into({"tts": tmp_path / "tts"}, tmp_path / "nano")
    assert (tmp_path / "nano" / "index.json").read_bytes() == before
