"""Duels of parrots: one obeys, one does not, one mumbles."""

from __future__ import annotations

from pathlib import Path

import pytest
from evaluation.test_tts import LOUD, SENTENCES, SLOW, SLOWLY, Parrot, measure

from tristep.evaluation import duel
from tristep.evaluation.duel import Readings, summary, verdicts
from tristep.evaluation.preferences import read_preferences
from tristep.evaluation.tts_report import TtsReport


def readings(name: str, **habits: bool) -> Readings:
    return Readings(name, measure(Parrot(**habits), LOUD, SLOW, SLOWLY).report)


def mumbled(report: TtsReport) -> TtsReport:
    worse = [each.model_copy(update={"deletions": each.num_units}) for each in report.sentences]
    return report.model_copy(update={"sentences": tuple(worse)})


def test_who_obeys_wins_under_directives_and_ties_plainly() -> None:
    won = summary(readings("obeys"), readings("deaf", obeys=False))
    assert won["loud"].value == won["slow"].value == won["(slowly)"].value == won["all directives"].value == 1.0
    assert (won["plainly"].value, won["plainly"].num_verdicts) == (0.5, len(SENTENCES))
    assert won["all"].num_verdicts == 4 * len(SENTENCES)


def test_who_obeys_by_nonsense_does_not_win() -> None:
    obeys = readings("obeys")
    won = summary(Readings("mumbles", mumbled(obeys.report)), readings("deaf", obeys=False))
    assert won["loud"].value == 0.5  # it moved as far as it said less
    assert won["plainly"].value == 0.0


def test_a_duel_of_nothing_in_common_is_refused() -> None:
    one = readings("one")
    nothing = Readings("nothing", one.report.model_copy(update={"sentences": ()}))
    with pytest.raises(ValueError, match="one and nothing read nothing in common"):
        list(verdicts(one, nothing))


def test_reports_become_verdicts_of_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, obeys in (("obeys", True), ("deaf", False)):
        report = measure(Parrot(obeys=obeys), LOUD).report
        (tmp_path / f"{name}.json").write_text(report.model_dump_json())
    paths = [str(tmp_path / f"{name}.json") for name in ("obeys", "deaf")]
    monkeypatch.setattr("sys.argv", ["duel", *paths, "--store", str(tmp_path / "store.jsonl")])
    duel.main()
    assert "all directives 100.0%" in capsys.readouterr().out
    kept = read_preferences(tmp_path / "store.jsonl")
    assert {verdict.source for verdict in kept} == {"verifiable"}
    assert sum(verdict.margin > 0 for verdict in kept) == len(SENTENCES)
