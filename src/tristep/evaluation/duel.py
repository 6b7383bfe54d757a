"""A duel: two systems that read the same sentences under the same directives, compared one reading at a time.

    tristep evaluate tts --sentences s.txt --directives held_out.jsonl --directed 3 --model sft --out sft.json
    tristep evaluate tts --sentences s.txt --directives held_out.jsonl --directed 3 --model rlhf --out rlhf.json
    python -m tristep.evaluation.duel rlhf.json sft.json

Three measures judge that rewarded nobody: how far the feature moved that a directive names (at most as far as nobody
misses), the share of its words that a recogniser missed, and the predicted opinion score. The reading with the greater
sum wins, so a directive that is heeded by nonsense does not; plain readings are judged too, for a system that is told
nothing should be no worse.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tristep.arguments import existing
from tristep.evaluation.preferences import Candidate, Estimate, Preference, append_preferences, win_rate
from tristep.evaluation.tts import Directive, movement
from tristep.evaluation.tts_report import SentenceResult, TtsReport

TIE = 0.05
"""Difference of two sums that says nothing."""
MOS_RANGE = 4.0
"""Of an opinion score, from 1 to 5."""
VERSION = "movement + words + DistillMOS"


@dataclass(frozen=True)
class Readings:
    """What one system read."""

    name: str
    report: TtsReport

    def sums(self) -> dict[str, float]:
        """Return what the measures say of each reading, by its name."""
        by_id = {result.id: result for result in self.report.sentences}
        asked = {
            found.name: Directive(found.name, "", found.feature, found.upwards) for found in self.report.directives
        }
        return {name: quality(result) + heeded(result, by_id, asked) for name, result in by_id.items()}


def heeded(result: SentenceResult, by_id: dict[str, SentenceResult], asked: dict[str, Directive]) -> float:
    """Return how far a reading moved as asked, from -1 to 1; 0 where nothing was asked."""
    if not result.directive:
        return 0.0
    plain = by_id[result.id.partition(f" {result.directive}")[0]]
    return max(-1.0, min(1.0, movement(asked[result.directive], result.delivery, plain.delivery)))


def quality(result: SentenceResult) -> float:
    """Return what the words and the sound of a reading are worth."""
    missed = min(1.0, result.num_errors / max(1, result.num_units))
    return (result.mos or 1.0) / MOS_RANGE - missed


def verdicts(one: Readings, other: Readings) -> Iterator[Preference]:
    """Judge the readings that both have.

    Raises:
        ValueError: If they have none in common.
    """
    first, second = one.sums(), other.sums()
    if not (common := first.keys() & second.keys()):
        raise ValueError(f"{one.name} and {other.name} read nothing in common: evaluate both on the same sentences")
    for name in sorted(common):
        gap = first[name] - second[name]
        chosen, rejected = (one, other) if gap >= 0 else (other, one)
        yield Preference(
            prompt=name,
            chosen=Candidate(content=name, system=chosen.name),
            rejected=Candidate(content=name, system=rejected.name),
            margin=abs(gap) if abs(gap) >= TIE else 0.0,
            source="verifiable",
            version=VERSION,
        )


def summary(one: Readings, other: Readings) -> dict[str, Estimate]:
    """Return how often one wins against the other under each directive, plainly, and in all."""
    found = {verdict.prompt: verdict for verdict in verdicts(one, other)}
    groups: dict[str, list[Preference]] = {}
    for result in one.report.sentences:
        if result.id in found:
            names = [result.directive, "all directives", "all"] if result.directive else ["plainly", "all"]
            for name in names:
                groups.setdefault(name, []).append(found[result.id])
    return {name: win_rate(kept, one.name, other.name) for name, kept in groups.items()}


def main() -> None:
    """Compare two reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=existing, help="what `tristep evaluate tts` wrote of one system")
    parser.add_argument("opponent", type=existing, help="and of the other one")
    parser.add_argument("--store", type=Path, help="JSON lines of preferences to add the verdicts to")
    options = parser.parse_args()
    if options.report.stem == options.opponent.stem:
        parser.error(
            f"both reports are named {options.report.stem!r}: rename one, their names are those of the systems"
        )
    one, other = (
        Readings(path.stem, TtsReport.model_validate_json(path.read_text(encoding="utf-8")))
        for path in (options.report, options.opponent)
    )
    if options.store:
        append_preferences(options.store, verdicts(one, other))
    print(f"{one.name} wins against {other.name}:")
    for name, won in summary(one, other).items():
        print(f"{name:>15} {won.value:6.1%} ({won.low:.1%}-{won.high:.1%}) of {won.num_verdicts}")


if __name__ == "__main__":
    main()
