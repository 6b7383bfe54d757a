"""Toy speech that a speech detector takes for speech: a buzz, shaped by the two formants of each letter.

    python -m tristep.corpus.babble --out data/babble
    bash recipes/speedrun.sh

Where `tones.py` is the shortest thing that can be read, this can be heard: it goes through the same segmenter, codec
and server as speech does. Words are drawn letter by letter, so that a held-out clip can only be got right by listening,
and every row knows its phones and when they end, as a teacher voice does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from tristep.audio import SPEAK_HZ
from tristep.corpus import tones
from tristep.corpus.tones import FORMANTS_HZ
from tristep.phones import SILENCE

LETTERS = "aeimou"
"""Those that are voiced: a detector of speech cuts off a hiss at a clip's edge."""
LETTER_S, GAP_S, LEAD_S, TAIL_S = 0.16, 0.16, 0.16, 0.24
"""A letter, the silence between words, before the first one, and after the last one: whole codes of 80 ms."""
VOICE_HZ = 120.0
BANDWIDTH_HZ = 90.0
MAX_LETTERS, MAX_WORDS = 3, 2
REFERENCE_WORDS = 10
"""Words of the clip that a voice is made from: 3 to 10 s."""
LEVEL = 0.4


def letter(name: str, pitch_hz: float) -> np.ndarray:
    """Sound one letter at 24 kHz: pulses with the spectrum of its formants."""
    num_samples = round(LETTER_S * SPEAK_HZ)
    phase = np.arange(num_samples) * pitch_hz / SPEAK_HZ
    source = np.diff(np.floor(phase), prepend=-1.0)
    frequencies = np.fft.rfftfreq(num_samples, 1 / SPEAK_HZ)
    distances = [(frequencies - formant_hz) / BANDWIDTH_HZ for formant_hz in FORMANTS_HZ[name]]
    envelope = sum(1 / (1 + distance**2) for distance in distances)
    shaped = np.fft.irfft(np.fft.rfft(source) * envelope, num_samples)
    return np.asarray(shaped / np.abs(shaped).max() * np.hanning(num_samples) ** 0.3)


def say(text: str, rng: np.random.Generator) -> tuple[np.ndarray, list[tuple[str, float]]]:
    """Sound a text; return the waveform at 24 kHz, and its phones with the times at which they end, in seconds."""
    pitch_hz = VOICE_HZ * float(rng.uniform(0.95, 1.05))
    pieces, phones = [np.zeros(round(LEAD_S * SPEAK_HZ))], [(SILENCE, LEAD_S)]
    for name in text:
        silent = name == " "
        pieces.append(np.zeros(round(GAP_S * SPEAK_HZ)) if silent else LEVEL * letter(name, pitch_hz))
        phones.append((SILENCE if silent else name, round(phones[-1][1] + (GAP_S if silent else LETTER_S), 3)))
    waveform = np.concatenate([*pieces, np.zeros(round(TAIL_S * SPEAK_HZ))])
    return np.asarray(waveform + 0.001 * rng.standard_normal(len(waveform)), np.float32), phones


def draw_text(rng: np.random.Generator, num_words: int) -> str:
    """Draw words of one to three different letters."""
    lengths = rng.integers(1, MAX_LETTERS + 1, num_words)
    return " ".join("".join(rng.permutation(list(LETTERS))[:length]) for length in lengths)


def write_clip(folder: Path, name: str, text: str, split: str, rng: np.random.Generator) -> dict[str, Any]:
    """Write one clip; return its row of the manifest."""
    waveform, phones = say(text, rng)
    soundfile.write(folder / "audio" / f"{name}.wav", waveform, SPEAK_HZ)
    return {
        "id": name, "audio": f"audio/{name}.wav", "text": text, "speaker": "babble", "language": "en",
        "duration": len(waveform) / SPEAK_HZ, "sample_rate": SPEAK_HZ, "split": split, "phones": phones,
        "source": "synthetic: babble", "licence": "CC0-1.0",
    }  # fmt: skip


def write_corpus(out: Path, num_clips: int, seed: int) -> None:
    """Write `audio/*.wav` and `manifest.jsonl`; every tenth clip is held out as `dev`, one is the voice's reference."""
    (out / "audio").mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(num_clips):
        rng = np.random.default_rng([seed, index])
        text = draw_text(rng, int(rng.integers(1, MAX_WORDS + 1)))
        rows.append(write_clip(out, f"babble_{index:04d}", text, "dev" if index % 10 == 9 else "train", rng))
    rng = np.random.default_rng([seed, num_clips])
    rows.append(write_clip(out, "voice", draw_text(rng, REFERENCE_WORDS), "voice", rng))
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (out / "manifest.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    tones.main(write_corpus, __doc__)
