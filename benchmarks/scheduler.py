"""Clips that arrive while others are being transcribed, one table: each on its own, and all through one scheduler.

    python benchmarks/scheduler.py path/to/manifest.jsonl:dev --clients 1 2 4 8

So many clients at once transcribe clip after clip, each in a thread. `alone` answers one request after the other, as a
server without batching does; `shared` lets all of them share the passes of the backbone. Throughput is seconds of sound
in a second; latency is what a client waits for a clip. Every transcript is compared with that of the clip on its own.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock

import torch
from machine import machine
from rich.console import Console
from rich.table import Table
from torch import Tensor

from tristep.audio import LISTEN_HZ
from tristep.backbone.precision import PRECISIONS
from tristep.engine.engine import Engine
from tristep.evaluation.suites import read_clip, read_suite

PACKAGES = ("tristep", "torch")


@dataclass(frozen=True)
class Row:
    """One way to answer so many clients."""

    way: str
    num_clients: int
    throughput: float
    latency_s: float
    """Median."""
    slowest_s: float
    """The 95th percentile."""
    identical: float


def main() -> None:
    """Let all numbers of clients ask in both ways, and print one table."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    engine = Engine.load(arguments.model, precision=arguments.precision)
    path, split = arguments.suite
    waveforms = [read_clip(clip) for clip in read_suite(path, split=split)[: arguments.limit]]
    expected = [engine.transcribe(waveform).text for waveform in waveforms]  # also the warm-up
    rows = []
    for num_clients in arguments.clients:
        turn, sharing = Lock(), engine.sharing(arguments.slots)

        def alone(waveform: Tensor, turn: Lock = turn) -> str:
            with turn:
                return engine.transcribe(waveform).text

        rows.append(measured("alone", num_clients, alone, waveforms, expected))

        def shared(waveform: Tensor, sharing: Engine = sharing) -> str:
            return sharing.transcribe(waveform).text

        rows.append(measured("shared", num_clients, shared, waveforms, expected))
    Console(width=None if sys.stdout.isatty() else 120).print(as_table(rows))
    print(conditions(arguments, waveforms))
    if arguments.json:
        document = {"conditions": conditions(arguments, waveforms), "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", type=suite, metavar="PATH[:SPLIT]", help="clips, in any published layout")
    parser.add_argument("--model", default="nano", help="a name or a folder")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 2, 4, 8], help="how many ask at once")
    parser.add_argument("--slots", type=int, default=8, help="requests that write at once")
    parser.add_argument("--precision", choices=PRECISIONS, help="the engine's own if not given")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=int, help="take only the first clips")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    return parser.parse_args()


def suite(text: str) -> tuple[str, str]:
    """Read `PATH[:SPLIT]`."""
    path, _, split = text.partition(":")
    return path, split or "test"


def measured(
    way: str, num_clients: int, transcribe: Callable[[Tensor], str], waveforms: list[Tensor], expected: list[str]
) -> Row:
    """Transcribe all clips, so many at once."""

    def ask(waveform: Tensor) -> tuple[str, float]:
        start = time.perf_counter()
        return transcribe(waveform), time.perf_counter() - start

    start = time.perf_counter()
    with ThreadPoolExecutor(num_clients) as clients:
        answers = list(clients.map(ask, waveforms))
    wall_s = time.perf_counter() - start
    waits = torch.tensor([seconds for _, seconds in answers])
    return Row(
        way=way,
        num_clients=num_clients,
        throughput=sum(map(len, waveforms)) / LISTEN_HZ / wall_s,
        latency_s=float(waits.median()),
        slowest_s=float(waits.quantile(0.95)),
        identical=sum(text == own for (text, _), own in zip(answers, expected, strict=True)) / len(answers),
    )


def as_table(rows: list[Row]) -> Table:
    """Lay the rows out."""
    table = Table("clients", "way")
    for column in ("sound a second, s", "latency, s", "slowest of 20, s", "identical"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            str(row.num_clients),
            row.way,
            f"{row.throughput:.2f}",
            f"{row.latency_s:.2f}",
            f"{row.slowest_s:.2f}",
            f"{row.identical:.1%}",
        )
    return table


def conditions(arguments: argparse.Namespace, waveforms: list[Tensor]) -> str:
    """Say on what the numbers were measured."""
    minutes = sum(map(len, waveforms)) / LISTEN_HZ / 60
    return (
        f"{arguments.model} in {arguments.precision or 'its own precision'} on the processor, {len(waveforms)} clips, "
        f"{minutes:.1f} minutes of {':'.join(arguments.suite)}, {arguments.slots} slots, "
        f"{arguments.threads} thread(s) a client; greedy, no randomness; {machine(PACKAGES)}"
    )


if __name__ == "__main__":
    main()
