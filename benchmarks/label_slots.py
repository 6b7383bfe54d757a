"""How many of the slots of a corpus without transcripts are found in its labels: each voter's, and the vote's.

    tristep label s2i_barista_en --out labelled --language en --recogniser faster-whisper:base --recogniser nano ...
    python benchmarks/label_slots.py labelled/pieces.jsonl

A slot counts as found if its words stand in the transcript one after the other, both in the form in which recognisers
are compared. Every piece counts, and then only those that the vote keeps, on which the voters are compared with it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from tristep.corpus.vote import MAX_DISAGREEMENT, surface, vote_texts
from tristep.text import bootstrap_interval

Row = dict[str, Any]


def num_missed(slots: dict[str, str], text: str, language: str) -> int:
    """Count the slots whose words are not in a text."""
    said = f" {surface(text, language)} "
    return sum(f" {surface(value, language)} " not in said for value in slots.values())


def recall(rows: list[Row], texts: list[str]) -> str:
    """Write the share of slots found, with its 95 % interval over pieces."""
    pairs = zip(rows, texts, strict=True)
    missed = np.array([num_missed(row["slots"], text, row["language"]) for row, text in pairs])
    slots = np.array([len(row["slots"]) for row in rows])
    low, high = bootstrap_interval(missed, slots)
    return f"{1 - missed.sum() / slots.sum():7.1%}  {1 - high:6.1%} - {1 - low:6.1%}"


def main() -> None:
    """Print a row for each voter and for the vote."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pieces", type=Path, help="pieces.jsonl of `tristep label`")
    parser.add_argument("--split", help="only rows of this split")
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.pieces.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row.get("heard") and row.get("slots")]
    rows = [row for row in rows if options.split in (None, row.get("split"))]
    votes = [vote_texts(list(row["heard"].values()), row["language"]) for row in rows]
    print(f"{'':30}{'slots found, all':>27}{'slots found, kept':>27}")
    kept = [place for place, vote in enumerate(votes) if vote.disagreement <= MAX_DISAGREEMENT and vote.units]
    texts = {name: [row["heard"][name] for row in rows] for name in rows[0]["heard"]}
    for name, written in {**texts, "the vote": [" ".join(vote.units) for vote in votes]}.items():
        some = recall([rows[place] for place in kept], [written[place] for place in kept])
        print(f"{name:30}{recall(rows, written):>27}{some:>27}")
    num_slots = sum(len(row["slots"]) for row in rows)
    print(f"{len(rows)} pieces, {len(kept)} kept, {num_slots} slots; 95 % interval over pieces")


if __name__ == "__main__":
    main()
