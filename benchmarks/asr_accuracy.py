"""Recognition accuracy and speed, one table: tristep beside faster-whisper base and tiny, in one run.

    python benchmarks/asr_accuracy.py path/to/manifest.jsonl:dev+test path/to/LibriSpeech:test-clean

Every system runs in a process of its own (`asr_worker.py`), which imports nothing but that system, so that
peak memory and cold start are its own. Each clip is handed over alone and by its path: reading, resampling
and features are part of the time. Every system decodes greedily and is told the language; faster-whisper
has int8 weights, beam 1 and temperature 0. Cold start is from the start of the process to the first
transcript; that first clip is the warm-up. With `--repeats`, times and memory are medians over as many
processes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from machine import machine
from rich.console import Console
from rich.table import Table

from tristep.audio import LISTEN_HZ, write_audio
from tristep.evaluation.asr import Hypothesis, score
from tristep.evaluation.suites import Clip, read_clip, read_suite
from tristep.text import NORMALISER

SYSTEMS = ("tristep", "whisper-base", "whisper-tiny")
PACKAGES = ("tristep", "torch", "faster-whisper", "ctranslate2", "jiwer")
WORKER = Path(__file__).with_name("asr_worker.py")


@dataclass(frozen=True)
class Row:
    """One line of the table: one system with one number of threads on one suite."""

    system: str
    threads: int
    suite: str
    language: str
    metric: str
    rate: float
    low: float
    high: float
    num_clips: int
    num_failed: int
    hours: float
    real_time_factor: float
    cold_start_s: float
    peak_memory_mb: float


def main() -> None:
    """Run every system in its own process and print one table."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        suites = {label(suite): clips_of(suite, arguments.limit, Path(folder)) for suite in arguments.suites}
        rows = [
            row
            for system in arguments.systems
            for threads in arguments.threads
            for row in measure(arguments, system, threads, suites)
        ]
    Console(width=None if sys.stdout.isatty() else 180).print(as_table(rows))
    print(conditions(arguments))
    if arguments.json:
        document = {"conditions": conditions(arguments), "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if arguments.plot:
        plot(rows, arguments.plot)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="+", metavar="PATH[:SPLIT]", help="test sets, in any published layout")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--repeats", type=int, default=1, help="processes for each system; medians count")
    parser.add_argument("--limit", type=int, help="take only the first clips of each suite")
    parser.add_argument("--model", default="nano", help="tristep's model: a name or a folder")
    parser.add_argument("--whisper-base", default="base", help="CTranslate2 model folder or hub name")
    parser.add_argument("--whisper-tiny", default="tiny", help="CTranslate2 model folder or hub name")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--plot", type=Path, help="draw the error rates and real-time factors as a PNG")
    return parser.parse_args()


def label(suite: str) -> str:
    """Name a suite by its folder and split."""
    path, _, split = suite.partition(":")
    folder = Path(path).resolve()
    return f"{folder.parent.name if folder.is_file() else folder.name} {split or 'test'}"


def clips_of(suite: str, limit: int | None, folder: Path) -> list[Clip]:
    """Read `PATH[:SPLIT]`; stretches of long files become files in `folder`: every system reads files."""
    path, _, split = suite.partition(":")
    clips = read_suite(path, split=split or "test")[:limit]
    return [clip if clip.is_whole else cut(clip, folder) for clip in clips]


def cut(clip: Clip, folder: Path) -> Clip:
    """Write one stretch of a long file as a file of its own."""
    path = folder / f"{clip.id}.wav"
    write_audio(path, read_clip(clip), LISTEN_HZ)
    return replace(clip, path=path, start_s=0.0, is_whole=True)


def measure(arguments: argparse.Namespace, system: str, threads: int, suites: Mapping[str, list[Clip]]) -> list[Row]:
    """Run one system in processes of its own; score what the first wrote, take the medians of the times."""
    answers = [run(arguments, system, threads, suites) for _ in range(arguments.repeats)]
    return [
        row_of(answers, threads, name, language, clips)
        for name, clips in suites.items()
        for language in dict.fromkeys(clip.language for clip in clips)
    ]


