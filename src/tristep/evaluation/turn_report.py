"""What an evaluation of turn-taking found, as a value: written as JSON, printed as tables, drawn as one page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from tristep.evaluation.report import HEAD, Conditions, Record, as_svg, conditions_line, html_table, write_beside
from tristep.evaluation.tts_report import Estimate


class Spread(Record):
    """A measure over cases."""

    num: int
    p50: float
    p95: float
    most: float


class CaseResult(Record):
    """One case; None is what its kind does not have, or what did not happen."""

    id: str
    kind: str
    what: str = ""
    """Which noise; how long a pause."""
    answer: str = ""
    lag_ms: float = 0.0
    """The longest that a frame of the user's sound waited to be heard."""
    first_audio_ms: float | None = None
    """From the user's last word to the first sound of the answer."""
    hangover_ms: float | None = None
    """Of that, until the turn was held to be over."""
    answering_ms: float | None = None
    """Of that, the rest."""
    silence_ms: float | None = None
    """What the answer's sound begins with, before its first word."""
    real_time_factor: float | None = None
    """From the end of the turn to the last sound, over the length of the sound."""
    gap_ms: float | None = None
    """How long playing the answer stood still."""
    lowered_ms: float | None = None
    """From the first word spoken into an answer until it is lowered."""
    yield_ms: float | None = None
    """And until it stops."""
    is_stopped: bool | None = None
    """Whether an answer that was spoken, or noised, into stopped; None where it was over before."""
    ended_early: bool | None = None
    """Whether a pause was held for the end of the turn."""
    took_over: bool | None = None
    """Whether sound came before the user's last word was over."""


class SystemResult(Record):
    """One system in all its cases; shares are fractions."""

    name: str
    num_questions: int
    num_answered: int
    first_audio_ms: Spread | None
    hangover_ms: Spread | None
    answering_ms: Spread | None
    silence_ms: Spread | None
    real_time_factor: Spread | None
    gap_ms: Spread | None
    num_barge_ins: int
    """Those into an answer that was going on."""
    yielded: Estimate | None
    """Silent within 200 ms."""
    lowered: Estimate | None
    """Lowered within 200 ms."""
    yield_ms: Spread | None
    lowered_ms: Spread | None
    num_noises: int
    false_stops: Estimate | None
    num_pauses: int
    ended_early: Estimate | None
    took_over: Estimate | None
    lag_ms: Spread | None
    cases: tuple[CaseResult, ...]

    def of_kind(self, kind: str) -> list[CaseResult]:
        """Return the cases of one kind."""
        return [case for case in self.cases if case.kind == kind]


class DuplexResult(Record):
    """One system in one task of Full-Duplex-Bench, by the benchmark's definitions."""

    name: str
    task: str
    num_samples: int
    take_over_rate: Estimate
    latency_ms: Spread | None
    """Of the samples in which the turn was taken; mean as the benchmark has it below."""
    mean_latency_ms: float | None
    backchannels_per_s: float | None
    """Short sounds a second of the user's, in the task that asks for them."""


class TurnsReport(Record):
    """One or more systems on the same cases."""

    systems: tuple[SystemResult, ...]
    duplex: tuple[DuplexResult, ...] = ()
    conditions: Conditions
    wall_s: float


def times(spread: Spread | None) -> str:
    """Write times of which half and 95 % are below."""
    return f"{spread.p50:.0f} / {spread.p95:.0f} ms" if spread else "-"


def factors(spread: Spread | None) -> str:
    """Write factors likewise."""
    return f"{spread.p50:.2f} / {spread.p95:.2f}" if spread else "-"


def share(estimate: Estimate | None) -> str:
    """Write a share with its interval."""
    return f"{estimate.mean:.1%} ({estimate.low:.1%} - {estimate.high:.1%})" if estimate else "-"


