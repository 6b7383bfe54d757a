from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tristep.backbone import checkpoints
from tristep.backbone.checkpoints import load_backbone, save_backbone
from tristep.backbone.low_rank import add_low_rank
from tristep.backbone.model import Backbone
from tristep.backbone.packing import SHIPPED, Packing, pack_in_place
from tristep.config import load_backbone_config
from tristep.vocab import byte_tokenizer


def toy(tied: bool = True) -> Backbone:
    torch.manual_seed(0)
    config = load_backbone_config("toy")
    decoder = config.decoder.model_copy(update={"tied": tied})
    backbone = Backbone(config.model_copy(update={"decoder": decoder}))
    with torch.no_grad():
        backbone.adaptor.ctc_tokens.copy_(torch.randperm(256))
    return backbone


def logits(backbone: Backbone) -> Tensor:
    with torch.no_grad():
        return backbone.logits(backbone(torch.arange(24).view(2, 12)))


def assert_same(first: Backbone, second: Backbone) -> None:
    ours, theirs = first.state_dict(), second.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("packing", ["exact", "fp32"])
def test_what_was_saved_is_what_loads(packing: Packing, tied: bool, tmp_path: Path) -> None:
    backbone = toy(tied)
    save_backbone(backbone, byte_tokenizer(), tmp_path / "toy", packing)
    loaded, tokenizer = load_backbone(tmp_path / "toy")
    assert_same(loaded, backbone)
    assert loaded.config == backbone.config
    assert (loaded.head is loaded.embedding) == tied
    assert tokenizer.decode(tokenizer.encode("héllo 12")) == "héllo 12"
    assert torch.equal(logits(loaded), logits(backbone))


@pytest.mark.parametrize("packing", ["bf16", "int8", "int4", SHIPPED])
def test_a_backbone_rounded_in_place_ships_exactly(packing: Packing, tmp_path: Path) -> None:
    backbone = toy()
    exact = logits(backbone)
    pack_in_place(backbone, packing)
    assert not torch.equal(logits(backbone), exact)
    save_backbone(backbone, byte_tokenizer(), tmp_path / "toy", packing)
    assert_same(load_backbone(tmp_path / "toy")[0], backbone)


def test_low_rank_updates_are_part_of_a_checkpoint(tmp_path: Path) -> None:
    backbone = toy()
    with torch.no_grad():
        for parameter in add_low_rank(backbone.decoder, 3, ["q_proj", "down_proj"], scale=0.5):
            parameter.normal_(std=0.1)
    save_backbone(backbone, byte_tokenizer(), tmp_path / "toy", "fp32")
    loaded, _ = load_backbone(tmp_path / "toy")
    assert_same(loaded, backbone)
    assert torch.equal(logits(loaded), logits(backbone))


def test_draft_heads_are_part_of_a_checkpoint_with_shards_of_their_own(tmp_path: Path) -> None:
    backbone = toy()
    backbone.add_draft_heads(3)
    save_backbone(backbone, byte_tokenizer(), tmp_path / "toy", "fp32")
    loaded, _ = load_backbone(tmp_path / "toy")
    assert_same(loaded, backbone)
    assert loaded.config.num_draft_heads == 3
    assert (tmp_path / "toy" / "draft_heads-0.safetensors").exists()


def test_a_grown_vocabulary_is_part_of_a_checkpoint(tmp_path: Path) -> None:
    backbone = toy()
    backbone.grow_vocabulary(17)
    save_backbone(backbone, byte_tokenizer(), tmp_path / "toy", "fp32")
    loaded, _ = load_backbone(tmp_path / "toy")
    assert loaded.vocab.size == backbone.vocab.size == 256 + 128 + 17
    assert torch.equal(logits(loaded), logits(backbone))


@pytest.mark.parametrize("packing", ["fp32", "int4"])
def test_no_shard_is_larger_than_the_limit(packing: Packing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "MAX_SHARD_BYTES", 20_000)
    backbone = toy()
    pack_in_place(backbone, packing)
    save_backbone(backbone, byte_tokenizer(), tmp_path / "toy", packing)
    shards = list((tmp_path / "toy").glob("*.safetensors"))
    assert len(shards) > 5
    # The header of a shard comes on top.
    assert max(shard.stat().st_size for shard in shards) < 20_000 + 8_000
    assert_same(load_backbone(tmp_path / "toy")[0], backbone)


