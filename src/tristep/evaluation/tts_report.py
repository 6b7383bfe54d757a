"""What an evaluation of speech found, as a value: written as JSON, printed as tables, drawn as one page to listen to.

Rates are fractions. A sentence that could not be said counts as if nothing had been said, so that failing never
looks better than trying. Similarities come on two scales (`speech.rectified_similarity`).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

import soundfile
from matplotlib.image import imsave
from rich.table import Table
from torch import Tensor

from tristep.audio import SPEAK_HZ, speech_mel
from tristep.evaluation.report import HEAD, Conditions, Edit, Record, alignment, html_table, write_beside
from tristep.evaluation.speech import Delivery

STOP = "stop"
"""The reason to finish of a sentence that was said to its end; every other one is a guard that stepped in."""
NUM_WORST, NUM_OTHERS = 16, 8
"""How many sentences of a table the page plays: the worst, and the first of the others."""
PICTURE_RANGE = (-10.0, 3.0)
"""The range of the log-mel that pictures show."""


class Estimate(Record):
    """A mean over sentences."""

    mean: float
    low: float
    """Lower end of the 95 % interval (bootstrap over sentences)."""
    high: float
    """Upper end of the 95 % interval."""


class SentenceResult(Record):
    """One sentence as it was said and judged; the texts are normalised."""

    id: str
    """Name of the sentence, unique in the report."""
    prompt: str
    """What was to be said, as it was given."""
    voice: str | None
    """The voice that was asked for."""
    instructions: str | None
    """How it was to be said."""
    directive: str
    """Name of the directive that is tested; empty in the plain reading."""
    reference: str
    """The words that were to be said, without cues."""
    heard: str
    """The words that the recogniser heard."""
    substitutions: int
    deletions: int
    insertions: int
    num_units: int
    """Words in the reference."""
    duration_s: float
    """Length of the waveform."""
    compute_s: float
    """Time that it took to make."""
    first_audio_s: float | None
    """Time to the first samples."""
    finish_reason: str
    """How it ended: `stop`, or the guard that stepped in."""
    mos: float | None
    """Predicted mean opinion score, 1 to 5."""
    similarity: float | None
    """CAM++ against the voice that was asked for."""
    rectified_similarity: float | None
    """The same on the scale of copies of CAM++ with a last rectifier."""
    delivery: Delivery | None
    """Pitch, rate, pauses, level; None where nothing was said."""
    error: str | None = None
    """Why it failed, if it did."""

    @property
    def num_errors(self) -> int:
        """Substitutions, deletions and insertions together."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def failed(self) -> bool:
        """Whether it raised an error, or a guard stepped in."""
        return self.error is not None or self.finish_reason != STOP


class VoiceResult(Record):
    """The plain readings in one voice."""

    voice: str
    """The voice, as it was asked for."""
    num_sentences: int
    num_failed: int
    """Sentences that raised an error or that a guard ended."""
    wer: Estimate
    """Words wrong over words, by the recogniser; all sentences together."""
    mos: Estimate | None
    similarity: Estimate | None
    rectified_similarity: Estimate | None
    median_f0_hz: float | None
    """Median over the sentences of their median pitch."""
    f0_spread: float | None
    """Mean standard deviation of the pitch inside a sentence, semitones."""
    words_per_s: float | None
    minutes: float
    """Length of what was said."""
    real_time_factor: float
    """Compute time over audio time; lower is better."""
    first_audio_ms: float | None
    """Median time to the first samples."""
    first_audio_p95_ms: float | None


class DirectiveResult(Record):
    """What came of one way of asking, against the plain readings of the same sentences by the same voice and seed."""

    name: str
    kind: str
    """`instruction` for the whole text, or `cue` inside it."""
    feature: str
    """The field of `Delivery` that has to move."""
    upwards: bool
    """Whether it has to rise."""
    num_sentences: int
    moved: Estimate
    """Share of the sentences in which it moved as asked; chance moves it in one half."""
    clear: Estimate | None = None
    """Share in which nobody could miss that it did (`tts.CLEAR`); None in reports of an older kind."""
    plain: float
    """Mean of the feature in the plain readings."""
    directed: float
    """Mean of the feature as directed."""
    spoken: float
    """Share of the sentences in which words of the cue or the instructions were read aloud."""
    wer: float
    """Words wrong over words in the directed readings, words of the cue that were read aloud included."""


class TtsReport(Record):
    """How one synthesiser speaks."""

    voices: tuple[VoiceResult, ...]
    directives: tuple[DirectiveResult, ...]
    sentences: tuple[SentenceResult, ...]
    """Every sentence, plain and directed."""
    judges: tuple[str, ...]
    """Who listened."""
    conditions: Conditions
    wall_s: float


