"""What an evaluation found, as a value: written as JSON, printed as a table, drawn as one HTML page.

A suite in several languages is several rows: word and character errors are not averaged. Rates are
fractions. A clip on which the recogniser failed counts as if nothing had been written, so that failing
never looks better than trying.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Literal, NamedTuple, cast

import jiwer
from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict
from rich.table import Table

NUM_WORST = 20
"""How many of the worst clips the page shows."""


class Record(BaseModel):
    """A part of a report: it is written once, and refuses what it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Conditions(Record):
    """Under what circumstances a report came about: what is needed to measure the same again."""

    model: str
    """The recogniser, as it was named."""
    normaliser: str
    """The text normaliser and its version."""
    seed: int
    """Seed of the bootstrap."""
    date: str
    """When the run ended, ISO 8601 in UTC."""
    threads: int
    """Threads that the tensor library may use."""
    cores: int
    """Processors that this process may use."""
    torch: str
    """Version of torch."""
    python: str
    """Version of Python."""
    platform: str
    """Operating system and processor."""
    batch_size: int
    """Clips handed to the recogniser at once."""


class ClipResult(Record):
    """What the recogniser wrote for one clip; the texts are normalised."""

    id: str
    """Name of the clip."""
    reference: str
    """What was said."""
    hypothesis: str
    """What was written; empty where the recogniser failed."""
    substitutions: int
    """Units written as another."""
    deletions: int
    """Units left out."""
    insertions: int
    """Units added."""
    num_units: int
    """Words (or characters) in the reference."""
    duration_s: float
    """Length of the clip."""
    compute_s: float
    """Time the recogniser took."""
    error: str | None = None
    """Why the recogniser failed, if it did."""

    @property
    def num_errors(self) -> int:
        """Substitutions, deletions and insertions together."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors over units; where nothing was said, every unit written is a whole error."""
        return self.num_errors / max(1, self.num_units)


class SuiteResult(Record):
    """One suite in one language."""

    name: str
    """The suite, as it was named."""
    language: str
    """ISO code."""
    metric: Literal["wer", "cer"]
    """Whether the units are words or characters."""
    rate: float
    """Errors over units, all clips together."""
    low: float
    """Lower end of the 95 % interval (bootstrap over clips)."""
    high: float
    """Upper end of the 95 % interval."""
    substitutions: int
    """Units written as another."""
    deletions: int
    """Units left out."""
    insertions: int
    """Units added."""
    num_units: int
    """Words (or characters) in the references."""
    hours: float
    """Length of the sound."""
    compute_s: float
    """Time the recogniser took for it."""
    clips: tuple[ClipResult, ...]
    """Every clip, in the suite's order."""

    @property
    def real_time_factor(self) -> float:
        """Compute time over audio time; lower is better."""
        return self.compute_s / (self.hours * 3600) if self.hours else 0.0

    @property
    def num_failed(self) -> int:
        """Clips on which the recogniser failed."""
        return sum(clip.error is not None for clip in self.clips)

    def worst(self, num_clips: int = NUM_WORST) -> list[ClipResult]:
        """Return the clips with the highest error rates; of equal ones, those with more errors first."""
        wrong = [clip for clip in self.clips if clip.num_errors]
        return sorted(wrong, key=lambda clip: (clip.rate, clip.num_errors), reverse=True)[:num_clips]


class AsrReport(Record):
    """The error rates of one recogniser on one or more suites."""

    suites: tuple[SuiteResult, ...]
    """One row for each suite and language."""
    conditions: Conditions
    """How it was measured."""
    wall_s: float
    """From the first clip to the last, reading included."""


EditKind = Literal["equal", "substitute", "delete", "insert"]


class Edit(NamedTuple):
    """One stretch of an alignment."""

    kind: EditKind
    reference: str
    hypothesis: str


def alignment(reference: str, hypothesis: str) -> list[Edit]:
    """Align two normalised texts unit by unit, with as few edits as there can be."""
    if not reference:
        return [Edit("insert", "", hypothesis)] if hypothesis else []
    output = jiwer.process_words(reference, hypothesis)
    said, written = reference.split(), hypothesis.split()
    return [
        Edit(
            cast(EditKind, chunk.type),
            " ".join(said[chunk.ref_start_idx : chunk.ref_end_idx]),
            " ".join(written[chunk.hyp_start_idx : chunk.hyp_end_idx]),
        )
        for chunk in output.alignments[0]
    ]


def write_json(report: BaseModel, path: str | Path) -> None:
    """Write a report as JSON; `read_json` reads it back."""
    Path(path).write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> AsrReport:
    """Read a report that `write_json` wrote."""
    return AsrReport.model_validate_json(Path(path).read_text(encoding="utf-8"))


def as_table(report: AsrReport) -> Table:
    """Lay a report out for the terminal: one row for each suite, the conditions below."""
    table = Table(caption=conditions_line(report.conditions), caption_justify="left")
    for column in HEADERS:
        table.add_column(column, justify="left" if column in ("suite", "language") else "right")
    for suite in report.suites:
        table.add_row(*_cells(suite))
    return table


def as_page(report: AsrReport) -> str:
    """Draw a report as one page that needs nothing else: the table, a histogram and the worst clips."""
    return PAGE.format(
        title=escape(f"Recognition by {report.conditions.model}"),
        table=html_table(HEADERS, map(_cells, report.suites)),
        conditions=escape(conditions_line(report.conditions)),
        sections="\n".join(_section(suite) for suite in report.suites),
    )


