"""What a decode step reads, and how near it comes to the speed at which memory can be read.

    python benchmarks/roofline.py --batch-sizes 1 4 16

Writing one token reads every weight of the decoder and of the output layer once, and what the cache holds of each row:
so a step can't be faster than these bytes over the memory's bandwidth. The bandwidth is measured here, by a product of
a matrix with a vector, which reads as a decode step does. A model that fits into the processor's cache can do better
than its memory; where several rows share a step, the arithmetic may cost more than the reading.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from machine import machine
from rich.console import Console
from rich.table import Table
from torch import nn

from tristep.backbone.model import Backbone
from tristep.backbone.precision import Int8Table
from tristep.engine.engine import Engine

PACKAGES = ("tristep", "torch")
MATRIX = (16_384, 8192)
"""Half a gigabyte of float32: no processor's cache holds it."""


@dataclass(frozen=True)
class Row:
    """One precision at one batch size."""

    precision: str
    batch_size: int
    weight_mb: float
    """Weights that a step reads."""
    cache_mb: float
    """Keys and values that it reads, of all rows."""
    floor_ms: float
    """The time that it takes to read both."""
    step_ms: float
    spread_ms: float
    """Slowest repeat less the fastest."""

    @property
    def share(self) -> float:
        """The part of the step in which nothing but reading would be done."""
        return self.floor_ms / self.step_ms


def main() -> None:
    """Measure and print one table."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    bandwidth = measured_bandwidth(arguments.device, arguments.repeats)
    rows = []
    for precision in arguments.precisions:
        backbone = Engine.load(arguments.model, arguments.device, precision).backbone
        rows += [measure(backbone, precision, size, bandwidth, arguments) for size in arguments.batch_sizes]
    Console(width=None if sys.stdout.isatty() else 160).print(as_table(rows))
    print(conditions(arguments, bandwidth))
    if arguments.json:
        document = {"conditions": conditions(arguments, bandwidth), "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help="a name or a folder")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16", "int8"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--positions", type=int, default=200, help="tokens that every row has read")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15, help="medians count")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    return parser.parse_args()


def measured_bandwidth(device: str, repeats: int) -> float:
    """Return the bytes that are read from memory in a second, at best."""
    matrix, vector = torch.ones(MATRIX, device=device), torch.ones(MATRIX[1], device=device)
    times = timed(lambda: matrix.mv(vector)[0].item(), repeats)
    return matrix.numel() * matrix.element_size() / min(times)


def timed(work: Callable[[], object], repeats: int) -> list[float]:
    """Return the seconds of each repeat, after one that doesn't count."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return times


def measure(
    backbone: Backbone, precision: str, batch_size: int, bandwidth: float, arguments: argparse.Namespace
) -> Row:
    """Time a step, the output layer and the choice of a token included."""
    tokens = torch.full((batch_size, 1), 100, device=arguments.device)
    cache = backbone.new_cache(batch_size, arguments.positions + 1)

    @torch.inference_mode()
    def step() -> None:
        cache.lengths = torch.full_like(cache.lengths, arguments.positions)
        backbone.logits(backbone(tokens, kv_cache=cache)).argmax(dim=-1).tolist()

    times = timed(step, arguments.repeats)
    per_position = 2 * cache.keys[:, :1, :, :1].numel() * cache.keys.element_size()
    weight_bytes = num_bytes(backbone.decoder) + num_bytes(scored(backbone))
    cache_bytes = batch_size * (arguments.positions + 1) * per_position
    return Row(
        precision, batch_size, weight_bytes / 1e6, cache_bytes / 1e6, (weight_bytes + cache_bytes) / bandwidth * 1e3,
        statistics.median(times) * 1e3, (max(times) - min(times)) * 1e3,
    )  # fmt: skip


def scored(backbone: Backbone) -> nn.Module:
    """Return what the output layer reads: in int8 it keeps other rows for looking tokens up."""
    head = backbone.head
    return nn.ModuleList([head.project_old, head.project_grown]) if isinstance(head, Int8Table) else head


def num_bytes(module: nn.Module) -> int:
    """Count the bytes of all weights."""
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


def as_table(rows: list[Row]) -> Table:
    """Lay the rows out."""
    table = Table("precision")
    for column in (
        "batch", "weights, MB", "cache, MB", "floor, ms", "step, ms", "spread, ms", "of the roofline", "tokens a s",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row.precision,
            str(row.batch_size),
            f"{row.weight_mb:.0f}",
            f"{row.cache_mb:.1f}",
            f"{row.floor_ms:.1f}",
            f"{row.step_ms:.1f}",
            f"{row.spread_ms:.1f}",
            f"{row.share:.0%}",
            f"{1e3 * row.batch_size / row.step_ms:.0f}",
        )
    return table


def conditions(arguments: argparse.Namespace, bandwidth: float) -> str:
    """Say on what the numbers were measured."""
    return (
        f"{arguments.model} on {arguments.device}, {arguments.positions} positions a row, memory read at "
        f"{bandwidth / 1e9:.1f} GB/s, {arguments.threads} thread(s); 1 warm-up, median of {arguments.repeats}; "
        f"{machine(PACKAGES)}"
    )


if __name__ == "__main__":
    main()