def read_json(path: str | Path) -> TtsReport:
    """Read a report that `write_report` wrote."""
    return TtsReport.model_validate_json(Path(path).read_text(encoding="utf-8"))


def write_report(report: TtsReport, waveforms: Mapping[str, Tensor], path: str | Path) -> tuple[Path, Path]:
    """Write the JSON at `path` and the page beside it, and return both paths."""
    return write_beside(report, as_page([report], {report.conditions.model: waveforms}), path)


VOICE_HEADERS = (
    "model", "voice", "sentences", "WER", "95 % interval", "MOS", "similarity", "rectified", "pitch, Hz", "spread, st",
    "words/s", "minutes", "real-time factor", "first audio, ms", "95th", "failed",
)  # fmt: skip
DIRECTIVE_HEADERS = (
    "model", "directive", "kind", "sentences", "feature", "asked", "moved as asked", "95 % interval",
    "clearly", "95 % interval", "plain", "directed", "read aloud", "WER",
)  # fmt: skip


def voice_table(reports: Sequence[TtsReport]) -> Table:
    """Lay the plain readings out for the terminal: one row for each synthesiser and voice."""
    return _table(VOICE_HEADERS, [row for report in reports for row in _voice_rows(report)], _below(reports))


def directive_table(reports: Sequence[TtsReport]) -> Table:
    """Lay the directed readings out for the terminal: one row for each synthesiser and directive."""
    return _table(DIRECTIVE_HEADERS, [row for report in reports for row in _directive_rows(report)], None)


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]], caption: str | None) -> Table:
    table = Table(caption=caption, caption_justify="left")
    for column in headers:
        table.add_column(column, justify="left" if column in ("model", "voice", "directive", "kind") else "right")
    for row in rows:
        table.add_row(*row)
    return table


def _voice_rows(report: TtsReport) -> Iterator[tuple[str, ...]]:
    for voice in report.voices:
        yield (
            report.conditions.model,
            voice.voice,
            str(voice.num_sentences),
            f"{voice.wer.mean:.2%}",
            f"{voice.wer.low:.2%} - {voice.wer.high:.2%}",
            _with_interval(voice.mos),
            _with_interval(voice.similarity),
            _with_interval(voice.rectified_similarity),
            _number(voice.median_f0_hz, ".0f"),
            _number(voice.f0_spread, ".1f"),
            _number(voice.words_per_s, ".2f"),
            f"{voice.minutes:.1f}",
            f"{voice.real_time_factor:.3f}",
            _number(voice.first_audio_ms, ".0f"),
            _number(voice.first_audio_p95_ms, ".0f"),
            str(voice.num_failed),
        )


def _directive_rows(report: TtsReport) -> Iterator[tuple[str, ...]]:
    for directive in report.directives:
        yield (
            report.conditions.model,
            directive.name,
            directive.kind,
            str(directive.num_sentences),
            directive.feature,
            "up" if directive.upwards else "down",
            f"{directive.moved.mean:.0%}",
            f"{directive.moved.low:.0%} - {directive.moved.high:.0%}",
            f"{directive.clear.mean:.0%}" if directive.clear else "",
            f"{directive.clear.low:.0%} - {directive.clear.high:.0%}" if directive.clear else "",
            f"{directive.plain:.2f}",
            f"{directive.directed:.2f}",
            f"{directive.spoken:.1%}",
            f"{directive.wer:.2%}",
        )


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _with_interval(estimate: Estimate | None) -> str:
    return "" if estimate is None else f"{estimate.mean:.2f} ± {(estimate.high - estimate.low) / 2:.2f}"


def _below(reports: Sequence[TtsReport]) -> str:
    """Say under what conditions the reports came about; what differs between them is in the JSON."""
    fields = reports[0].conditions.model_dump(exclude={"model", "batch_size"}).items()
    judges = ", ".join(reports[0].judges)
    return "; ".join([f"judges {judges}", *(f"{name.replace('_', ' ')} {value}" for name, value in fields)])


