"""Measure a recogniser: how many words it gets wrong, how sure that number is, and how long it takes.

The recogniser is handed in as a function of clips, so this project's engine and its peers are measured
by the same code. Nothing of a run is hidden: a clip that fails is kept with its error, and counts as if
nothing had been written.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from tristep.evaluation.report import AsrReport, ClipResult, Conditions, SuiteResult
from tristep.evaluation.suites import Clip, duration_s, read_clip
from tristep.text import NORMALISER, error_rate, normalise, scored_by_character, word_errors

SEED = 0
"""Seed of the bootstrap in `tristep.text.error_rate`."""


@dataclass(frozen=True)
class Hypothesis:
    """What a recogniser wrote for one clip."""

    text: str
    """The transcript."""
    language: str | None = None
    """The language that it heard, if it says so."""
    seconds: float = 0.0
    """Compute time for this clip, reading and decoding the sound included."""
    error: str | None = None
    """Why it failed, if it did."""


Transcribe = Callable[[list[Clip]], list[Hypothesis]]
"""A recogniser: one hypothesis for each clip, in their order."""


def evaluate_asr(
    transcribe: Transcribe,
    clips: Sequence[Clip] | Mapping[str, Sequence[Clip]],
    language: str | None = None,
    *,
    suite: str = "suite",
    model: str = "",
    batch_size: int = 1,
    progress: bool = True,
) -> AsrReport:
    """Measure a recogniser on one suite or on several.

    Args:
        transcribe: The recogniser.
        clips: The clips of one suite, or those of several by the suites' names.
        language: Score every clip in this language; otherwise each in its own.
        suite: Name of the suite, where there is one.
        model: How the report names the recogniser.
        batch_size: How many clips are handed over at once. With more than one, clips of similar
            length go together.
        progress: Whether to draw a progress bar to standard error.

    Raises:
        ValueError: If there is nothing to measure, or `transcribe` returns too few or too many hypotheses.
    """
    suites = clips if isinstance(clips, Mapping) else {suite: clips}
    if not any(suites.values()):
        raise ValueError("there are no clips to transcribe: give a suite with at least one clip")
    start = time.perf_counter()
    results: list[SuiteResult] = []
    for name, suite_clips in suites.items():
        hypotheses = _transcribe_all(transcribe, suite_clips, batch_size, f"{name}:" if progress else None)
        for code in dict.fromkeys(language or clip.language for clip in suite_clips):
            kept = [
                (clip, hypothesis)
                for clip, hypothesis in zip(suite_clips, hypotheses, strict=True)
                if (language or clip.language) == code
            ]
            results.append(score(name, code, kept))
    wall_s = time.perf_counter() - start
    return AsrReport(suites=tuple(results), conditions=conditions(model, batch_size), wall_s=wall_s)


def score(name: str, language: str, pairs: Sequence[tuple[Clip, Hypothesis]]) -> SuiteResult:
    """Score what was written for the clips of one suite in one language."""
    clips = tuple(_clip_result(clip, hypothesis, language) for clip, hypothesis in pairs)
    total = error_rate([clip.text for clip, _ in pairs], [hypothesis.text for _, hypothesis in pairs], language)
    return SuiteResult(
        name=name,
        language=language,
        metric="cer" if scored_by_character(language) else "wer",
        rate=total.rate,
        low=total.low,
        high=total.high,
        substitutions=total.substitutions,
        deletions=total.deletions,
        insertions=total.insertions,
        num_units=total.num_units,
        hours=sum(clip.duration_s for clip in clips) / 3600,
        compute_s=sum(clip.compute_s for clip in clips),
        clips=clips,
    )


def from_model(model: Any, **settings: Any) -> Transcribe:
    """Turn a loaded model into the function that `evaluate_asr` asks for; `settings` go to its `transcribe`.

    Any model will do whose `transcribe` takes a list of sounds and returns for each a result with `.text`.

    A whole file is handed over by its path, a stretch of one as a waveform. The time of a batch is
    shared out by the clips' lengths.
    """

    def transcribe(clips: list[Clip]) -> list[Hypothesis]:
        start = time.perf_counter()
        sources = [clip.path if clip.is_whole else read_clip(clip) for clip in clips]
        results = model.transcribe(sources, **settings)
        elapsed = time.perf_counter() - start
        lengths = [duration_s(clip) for clip in clips]
        return [
            Hypothesis(result.text, getattr(result, "language", None), elapsed * length / sum(lengths))
            for result, length in zip(results, lengths, strict=True)
        ]

    return transcribe


def conditions(model: str, batch_size: int) -> Conditions:
    """Describe this machine and this run."""
    return Conditions(
        model=model,
        normaliser=NORMALISER,
        seed=SEED,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        threads=torch.get_num_threads(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        torch=str(torch.__version__),
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        batch_size=batch_size,
    )


def _transcribe_all(
    transcribe: Transcribe, clips: Sequence[Clip], batch_size: int, title: str | None
) -> list[Hypothesis]:
    """Transcribe every clip; the hypotheses come in the clips' order."""
    written: dict[int, Hypothesis] = {}
    batches = _batches(clips, batch_size)
    for batch in track(batches, title or "", console=Console(stderr=True), disable=title is None):
        hypotheses = _transcribe_batch(transcribe, [clips[index] for index in batch])
        written |= zip(batch, hypotheses, strict=True)
    return [written[index] for index in range(len(clips))]


def _batches(clips: Sequence[Clip], batch_size: int) -> list[list[int]]:
    """Group clips by index; the longest first, so that what does not fit in memory is seen at once."""
    order = list(range(len(clips)))
    if batch_size > 1:
        order.sort(key=lambda index: clips[index].duration_s or 0.0, reverse=True)
    return [order[first : first + batch_size] for first in range(0, len(order), batch_size)]


def _transcribe_batch(transcribe: Transcribe, batch: list[Clip]) -> list[Hypothesis]:
    """Transcribe a batch; when it fails, each clip alone, so that only the broken one is lost."""
    start = time.perf_counter()
    try:
        hypotheses = transcribe(batch)
    except Exception as error:  # a peer may raise anything; the report carries what it raised
        if len(batch) == 1:
            seconds = time.perf_counter() - start
            return [Hypothesis("", seconds=seconds, error=f"{type(error).__name__}: {error}")]
        return [hypothesis for clip in batch for hypothesis in _transcribe_batch(transcribe, [clip])]
    if len(hypotheses) != len(batch):
        raise ValueError(
            f"the recogniser returned {len(hypotheses)} hypotheses for {len(batch)} clips: "
            "it must return one for each clip, in their order"
        )
    return hypotheses


def _clip_result(clip: Clip, hypothesis: Hypothesis, language: str) -> ClipResult:
    reference, written = normalise(clip.text, language), normalise(hypothesis.text, language)
    errors = word_errors(reference, written)
    return ClipResult(
        id=clip.id,
        reference=reference,
        hypothesis=written,
        substitutions=errors.substitutions,
        deletions=errors.deletions,
        insertions=errors.insertions,
        num_units=errors.num_units,
        duration_s=_known_duration_s(clip, hypothesis),
        compute_s=hypothesis.seconds,
        error=hypothesis.error,
    )


def _known_duration_s(clip: Clip, hypothesis: Hypothesis) -> float:
    """Return the clip's length; a file that could not be read has none and adds nothing to the hours."""
    if hypothesis.error is not None and clip.duration_s is None:
        return 0.0
    return duration_s(clip)
