"""What turn-taking is tried on: sounds of a user, each with where the words in it really begin and end.

The words are found by their energy, not by the detector that is being tried: they begin and end where the sound is
loud, against its own loudest moment, for 30 ms at least. Four kinds are made of recordings and of seeded noise:

* `question`: a recording, to be answered.
* `pause`: a recording with a silence of 0.5 to 1.5 s put into its quietest moment, to be waited through.
* `barge_in`: the beginning of a recording, spoken into an answer, which is to stop.
* `noise`: what is no speech, in an answer, which is to go on. It is synthetic: coughs, breaths, knocks, keys, a fan,
  a hum, a bell and chords, drawn anew each time. Recorded ones would say more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tristep.audio import SPEAK_HZ, coloured_noise
from tristep.evaluation.realtime import read_scripts
from tristep.evaluation.suites import Clip, read_clip, read_suite

Kind = Literal["question", "pause", "barge_in", "noise"]
Stretch = tuple[float, float]
"""Where something begins and ends, in seconds."""
Noise = NDArray[np.float32]

NUM_RECORDINGS = 50
NUM_NOISES = 50
ROOM_DB = -66.0
"""How loud the room is in which everything is heard, against full scale."""
LEAD_S, TAIL_S = 0.4, 0.3
"""Room before a sound and after it."""
NOISE_TAIL_S = 0.8
"""Room after a noise: so long it may still be taken for speech."""
PAUSE_S = (0.5, 1.5)
MIN_PAUSED_S = 1.2
"""Words shorter than this are not paused in."""
BARGE_IN_S = 1.5
"""So much of a recording is spoken into an answer."""
AFTER_S = (0.3, 1.2)
"""When, after the first sound of the answer."""
ASKED = "Tell me about the best day that you ever had, and why it was so good."
"""What the answer that is spoken into answers."""

HOP_S = 0.01
NUM_LOUD = 3
"""Hops that have to be loud, one after the other."""
BELOW_LOUD_DB = (35.0, 25.0)
"""What is quieter than the loudest moment by more than the first is no word; by less than the second it is one."""
ABOVE_FLOOR_DB = 10.0
SILENT_DB = -58.0
"""Where nothing is louder than this, against full scale, there are no words."""


@dataclass(frozen=True)
class Case:
    """One sound of the user."""

    id: str
    kind: Kind
    waveform: Tensor
    """24 kHz, shape `(S,)`, in its room."""
    words: tuple[Stretch, ...] = ()
    """Where the user speaks; two stretches around a pause, none in noise."""
    what: str = ""
    """Which noise; how long a pause."""
    asked: str = ""
    """What is answered when the sound comes; empty where nothing is."""
    after_s: float = 0.0
    """How long that answer has sounded by then."""


# Recordings


def read_recordings(path: str | Path, layout: str | None = None, split: str = "test") -> list[Clip]:
    """Read what users say: a test set as `read_suite` takes it, or the recorded turns of dialogues.

    Raises:
        ValueError: If there is none.
    """
    path = Path(path)
    if layout is None and path.suffix == ".jsonl" and path.is_file() and is_script(path):
        turns = [
            (f"{script.id}-{place}", turn) for script in read_scripts(path) for place, turn in enumerate(script.turns)
        ]
        clips = [Clip(name, turn.audio, turn.text, "en") for name, turn in turns if turn.audio]
    else:
        clips = read_suite(path, layout, split)
    if not clips:
        raise ValueError(f"{str(path)!r} holds no recordings: give recorded dialogues, or a test set")
    return clips


def is_script(path: Path) -> bool:
    """Tell dialogues from clips by the first line."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        return '"turns"' in lines.readline()


def chosen(clips: Sequence[Clip], most: int, seed: int = 0) -> list[Clip]:
    """Draw some recordings, in their order."""
    kept = np.random.default_rng(seed).permutation(len(clips))[:most]
    return [clips[index] for index in sorted(kept)]


