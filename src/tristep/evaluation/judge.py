"""Measure a judge on pairs of which the better answer is known, and keep its verdicts as preferences."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from rich.table import Table
from torch import Tensor

from tristep.audio import SPEAK_HZ, read_audio
from tristep.engine.agreement import Agreement, agreement
from tristep.engine.fitting import Reader, witnessed
from tristep.engine.judging import BackbonePanel, Judgement, Panel, consider
from tristep.evaluation.preferences import Candidate, Preference, append_preferences
from tristep.modes.judge.data import Case, Known, read_known

BARS = {"speech": 0.85, "dialogue": 0.75}
"""The accuracy that a judge has to reach before it rewards anybody."""
AGREEMENT_BAR = 0.9


@dataclass(frozen=True)
class Measured:
    """A judge on one file of pairs."""

    agreement: Agreement
    by_rule: float | None
    """Accuracy of counting the aspects that the evidence favours either way, a tie being half: what needs no judge."""
    known: tuple[Known, ...]
    judgements: tuple[Judgement, ...]


def evaluate_judge(
    panel: Panel, path: Path, split: str = "held_out", max_pairs: int | None = None, num_readings: int = 1,
    hears: bool = False, reader: Reader | None = None,
) -> Measured:  # fmt: skip
    """Judge the pairs of a file, the better one first and last.

    Args:
        panel: Who judges.
        path: What `corpus/judged.py` wrote.
        split: Which pairs.
        max_pairs: The most of them, evenly spread over the file.
        num_readings: Verdicts for each order.
        hears: Whether the panel hears the sounds, beside reading what was measured of them.
        reader: Measures how well replies fit, where the file does not say.

    Raises:
        ValueError: If there are no such pairs, or the panel can't hear.
    """
    known = read_known(path, split)
    places = np.linspace(0, len(known) - 1, min(max_pairs or len(known), len(known))).round().astype(int)
    known = [witnessed(known[place], reader) for place in places]
    cases, sounds = [case.case for case in known], []
    if hears:
        if not isinstance(panel, BackbonePanel):
            raise ValueError("only a judge of this project's own hears: leave out --hears for an endpoint")
        sounds = [[panel.hear(read_audio(path.parent / sound, SPEAK_HZ)) for sound in case.sounds] for case in known]
        cases = [with_slots(case, both) for case, both in zip(cases, sounds, strict=True)]
    judgements = consider(panel, cases, [both for both in sounds if both], num_readings)
    return Measured(agreement(judgements, known), rule_accuracy(known), tuple(known), tuple(judgements))


def with_slots(case: Case, sounds: Sequence[Tensor]) -> Case:
    """Open audio slots for the sounds of a case, if it has any."""
    if not sounds:
        return case
    first, second = (len(sound) for sound in sounds)
    return replace(case, first=replace(case.first, num_slots=first), second=replace(case.second, num_slots=second))


def rule_accuracy(known: Sequence[Known]) -> float | None:
    """Say how often the evidence alone decides rightly: aspects in favour of one answer against the other's.

    None where there is no evidence to count: the clauses of replies are written from what is known of them.
    """
    different = [case for case in known if case.kind != "alike" and case.case.task == "speech"]
    if not different:
        return None
    sides = [[clause.side for clause in case.verdict.clauses.values()] for case in different]
    won = [np.sign(found.count("first") - found.count("second")) for found in sides]
    return float(np.mean([(1 + sign) / 2 for sign in won]))


def as_table(found: Mapping[str, Measured]) -> Table:
    """Lay out what a judge is worth, a row for each file."""
    columns = (
        "pairs",
        "judged",
        "accuracy",
        "bar",
        "by rule",
        "both orders agree",
        "calibration error",
        "alike",
        "spread",
    )
    table = Table(*columns, title=f"known differences, 95 % intervals; both orders should agree in {AGREEMENT_BAR:.0%}")
    for name, measured in found.items():
        worth, bar = measured.agreement, BARS[measured.known[0].case.task]
        by_rule = "" if measured.by_rule is None else f"{measured.by_rule:.1%}"
        alike = "" if worth.alike is None else f"{worth.alike:.0%}"
        accuracy = f"{worth.accuracy:.1%} ({worth.low:.1%} - {worth.high:.1%})"
        table.add_row(
            name, str(worth.num_pairs), accuracy, f"{bar:.0%}", by_rule, f"{worth.position_agreement:.1%}",
            f"{worth.calibration_error:.3f}", alike, f"{worth.spread:.3f}",
        )  # fmt: skip
        for kind, share in worth.by_kind.items():
            table.add_row(f"  {kind}", "", f"{share:.1%}")
    return table


def write_results(found: Mapping[str, Measured], out: Path | None, store: Path | None, judge: str) -> None:
    """Write the figures as JSON and the verdicts as preferences, each where a file is given."""
    if out:
        figures = {name: asdict(m.agreement) | {"by_rule": m.by_rule} for name, m in found.items()}
        out.write_text(json.dumps({"judge": judge, "pairs": figures}, indent=1), encoding="utf-8")
    if store:
        append_preferences(store, [p for measured in found.values() for p in preferences(measured, judge)])


def preferences(measured: Measured, judge: str) -> list[Preference]:
    """Turn judgements into preferences, with the judge's own choice and not what is known."""
    return [preference(k.case, judged, judge) for k, judged in zip(measured.known, measured.judgements, strict=True)]


def preference(case: Case, judged: Judgement, judge: str) -> Preference:
    """Write one judgement as a preference."""
    answers = [Candidate(content=answer.text) for answer in (case.first, case.second)]
    chosen, rejected = answers if judged.score >= 0 else reversed(answers)
    margin = abs(judged.score) if judged.preferred else 0.0
    return Preference(
        prompt=case.prompt, chosen=chosen, rejected=rejected, margin=margin, source="judge", version=judge,
        reason=judged.reasons,
    )  # fmt: skip