ROWS: tuple[tuple[str, Callable[[SystemResult], str]], ...] = (
    ("questions, of them answered aloud", lambda system: f"{system.num_questions}, {system.num_answered}"),
    ("first audio after the last word, p50 / p95", lambda system: times(system.first_audio_ms)),
    ("  of that until the turn was held to be over", lambda system: times(system.hangover_ms)),
    ("  of that answering", lambda system: times(system.answering_ms)),
    ("silence before the answer's first word", lambda system: times(system.silence_ms)),
    ("real-time factor while listening", lambda system: factors(system.real_time_factor)),
    ("gaps in the answer", lambda system: times(system.gap_ms)),
    ("words spoken into an answer", lambda system: str(system.num_barge_ins)),
    ("  silent within 200 ms", lambda system: share(system.yielded)),
    ("  silent after, p50 / p95", lambda system: times(system.yield_ms)),
    ("  lowered within 200 ms", lambda system: share(system.lowered)),
    ("  lowered after, p50 / p95", lambda system: times(system.lowered_ms)),
    ("noises into an answer", lambda system: str(system.num_noises)),
    ("  false stops", lambda system: share(system.false_stops)),
    ("pauses in a turn", lambda system: str(system.num_pauses)),
    ("  held for its end", lambda system: share(system.ended_early)),
    ("  false take-overs", lambda system: share(system.took_over)),
    ("longest wait of a frame, p50 / p95", lambda system: times(system.lag_ms)),
)
"""What a report says of each system."""
DUPLEX_HEADERS = ("task", "system", "samples", "take-over rate", "mean latency", "p50 / p95", "backchannels a second")


def tables(report: TurnsReport) -> list[Table]:
    """Lay a report out for the terminal."""
    return [*([as_table(report)] if report.systems else []), *([duplex_table(report)] if report.duplex else [])]


def as_table(report: TurnsReport) -> Table:
    """Lay out the cases: a column for each system, the conditions below."""
    table = Table("", caption=conditions_line(report.conditions), caption_justify="left")
    for system in report.systems:
        table.add_column(system.name, justify="right")
    for row in rows(report.systems):
        table.add_row(*row)
    return table


def rows(systems: Sequence[SystemResult]) -> list[tuple[str, ...]]:
    """Lay out what there is to say of the systems, a label before it."""
    written = [(label, *map(write, systems)) for label, write in ROWS]
    return [row for row in written if any(cell not in ("-", "0") for cell in row[1:])]


def duplex_table(report: TurnsReport) -> Table:
    """Lay out what Full-Duplex-Bench found: one row for each task and system."""
    table = Table(*DUPLEX_HEADERS, caption="Full-Duplex-Bench v1, by its definitions", caption_justify="left")
    for result in report.duplex:
        table.add_row(*duplex_cells(result))
    return table


def duplex_cells(result: DuplexResult) -> tuple[str, ...]:
    """Lay out one row."""
    mean_ms, rate = result.mean_latency_ms, result.backchannels_per_s
    return (
        result.task,
        result.name,
        str(result.num_samples),
        share(result.take_over_rate),
        "-" if mean_ms is None else f"{mean_ms:.0f} ms",
        times(result.latency_ms),
        "-" if rate is None else f"{rate:.3f}",
    )


def read_json(path: str | Path) -> TurnsReport:
    """Read a report that `write_report` wrote."""
    return TurnsReport.model_validate_json(Path(path).read_text(encoding="utf-8"))


def write_report(report: TurnsReport, path: str | Path) -> tuple[Path, Path]:
    """Write the JSON at `path` and the page beside it, and return both paths."""
    return write_beside(report, as_page(report), path)


def as_page(report: TurnsReport) -> str:
    """Draw a report as one page that needs nothing else."""
    names = [system.name for system in report.systems]
    return PAGE.format(
        title=escape(f"Turn-taking of {report.conditions.model}"),
        table=html_table(["", *names], rows(report.systems)),
        plots=plots(report.systems) if report.systems else "",
        duplex=duplex_section(report.duplex) if report.duplex else "",
        conditions=escape(conditions_line(report.conditions)),
        cases="\n".join(section(system) for system in report.systems),
    )


def duplex_section(results: Sequence[DuplexResult]) -> str:
    """Write what Full-Duplex-Bench found."""
    return f"<h2>Full-Duplex-Bench v1</h2>\n{html_table(DUPLEX_HEADERS, map(duplex_cells, results))}"


