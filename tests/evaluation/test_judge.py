from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from rich.console import Console
from torch import Tensor

from tristep.engine.fitting import Reader
from tristep.engine.judging import Opinion
from tristep.evaluation.judge import as_table, evaluate_judge, rule_accuracy, write_results
from tristep.evaluation.preferences import read_preferences
from tristep.modes.judge.data import Answer, Case, Clause, Known, Verdict, write_known


@dataclass(frozen=True)
class ByLetter:
    """Prefers the answer that comes first in the alphabet."""

    name: str = "by letter"

    def opinions(self, cases: Sequence[Case], sound: Sequence[Tensor] = (), seed: int = 0) -> list[Opinion]:
        levels = [3 + 2 * (c.first.text < c.second.text) - 2 * (c.first.text > c.second.text) for c in cases]
        return [Opinion("words: alike", tuple(float(level == other) for other in range(1, 6))) for level in levels]


def known(good: str, bad: str, kind: str = "words", clause: Clause | None = None) -> Known:
    verdict = Verdict({"words": clause or Clause("first")}, 3 if kind == "alike" else 5)
    return Known(f"{good}{bad}", kind, "held_out", Case("speech", "Say it.", Answer(good), Answer(bad)), verdict)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_known(tmp_path / "pairs.jsonl", [known("a", "b"), known("c", "b"), known("a", "d"), known("a", "a", "alike")])
    return tmp_path / "pairs.jsonl"


def test_a_judge_is_measured_on_what_is_known(path: Path) -> None:
    measured = evaluate_judge(ByLetter(), path)
    assert measured.agreement.accuracy == pytest.approx(2 / 3)
    assert measured.agreement.position_agreement == 1
    assert measured.agreement.alike == 1
    assert measured.by_rule == 1


def test_fewer_pairs_are_taken_evenly(path: Path) -> None:
    assert [one.id for one in evaluate_judge(ByLetter(), path, max_pairs=2).known] == ["ab", "aa"]


def test_the_rule_counts_aspects_and_a_tie_is_half() -> None:
    clauses = [Clause("first"), Clause("second"), Clause("alike")]
    assert rule_accuracy([known("a", "b", clause=clause) for clause in clauses]) == 0.5
    reply = known("a", "b")
    assert rule_accuracy([replace(reply, case=replace(reply.case, task="dialogue"))]) is None


def test_only_a_judge_of_this_projects_own_hears(path: Path) -> None:
    with pytest.raises(ValueError, match="leave out --hears for an endpoint"):
        evaluate_judge(ByLetter(), path, hears=True)


def test_what_a_file_does_not_say_of_replies_is_measured(tmp_path: Path) -> None:
    pair = known("a", "b")
    write_known(tmp_path / "replies.jsonl", [replace(pair, case=replace(pair.case, task="dialogue"))])
    reader = Reader(lambda conversations, replies: [0.0] * len(replies))
    measured = evaluate_judge(ByLetter(), tmp_path / "replies.jsonl", reader=reader)
    assert measured.known[0].case.first == Answer("a", fits="badly +0.0")


def test_figures_and_verdicts_are_written(path: Path, tmp_path: Path) -> None:
    found = {"pairs": evaluate_judge(ByLetter(), path)}
    write_results(found, tmp_path / "out.json", tmp_path / "store.jsonl", "by letter")
    figures = json.loads((tmp_path / "out.json").read_text())
    assert figures["judge"] == "by letter"
    assert figures["pairs"]["pairs"]["num_pairs"] == 3
    stored = read_preferences(tmp_path / "store.jsonl")
    assert [(one.chosen.content, one.rejected.content, one.margin) for one in stored] == [
        ("a", "b", 1.0), ("b", "c", 1.0), ("a", "d", 1.0), ("a", "a", 0.0),
    ]  # fmt: skip
    assert {(one.source, one.version) for one in stored} == {("judge", "by letter")}


def test_the_table_shows_the_bar_beside_the_figure(path: Path) -> None:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(as_table({"pairs": evaluate_judge(ByLetter(), path)}))
    assert "66.7%" in captured.get()
    assert "85%" in captured.get()
