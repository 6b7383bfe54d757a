"""Stream an hour of speech, joined from the clips of a suite, and print what a second of it costs as it goes on.

    python benchmarks/streaming_hour.py path/to/manifest.jsonl:dev --minutes 60

The sound arrives in chunks of a quarter of a second and is never held whole. Cost is the time that the stream takes for
a second of sound, by windows of the hour; memory is what the process holds at the end of each. Then the same sound is
transcribed offline, and both texts are scored against what was said. `--commit segment` settles text later.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path

import soundfile
import torch
from machine import machine
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from tristep.audio import LISTEN_HZ
from tristep.engine.engine import Engine
from tristep.engine.streaming import TranscriptionStream
from tristep.evaluation.suites import Clip, read_clip, read_suite
from tristep.text import error_rate

PACKAGES = ("tristep", "torch")
CHUNK = LISTEN_HZ // 4
GAP_S = 0.6
"""Silence between two clips."""


@dataclass(frozen=True)
class Window:
    """A stretch of the stream."""

    first_minute: float
    cost: float
    """Seconds of work for a second of sound."""
    cpu: float
    """The same in processor time, which other programs disturb less."""
    memory_mb: float
    num_words: int


def main() -> None:
    """Stream, then transcribe offline, and print one table and two error rates."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    engine = Engine.load(arguments.model)
    path, split = arguments.suite
    clips = chosen(read_suite(path, split=split), arguments.minutes)
    with tempfile.TemporaryDirectory() as folder:
        sound = Path(folder) / "joined.flac"
        minutes = write_joined(clips, sound)
        stream = engine.stream_transcription(commit=arguments.commit)
        windows = streamed(stream, sound, arguments.window * 60)
        start = time.perf_counter()
        offline = engine.transcribe(sound).text
        offline_s = time.perf_counter() - start
    Console(width=None if sys.stdout.isatty() else 120).print(as_table(windows))
    lines = [
        spread(windows),
        compared(clips, stream.text, offline),
        f"offline the same sound takes {offline_s / (60 * minutes):.3f} s a second",
        conditions(arguments, len(clips), minutes),
    ]
    print("\n".join(lines))
    if arguments.json:
        document = {"summary": lines, "windows": [asdict(window) for window in windows]}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", type=suite, metavar="PATH[:SPLIT]", help="clips, in any published layout")
    parser.add_argument("--model", default="nano", help="a name or a folder")
    parser.add_argument("--minutes", type=float, default=60.0, help="of sound; clips come again where there are fewer")
    parser.add_argument("--window", type=float, default=10.0, help="minutes of each line of the table")
    parser.add_argument("--commit", choices=("agreement", "segment"), default="agreement")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    return parser.parse_args()


def suite(text: str) -> tuple[str, str]:
    """Read `PATH[:SPLIT]`."""
    path, _, split = text.partition(":")
    return path, split or "test"


def chosen(clips: list[Clip], minutes: float) -> list[Clip]:
    """Take clips until they last long enough, from the beginning again where they don't."""
    taken: list[Clip] = []
    left = minutes * 60
    for clip in cycle(clips):
        if left <= 0:
            return taken
        taken.append(clip)
        left -= GAP_S + (clip.duration_s or len(read_clip(clip)) / LISTEN_HZ)
    raise ValueError("the suite has no clips: name another split")


def write_joined(clips: list[Clip], path: Path) -> float:
    """Write all clips as one file, clip by clip; return its minutes."""
    with soundfile.SoundFile(path, "w", LISTEN_HZ, 1) as file:
        for clip in clips:
            file.write(torch.cat([read_clip(clip), torch.zeros(round(GAP_S * LISTEN_HZ))]).numpy())
        return file.frames / LISTEN_HZ / 60


def chunks(path: Path) -> Iterator[Tensor]:
    """Read a file as it would arrive."""
    with soundfile.SoundFile(path) as file:
        console = Console(stderr=True)
        for _ in track(range(-(-file.frames // CHUNK)), "streaming", console=console, transient=True):
            yield torch.from_numpy(file.read(CHUNK, dtype="float32"))


def streamed(stream: TranscriptionStream, path: Path, window_s: float) -> list[Window]:
    """Push a file through a stream; return its windows, of which the last may be shorter."""
    windows: list[Window] = []
    wall_s = cpu_s = heard_s = 0.0
    for chunk in chunks(path):
        wall, cpu = time.perf_counter(), time.process_time()
        stream.push(chunk)
        wall_s, cpu_s = wall_s + time.perf_counter() - wall, cpu_s + time.process_time() - cpu
        heard_s += len(chunk) / LISTEN_HZ
        if heard_s >= window_s:
            windows.append(window_of(windows, window_s, heard_s, wall_s, cpu_s, stream))
            wall_s = cpu_s = heard_s = 0.0
    stream.finish()
    if heard_s > window_s / 2:
        windows.append(window_of(windows, window_s, heard_s, wall_s, cpu_s, stream))
    return windows


def window_of(
    before: list[Window], window_s: float, heard_s: float, wall_s: float, cpu_s: float, stream: TranscriptionStream
) -> Window:
    """Sum up a window."""
    num_words = len(stream.text.split()) - sum(window.num_words for window in before)
    return Window(len(before) * window_s / 60, wall_s / heard_s, cpu_s / heard_s, memory_mb(), num_words)


def memory_mb() -> float:
    """Return what this process holds, in megabytes; the most it ever held where that is all that is known."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def as_table(windows: list[Window]) -> Table:
    """Lay the windows out."""
    table = Table("from minute")
    for column in ("cost of a second, s", "processor time, s", "memory, MB", "words"):
        table.add_column(column, justify="right")
    for window in windows:
        table.add_row(
            f"{window.first_minute:g}",
            f"{window.cost:.3f}",
            f"{window.cpu:.3f}",
            f"{window.memory_mb:.0f}",
            str(window.num_words),
        )
    return table


def spread(windows: list[Window]) -> str:
    """Say how constant the cost is."""
    if len(windows) < 2:
        return "one window only: its cost can't be compared"
    costs, cpu = [window.cost for window in windows], [window.cpu for window in windows]
    return (
        f"cost {deviation(costs):+.1%} at most from the median of {statistics.median(costs):.3f} s a second (processor "
        f"time {deviation(cpu):+.1%}); memory {windows[-1].memory_mb - windows[0].memory_mb:+.0f} MB from the first "
        "window to the last"
    )


def deviation(costs: list[float]) -> float:
    """Return the largest relative deviation from the median."""
    median = statistics.median(costs)
    return max((cost / median - 1 for cost in costs), key=abs)


def compared(clips: list[Clip], streamed: str, offline: str) -> str:
    """Score both texts, and one against the other."""
    said = " ".join(clip.text for clip in clips)
    pairs = {
        "streamed text": (said, streamed),
        "offline text": (said, offline),
        "streamed against offline": (offline, streamed),
    }
    rates = {name: error_rate([reference], [text], clips[0].language).rate for name, (reference, text) in pairs.items()}
    return ", ".join(f"{name} {rate:.2%}" for name, rate in rates.items()) + " of words wrong"


def conditions(arguments: argparse.Namespace, num_clips: int, minutes: float) -> str:
    """Say on what the numbers were measured."""
    return (
        f"{arguments.model}, commit by {arguments.commit}, {num_clips} clips, {minutes:.1f} minutes of "
        f"{':'.join(arguments.suite)}, {arguments.threads} thread(s); no randomness; {machine(PACKAGES)}"
    )


if __name__ == "__main__":
    main()
