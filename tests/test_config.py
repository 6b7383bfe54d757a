from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tristep.backbone.model import Backbone
from tristep.config import CONFIGS, BackboneConfig, load_backbone_config, load_toml

SHIPPED = sorted(path.stem for path in CONFIGS.glob("*.toml") if not path.stem.startswith("codec-"))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_config_builds_a_backbone(name: str) -> None:
    config = load_backbone_config(name)
    assert config.name == name
    with torch.device("meta"):
        backbone = Backbone(config)
    num_rows = len(backbone.embedding.weight) + len(backbone.embedding.grown)
    assert num_rows >= backbone.vocab.size


def test_all_backbones_ship() -> None:
    assert SHIPPED == ["asr-4b", "nano", "step-audio-2-mini", "toy", "toy-babble"]


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("toy", 0, 1e6), ("nano", 140e6, 180e6), ("asr-4b", 4.3e9, 5.1e9), ("step-audio-2-mini", 8.2e9, 8.5e9)],
)
def test_sizes_are_those_that_the_names_promise(name: str, low: float, high: float) -> None:
    with torch.device("meta"):
        backbone = Backbone(load_backbone_config(name))
    assert low < sum(parameter.numel() for parameter in backbone.parameters()) < high


def changed(tmp_path: Path, old: str, new: str) -> Path:
    path = tmp_path / "mine.toml"
    text = (CONFIGS / "toy.toml").read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


def test_a_config_of_ones_own_loads_by_path(tmp_path: Path) -> None:
    config = load_backbone_config(changed(tmp_path, 'name = "toy"', 'name = "mine"'))
    assert config.name == "mine"


def test_a_misspelt_setting_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    path = changed(tmp_path, "num_ctc_tokens = 256", "num_ctc_token = 256")
    with pytest.raises(
        ValueError,
        match=r"mine\.toml \[adaptor\] has no setting 'num_ctc_token': did you mean 'num_ctc_tokens'\?",
    ):
        load_backbone_config(path)


def test_an_unknown_setting_is_refused_with_those_that_exist(tmp_path: Path) -> None:
    path = changed(tmp_path, "[vocab]", "[vocab]\nxyzzy = 1")
    with pytest.raises(ValueError, match=r"has no setting 'xyzzy': it knows interleave, layout, num_codes, num_text"):
        load_backbone_config(path)


def test_a_missing_setting_is_named(tmp_path: Path) -> None:
    path = changed(tmp_path, "stride = 4\n", "")
    with pytest.raises(ValueError, match=r"\[adaptor\] needs a setting 'stride': add it"):
        load_backbone_config(path)


def test_a_value_of_the_wrong_kind_is_quoted(tmp_path: Path) -> None:
    path = changed(tmp_path, "stride = 4", 'stride = "four"')
    with pytest.raises(ValueError, match=r"\[adaptor\] has stride = 'four': input should be a valid integer"):
        load_backbone_config(path)


def test_a_file_that_is_not_toml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe not toml")
    with pytest.raises(ValueError, match=r"bad\.toml is not TOML"):
        load_toml(tmp_path / "bad.toml", BackboneConfig)


def test_an_unknown_name_is_refused_with_those_that_ship() -> None:
    with pytest.raises(ValueError, match=r"no backbone config 'nanno': give a \.toml file or one of asr-4b, nano"):
        load_backbone_config("nanno")


def test_settings_cannot_be_changed_afterwards() -> None:
    config = load_backbone_config("toy")
    with pytest.raises(ValueError, match="frozen"):
        config.name = "other"  # type: ignore[misc]