def row_of(answers: list[Any], threads: int, suite: str, language: str, clips: list[Clip]) -> Row:
    """Score one suite in one language."""
    results = [score(suite, language, pairs_of(clips, answer["suites"][suite], language)) for answer in answers]
    first = results[0]
    return Row(
        system=answers[0]["name"],
        threads=threads,
        suite=suite,
        language=language,
        metric=first.metric,
        rate=first.rate,
        low=first.low,
        high=first.high,
        num_clips=len(first.clips),
        num_failed=first.num_failed,
        hours=first.hours,
        real_time_factor=statistics.median(result.real_time_factor for result in results),
        cold_start_s=statistics.median(answer["cold_start_s"] for answer in answers),
        peak_memory_mb=statistics.median(answer["peak_memory_mb"] for answer in answers),
    )


def pairs_of(clips: list[Clip], written: list[Any], language: str) -> list[tuple[Clip, Hypothesis]]:
    """Keep the clips of one language, each with what was written for it."""
    pairs = zip(clips, written, strict=True)
    return [(clip, Hypothesis(**fields)) for clip, fields in pairs if clip.language == language]


def run(arguments: argparse.Namespace, system: str, threads: int, suites: Mapping[str, list[Clip]]) -> Any:
    """Start the worker, wait for it, and return what it measured."""
    names = {
        "tristep": arguments.model,
        "whisper-base": arguments.whisper_base,
        "whisper-tiny": arguments.whisper_tiny,
    }
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        job = {
            "system": system,
            "model": names[system],
            "threads": threads,
            "suites": {name: [[str(clip.path), clip.language] for clip in clips] for name, clips in suites.items()},
            "answer": str(answer),
            "started": time.time(),
        }
        environment = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        command = [sys.executable, str(WORKER)]
        subprocess.run(command, input=json.dumps(job), text=True, check=True, env=os.environ | environment)
        return json.loads(answer.read_text(encoding="utf-8"))


def as_table(rows: list[Row]) -> Table:
    """Lay the rows out, the suites together so that systems are read one above the other."""
    table = Table()
    table.add_column("suite")
    table.add_column("system")
    for column in (
        "threads", "clips", "minutes", "metric", "rate", "95 % interval", "real-time factor",
        "peak memory, MB", "cold start, s", "failed",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    order = list(dict.fromkeys((row.suite, row.language) for row in rows))
    for row in sorted(rows, key=lambda row: order.index((row.suite, row.language))):
        table.add_row(
            row.suite,
            row.system,
            str(row.threads),
            str(row.num_clips),
            f"{60 * row.hours:.1f}",
            row.metric.upper(),
            f"{row.rate:.1%}",
            f"{row.low:.1%} - {row.high:.1%}",
            f"{row.real_time_factor:.3f}",
            f"{row.peak_memory_mb:.0f}",
            f"{row.cold_start_s:.1f}",
            str(row.num_failed),
        )
    return table


def conditions(arguments: argparse.Namespace) -> str:
    """Say on what the numbers were measured."""
    return (
        f"normaliser {NORMALISER}; one clip at a time, greedy, faster-whisper int8; 1 warm-up clip, median of "
        f"{arguments.repeats} run(s); {machine(PACKAGES)}"
    )


def plot(rows: list[Row], path: Path) -> None:
    """Draw error rates with their intervals, and real-time factors, one bar for each system."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    suites = list(dict.fromkeys((row.suite, row.language) for row in rows))
    systems = list(dict.fromkeys((row.system, row.threads) for row in rows))
    width = 0.8 / len(systems)
    for index, (system, threads) in enumerate(systems):
        mine = [row for row in rows if (row.system, row.threads) == (system, threads)]
        places = [suites.index((row.suite, row.language)) + (index - (len(systems) - 1) / 2) * width for row in mine]
        errors = [[100 * (row.rate - row.low) for row in mine], [100 * (row.high - row.rate) for row in mine]]
        name = f"{system}, {threads} thread{'s' if threads > 1 else ''}"
        left.bar(places, [100 * row.rate for row in mine], width, yerr=errors, capsize=3, label=name)
        right.bar(places, [row.real_time_factor for row in mine], width, label=name)
    for axes, title in (
        (left, "error rate, % (95 % interval)"),
        (right, "real-time factor (lower is faster)"),
    ):
        axes.set_title(title)
        axes.set_xticks(range(len(suites)), [suite for suite, _ in suites])
    left.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