def test_weights_unpack_to_the_dtype_that_is_asked_for(tmp_path: Path) -> None:
    save_backbone(toy(), byte_tokenizer(), tmp_path / "toy", "int8")
    loaded, _ = load_backbone(tmp_path / "toy", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}


def test_saving_again_replaces_the_whole_folder(tmp_path: Path) -> None:
    save_backbone(toy(), byte_tokenizer(), tmp_path / "toy", "fp32")
    (tmp_path / "toy" / "stale.txt").write_text("old")
    save_backbone(toy(), byte_tokenizer(), tmp_path / "toy", "int8")
    names = {path.name for path in (tmp_path / "toy").iterdir()}
    shards = {f"{part}-0.safetensors" for part in ("audio_encoder", "adaptor", "decoder", "embedding")}
    assert names == {"config.json", "tokenizer.json", "index.json", *shards}
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_backbone(toy(), byte_tokenizer(), tmp_path / "toy", "bf16")
    return tmp_path / "toy"


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / "embedding-0.safetensors").unlink()
    with pytest.raises(ValueError, match=r"0\.safetensors is missing: fetch the whole checkpoint"):
        load_backbone(folder)


def test_a_single_changed_byte_is_noticed(folder: Path) -> None:
    content = bytearray((folder / "embedding-0.safetensors").read_bytes())
    content[-7] ^= 1
    (folder / "embedding-0.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"0\.safetensors is damaged"):
        load_backbone(folder)


@pytest.mark.parametrize("name", ["embedding-0.safetensors", "config.json", "index.json", "tokenizer.json"])
def test_a_git_lfs_pointer_says_how_to_get_the_file(name: str, folder: Path) -> None:
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ValueError, match=r"Git LFS pointer.*git lfs pull"):
        load_backbone(folder)


def test_an_index_of_another_checkpoint_is_noticed(folder: Path) -> None:
    index = json.loads((folder / "index.json").read_text())
    index["tensors"].pop("decoder.norm.weight")
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"lacks tensor 'decoder\.norm\.weight'"):
        load_backbone(folder)


def test_a_format_of_the_future_is_refused(folder: Path) -> None:
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(index | {"format": 99}))
    with pytest.raises(ValueError, match="format 99, expected 1: update tristep"):
        load_backbone(folder)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_index_is_refused(text: str, folder: Path) -> None:
    (folder / "index.json").write_text(text)
    with pytest.raises(ValueError, match=r"index\.json .* fetch it again"):
        load_backbone(folder)


def test_a_name_is_found_where_the_environment_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRISTEP_WEIGHTS", str(folder.parent))
    monkeypatch.chdir(Path(__file__).parent)
    assert load_backbone("toy")[0].config.name == "toy"


def test_an_unknown_name_says_where_was_looked() -> None:
    with pytest.raises(ValueError, match=r"no weights 'no-such-model'.*TRISTEP_WEIGHTS"):
        load_backbone("no-such-model")


def a_mode(seed: int, num_codes: int) -> Backbone:
    """Return the toy with updates and rows of its own, over the same shared weights."""
    backbone = toy()
    torch.manual_seed(seed)
    for parameter in add_low_rank(backbone.decoder, 2, ["q_proj", "up_proj"]):
        torch.nn.init.normal_(parameter)
    if num_codes:
        backbone.grow_vocabulary(num_codes)
    return backbone


def test_each_mode_loads_its_own_updates_and_rows_over_the_shared_weights(tmp_path: Path) -> None:
    modes = {"asr": a_mode(1, 0), "tts": a_mode(2, 12)}
    save_backbone(toy(), byte_tokenizer(), tmp_path / "toy", "fp32", modes)
    for mode, expected in modes.items():
        loaded, _ = load_backbone(tmp_path / "toy", mode=mode)
        assert loaded.vocab.size == expected.vocab.size
        for name, tensor in expected.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name
    shared, _ = load_backbone(tmp_path / "toy")
    assert shared.vocab.config.num_codes == 0
    assert not any(name.endswith(".up") for name in shared.state_dict())


def test_a_mode_that_the_weights_do_not_serve_is_refused(tmp_path: Path) -> None:
    save_backbone(toy(), byte_tokenizer(), tmp_path / "toy", "fp32", {"asr": a_mode(1, 0)})
    with pytest.raises(ValueError, match="serves asr, not tts"):
        load_backbone(tmp_path / "toy", mode="tts")


def test_weights_that_tell_no_modes_apart_serve_any(folder: Path) -> None:
    assert load_backbone(folder, mode="tts")[0].vocab.size == toy().vocab.size
