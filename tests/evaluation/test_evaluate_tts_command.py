"""`tristep evaluate tts` answers a user's mistake with one sentence, before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tristep.cli import app


def run(*arguments: str):  # type: ignore[no-untyped-def]
    return CliRunner().invoke(app, ["evaluate", "tts", *arguments])


def test_help_fits_a_screen_of_80_by_40() -> None:
    result = run("--help")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--lines", "2-3"], "has 2 sentences: asked for '2-3'"),
        (["--voices", "voices"], "give --voice and --speaker too"),
        (["--voice", "../anna", "--voices", "voices", "--speaker", "s"], "is no name of a voice"),
        (["--voice", "anna", "--voices", "voices", "--speaker", "s"], "there is no voice 'anna'"),
    ],
)
def test_a_mistake_is_one_sentence(arguments: list[str], part: str, tmp_path: Path) -> None:
    (tmp_path / "sentences.txt").write_text("one\ntwo\n")
    result = run("--sentences", str(tmp_path / "sentences.txt"), "--out", str(tmp_path / "r.json"), *arguments)
    assert result.exit_code == 2
    assert part in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "r.json").exists()
