"""Wordings: instructions as people give them, in sentences that no phrase of `annotate.py` is part of.

    python -m tristep.corpus.wordings held_out.jsonl
    tristep evaluate tts sentences.txt --directives held_out.jsonl --directed 2 --out r.json

SFT teaches the TTS mode what a few dozen phrases ask for. `TAUGHT` ones are for learning from rewards
(`python -m tristep.corpus.directed --wordings`), `HELD_OUT` ones for measuring whether it has learnt more than those.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_WORDINGS = json.loads((Path(__file__).parent / "wordings.json").read_text(encoding="utf-8"))
TAUGHT: dict[str, tuple[str, ...]] = {style: tuple(own) for style, own in _WORDINGS["taught"].items()}
"""By the style that they ask for."""
HELD_OUT: dict[str, tuple[str, ...]] = {style: tuple(own) for style, own in _WORDINGS["held_out"].items()}
"""The same, in other words."""
FEATURES: dict[str, tuple[str, bool]] = {
    "slow": ("words_per_s", False), "fast": ("words_per_s", True), "low": ("median_f0_hz", False),
    "high": ("median_f0_hz", True), "quiet": ("level_db", False), "loud": ("level_db", True),
    "whisper": ("level_db", False),
}  # fmt: skip
"""What of an utterance (`tristep.evaluation.speech.Delivery`) a style moves, and whether upwards."""


def directives(wordings: dict[str, tuple[str, ...]]) -> Iterator[dict[str, Any]]:
    """Yield every wording with what it has to move, as `tristep evaluate tts --directives` reads it."""
    for style, (feature, upwards) in FEATURES.items():
        for wording in wordings[style]:
            yield {"name": style, "wording": wording, "feature": feature, "upwards": upwards}


def main() -> None:
    """Write the held-out wordings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the file of JSON lines to write")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("".join(json.dumps(row) + "\n" for row in directives(HELD_OUT)), encoding="utf-8")


if __name__ == "__main__":
    main()
