"""What runs have learnt, in a line each: every measure at its first and at its last evaluation.

python -m tristep.training.learnt runs/align runs/sft
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tristep.training.metrics import Line, read_metrics

NOT_MEASURES = {"step", "kind"}


def learnt(lines: list[Line]) -> dict[str, tuple[float, float]]:
    """Return the first value, trained on or evaluated, and the last one of what the last evaluation measured."""
    evaluations = [line for line in lines if line["kind"] == "eval"]
    last = evaluations[-1] if evaluations else {}
    found = {}
    for name, after in last.items():
        values = [line[name] for line in lines if line.get(name) is not None]
        if name not in NOT_MEASURES and after is not None:
            found[name] = (values[0], after)
    return found


def sentence(out: Path) -> str:
    """Say what a run has learnt.

    Raises:
        ValueError: If the run has not been evaluated yet.
    """
    lines = read_metrics(out / "metrics.jsonl")
    measures = learnt(lines)
    if not measures:
        raise ValueError(f"{out} holds no evaluation: run its training to the end first")
    steps = max(line["step"] for line in lines)
    said = ", ".join(f"{name} {before:.3g} -> {after:.3g}" for name, (before, after) in measures.items())
    return f"{out.name}, {steps} steps: {said}"


def main() -> None:
    """Print a line for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs")
    for out in parser.parse_args().runs:
        print(sentence(out))


if __name__ == "__main__":
    main()
