"""Toy speech: every letter is its own two-formant tone, so that a toy recogniser can learn to read it in a minute.

    python -m tristep.corpus.tones --out data/tones
    tristep train recipes/toy/asr.toml --out runs/toy

Words are drawn letter by letter, so that a held-out clip can only be got right by listening. For the realtime mode the
same clips are turns of conversations: two personas answer them, each in its own way (`recipes/toy/realtime.toml`).
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from tristep.audio import LISTEN_HZ

FORMANTS_HZ = {
    "a": (900, 1500), "e": (600, 2400), "i": (350, 3100), "o": (500, 1000),
    "f": (3600, 5200), "m": (200, 1900), "s": (4600, 6600), "u": (250, 400),
}  # fmt: skip
"""The two loudest partials of each letter."""
LETTER_S = 0.08
"""As long as one audio embedding: the shortest letters that can be told apart."""
MAX_LETTERS = 4
CLIP_S = 0.4
"""Every clip is this long, so that a letter is as far from where it is written in any word."""


def tone(letter: str, pitch: float, rng: np.random.Generator) -> np.ndarray:
    """Sound one letter, formants moved by the factor `pitch`."""
    times = np.arange(round(LETTER_S * LISTEN_HZ)) / LISTEN_HZ
    waveform = np.zeros_like(times)
    for formant_hz in FORMANTS_HZ[letter]:
        waveform += np.sin(2 * np.pi * formant_hz * pitch * times + rng.uniform(0, 2 * np.pi))
    return waveform * np.hanning(len(times))


def say(text: str, rng: np.random.Generator) -> np.ndarray:
    """Sound a text of at most `MAX_LETTERS`, at a pitch and over a noise of its own, peak at most 0.6."""
    pitch = float(rng.uniform(0.97, 1.03))
    waveform = 0.003 * rng.standard_normal(round(CLIP_S * LISTEN_HZ))
    letters = 0.25 * np.concatenate([tone(letter, pitch, rng) for letter in text])
    waveform[: len(letters)] += letters
    return np.asarray(waveform, np.float32).clip(-0.6, 0.6)


def draw_text(rng: np.random.Generator) -> str:
    """Draw a word of one to four different letters."""
    letters = rng.permutation(sorted(FORMANTS_HZ))[: rng.integers(1, MAX_LETTERS + 1)]
    return "".join(letters)


PERSONAS: dict[str, Callable[[str], str]] = {"Echo.": lambda text: text, "Shout.": str.upper}
"""Who answers, and what."""


def exchange(row: dict[str, Any], typed: bool) -> dict[str, Any]:
    """Turn a clip into a turn of a conversation that one of the personas answers; typed, it has no sound."""
    persona, answer = list(PERSONAS.items())[zlib.crc32(row["id"].encode()) % len(PERSONAS)]
    kept = {name: row[name] for name in ("id", "text", "split")} if typed else row
    return {**kept, "persona": persona, "history": [], "answer": answer(row["text"])}


def phones_of(text: str) -> list[tuple[str, float]]:
    """Say when each tone of a text ends, and the silence after them, in seconds."""
    return [*((letter, round((place + 1) * LETTER_S, 2)) for place, letter in enumerate(text)), (" ", CLIP_S)]


def write_corpus(out: Path, num_clips: int, seed: int) -> None:
    """Write `audio/*.wav`, `manifest.jsonl`, and exchanges in sound and in text; every tenth clip is `dev`."""
    (out / "audio").mkdir(parents=True, exist_ok=True)
    (out / "typed").mkdir(exist_ok=True)
    with (
        (out / "manifest.jsonl").open("w", encoding="utf-8") as manifest,
        (out / "exchanges.jsonl").open("w", encoding="utf-8") as spoken,
        (out / "typed" / "exchanges.jsonl").open("w", encoding="utf-8") as typed,
    ):
        for index in range(num_clips):
            rng = np.random.default_rng([seed, index])
            text = draw_text(rng)
            waveform = say(text, rng)
            name = f"tones_{index:04d}"
            soundfile.write(out / "audio" / f"{name}.wav", waveform, LISTEN_HZ)
            row = {
                "id": name, "audio": f"audio/{name}.wav", "text": text, "speaker": "tones", "language": "en",
                "duration": len(waveform) / LISTEN_HZ, "sample_rate": LISTEN_HZ,
                "split": "dev" if index % 10 == 9 else "train", "source": "synthetic: tones", "licence": "CC0-1.0",
                "phones": phones_of(text),
            }  # fmt: skip
            manifest.write(json.dumps(row) + "\n")
            spoken.write(json.dumps(exchange(row, typed=False)) + "\n")
            typed.write(json.dumps(exchange(row, typed=True)) + "\n")


def main(write: Callable[[Path, int, int], None] = write_corpus, description: str | None = __doc__) -> None:
    """Write a toy corpus: this one, or another that is written from a folder, a number of clips and a seed."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for audio/ and manifest.jsonl")
    parser.add_argument("--clips", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write(options.out, options.clips, options.seed)


if __name__ == "__main__":
    main()
