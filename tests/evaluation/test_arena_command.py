"""`tristep arena --ratings` and `tristep evaluate judge`: tables to stdout, a user's mistake in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from corpus.chat_endpoint import endpoint
from typer.testing import CliRunner

from tristep.audio import SPEAK_HZ, write_audio
from tristep.cli import app
from tristep.evaluation.preferences import Candidate, Preference, append_preferences, read_preferences
from tristep.modes.judge.data import Answer, Case, Clause, Known, Verdict, write_known


def run(*arguments: str):  # type: ignore[no-untyped-def]
    return CliRunner().invoke(app, [*arguments])


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
        write_audio(tmp_path / name / "p.wav", torch.zeros(SPEAK_HZ), SPEAK_HZ)
    return [str(tmp_path / "before"), str(tmp_path / "after")]


@pytest.mark.parametrize("verb", [["arena"], ["evaluate", "judge"]])
def test_help_fits_a_screen_of_80_by_40(verb: list[str]) -> None:
    lines = run(*verb, "--help").stdout.splitlines()
    assert 5 < len(lines) <= 40
    assert max(map(len, lines)) <= 80


def test_ratings_are_printed_and_pairs_written(folders: list[str], tmp_path: Path) -> None:
    verdict = Preference(
        prompt="p", chosen=Candidate(content="a.wav", system="after"),
        rejected=Candidate(content="b.wav", system="before"), margin=2, source="judge", version="judge",
    )  # fmt: skip
    append_preferences(tmp_path / "store.jsonl", [verdict])
    store, pairs = str(tmp_path / "store.jsonl"), tmp_path / "pairs.jsonl"
    result = run("arena", *folders, "--store", store, "--ratings", "--pairs", str(pairs))
    assert result.exit_code == 0
    assert result.stdout.index("after") < result.stdout.index("before")
    assert json.loads(pairs.read_text())["chosen"] == "a.wav"


def test_systems_without_verdicts_and_folders_that_share_nothing_are_mistakes(
    folders: list[str], tmp_path: Path
) -> None:
    result = run("arena", *folders, "--store", str(tmp_path / "none.jsonl"), "--ratings")
    assert result.exit_code == 2
    assert "no verdict counts yet" in result.stderr
    result = run("arena", folders[0], "--store", str(tmp_path / "none.jsonl"), "--ratings")
    assert result.exit_code == 2
    assert "give at least two systems" in result.stderr


def test_an_endpoint_is_measured_as_a_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("dialogue", "user: Hi.", Answer("Hello, I bake."), Answer("I am an AI."))
    known = Known("a", "disclaimer", "held_out", case, Verdict({"persona": Clause("first")}, 5))
    write_known(tmp_path / "pairs.jsonl", [known])
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    answers = [
        json.dumps({"reasons": {"persona": side}, "level": level}) for side, level in (("first", 5), ("second", 1))
    ]
    with endpoint(*answers) as (client, asked):
        result = run(
            "evaluate", "judge", "--pairs", str(tmp_path / "pairs.jsonl"), "--endpoint", str(client.base_url),
            "--endpoint-model", "m", "--store", str(tmp_path / "store.jsonl"), "--out", str(tmp_path / "out.json"),
        )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert len(asked) == 2
    assert "100.0%" in result.stdout
    assert json.loads((tmp_path / "out.json").read_text())["pairs"]["pairs"]["position_agreement"] == 1
    assert read_preferences(tmp_path / "store.jsonl")[0].version == "m"


def test_weights_that_do_not_judge_say_so(tmp_path: Path) -> None:
    result = run("evaluate", "judge", "--pairs", str(tmp_path / "none.jsonl"), "--model", str(tmp_path))
    assert result.exit_code == 2
    assert "there are no weights" in result.stderr
