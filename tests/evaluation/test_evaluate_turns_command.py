"""`tristep evaluate turns`, from recordings to a page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from server.toys import write_toy
from typer.testing import CliRunner, Result

from tristep.cli import app

MANIFEST = Path(__file__).parents[1] / "data" / "manifest.jsonl"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["evaluate", "turns", *arguments])


def test_help_fits_a_screen_of_80_by_40() -> None:
    lines = run("--help").stdout.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "give --recordings, --full-duplex-bench or both"),
        (["--recordings", "nowhere.jsonl"], "there is no test set at 'nowhere.jsonl'"),
        (["--full-duplex-bench", "."], "holds no part of Full-Duplex-Bench"),
        (["--recordings", str(MANIFEST), "--split", "all", "--smart-turn", "."], "there is no smart-turn.onnx in '.'"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str], part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("--out", "r.json", "--model", "nowhere", *arguments)
    assert result.exit_code == 2
    assert part in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "r.json").exists()


def test_a_toy_is_measured(tmp_path: Path) -> None:
    write_toy(tmp_path / "toy")
    result = run(
        *("--recordings", str(MANIFEST), "--split", "all", "--limit", "1", "--skip-idle", "--detection", "server_vad"),
        *("--model", str(tmp_path / "toy"), "--voice", "anna", "--out", str(tmp_path / "r.json")),
    )
    assert result.exit_code == 0, result.stderr
    assert "first audio after the last word" in result.stdout
    (system,) = json.loads((tmp_path / "r.json").read_text())["systems"]
    assert system["name"] == "server_vad"
    assert [case["kind"] for case in system["cases"]] == ["question", "pause", "barge_in", "noise"]
    assert (tmp_path / "r.html").exists()
