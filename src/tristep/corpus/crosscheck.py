"""Cross-check: every clip is recognised again, and dropped where what was heard is not what its text says.

Teachers skip, repeat and swallow words, and transcripts belong to other clips; a recogniser that had no part in making
the clip hears it. It may mishear too, so a few errors pass, and long insertions (a loop, or somebody else's sentence)
do not. Cues are not spoken: one that is heard counts as an error like any other word. The recogniser is faster-whisper
(`pip install faster-whisper`), used to make data only.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from tristep.arguments import existing
from tristep.audio import read_audio
from tristep.corpus import recognisers
from tristep.corpus.vote import surface
from tristep.text import scored_by_character, speakable, without_cues, word_errors

Recognise = Callable[[Path, str], str]
"""Writes what is said in a file, given the language."""
MAX_ERROR_RATE = 0.15
"""Share of wrong words (characters, where there are no spaces) above which a clip is dropped."""
ALLOWED_ERRORS = 1
"""Errors that never drop a clip of at least three words: one misheard name in a short sentence is no mismatch."""
MIN_WORDS_FOR_ALLOWANCE = 3
LETTERS_PER_S = (3.0, 30.0)
"""Letters a second that speech can have: outside, text and sound can't belong together."""


@dataclass(frozen=True)
class Verdict:
    """Why a clip is kept or dropped."""

    kept: bool
    reason: str
    """`agrees`, `words`, `rate` or `empty`."""
    error_rate: float


def judge(text: str, heard: str, language: str, duration_s: float) -> Verdict:
    """Compare a clip's text with what was heard in it, and with how long it takes.

    Args:
        text: What the manifest says is said, cues included.
        heard: What a recogniser heard.
        language: Language of both.
        duration_s: Duration of the clip.
    """
    spoken = without_cues(text)
    reference, hypothesis = (_scored(words, language) for words in (spoken, heard))
    if not reference:
        return Verdict(False, "empty", 1.0)
    errors = word_errors(reference, hypothesis)
    error_rate = errors.num_errors / errors.num_units
    allowance = ALLOWED_ERRORS if errors.num_units >= MIN_WORDS_FOR_ALLOWANCE else 0
    if errors.num_errors > max(allowance, MAX_ERROR_RATE * errors.num_units):
        return Verdict(False, "words", error_rate)
    letters_per_s = sum(map(str.isalpha, speakable(spoken, language))) / max(duration_s, 1e-3)
    if not scored_by_character(language) and not LETTERS_PER_S[0] <= letters_per_s <= LETTERS_PER_S[1]:
        return Verdict(False, "rate", error_rate)
    return Verdict(True, "agrees", error_rate)


def _scored(text: str, language: str) -> str:
    """Bring a text into the form in which it is compared; a cue that was spoken is a word like any other."""
    return surface(text.replace("(", " ").replace(")", " "), language)


def crosscheck(
    rows: Iterable[dict[str, Any]], folder: Path, recognise: Recognise
) -> Iterator[tuple[dict[str, Any], Verdict]]:
    """Yield each row, with `heard` and its `heard_error_rate`, and the verdict on it."""
    for row in rows:
        heard = recognise(folder / row["audio"], row["language"])
        verdict = judge(row.get("cued_text", row["text"]), heard, row["language"], row["duration"])
        yield {**row, "heard": heard, "heard_error_rate": round(verdict.error_rate, 3)}, verdict


def from_waveforms(recognise: recognisers.Recognise) -> Recognise:
    """Turn a recogniser of waveforms into one of files."""
    return lambda path, language: recognise([read_audio(path)], language)[0].text


def main() -> None:
    """Write the rows of a manifest that a recogniser agrees with; say how many were dropped, and why."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=existing)
    parser.add_argument("--out", type=Path, required=True, help="manifest.jsonl of the clips that are kept")
    parser.add_argument("--model", default="base", help="a faster-whisper model: its name, or a CTranslate2 folder")
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.manifest.read_text(encoding="utf-8").splitlines()]
    folder = options.manifest.parent.resolve()
    reasons: Counter[str] = Counter()
    with options.out.open("w", encoding="utf-8") as out:
        recognise = from_waveforms(recognisers.faster_whisper(options.model, beam_size=1))
        checked = crosscheck(track(rows, description="listening again"), folder, recognise)
        for row, verdict in checked:
            reasons[verdict.reason] += 1
            if verdict.kept:
                out.write(json.dumps({**row, "audio": str(folder / row["audio"])}, ensure_ascii=False) + "\n")
    Console(stderr=True).print(", ".join(f"{count} {reason}" for reason, count in reasons.most_common()))


if __name__ == "__main__":
    main()
