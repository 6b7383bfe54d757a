"""What the README shows has to run."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import tristep
from tristep.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("block", blocks("python"))
def test_every_python_block_of_the_readme_runs(
    block: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


VERBS = {
    "transcribe",
    "speak",
    "serve",
    "label",
    "train",
    "evaluate",
    "asr",
    "tts",
    "turns",
    "converse",
    "arena",
    "detect",
    "pack",
}


def test_every_command_of_the_readme_exists() -> None:
    commands = [line.split() for block in blocks("bash") for line in block.splitlines() if line.startswith("tristep ")]
    assert commands
    for words in commands:
        verbs = [word for word in words[1:3] if word.isalpha() and word in VERBS]
        options = [word for word in words if word.startswith("--")]
        shown = CliRunner().invoke(app, [*verbs, "--help"], env={"COLUMNS": "200"})
        assert shown.exit_code == 0
        assert all(option in shown.output for option in options)


def test_every_make_target_of_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {line.split()[1] for block in blocks("bash") for line in block.splitlines() if line.startswith("make ")}
    assert targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


@pytest.mark.parametrize("name", sorted(m.name for m in pkgutil.walk_packages(tristep.__path__, "tristep.")))
def test_every_module_can_be_imported(name: str) -> None:
    if not name.endswith("__main__"):
        importlib.import_module(name)
