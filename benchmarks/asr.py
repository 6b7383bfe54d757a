"""Drafts, one table: how many tokens a pass of the backbone settles, and what that is worth on the clock.

    python benchmarks/asr.py path/to/manifest.jsonl:dev --batch-sizes 1 4 16

Plain greedy decoding is beside drafts from the adaptor's own recogniser (`ctc`), from the first 1, 2, ... of the draft
heads (`MTP-1`, ...; if the weights have any), and from all sources at once (`auto`, the engine's own choice).
Acceptance is cumulative, as the report gives it: the share of passes of which the first guess was right, the first two,
and so on, of those that drafted as many; a pass may draft less, or nothing, where drafts do not pay. Every clip is
compared with plain greedy decoding of the same batch. Times are of the decoder alone, prompt included (`decode`), and
with encoder and adaptor (`real-time factor`). `--costs` measures passes over several tokens: what the choice builds on.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path

import torch
from machine import machine
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from tristep.audio import LISTEN_HZ
from tristep.backbone.audio_encoder import Adapted
from tristep.backbone.precision import PRECISIONS
from tristep.engine.drafting import MOST_DRAFTS, DraftSources
from tristep.engine.engine import Engine
from tristep.engine.sampling import Completion
from tristep.evaluation.suites import read_clip, read_suite
from tristep.modes.asr.decoding import token_budget

PACKAGES = ("tristep", "torch")
PLAIN = "greedy"


@dataclass(frozen=True)
class Row:
    """One line of the table: one source of drafts at one batch size."""

    source: str
    batch_size: int
    acceptance: list[float]
    """Cumulative, by depth."""
    acceptance_length: float
    num_passes: int
    decode_s: float
    decode_spread_s: float
    """Slowest repeat less the fastest."""
    real_time_factor: float
    speedup: float
    identical: float
    peak_memory_mb: float


@dataclass(frozen=True)
class Measured:
    """What one source did in all batches."""

    completions: list[Completion]
    decode_s: list[float]
    """One sum for each repeat."""
    peak_memory_mb: float


def main() -> None:
    """Decode every batch with every source of drafts and print one table."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    engine = Engine.load(arguments.model, arguments.device, arguments.precision)
    path, split = arguments.suite
    clips = read_suite(path, split=split)[: arguments.limit]
    waveforms = sorted((read_clip(clip) for clip in clips), key=len)
    rows = [row for batch_size in arguments.batch_sizes for row in measure(arguments, engine, waveforms, batch_size)]
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(as_table(rows))
    if arguments.costs:
        console.print(cost_table(engine, arguments.batch_sizes))
    print(conditions(arguments, engine, waveforms))
    if arguments.json:
        document = {"conditions": conditions(arguments, engine, waveforms), "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if arguments.plot:
        plot(rows, arguments.plot)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", type=suite, metavar="PATH[:SPLIT]", help="test set, in any published layout")
    parser.add_argument("--model", default="nano", help="a name or a folder")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--sources", nargs="+", help="of greedy, ctc, MTP-1, ..., auto; all if not given")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=PRECISIONS, help="the engine's own if not given")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=1, help="medians count")
    parser.add_argument("--limit", type=int, help="take only the first clips")
    parser.add_argument("--costs", action="store_true", help="also measure passes over several tokens")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--plot", type=Path, help="draw acceptance by depth and speed by batch size as a PNG")
    return parser.parse_args()


def suite(text: str) -> tuple[str, str]:
    """Read `PATH[:SPLIT]`."""
    path, _, split = text.partition(":")
    return path, split or "test"


def measure(arguments: argparse.Namespace, engine: Engine, waveforms: list[Tensor], batch_size: int) -> list[Row]:
    """Measure all sources at one batch size; the first batch of plain decoding is the warm-up."""
    batches = [waveforms[start : start + batch_size] for start in range(0, len(waveforms), batch_size)]
    start = time.perf_counter()
    heard = [engine.hear(batch) for batch in batches]
    hear_s = time.perf_counter() - start
    decode(engine, batches[:1], heard[:1], PLAIN)
    seconds = sum(map(len, waveforms)) / LISTEN_HZ
    rows: list[Row] = []
    plain = None
    for source in [PLAIN, *(name for name in names(engine, arguments.sources) if name != PLAIN)]:
        measured = repeated(engine, batches, heard, source, arguments.repeats)
        plain = plain or measured
        rows.append(row_of(source, batch_size, measured, plain, hear_s, seconds))
    return rows


def names(engine: Engine, asked: Sequence[str] | None) -> list[str]:
    """List the sources that these weights have."""
    kinds = ["ctc"] if engine.backbone.config.adaptor.kind == "ctc" else []
    heads = [f"MTP-{number}" for number in range(1, engine.backbone.config.num_draft_heads + 1)]
    return list(asked or [*kinds, *heads, "auto"])


def repeated(engine: Engine, batches: list[list[Tensor]], heard: list[Adapted], source: str, repeats: int) -> Measured:
    """Decode everything several times."""
    times, completions = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        completions = decode(engine, batches, heard, source)
        times.append(time.perf_counter() - start)
    return Measured(completions, times, peak_mb(engine))


def decode(engine: Engine, batches: list[list[Tensor]], heard: list[Adapted], source: str) -> list[Completion]:
    """Decode all batches with drafts from one source."""
    completions = []
    pairs = track(list(zip(batches, heard, strict=True)), source, console=Console(stderr=True), transient=True)
    for batch, adapted in pairs:
        budgets = [token_budget(len(waveform) / LISTEN_HZ) for waveform in batch]
        rows = [Completion(num, bias=bias) for num, bias in zip(budgets, engine.biases(adapted), strict=True)]
        completions += engine.answer(adapted, rows, sources=sources_of(engine, adapted, source))
    if engine.backbone.embedding.weight.is_cuda:
        torch.cuda.synchronize()
    return completions


def sources_of(engine: Engine, adapted: Adapted, source: str) -> DraftSources:
    """Build the sources of a name."""
    everything = engine.draft_sources(adapted)
    if source.startswith("MTP-"):
        return DraftSources(num_heads=int(source.removeprefix("MTP-")))
    return {PLAIN: DraftSources(), "ctc": replace(everything, num_heads=0), "auto": everything}[source]


def row_of(source: str, batch_size: int, measured: Measured, plain: Measured, hear_s: float, seconds: float) -> Row:
    """Sum up what one source did."""
    counts = [row.counts for row in measured.completions]
    decode_s, num_passes = statistics.median(measured.decode_s), sum(count.num_passes for count in counts)
    pairs = zip(measured.completions, plain.completions, strict=True)
    return Row(
        source=source,
        batch_size=batch_size,
        acceptance=[
            sum(accepted) / sum(drafted)
            for drafted, accepted in zip(
                zip_longest(*(count.drafted for count in counts), fillvalue=0),
                zip_longest(*(count.accepted for count in counts), fillvalue=0),
                strict=True,
            )
        ],
        acceptance_length=sum(count.num_settled for count in counts) / num_passes,
        num_passes=num_passes,
        decode_s=decode_s,
        decode_spread_s=max(measured.decode_s) - min(measured.decode_s),
        real_time_factor=(hear_s + decode_s) / seconds,
        speedup=statistics.median(plain.decode_s) / decode_s,
        identical=sum(row.tokens == other.tokens for row, other in pairs) / len(counts),
        peak_memory_mb=measured.peak_memory_mb,
    )


def peak_mb(engine: Engine) -> float:
    """Return the most memory that was taken so far, of the device that the model is on, in megabytes."""
    if engine.backbone.embedding.weight.is_cuda:
        return torch.cuda.max_memory_allocated() / 1e6
    unit = 1e6 if sys.platform == "darwin" else 1e3  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def as_table(rows: list[Row]) -> Table:
    """Lay the rows out."""
    table = Table()
    table.add_column("drafts")
    for column in (
        "batch", "accepted at 1, 2, ...", "tokens a pass", "passes", "decode, s", "spread, s", "speed",
        "real-time factor",
        "identical", "peak memory, MB",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row.source,
            str(row.batch_size),
            " ".join(f"{share:.2f}".lstrip("0") for share in row.acceptance[:8]) or "-",
            f"{row.acceptance_length:.2f}",
            str(row.num_passes),
            f"{row.decode_s:.2f}",
            f"{row.decode_spread_s:.2f}",
            f"{row.speedup:.2f}x",
            f"{row.real_time_factor:.3f}",
            f"{row.identical:.1%}",
            f"{row.peak_memory_mb:.0f}",
        )
    return table


def cost_table(engine: Engine, batch_sizes: list[int]) -> Table:
    """Time passes over several tokens a row, after 150 positions, beside one token of one row."""
    table = Table("rows", title="cost of a pass by tokens a row, in passes over one token")
    widths = [1, 2, 3, 4, 6, 8, MOST_DRAFTS + 1]
    for width in widths:
        table.add_column(str(width), justify="right")
    unit = pass_s(engine, 1, 1)
    for batch_size in batch_sizes:
        costs = [pass_s(engine, batch_size, width) / unit for width in widths]
        table.add_row(str(batch_size), *(f"{cost:.2f}" for cost in costs))
    return table


@torch.inference_mode()
def pass_s(engine: Engine, batch_size: int, num_tokens: int) -> float:
    """Time one pass and its output layer, in seconds: the median of seven."""
    backbone, times = engine.backbone, []
    tokens = torch.full((batch_size, num_tokens), 100, device=backbone.embedding.weight.device)
    for _ in range(7):
        cache = backbone.new_cache(batch_size, 150 + num_tokens)
        cache.lengths = cache.lengths + 150
        start = time.perf_counter()
        backbone.logits(backbone(tokens, kv_cache=cache)).argmax(dim=-1).tolist()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def conditions(arguments: argparse.Namespace, engine: Engine, waveforms: list[Tensor]) -> str:
    """Say on what the numbers were measured."""
    minutes = sum(map(len, waveforms)) / LISTEN_HZ / 60
    return (
        f"{engine.backbone.config.name} in {arguments.precision or 'its own precision'} on {arguments.device}, "
        f"{len(waveforms)} clips, {minutes:.1f} minutes, sorted by length, of {':'.join(arguments.suite)}; "
        f"{arguments.threads} thread(s); greedy, no randomness; 1 warm-up batch, median of {arguments.repeats} run(s); "
        f"{machine(PACKAGES)}"
    )


def plot(rows: list[Row], path: Path) -> None:
    """Draw acceptance by depth at the first batch size, and speed against greedy by batch size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for source in dict.fromkeys(row.source for row in rows if row.source != PLAIN):
        mine = [row for row in rows if row.source == source]
        depths = range(1, len(mine[0].acceptance) + 1)
        left.plot(depths, mine[0].acceptance, marker="o", label=source)
        right.plot([row.batch_size for row in mine], [row.speedup for row in mine], marker="o", label=source)
    left.set(title=f"accepted with all before it, batch {rows[0].batch_size}", xlabel="depth", ylim=(0, 1))
    right.axhline(1, color="grey", linewidth=0.8)
    right.set(title="speed of decoding, plain greedy = 1", xlabel="batch", xscale="log", ylim=(0, None))
    left.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
