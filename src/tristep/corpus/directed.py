"""Directed texts: sentences with ways to ask for a manner, which nobody has spoken.

    python -m tristep.corpus.directed sentences.txt --out directed/utterances.jsonl
    python -m tristep.corpus.directed sentences.txt --out worded/utterances.jsonl --wordings

The TTS mode settles how it will speak before it speaks (`modes/tts/data.py`), and to settle that it need not have
heard anybody: instructions and cues in all their wordings (`annotate.py`) teach it from text. SFT learns the manner of
such rows; learning from rewards speaks them, and hears from the codes whether the voice did what it said it would.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tristep.arguments import existing
from tristep.corpus.annotate import CUES, cue, instruction
from tristep.corpus.wordings import HELD_OUT, TAUGHT
from tristep.modes.tts.data import Manner
from tristep.text import speakable, written_words

SETTLED: dict[str, tuple[str, tuple[int, ...]]] = {
    "slow": ("pace", (1,)), "fast": ("pace", (5,)),
    "low": ("pitch", (2, 1)), "high": ("pitch", (4, 5)),
    "whisper": ("volume", (1,)), "quiet": ("volume", (2,)), "loud": ("volume", (4, 5)),
    "pauses": ("pauses", (4,)),
}  # fmt: skip
"""Which degrees of which feature a style may settle."""
CUED = SETTLED.keys() & CUES.keys()
"""Styles that a cue can ask for."""


def directions(num: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Draw ways to ask for up to two styles of different features, in an instruction, a cue or both."""
    for _ in range(num):
        chosen = drawn_styles(rng)
        by_cue = [style for style in chosen if style in CUED and rng.random() < 0.4][:1]
        told = [style for style in chosen if style not in by_cue]
        manner = {SETTLED[style][0]: int(rng.choice(SETTLED[style][1])) for style in chosen}
        yield {
            "text": instruction(told, rng) if told or rng.random() < 0.3 else "",
            "manner": asdict(Manner(**manner)),
            "cue": cue(by_cue[0], rng) if by_cue else "",
        }


def worded(wordings: Mapping[str, Sequence[str]], num: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Draw ways to ask for one style, each in a sentence of its own."""
    for _ in range(num):
        style = str(rng.choice(list(wordings)))
        feature, degrees = SETTLED.get(style, ("pace", (3,)))
        manner = Manner(**{feature: int(rng.choice(degrees))})
        yield {"text": str(rng.choice(wordings[style])), "manner": asdict(manner), "cue": "", "style": style}


def drawn_styles(rng: np.random.Generator) -> list[str]:
    """Draw no style, one, or two of different features."""
    num = int(rng.choice(3, p=(0.15, 0.6, 0.25)))
    by_feature: dict[str, str] = {}
    for style in rng.permutation(list(SETTLED)).tolist():
        by_feature.setdefault(SETTLED[style][0], style)
    return list(by_feature.values())[:num]


def directed(
    texts: Sequence[str], num_directions: int, num_dev: int, seed: int, most_words: int = 24, by_wordings: bool = False
) -> Iterator[dict[str, Any]]:
    """Yield a row for every text of at most `most_words`; those among the last `num_dev` texts are held out."""

    def drawn(split: str, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
        if not by_wordings:
            return directions(num_directions, rng)
        return worded(HELD_OUT if split == "dev" else TAUGHT, num_directions, rng)

    for number, text in enumerate(texts):
        words = written_words(speakable(text))
        if not 0 < len(words) <= most_words:
            continue
        split = "dev" if number >= len(texts) - num_dev else "train"
        yield {
            "id": f"directed-{number}",
            "split": split,
            "words": [[word, 0] for word in words],
            "codes": [],
            "instructions": list(drawn(split, np.random.default_rng([seed, number]))),
        }


def main() -> None:
    """Write directed texts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sentences", type=existing, help="a text file, one sentence a line")
    parser.add_argument("--out", type=Path, required=True, help="the utterances.jsonl to write")
    parser.add_argument("--directions", type=int, default=4, help="ways to ask for each sentence")
    parser.add_argument("--most-words", type=int, default=24, help="pass over longer sentences: rollouts cost time")
    parser.add_argument("--dev", type=int, default=64, help="sentences at the end that are held out")
    parser.add_argument("--wordings", action="store_true", help="ask in the sentences of wordings.py")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    texts = [line.strip() for line in options.sentences.read_text(encoding="utf-8").splitlines() if line.strip()]
    rows = list(directed(texts, options.directions, options.dev, options.seed, options.most_words, options.wordings))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} of {len(texts)} sentences, written to {options.out}")


if __name__ == "__main__":
    main()
