"""What runs have learnt, in a line each: every measure at its first and at its last evaluation.

    python -m tristep.training.learnt runs/align runs/sft
    python -m tristep.training.learnt runs/align --bar "ctc_wer < 0.05" --row

A bar is where a measure has to end, or the command fails: under or over a number, or `before`, what was measured
first. `--row` prints that measure alone, for a table.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path

from tristep.arguments import existing
from tristep.training.metrics import Line, read_metrics

NOT_MEASURES = {"step", "kind"}
REWARD = "reward/"
"""How the names of rewards begin in the lines of training."""


@dataclass(frozen=True)
class Bar:
    """A measure, and the value under or over which it has to end."""

    measure: str
    sign: str
    """`<` or `>`."""
    bound: float | None
    """None stands for what was measured first."""

    @classmethod
    def parse(cls, text: str) -> Bar:
        """Read a bar such as `ctc_wer < 0.05`."""
        words = text.split()
        if len(words) != 3 or words[1] not in ("<", ">"):
            raise ValueError(f"{text!r} is no bar: expected a measure, < or >, and a number or `before`")
        return cls(words[0], words[1], None if words[2] == "before" else float(words[2]))

    def reached(self, before: float, after: float) -> bool:
        """Say whether a measure has ended on the right side."""
        bound = before if self.bound is None else self.bound
        return after < bound if self.sign == "<" else after > bound


def learnt(lines: list[Line]) -> dict[str, tuple[float, float]]:
    """Return the first value, trained on or evaluated, and the last one of what the last evaluation measured.

    Rewards of what a run drew in training are told too, as `reward/NAME`: held-out answers are not drawn.
    """
    evaluations = [line for line in lines if line["kind"] == "eval"]
    last = evaluations[-1] if evaluations else {}
    measured = [name for name, after in last.items() if name not in NOT_MEASURES and after is not None]
    rewards = sorted({name for line in lines for name in line if name.startswith(REWARD)} if evaluations else ())
    values = {name: [line[name] for line in lines if line.get(name) is not None] for name in (*measured, *rewards)}
    return {name: (found[0], found[-1]) for name, found in values.items()}


def measures_of(out: Path) -> dict[str, tuple[float, float]]:
    """Read what a run has learnt.

    Raises:
        ValueError: If the run has not been evaluated yet.
    """
    measures = learnt(read_metrics(out / "metrics.jsonl"))
    if not measures:
        raise ValueError(f"{out} holds no evaluation: run its training to the end first")
    return measures


def sentence(out: Path) -> str:
    """Say what a run has learnt."""
    measures = measures_of(out)
    steps = max(line["step"] for line in read_metrics(out / "metrics.jsonl"))
    said = ", ".join(f"{name} {before:.3g} -> {after:.3g}" for name, (before, after) in measures.items())
    return f"{out.name}, {steps} steps: {said}"


def row(out: Path, bar: Bar) -> str:
    """Write the measure of a bar as one row of a table: run, measure, before, after.

    Raises:
        ValueError: If the run does not measure it.
    """
    measures = measures_of(out)
    if bar.measure not in measures:
        raise ValueError(f"{out} does not measure {bar.measure!r}: expected one of {', '.join(measures)}")
    before, after = measures[bar.measure]
    return f"{out.name}\t{bar.measure}\t{before:.3g}\t{after:.3g}"


def missed(out: Path, bar: Bar) -> bool:
    """Say whether a run has ended on the wrong side of a bar; what is not measured is missed too."""
    return not bar.reached(*measures_of(out).get(bar.measure, (math.nan, math.nan)))


def main() -> None:
    """Print a line for each run, and fail where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=existing, nargs="+", help="folders of runs")
    parser.add_argument("--bar", type=Bar.parse, help="what every run has to reach, such as 'ctc_wer < 0.05'")
    parser.add_argument("--row", action="store_true", help="print the bar's measure alone, between tabs")
    options = parser.parse_args()
    if options.row and not options.bar:
        parser.error("--row prints the measure of a bar: give --bar too")
    for out in options.runs:
        print(row(out, options.bar) if options.row else sentence(out))
    if options.bar and (late := [str(out) for out in options.runs if missed(out, options.bar)]):
        bar = options.bar
        bound = "before" if bar.bound is None else f"{bar.bound:g}"
        sys.exit(f"{', '.join(late)} ended with no {bar.measure} {bar.sign} {bound}: read metrics.jsonl there")


if __name__ == "__main__":
    main()
