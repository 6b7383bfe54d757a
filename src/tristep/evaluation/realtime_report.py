"""What an evaluation of conversations found, as a value: written as JSON, printed as a table, drawn as one page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from matplotlib.figure import Figure
from rich.table import Table

from tristep.evaluation.report import HEAD, Conditions, Record, as_svg, conditions_line, html_table, write_beside
from tristep.evaluation.tts_report import Estimate

NUM_SHOWN = 12
"""How many dialogues of each model the page shows: those with the most violations first."""


class Latency(Record):
    """How long it took, each answer alone; from the prompt on."""

    num_timed: int
    p50_ms: float
    p95_ms: float
    times_ms: tuple[float, ...]


class AnswerResult(Record):
    """One turn."""

    said: str
    """What the user said, as it was written."""
    heard: str | None
    """What the model understood, where it was given sound."""
    answer: str
    violations: tuple[str, ...]
    """What is out of character by the rules."""
    gain: float | None
    """How much likelier the answer is after its own turn than after another one, in nats a token."""


class DialogueResult(Record):
    """One dialogue."""

    id: str
    persona: str
    """As the model was told."""
    answers: tuple[AnswerResult, ...]
    habits_shown: float | None
    """Share of the answers with a verbal habit of the card."""

    @property
    def num_violated(self) -> int:
        """Answers that are out of character."""
        return sum(bool(answer.violations) for answer in self.answers)


class ModelResult(Record):
    """One model in all dialogues; rates are fractions."""

    name: str
    in_character: Estimate
    """Answers in which the rules find nothing."""
    whole_dialogues: Estimate
    """Dialogues in which they find nothing."""
    relevant: Estimate | None
    """Answers that are likelier after their own turn than after another; chance is one half."""
    habits_shown: Estimate | None
    """Answers with a verbal habit of the card, where it has one."""
    num_words: float
    """Mean length of an answer."""
    first_text: Latency | None
    first_audio: Latency | None
    dialogues: tuple[DialogueResult, ...]

    def in_character_by_turn(self) -> list[float]:
        """Return the share of answers in character at each place of a dialogue."""
        turns = zip(*(dialogue.answers for dialogue in self.dialogues), strict=True)
        return [sum(not answer.violations for answer in turn) / len(turn) for turn in turns]


class RealtimeReport(Record):
    """One or more models in the same dialogues."""

    models: tuple[ModelResult, ...]
    conditions: Conditions
    wall_s: float


HEADERS = (
    "model", "dialogues", "in character", "95 % interval", "whole dialogues", "relevant", "95 % interval",
    "habits", "95 % interval", "words", "first text p50 / p95", "first audio p50 / p95",
)  # fmt: skip


def cells(model: ModelResult) -> tuple[str, ...]:
    """Lay out one row."""
    return (
        model.name,
        str(len(model.dialogues)),
        f"{model.in_character.mean:.1%}",
        interval(model.in_character),
        f"{model.whole_dialogues.mean:.1%}",
        f"{model.relevant.mean:.1%}" if model.relevant else "-",
        interval(model.relevant) if model.relevant else "-",
        f"{model.habits_shown.mean:.0%}" if model.habits_shown else "-",
        interval(model.habits_shown) if model.habits_shown else "-",
        f"{model.num_words:.1f}",
        *(
            f"{each.p50_ms:.0f} / {each.p95_ms:.0f} ms" if each else "-"
            for each in (model.first_text, model.first_audio)
        ),
    )


def interval(estimate: Estimate) -> str:
    """Write an interval."""
    return f"{estimate.low:.1%} - {estimate.high:.1%}"


def as_table(report: RealtimeReport) -> Table:
    """Lay a report out for the terminal: one row a model, the conditions below."""
    table = Table(caption=conditions_line(report.conditions), caption_justify="left")
    for column in HEADERS:
        table.add_column(column, justify="left" if column == "model" else "right")
    for model in report.models:
        table.add_row(*cells(model))
    return table


def read_json(path: str | Path) -> RealtimeReport:
    """Read a report that `write_report` wrote."""
    return RealtimeReport.model_validate_json(Path(path).read_text(encoding="utf-8"))


def write_report(report: RealtimeReport, path: str | Path) -> tuple[Path, Path]:
    """Write the JSON at `path` and the page beside it, and return both paths."""
    return write_beside(report, as_page(report), path)


def as_page(report: RealtimeReport) -> str:
    """Draw a report as one page that needs nothing else."""
    return PAGE.format(
        title=escape(f"Conversations with {report.conditions.model}"),
        table=html_table(HEADERS, map(cells, report.models)),
        plots=plots(report.models),
        conditions=escape(conditions_line(report.conditions)),
        sections="\n".join(section(model) for model in report.models),
    )


def plots(models: Sequence[ModelResult]) -> str:
    """Draw how character holds from turn to turn, and how long first words take, as inline SVG."""
    figure = Figure(figsize=(9, 2.8), layout="tight")
    drift, delay = figure.subplots(1, 2)
    for model in models:
        rates = model.in_character_by_turn()
        drift.plot(range(1, len(rates) + 1), [100 * rate for rate in rates], marker="o", label=model.name)
        for name, times in (("text", model.first_text), ("audio", model.first_audio)):
            if times:
                shares = [100 * (place + 1) / times.num_timed for place in range(times.num_timed)]
                delay.step(sorted(times.times_ms), shares, where="post", label=f"{model.name}, {name}")
    drift.set(xlabel="turn", ylabel="answers in character, %", ylim=(0, 105))
    delay.set(xlabel="time to the first text or sound, ms", ylabel="answers, %", ylim=(0, 105))
    for axes in (drift, delay):
        if axes.get_lines():
            axes.legend(fontsize="small", loc="upper right")
    return as_svg(figure)


def section(model: ModelResult) -> str:
    """Show dialogues of one model, the worst first."""
    ranked = sorted(model.dialogues, key=lambda dialogue: -dialogue.num_violated)[:NUM_SHOWN]
    parts = (f"<h3>{escape(each.id)}</h3><p><small>{escape(each.persona)}</small></p>{said(each)}" for each in ranked)
    return f"<h2>{escape(model.name)}</h2>\n" + "\n".join(parts)


def said(dialogue: DialogueResult) -> str:
    """Write one dialogue."""
    return "<dl>" + "".join(line for answer in dialogue.answers for line in lines(answer)) + "</dl>"


def lines(answer: AnswerResult) -> Iterator[str]:
    """Write one turn."""
    heard = "" if answer.heard is None else f" <small>heard: {escape(answer.heard)}</small>"
    wrong = "".join(f" <mark>{escape(each)}</mark>" for each in answer.violations)
    gain = "" if answer.gain is None else f" <small>{answer.gain:+.2f}</small>"
    yield f"<dt>{escape(answer.said)}{heard}</dt><dd>{escape(answer.answer)}{wrong}{gain}</dd>"


PAGE = (
    HEAD
    + """th:first-child, td:first-child {{ text-align: left; }}
svg {{ max-width: 100%; height: auto; }}
dt {{ color: #444; }}
dd {{ margin: 0 0 .4rem 1.5rem; }}
mark {{ background: #fbdcd9; color: #8c1d18; }}
</style>
<h1>{title}</h1>
{table}
{plots}
<p><small>In character: answers in which the rules find nothing; a floor, not a judgement. Relevant: answers that the
text model finds likelier after their own turn than after one of another dialogue (the number behind an answer, in nats
a token); chance is 50 %. Intervals are over dialogues.</small></p>
<p><small>{conditions}</small></p>
{sections}
</html>
"""
)
