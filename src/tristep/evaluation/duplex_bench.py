"""Full-Duplex-Bench v1 (Lin et al. 2025, arXiv 2503.04721): its samples, and its measures of what a session does.

A sample is a folder: `input.wav`, what the user says, and beside it where that happens which the task is about. The
session hears it in its own time, from the first sample to the last, as the benchmark has it.

    candor_pause_handling/ID/         input.wav  pause.json        [{"text": "[PAUSE]", "timestamp": [3.32, 4.0]}]
    synthetic_pause_handling/ID/      likewise
    candor_turn_taking/ID/            input.wav  turn_taking.json  [{"text": "[TURN-TAKING]", "timestamp": [2, 2.4]}]
    synthetic_user_interruption/ID/   input.wav  interrupt.json    [{"interrupt": "Wait!", "timestamp": [10.5, 13.1]}]
    icc_backchannel/ID/               input.wav

The turn is taken where the answer lasts for a second from its first word to its last, or has more than three words
(in the task of backchannels: where a stretch of it does, or has more than two on average); of an interruption, what is
said after it counts. Latency counts from where the turn may be taken, and is never below zero.

What differs: the benchmark recognises the words of `output.wav`; here the session says itself what it said, and energy
says when. Its judge's ratings of answers and the divergence of backchannels from people's are left out. `output.wav`
can be written for its own scripts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from tristep.audio import SPEAK_HZ, read_audio, write_audio
from tristep.evaluation.turn_cases import Stretch, words_in
from tristep.evaluation.turn_driver import Course, Talk
from tristep.evaluation.turn_report import DuplexResult
from tristep.evaluation.turn_taking import share, spread

Task = Literal["pause_handling", "turn_taking", "user_interruption", "backchannel"]
LABELS: dict[Task, str] = {
    "pause_handling": "pause.json", "turn_taking": "turn_taking.json", "user_interruption": "interrupt.json",
    "backchannel": "",
}  # fmt: skip
"""Which file says where that happens which a task is about."""
LONG_S, NUM_WORDS = 1.0, 3
"""An answer takes the turn if it lasts so long, or has more words."""
SHORT_S, NUM_BACKCHANNEL_WORDS = 3.0, 2
"""A backchannel is no longer, and has no more words."""
BETWEEN_STRETCHES_S = 0.1
"""A silence that parts two stretches of speech."""
SILENT = 0.03
"""What is quieter than this share of the loudest moment is silence."""
HOP_S = 0.02


@dataclass(frozen=True)
class Sample:
    """One sound of the user."""

    id: str
    folder: str
    """Name of the part of the benchmark, such as `candor_turn_taking`."""
    task: Task
    path: Path
    marks: tuple[Stretch, ...] = ()
    """Where that happens which the task is about, in seconds."""


@dataclass(frozen=True)
class Behaviour:
    """What a session did in one sample."""

    took_turn: bool
    latency_s: float | None = None
    backchannels_per_s: float | None = None


def read_bench(root: str | Path, most: int | None = None) -> list[Sample]:
    """Read the samples of a folder: the whole benchmark, or one part of it.

    Args:
        root: Holds folders of parts, or is one.
        most: Take only the first samples of each part.

    Raises:
        ValueError: If there are none, or one lacks its labels.
    """
    root = Path(root)
    parts = sorted(folder for folder in [root, *root.glob("*/")] if folder.is_dir() and task_of(folder.name))
    samples = [sample for part in parts for sample in read_part(part)[:most]]
    if not samples:
        names = ", ".join(f"*{task}*" for task in LABELS)
        raise ValueError(f"{str(root)!r} holds no part of Full-Duplex-Bench: expected folders {names} of ID/input.wav")
    return samples


def task_of(name: str) -> Task | None:
    """Tell the task of a part by its name; the example data say `smooth_turn_taking`."""
    return next((task for task in LABELS if task in name), None)


def read_part(folder: Path) -> list[Sample]:
    """Read one part, in the order of its ids."""
    task = task_of(folder.name)
    assert task is not None
    paths = sorted(folder.glob("*/input.wav"), key=lambda path: (len(path.parent.name), path.parent.name))
    return [Sample(path.parent.name, folder.name, task, path, read_marks(path, LABELS[task])) for path in paths]


def read_marks(path: Path, name: str) -> tuple[Stretch, ...]:
    """Read the labels beside a sound; a task without labels has none."""
    if not name:
        return ()
    labels = path.with_name(name)
    try:
        rows = json.loads(labels.read_text(encoding="utf-8"))
        return tuple((float(begin_s), float(end_s)) for begin_s, end_s in (row["timestamp"] for row in rows))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{labels} can't be read as labels ({error!r}): expected [{{'timestamp': [0.5, 1]}}]"
        ) from error


def evaluate_bench(
    name: str,
    talk: Callable[[], Talk],
    samples: Sequence[Sample],
    sounds: Path | None = None,
    *,
    progress: bool = True,
) -> list[DuplexResult]:
    """Let a session hear the samples, and sum up what it did in each part.

    Args:
        name: How the report names the session.
        talk: Begins to talk to a new one.
        samples: What it hears.
        sounds: A folder for every `output.wav`, laid out as the benchmark under the name.
        progress: Whether to draw a progress bar to standard error.
    """
    found: dict[str, list[Behaviour]] = {}
    for sample in track(samples, f"{name}:", console=Console(stderr=True), disable=not (progress and samples)):
        waveform = read_audio(sample.path, SPEAK_HZ)
        course = hear(talk(), waveform)
        sound = course.track(len(waveform) / SPEAK_HZ)
        if sounds:
            path = sounds / name / sample.folder / sample.id / "output.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_audio(path, sound, SPEAK_HZ)
        found.setdefault(sample.folder, []).append(behaviour(sample, course, sound))
    return [summarise(name, part, results) for part, results in found.items()]


@torch.inference_mode()
def hear(talk: Talk, waveform: Tensor) -> Course:
    """Let a session hear a sound, 24 kHz of shape `(S,)`, from its beginning to its end."""
    talk.hear(waveform)
    return Course(talk.events, lag_s=talk.lag_s)


def behaviour(sample: Sample, course: Course, sound: Tensor) -> Behaviour:
    """Judge what was played during a sample, 24 kHz of shape `(S,)`, by the task's definition."""
    if sample.task == "backchannel":
        return backchannels(sound, course.text())
    from_s = sample.marks[0][1] if sample.task == "user_interruption" else 0.0
    spoken = words_in(sound[round(from_s * SPEAK_HZ) :])
    if spoken is None or (spoken[1] - spoken[0] < LONG_S and len(course.text(from_s).split()) <= NUM_WORDS):
        return Behaviour(took_turn=False)
    if sample.task == "pause_handling":
        return Behaviour(took_turn=True)
    due_s = from_s if sample.task == "user_interruption" else sample.marks[0][0]
    return Behaviour(took_turn=True, latency_s=max(0.0, from_s + spoken[0] - due_s))