def words_in(waveform: Tensor, sample_rate: int = SPEAK_HZ) -> Stretch | None:
    """Find by energy where the words of a sound, shape `(S,)`, begin and end; None where there is nothing."""
    hop = round(HOP_S * sample_rate)
    frames = waveform[: len(waveform) // hop * hop].reshape(-1, hop).double().numpy()  # (F, hop)
    if len(frames) < NUM_LOUD:
        return None
    level_db = 10 * np.log10((frames**2).mean(axis=1) + 1e-12)  # (F,)
    held_db = np.lib.stride_tricks.sliding_window_view(level_db, NUM_LOUD).min(axis=1)  # (F - NUM_LOUD + 1,)
    loud_db, floor_db = held_db.max(), np.percentile(level_db, 10)
    farthest_db, nearest_db = BELOW_LOUD_DB
    threshold_db = np.clip(floor_db + ABOVE_FLOOR_DB, loud_db - farthest_db, loud_db - nearest_db)
    (held,) = np.nonzero(held_db >= threshold_db)
    return (float(held[0] * HOP_S), float((held[-1] + NUM_LOUD) * HOP_S)) if loud_db > SILENT_DB else None


# Cases


def build_cases(clips: Sequence[Clip], num_noises: int = NUM_NOISES, seed: int = 0) -> list[Case]:
    """Make all four kinds of cases of recordings; those without words make none.

    Raises:
        ValueError: If there are words in none of them.
    """
    rng = np.random.default_rng(seed)
    spoken = [
        (clip.id, waveform, words) for clip in clips if (words := words_in(waveform := read_clip(clip, SPEAK_HZ)))
    ]
    if not spoken:
        raise ValueError(f"there are words in none of {len(clips)} recordings: give others")
    paused = (build_pause(*each, rng) for each in spoken if each[2][1] - each[2][0] >= MIN_PAUSED_S)
    return [
        *(build_question(*each, rng) for each in spoken),
        *paused,
        *(build_barge_in(*each, rng) for each in spoken),
        *build_noises(num_noises, rng),
    ]


def build_question(name: str, waveform: Tensor, words: Stretch, rng: np.random.Generator) -> Case:
    """Make a question of a recording, shape `(S,)`."""
    return Case(name, "question", in_room([waveform], rng), (later(words, LEAD_S),))


def build_pause(name: str, waveform: Tensor, words: Stretch, rng: np.random.Generator) -> Case:
    """Put a silence into the quietest moment of the middle of a recording, shape `(S,)`."""
    pause_s = float(rng.uniform(*PAUSE_S))
    cut = quietest(waveform, words)
    before, after = waveform[:cut], waveform[cut:]
    parts = [before, torch.zeros(round(pause_s * SPEAK_HZ)), after]
    first = words_in(before) or (words[0], cut / SPEAK_HZ)
    second = words_in(after) or (0.0, words[1] - cut / SPEAK_HZ)
    stretches = later(first, LEAD_S), later(second, LEAD_S + cut / SPEAK_HZ + pause_s)
    return Case(name, "pause", in_room(parts, rng), stretches, f"{pause_s:.2f} s")


def build_barge_in(name: str, waveform: Tensor, words: Stretch, rng: np.random.Generator) -> Case:
    """Make the beginning of a recording, shape `(S,)`, what is spoken into an answer."""
    begin_s, end_s = words[0], min(words[1], words[0] + BARGE_IN_S)
    sound = waveform[round(max(0.0, begin_s - 0.1) * SPEAK_HZ) : round(end_s * SPEAK_HZ)]
    onset_s = LEAD_S + min(begin_s, 0.1)
    stretch = onset_s, onset_s + end_s - begin_s
    return Case(name, "barge_in", in_room([sound], rng), (stretch,), asked=ASKED, after_s=float(rng.uniform(*AFTER_S)))


def build_noises(num_noises: int, rng: np.random.Generator) -> Iterator[Case]:
    """Draw noises, of each kind about as many."""
    kinds = list(NOISES)
    for index in range(num_noises):
        kind = kinds[index % len(kinds)]
        noise = NOISES[kind](rng)
        sound = torch.from_numpy(noise * (rng.uniform(0.1, 0.5) / max(float(np.abs(noise).max()), 1e-6))).float()
        parts = [sound, torch.zeros(round(NOISE_TAIL_S * SPEAK_HZ))]
        after_s = float(rng.uniform(*AFTER_S))
        yield Case(f"{kind}-{index}", "noise", in_room(parts, rng), what=kind, asked=ASKED, after_s=after_s)


def quietest(waveform: Tensor, words: Stretch) -> int:
    """Return the middle of the quietest 50 ms in the middle half of the words, in samples."""
    size = round(0.05 * SPEAK_HZ)
    quarter_s = (words[1] - words[0]) / 4
    first, last = (round(at_s * SPEAK_HZ) for at_s in (words[0] + quarter_s, words[1] - quarter_s))
    power = waveform[first : last + size].double().square().unfold(0, size, size // 10).mean(dim=1)
    return first + int(power.argmin()) * (size // 10) + size // 2


def later(stretch: Stretch, by_s: float) -> Stretch:
    """Move a stretch."""
    return stretch[0] + by_s, stretch[1] + by_s


def in_room(parts: Sequence[Tensor], rng: np.random.Generator) -> Tensor:
    """Join sounds, each shape `(S,)`, with a little room around them and all over them."""
    lead, tail = (torch.zeros(round(duration_s * SPEAK_HZ)) for duration_s in (LEAD_S, TAIL_S))
    joined = torch.cat([lead, *(faded(part) for part in parts), tail])
    return (joined + room(len(joined), rng)).clamp(-1, 1)


def room(num_samples: int, rng: np.random.Generator) -> Tensor:
    """Draw the faint noise of a room, shape `(S,)`."""
    return torch.from_numpy(coloured_noise(num_samples, 1.0, rng) * np.float32(10 ** (ROOM_DB / 20)))


def faded(waveform: Tensor, fade_s: float = 0.005) -> Tensor:
    """Let a sound, shape `(S,)`, come and go without a click."""
    num_samples = min(round(fade_s * SPEAK_HZ), len(waveform) // 2)
    slope = torch.ones(len(waveform))
    slope[:num_samples] = torch.linspace(0, 1, num_samples)
    return waveform * slope * slope.flip(0)


# What is no speech


def seconds(duration_s: float) -> Noise:
    """Return the times of the samples of a sound, shape `(S,)`."""
    return (np.arange(round(duration_s * SPEAK_HZ)) / SPEAK_HZ).astype(np.float32)


def burst(rng: np.random.Generator, duration_s: float, low_hz: float, high_hz: float, decay_s: float) -> Noise:
    """Draw noise of some frequencies that comes within 5 ms and dies away, shape `(S,)`."""
    time_s = seconds(duration_s)
    spectrum = np.fft.rfft(rng.standard_normal(len(time_s)))
    hz = np.fft.rfftfreq(len(time_s), 1 / SPEAK_HZ)
    spectrum *= np.exp(-((np.maximum(0, low_hz - hz) / 100) ** 2) - (np.maximum(0, hz - high_hz) / 500) ** 2)
    shape = np.minimum(time_s / 0.005, 1) * np.exp(-time_s / decay_s)
    return (np.fft.irfft(spectrum, len(time_s)) * shape).astype(np.float32)


def repeated(rng: np.random.Generator, make: Callable[[], Noise], most: int, gap_s: Stretch) -> Noise:
    """Join one to `most` sounds with gaps between them, shape `(S,)`."""
    parts = []
    for _ in range(int(rng.integers(1, most + 1))):
        parts += [make(), np.zeros(round(rng.uniform(*gap_s) * SPEAK_HZ), np.float32)]
    return np.concatenate(parts)


def cough(rng: np.random.Generator) -> Noise:
    """Draw one or two bursts of breath, as long and as bright as coughs are."""
    return repeated(rng, lambda: burst(rng, 0.3, 250, rng.uniform(2500, 5000), rng.uniform(0.04, 0.09)), 2, (0.1, 0.3))


def breath(rng: np.random.Generator) -> Noise:
    """Draw air that swells and falls."""
    time_s = seconds(rng.uniform(0.4, 0.9))
    return burst(rng, len(time_s) / SPEAK_HZ, 500, 6000, 10.0) * np.sin(np.pi * time_s / time_s[-1]) ** 2


def knock(rng: np.random.Generator) -> Noise:
    """Draw knocks on wood: low tones that die away at once."""
    time_s, hz = seconds(0.12), rng.uniform(120, 400)
    tone = np.sin(2 * np.pi * hz * time_s) * np.exp(-time_s / 0.02)
    return repeated(rng, lambda: tone + 0.3 * burst(rng, 0.12, 100, 2000, 0.01), 4, (0.1, 0.25))


def keys(rng: np.random.Generator) -> Noise:
    """Draw a keyboard: clicks."""
    return repeated(rng, lambda: burst(rng, 0.05, 1500, 8000, 0.005), 12, (0.04, 0.2))


def fan(rng: np.random.Generator) -> Noise:
    """Draw wind that comes and goes."""
    time_s = seconds(rng.uniform(1.0, 2.0))
    return coloured_noise(len(time_s), rng.uniform(0.5, 1.5), rng) * np.sin(np.pi * time_s / time_s[-1])


def hum(rng: np.random.Generator) -> Noise:
    """Draw a motor: harmonics of a low tone."""
    time_s, hz = seconds(rng.uniform(0.8, 1.6)), rng.uniform(45, 110)
    return np.sum([np.sin(2 * np.pi * hz * k * time_s + rng.uniform(0, 6)) / k for k in range(1, 12)], axis=0)


def bell(rng: np.random.Generator) -> Noise:
    """Draw a telephone: two tones in turns."""
    time_s, hz = seconds(rng.uniform(0.6, 1.2)), rng.uniform(600, 1400)
    return np.sin(2 * np.pi * hz * np.where(np.sin(2 * np.pi * 12 * time_s) > 0, 1.0, 1.25) * time_s)


def chords(rng: np.random.Generator) -> Noise:
    """Draw music: chords of plucked strings."""
    time_s, root_hz = seconds(0.5), rng.uniform(130, 330)
    return np.concatenate([chord(time_s, root_hz * 2 ** (step / 12)) for step in rng.permutation([0, 5, 7, 9])[:3]])


def chord(time_s: Noise, root_hz: float) -> Noise:
    """Return a major chord, shape `(S,)`."""
    tones = ((root_hz * ratio * k, k) for ratio in (1.0, 1.26, 1.5) for k in range(1, 6))
    return np.sum([np.sin(2 * np.pi * hz * time_s) * np.exp(-time_s * k / 0.3) / k for hz, k in tones], axis=0)


NOISES: dict[str, Callable[[np.random.Generator], Noise]] = {
    "cough": cough, "breath": breath, "knock": knock, "keys": keys, "fan": fan, "hum": hum, "bell": bell,
    "chords": chords,
}  # fmt: skip