def write_html(report: AsrReport, path: str | Path) -> None:
    """Write a report's page."""
    Path(path).write_text(as_page(report), encoding="utf-8")


def write_report(report: AsrReport, path: str | Path) -> tuple[Path, Path]:
    """Write the JSON at `path` and the page beside it, and return both paths."""
    return write_beside(report, as_page(report), path)


def write_beside(report: BaseModel, page: str, path: str | Path) -> tuple[Path, Path]:
    """Write any report as JSON at `path` and its page beside it, and return both paths."""
    data, html = Path(path), Path(path).with_suffix(".html")
    if data == html:
        raise ValueError(f"{str(path)!r} is where the page goes: name a JSON file, such as report.json")
    data.parent.mkdir(parents=True, exist_ok=True)
    write_json(report, data)
    html.write_text(page, encoding="utf-8")
    return data, html


HEADERS = (
    "suite", "language", "clips", "hours", "metric", "rate", "95 % interval",
    "sub", "del", "ins", "units", "real-time factor", "failed",
)  # fmt: skip


def _cells(suite: SuiteResult) -> tuple[str, ...]:
    return (
        suite.name,
        suite.language,
        str(len(suite.clips)),
        f"{suite.hours:.2f}",
        suite.metric.upper(),
        f"{suite.rate:.2%}",
        f"{suite.low:.2%} - {suite.high:.2%}",
        str(suite.substitutions),
        str(suite.deletions),
        str(suite.insertions),
        str(suite.num_units),
        f"{suite.real_time_factor:.3f}",
        str(suite.num_failed),
    )


def conditions_line(conditions: Conditions) -> str:
    """Write the conditions on one line."""
    fields = conditions.model_dump().items()
    return "; ".join(f"{name.replace('_', ' ')} {value}" for name, value in fields)


def html_row(cells: Sequence[str], tag: str = "td") -> str:
    """Write one row of a table."""
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"


def html_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table."""
    lines = "\n".join(map(html_row, rows))
    return f"<table>\n<thead>{html_row(headers, 'th')}</thead>\n<tbody>\n{lines}\n</tbody>\n</table>"


def as_svg(figure: Figure) -> str:
    """Write a figure as it stands inside a page."""
    image = io.StringIO()
    figure.savefig(image, format="svg", metadata={"Date": None})
    svg = image.getvalue()
    return svg[svg.index("<svg") :]


def _section(suite: SuiteResult) -> str:
    clips = "\n".join(_clip_rows(suite.worst()))
    return SECTION.format(
        heading=escape(f"{suite.name} ({suite.language})"),
        histogram=_histogram(suite),
        num_wrong=sum(clip.num_errors > 0 for clip in suite.clips),
        num_clips=len(suite.clips),
        clips=clips or "<p>No clip has an error.</p>",
    )


def _clip_rows(clips: Sequence[ClipResult]) -> Iterator[str]:
    for clip in clips:
        failed = f' <span class="failed">{escape(clip.error)}</span>' if clip.error else ""
        words = " ".join(_coloured(edit) for edit in alignment(clip.reference, clip.hypothesis))
        length = f"{clip.duration_s:.1f} s"
        yield f"<p><b>{escape(clip.id)}</b> {clip.rate:.0%}, {length}{failed}<br>{words}</p>"


def _coloured(edit: Edit) -> str:
    if edit.kind == "equal":
        return escape(edit.reference)
    gone = f"<del>{escape(edit.reference)}</del>" if edit.reference else ""
    added = f"<ins>{escape(edit.hypothesis)}</ins>" if edit.hypothesis else ""
    return f'<span class="{edit.kind}">{gone}{" " if gone and added else ""}{added}</span>'


def _histogram(suite: SuiteResult) -> str:
    """Draw how the clips' error rates spread, as inline SVG; the last bar holds everything from 100 % on."""
    figure = Figure(figsize=(7, 2.4), layout="tight")
    axes = figure.subplots()
    rates = [min(100 * clip.rate, 102.5) for clip in suite.clips]
    axes.hist(rates, bins=[5 * edge for edge in range(22)], color="#4878a8", edgecolor="white")
    axes.axvline(100 * suite.rate, color="#b03030", linewidth=1)
    axes.set(
        xlabel=f"{suite.metric.upper()} of the clip, % (line: all clips together)",
        ylabel="clips",
        xlim=(0, 105),
    )
    return as_svg(figure)


HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto; }}
th, td {{ padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }}
small {{ color: #666; }}
"""
"""How every report's page begins; a page adds styles of its own and closes them."""
PAGE = (
    HEAD
    + """body {{ max-width: 70rem; }}
th:first-child, td:first-child {{ text-align: left; }}
svg {{ max-width: 100%; height: auto; }}
del {{ background: #fbdcd9; color: #8c1d18; }}
ins {{ background: #d8f0dc; color: #14532d; text-decoration: none; }}
.failed {{ color: #8c1d18; }}
</style>
<h1>{title}</h1>
{table}
<p><small>{conditions}</small></p>
<p><small><del>said</del>, not written; <ins>written</ins>, not said. Texts are normalised.</small></p>
{sections}
</html>
"""
)

SECTION = """<h2>{heading}</h2>
{histogram}
<h3>The worst clips ({num_wrong} of {num_clips} have an error)</h3>
{clips}
"""
