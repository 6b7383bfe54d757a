"""Transcribe sound in which nobody speaks, one table: does a recogniser write words where there are none?

    python benchmarks/wordless.py --minutes 40
    python benchmarks/wordless.py --minutes 10 --whisper-base DIR

Silence, noise of four colours at three levels, mains hum, clicks, rain-like bursts, chords, melodies and drums are
synthesised from a seed, in equal parts and pieces of half a minute; each piece is transcribed alone. Words are counted
as they are written. faster-whisper base hears the same sounds where its folder is given.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from machine import machine
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tristep.audio import LISTEN_HZ
from tristep.engine.engine import Engine

PACKAGES = ("tristep", "torch")
PIECE_S = 30.0
NUM_SAMPLES = round(PIECE_S * LISTEN_HZ)
TIMES = np.arange(NUM_SAMPLES) / LISTEN_HZ
Sound = np.ndarray[tuple[int], np.dtype[np.float64]]
Maker = Callable[[np.random.Generator], Sound]
Recogniser = Callable[[Sound], str]


def colour(exponent: float, level_db: float) -> Maker:
    """Make noise whose power falls with `exponent` of the frequency."""

    def make(rng: np.random.Generator) -> Sound:
        spectrum = np.fft.rfft(rng.standard_normal(NUM_SAMPLES))
        spectrum *= np.maximum(np.fft.rfftfreq(NUM_SAMPLES, 1 / LISTEN_HZ), 20.0) ** (-exponent / 2)
        return at_level(np.fft.irfft(spectrum, NUM_SAMPLES), level_db)

    return make


def at_level(sound: Sound, level_db: float) -> Sound:
    """Scale a sound to a root mean square in decibels below full scale."""
    return np.clip(sound / max(np.sqrt(np.mean(sound**2)), 1e-9) * 10 ** (level_db / 20), -1, 1)


def silence(rng: np.random.Generator) -> Sound:
    return np.zeros(NUM_SAMPLES)


def hum(rng: np.random.Generator) -> Sound:
    base = rng.choice([50.0, 60.0])
    return at_level(sum(np.sin(2 * np.pi * base * k * TIMES) / k for k in range(1, 8)), -30)


def clicks(rng: np.random.Generator) -> Sound:
    sound = np.zeros(NUM_SAMPLES)
    sound[rng.integers(0, NUM_SAMPLES, 120)] = rng.uniform(-1, 1, 120)
    return sound + colour(0, -60)(rng)


def bursts(rng: np.random.Generator) -> Sound:
    """Noise that swells and fades several times a second, as rain, typing and applause do."""
    swell = np.interp(TIMES, np.arange(0, PIECE_S, 0.15), rng.random(200) ** 4)
    return at_level(colour(1, -20)(rng) * swell, -25)


def note(frequency: float, start_s: float, length_s: float, rng: np.random.Generator) -> Sound:
    """Pluck a string: harmonics that fade, higher ones sooner."""
    age = TIMES - start_s
    strength = np.where(age >= 0, np.exp(-3 * age / length_s), 0)
    overtones = (np.sin(2 * np.pi * frequency * k * age) * strength**k / k for k in range(1, 7))
    return sum(overtones, start=np.zeros(NUM_SAMPLES))


def melody(rng: np.random.Generator) -> Sound:
    steps = rng.choice([0, 2, 4, 5, 7, 9, 11, 12], 90)
    notes = (note(220 * 2 ** (step / 12), place / 3, 0.5, rng) for place, step in enumerate(steps))
    return at_level(sum(notes, start=np.zeros(NUM_SAMPLES)), -20)


def chords(rng: np.random.Generator) -> Sound:
    roots = rng.choice([0, 5, 7, 9], 15)
    notes = (note(130 * 2 ** ((root + third) / 12), 2 * place, 3.0, rng)
             for place, root in enumerate(roots) for third in (0, 4, 7))  # fmt: skip
    return at_level(sum(notes, start=np.zeros(NUM_SAMPLES)), -20)


def drums(rng: np.random.Generator) -> Sound:
    beat = TIMES % 0.5
    kick = np.sin(2 * np.pi * 60 * beat) * np.exp(-20 * beat)
    hat = rng.standard_normal(NUM_SAMPLES) * np.exp(-60 * (TIMES % 0.25)) * 0.3
    return at_level(kick + hat, -20)


NOISES = {
    f"{name} noise, {level} dB": colour(exponent, level)
    for name, exponent in (("white", 0.0), ("pink", 1.0), ("brown", 2.0), ("blue", -1.0))
    for level in (-60, -40, -20)
}
KINDS: dict[str, Maker] = {
    "silence": silence, "hum": hum, "clicks": clicks, "bursts": bursts, "melody": melody, "chords": chords,
    "drums": drums, **NOISES,
}  # fmt: skip


def main() -> None:
    """Transcribe every kind of sound and print what was written."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    recognisers = recognisers_of(arguments)
    num_each = math.ceil(60 * arguments.minutes / PIECE_S / len(KINDS))
    words: dict[tuple[str, str], list[str]] = {(kind, name): [] for kind in KINDS for name in recognisers}
    seconds = dict.fromkeys(recognisers, 0.0)
    for kind, make in track(KINDS.items(), description="wordless sound"):
        for number in range(num_each):
            sound = make(np.random.default_rng([arguments.seed, number]))
            for name, recognise in recognisers.items():
                start = time.perf_counter()
                words[kind, name] += recognise(sound).split()
                seconds[name] += time.perf_counter() - start
    Console().print(table(words, list(recognisers), num_each))
    total_s = num_each * len(KINDS) * PIECE_S
    factors = ", ".join(f"{name} {spent / total_s:.3f}" for name, spent in seconds.items())
    print(
        f"{total_s / 60:.1f} minutes, seed {arguments.seed}, {arguments.threads} thread(s); real-time factor {factors}"
    )
    print(machine(PACKAGES))


def recognisers_of(arguments: argparse.Namespace) -> dict[str, Recogniser]:
    """Load what listens."""
    engine = Engine.load(arguments.model)
    found: dict[str, Recogniser] = {
        arguments.model: lambda sound: engine.transcribe(torch.from_numpy(sound).float()).text
    }
    if arguments.whisper_base:
        from faster_whisper import WhisperModel

        whisper = WhisperModel(arguments.whisper_base, "cpu", compute_type="int8", cpu_threads=arguments.threads)

        def hear(sound: Sound) -> str:
            segments, _ = whisper.transcribe(sound.astype(np.float32), language="en", beam_size=1, temperature=0.0)
            return " ".join(segment.text for segment in segments)

        found["whisper base"] = hear
    return found


def table(words: dict[tuple[str, str], list[str]], names: list[str], num_each: int) -> Table:
    """Print how many words were written in which sounds, and the first of them."""
    result = Table("sound", *(f"{name}: words" for name in names), "such as", title="Words where nobody speaks")
    for kind in KINDS:
        written = [words[kind, name] for name in names]
        result.add_row(kind, *(str(len(some)) for some in written), " ".join(max(written, key=len)[:8]))
    sums = [str(sum(len(words[kind, name]) for kind in KINDS)) for name in names]
    result.add_row("all", *sums, f"{num_each} pieces of {PIECE_S:.0f} s of each", style="bold")
    return result


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help="a name or a folder")
    parser.add_argument("--minutes", type=float, default=40.0, help="of sound in all")
    parser.add_argument("--whisper-base", type=Path, help="CTranslate2 folder of a peer")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