def as_page(reports: Sequence[TtsReport], waveforms: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Draw reports as one page that needs nothing else: the tables, and sentences to listen to and to look at.

    Args:
        reports: One for each synthesiser.
        waveforms: What was said, by the synthesiser's name and then the sentence's id; 24 kHz, shape `(S,)`.
    """
    directed = [row for report in reports for row in _directive_rows(report)]
    return PAGE.format(
        title=escape("Speech by " + ", ".join(report.conditions.model for report in reports)),
        voices=html_table(VOICE_HEADERS, [row for report in reports for row in _voice_rows(report)]),
        directives=html_table(DIRECTIVE_HEADERS, directed) if directed else "",
        conditions=escape(_below(reports)),
        sections="\n".join(_section(report, waveforms[report.conditions.model]) for report in reports),
    )


def _section(report: TtsReport, waveforms: Mapping[str, Tensor]) -> str:
    plain = [sentence for sentence in report.sentences if not sentence.directive]
    directed = [sentence for sentence in report.sentences if sentence.directive]
    heading = f"<h2>{escape(report.conditions.model)}</h2>"
    parts = [heading, "<h3>Plain: the worst first</h3>", *_players(worst_first(plain), waveforms)]
    if directed:
        firsts = list({sentence.directive: sentence for sentence in reversed(directed)}.values())[::-1]
        parts += ["<h3>As directed: the first of each, and the worst</h3>"]
        parts += _players([*firsts, *(s for s in worst_first(directed) if s not in firsts)], waveforms)
    return "\n".join(parts)


def worst_first(sentences: Sequence[SentenceResult]) -> list[SentenceResult]:
    """Choose what the page plays: those that failed or have the most errors, then the first of the others."""

    def badness(sentence: SentenceResult) -> tuple[bool, float, float]:
        return sentence.failed, sentence.num_errors / max(1, sentence.num_units), -(sentence.mos or 0.0)

    ranked = sorted((s for s in sentences if s.failed or s.num_errors), key=badness, reverse=True)[:NUM_WORST]
    return ranked + [sentence for sentence in sentences if sentence not in ranked][:NUM_OTHERS]


def _players(sentences: Sequence[SentenceResult], waveforms: Mapping[str, Tensor]) -> list[str]:
    return [_player(sentence, waveforms.get(sentence.id)) for sentence in sentences]


def _player(sentence: SentenceResult, waveform: Tensor | None) -> str:
    facts = (
        ("voice", sentence.voice),
        ("asked", sentence.instructions),
        ("MOS", _number(sentence.mos, ".2f")),
        ("similarity", _number(sentence.similarity, ".2f")),
        ("", f"{sentence.duration_s:.1f} s"),
        ("ended by", sentence.finish_reason if sentence.failed else ""),
        ("", sentence.error),
    )
    told = ", ".join(f"{name} {value}".strip() for name, value in facts if value)
    words = " ".join(map(_coloured, alignment(sentence.reference, sentence.heard)))
    sound = "" if waveform is None or not len(waveform) else _sound(waveform)
    return (
        f"<section><b>{escape(sentence.id)}</b> {escape(sentence.prompt)}<br>{words}<br>"
        f"<small>{escape(told)}</small><br>{sound}</section>"
    )


def _coloured(edit: Edit) -> str:
    if edit.kind == "equal":
        return escape(edit.reference)
    gone = f"<del>{escape(edit.reference)}</del>" if edit.reference else ""
    added = f"<ins>{escape(edit.hypothesis)}</ins>" if edit.hypothesis else ""
    return f"{gone}{added}"


def _sound(waveform: Tensor) -> str:
    sound, picture = _data_url("audio/mpeg", _write_mp3, waveform), _data_url("image/png", _write_picture, waveform)
    return f'<audio controls preload="none" src="{sound}"></audio><img alt="log-mel spectrogram" src="{picture}">'


def _data_url(kind: str, write: Callable[[io.BytesIO, Tensor], None], waveform: Tensor) -> str:
    file = io.BytesIO()
    write(file, waveform)
    return f"data:{kind};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def _write_mp3(file: io.BytesIO, waveform: Tensor) -> None:
    samples = waveform.detach().cpu().float().clamp(-1, 1).numpy()
    soundfile.write(file, samples, SPEAK_HZ, format="MP3", compression_level=0.7)


def _write_picture(file: io.BytesIO, waveform: Tensor) -> None:
    low, high = PICTURE_RANGE
    mel = speech_mel(waveform.detach().cpu().float()[None])[0, :, ::2]  # (80, F / 2)
    imsave(file, mel.numpy(), vmin=low, vmax=high, cmap="magma", origin="lower", format="png")


PAGE = (
    HEAD
    + """th:nth-child(-n+2), td:nth-child(-n+2) {{ text-align: left; }}
section {{ margin: 1rem 0; }}
audio {{ height: 2.5rem; vertical-align: middle; }}
img {{ height: 5rem; vertical-align: middle; margin-left: .5rem; image-rendering: pixelated; }}
del {{ background: #fbdcd9; color: #8c1d18; }}
ins {{ background: #d8f0dc; color: #14532d; text-decoration: none; }}
</style>
<h1>{title}</h1>
{voices}
{directives}
<p><small>{conditions}</small></p>
<p><small>Below, <del>to be said</del>, not heard; <ins>heard</ins>, not to be said. Texts are normalised.</small></p>
{sections}
</html>
"""
)
