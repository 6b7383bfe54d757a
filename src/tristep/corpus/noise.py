"""Sounds without speech: silence, hiss, hum, clicks and chords, for learning to write nothing."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import soundfile

from tristep.audio import LISTEN_HZ, coloured_noise

KINDS = ("silence", "hiss", "hum", "clicks", "chords")


def sound_without_speech(kind: str, num_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a waveform `(S,)` of one kind, peak at most 0.7."""
    times = np.arange(num_samples) / LISTEN_HZ
    hiss = coloured_noise(num_samples, float(rng.uniform(0, 2)), rng)
    if kind == "silence":
        waveform = hiss * 10 ** rng.uniform(-5, -3)
    elif kind == "hum":
        partials = [np.sin(2 * np.pi * 50 * n * times + rng.uniform(0, 6)) / n for n in range(1, 9)]
        waveform = np.sum(partials, axis=0) + 0.1 * hiss
    elif kind == "clicks":
        waveform = 0.02 * hiss
        waveform[rng.integers(0, num_samples, max(num_samples // 8000, 1))] += rng.uniform(-1, 1)
    elif kind == "chords":
        waveform = chords(times, rng)
    else:
        waveform = hiss
    peak = max(float(np.abs(waveform).max()), 0.7)
    level = 1.0 if kind == "silence" else 0.7 * 10 ** rng.uniform(-1.5, 0)
    return np.asarray(waveform / peak * level, np.float32)


def chords(times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Play decaying three-note chords, two a second."""
    waveform = np.zeros_like(times)
    for start in np.arange(0, times[-1], 0.5):
        since = times - start
        envelope = np.where(since >= 0, np.exp(-3 * np.clip(since, 0, None)), 0)
        for semitones in rng.choice(np.arange(-12, 25), 3, replace=False):
            pitch_hz = 220 * 2 ** (semitones / 12)
            waveform += envelope * sum(np.sin(2 * np.pi * pitch_hz * n * since) / n**1.5 for n in (1, 2, 3, 4))
    return waveform


def main() -> None:
    """Write a corpus of sounds without speech, whose transcripts are empty."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for audio/ and manifest.jsonl")
    parser.add_argument("--clips", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    (options.out / "audio").mkdir(parents=True, exist_ok=True)
    with (options.out / "manifest.jsonl").open("w") as manifest:
        for index in range(options.clips):
            rng = np.random.default_rng([options.seed, index])
            kind = KINDS[index % len(KINDS)]
            waveform = sound_without_speech(kind, round(rng.uniform(0.5, 12) * LISTEN_HZ), rng)
            name = f"{kind}_{index:04d}"
            soundfile.write(options.out / "audio" / f"{name}.flac", waveform, LISTEN_HZ)
            split = "dev" if index % 10 == 9 else "train"
            row = {
                "id": name, "audio": f"audio/{name}.flac", "text": "", "speaker": "none", "language": "en",
                "duration": len(waveform) / LISTEN_HZ, "sample_rate": LISTEN_HZ, "split": split,
                "source": f"synthetic: {kind}", "licence": "CC0-1.0",
            }  # fmt: skip
            manifest.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