def backchannels(sound: Tensor, text: str) -> Behaviour:
    """Count short sounds, and see whether there is more than that, in what was played, shape `(S,)`, and its words."""
    lengths_s = [end_s - begin_s for begin_s, end_s in stretches(sound)]
    is_long = any(length_s >= LONG_S for length_s in lengths_s)
    is_wordy = len(text.split()) > NUM_BACKCHANNEL_WORDS * len(lengths_s)
    num_short = sum(length_s <= SHORT_S for length_s in lengths_s)
    return Behaviour(is_long or (bool(lengths_s) and is_wordy), backchannels_per_s=num_short * SPEAK_HZ / len(sound))


def stretches(sound: Tensor) -> list[Stretch]:
    """Part a sound, shape `(S,)`, where it is silent for 0.1 s."""
    hop = round(HOP_S * SPEAK_HZ)
    level = torch.stack([frame.square().mean().sqrt() for frame in torch.split(sound, hop)])  # (F,)
    is_loud = (level > SILENT * max(float(level.max()), SILENT)).tolist()
    edges = np.flatnonzero(np.diff([False, *is_loud, False])) * HOP_S  # begin, end, begin, ...
    merged: list[Stretch] = []
    for begin_s, end_s in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        if merged and begin_s - merged[-1][1] < BETWEEN_STRETCHES_S:
            begin_s, _ = merged.pop()
        merged.append((begin_s, end_s))
    return merged


def summarise(name: str, part: str, results: Sequence[Behaviour]) -> DuplexResult:
    """Sum up one part."""
    latencies_ms = [1000 * each.latency_s for each in results if each.latency_s is not None]
    rates = [each.backchannels_per_s for each in results if each.backchannels_per_s is not None]
    took = share([each.took_turn for each in results])
    assert took is not None
    return DuplexResult(
        name=name,
        task=part,
        num_samples=len(results),
        take_over_rate=took,
        latency_ms=spread(latencies_ms),
        mean_latency_ms=float(np.mean(latencies_ms)) if latencies_ms else None,
        backchannels_per_s=float(np.mean(rates)) if rates else None,
    )