def plots(systems: Sequence[SystemResult]) -> str:
    """Draw how soon answers come and stop, which pauses are waited through, and which noises stop, as inline SVG."""
    figure = Figure(figsize=(10, 6), layout="tight")
    ((first, stop), (pause, noise)) = figure.subplots(2, 2)
    for system in systems:
        steps(first, [case.first_audio_ms for case in system.of_kind("question")], system.name)
        steps(first, [case.answering_ms for case in system.of_kind("question")], f"{system.name}, answering", ":")
        steps(stop, [case.yield_ms for case in system.of_kind("barge_in")], f"{system.name}, silent")
        steps(stop, [case.lowered_ms for case in system.of_kind("barge_in")], f"{system.name}, lowered", ":")
    draw_pauses(pause, systems)
    draw_noises(noise, systems)
    first.set(xlabel="first audio after the last word, ms", ylabel="answers, %", ylim=(0, 105))
    stop.set(xlabel="after the first word spoken into an answer, ms", ylabel="answers, %", ylim=(0, 105))
    for axes in (first, stop, pause, noise):
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize="x-small")
    return as_svg(figure)


def steps(axes: Axes, values: Sequence[float | None], label: str, style: str = "-") -> None:
    """Draw what share of the values lies below each."""
    known = sorted(value for value in values if value is not None)
    if known:
        shares = [100 * (place + 1) / len(values) for place in range(len(known))]
        axes.step(known, shares, style, where="post", label=label)


def draw_pauses(axes: Axes, systems: Sequence[SystemResult]) -> None:
    """Draw how long the pauses were that were waited through, and those that were not."""
    labels = []
    for place, system in enumerate(systems):
        lengths_s = np.array([float(case.what.split()[0]) for case in system.of_kind("pause")])
        is_over = np.array([bool(case.took_over) for case in system.of_kind("pause")], bool)
        for name, kept, colour in (("waited", ~is_over, "#4878a8"), ("took over", is_over, "#b03030")):
            axes.scatter(lengths_s[kept], [place] * int(kept.sum()), c=colour, s=12, label=None if place else name)
        labels.append(system.name)
    axes.set(xlabel="pause in a turn, s", yticks=range(len(labels)), yticklabels=labels, ylim=(-0.5, len(labels) - 0.5))


def draw_noises(axes: Axes, systems: Sequence[SystemResult]) -> None:
    """Draw which noises stopped answers."""
    for system in systems:
        heard = [case for case in system.of_kind("noise") if case.is_stopped is not None]
        num_heard = Counter(case.what for case in heard)
        num_stopped = Counter(case.what for case in heard if case.is_stopped)
        if num_heard:
            rates = [100 * num_stopped[what] / num_heard[what] for what in num_heard]
            axes.bar(list(num_heard), rates, label=system.name, alpha=0.7)
    axes.set(ylabel="false stops, %", ylim=(0, 105))
    axes.tick_params(axis="x", labelrotation=30)


CASE_HEADERS = (
    "case", "kind", "what", "first audio", "answering", "real-time factor", "lowered", "silent", "ended early",
    "took over", "longest wait", "answer",
)  # fmt: skip


def section(system: SystemResult) -> str:
    """List the cases of one system."""
    return CASES.format(name=escape(system.name), table=html_table(CASE_HEADERS, map(case_cells, system.cases)))


def case_cells(case: CaseResult) -> tuple[str, ...]:
    """Lay out one case."""
    numbers = case.first_audio_ms, case.answering_ms, case.lowered_ms, case.yield_ms
    first, answering, lowered, silent = ("" if number is None else f"{number:.0f}" for number in numbers)
    factor = "" if case.real_time_factor is None else f"{case.real_time_factor:.2f}"
    ended, took = ("" if flag is None else ("yes" if flag else "no") for flag in (case.ended_early, case.took_over))
    if case.kind == "noise":
        silent = "" if case.is_stopped is None else ("stopped" if case.is_stopped else "went on")
    late = f"{case.lag_ms:.0f}"
    return case.id, case.kind, case.what, first, answering, factor, lowered, silent, ended, took, late, case.answer


PAGE = (
    HEAD
    + """th:first-child, td:first-child, td:last-child {{ text-align: left; }}
td:last-child {{ white-space: normal; }}
td {{ white-space: pre; }}
svg {{ max-width: 100%; height: auto; }}
</style>
<h1>{title}</h1>
{table}
{plots}
{duplex}
<p><small>Sound arrives in frames of 20 ms as it is spoken, and events are timed when the session returns them; the
network is left out. Where words begin and end is found by their energy. Noises are synthetic. Intervals are over
cases, 95 %.</small></p>
<p><small>{conditions}</small></p>
{cases}
</html>
"""
)
CASES = """<details><summary>{name}, every case (times in ms)</summary>
{table}
</details>
"""
