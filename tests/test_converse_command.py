from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from tristep.backbone.checkpoints import save_backbone
from tristep.backbone.model import Backbone
from tristep.cli import app, read_persona
from tristep.config import load_backbone_config
from tristep.vocab import byte_tokenizer

DATA = Path(__file__).parent / "data"
CLIP, OTHER_CLIP = str(DATA / "kathleen_a0249.opus"), str(DATA / "kathleen_b0442.opus")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained toy on disk, which can't speak."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights") / "toy"
    save_backbone(Backbone(load_backbone_config("toy")), byte_tokenizer(), folder)
    return str(folder)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["converse", *arguments])


def test_a_turn_is_two_lines_and_its_latency_goes_to_stderr(weights: str) -> None:
    result = run(CLIP, "--persona", "A sailor.", "--model", weights)
    assert result.exit_code == 0
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == ["user", "answer"]
    assert result.stderr.startswith("first words after ")


def test_several_turns_are_json_lines_and_the_seed_settles_them(weights: str) -> None:
    first, again = (run(CLIP, OTHER_CLIP, "--json", "--seed", "4", "--model", weights) for _ in range(2))
    lines = [json.loads(line) for line in first.stdout.splitlines()]
    assert [line["path"] for line in lines] == [CLIP, OTHER_CLIP]
    assert all(line["first_text_s"] > 0 and line["first_audio_s"] is None for line in lines)
    assert [json.loads(line)["text"] for line in again.stdout.splitlines()] == [line["text"] for line in lines]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([str(DATA / "nowhere.wav")], "nowhere.wav"),
        ([CLIP, "--voice", "anna"], "give --out"),
        ([CLIP, "--out", "a.wav"], "codec"),
    ],
)
def test_a_mistake_is_one_sentence(weights: str, arguments: list[str], part: str) -> None:
    result = run(*arguments, "--model", weights)
    assert result.exit_code == 2
    assert part in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_persona_is_a_text_or_a_file_of_one(tmp_path: Path) -> None:
    (tmp_path / "captain.txt").write_text("A captain.\n", encoding="utf-8")
    assert read_persona(str(tmp_path / "captain.txt")) == "A captain."
    assert read_persona("A captain.") == "A captain."
    assert read_persona("x" * 5000) == "x" * 5000
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match="or the persona itself"):
        read_persona(str(tmp_path / "bad.txt"))
