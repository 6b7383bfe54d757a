"""Measure a synthesiser: is it understood, does it sound well and like the voice, does it do as it is told.

The synthesiser is handed in as a function of text, so this project's engine and its peers are measured by the same
code and the same judges. Sentences are read plainly first. Then some are read under directives, each an instruction
for the whole text or a cue in round brackets inside it, and compared with their plain reading by the same voice with
the same seed: the feature that a directive names has to move in its direction, and its words must not be read aloud.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from tristep.audio import SPEAK_HZ
from tristep.codec.speaker import similarity
from tristep.evaluation.asr import SEED, conditions
from tristep.evaluation.speech import Delivery, Judges, delivery, rectified_similarity
from tristep.evaluation.tts_report import STOP, DirectiveResult, Estimate, SentenceResult, TtsReport, VoiceResult
from tristep.text import NUM_RESAMPLES, bootstrap_interval, normalise, word_errors

MIN_JUDGED = SPEAK_HZ // 10
"""Samples below which there is nothing to judge."""
MIN_LETTERS = 4
"""Letters of a word that tells that a directive was read aloud."""
NUM_DIRECTED = 40
"""Sentences that each directive is tried on."""


@dataclass(frozen=True)
class Spoken:
    """What a synthesiser made of one text."""

    waveform: Tensor
    """24 kHz, shape `(S,)`."""
    finish_reason: str = STOP
    """`stop`, or the guard that stepped in."""
    seconds: float = 0.0
    """Compute time."""
    first_audio_s: float | None = None
    """Time until the first samples could be played."""


CLEAR = {"words_per_s": 0.15, "median_f0_hz": 1 / 12, "level_db": 3.0, "pause_s": 0.2, "longest_pause_s": 0.2}
"""Changes that nobody misses: a tenth of the pace, a semitone (both in octaves), dB, seconds."""
RATIOS = ("words_per_s", "median_f0_hz")
"""What is compared by its ratio."""
LEAST = 1e-3
"""What counts as none of that, so that it can be compared."""
Synthesise = Callable[[str, str | None, str | None, int], Spoken]
"""A synthesiser: text, voice, instructions, seed -> what it said."""


@dataclass(frozen=True)
class Directive:
    """A way of asking how to speak, and how to see whether it was heeded."""

    name: str
    wording: str
    """The words of the instruction, or of the cue."""
    feature: str
    """The field of `Delivery` that has to move."""
    upwards: bool
    """Whether it has to rise."""
    kind: str = "instruction"
    """`instruction`; `cue` for one before the text, `cue inside` for one in its middle."""
    place: int = 0
    """Which of several directives it is, counted from 1; 0 for one that stands alone."""

    def prompt(self, plain: Prompt) -> Prompt:
        """Ask for a sentence in this way."""
        number = f" {self.place}" if self.place else ""
        directed = replace(plain, id=f"{plain.id} {self.name}{number}", directive=self)
        if self.kind == "instruction":
            return replace(directed, instructions=self.wording)
        words = plain.text.split()
        words.insert(len(words) // 2 if self.kind == "cue inside" else 0, f"({self.wording})")
        return replace(directed, text=" ".join(words))


INSTRUCTIONS = (
    Directive("slow", "Speak slowly.", "words_per_s", upwards=False),
    Directive("fast", "Speak fast.", "words_per_s", upwards=True),
    Directive("high", "Speak in a high voice.", "median_f0_hz", upwards=True),
    Directive("low", "Speak in a low voice.", "median_f0_hz", upwards=False),
    Directive("whisper", "Speak in a whisper.", "level_db", upwards=False),
    Directive("loud", "Speak loudly.", "level_db", upwards=True),
    Directive("long pauses", "Speak with long pauses.", "pause_s", upwards=True),
)
CUES = (
    Directive("(slowly)", "slowly", "words_per_s", upwards=False, kind="cue"),
    Directive("(quickly)", "quickly", "words_per_s", upwards=True, kind="cue"),
    Directive("(whispering)", "whispering", "level_db", upwards=False, kind="cue"),
    Directive("(loudly)", "loudly", "level_db", upwards=True, kind="cue"),
    Directive("(long pause)", "long pause", "longest_pause_s", upwards=True, kind="cue inside"),
)


@dataclass(frozen=True)
class Prompt:
    """One thing to say."""

    id: str
    """Its name, unique among the prompts."""
    text: str
    """What to say, cues included."""
    voice: str | None = None
    instructions: str | None = None
    reference: str = ""
    """The words that should be heard."""
    directive: Directive | None = None
    plain_id: str = ""
    """The prompt of the plain reading."""


@dataclass(frozen=True)
class Measured:
    """A report, and the sound that it is about."""

    report: TtsReport
    waveforms: dict[str, Tensor] = field(repr=False)
    """What was said, by the prompt's id; 24 kHz."""


def evaluate_tts(
    synthesise: Synthesise,
    prompts: Sequence[Prompt],
    judges: Judges,
    *,
    targets: Mapping[str, Tensor] | None = None,
    model: str = "",
    seed: int = 0,
    language: str = "en",
    progress: bool = True,
) -> Measured:
    """Measure a synthesiser.

    Args:
        synthesise: The synthesiser.
        prompts: What to say (`build_prompts`).
        judges: Who listens.
        targets: Embeddings of the voices, by their names; a voice that has none is not compared.
        model: How the report names the synthesiser.
        seed: Handed over with every text.
        language: Language of the texts.
        progress: Whether to draw a progress bar to standard error.

    Raises:
        ValueError: If there is nothing to say, or two prompts have the same id.
    """
    if not prompts or len({prompt.id for prompt in prompts}) < len(prompts):
        raise ValueError(f"{len(prompts)} prompts: expected at least one, each with an id of its own; rename them")
    start = time.perf_counter()
    draw = partial(track, console=Console(stderr=True), disable=not progress)
    # The threads of a recogniser go on for a while after it: who speaks between two sentences shares the processor.
    readings = [attempt(synthesise, prompt, seed) for prompt in draw(prompts, f"{model} speaks:")]
    results = [
        judge(prompt, *reading, judges, (targets or {}).get(prompt.voice or ""), language)
        for prompt, reading in draw(list(zip(prompts, readings, strict=True)), f"{model} is judged:")
    ]
    waveforms = {prompt.id: spoken.waveform for prompt, (spoken, _) in zip(prompts, readings, strict=True)}
    report = TtsReport(
        voices=tuple(summarise_voices(results)),
        directives=tuple(summarise_directives(prompts, results)),
        sentences=tuple(results),
        judges=judges.names,
        conditions=conditions(model, 1),
        wall_s=time.perf_counter() - start,
    )
    return Measured(report, waveforms)


def attempt(synthesise: Synthesise, prompt: Prompt, seed: int) -> tuple[Spoken, str | None]:
    """Say one prompt; a failure is silence with its reason."""
    start = time.perf_counter()
    try:
        spoken = synthesise(prompt.text, prompt.voice, prompt.instructions, seed)
        return replace(spoken, waveform=spoken.waveform.detach().cpu().float()), None
    except Exception as error:  # a peer may raise anything; the report carries what it raised
        silence = Spoken(torch.zeros(0), "error", time.perf_counter() - start)
        return silence, f"{type(error).__name__}: {error}"


def judge(
    prompt: Prompt, spoken: Spoken, error: str | None, judges: Judges, target: Tensor | None, language: str
) -> SentenceResult:
    """Let the judges hear one sentence."""
    audible = len(spoken.waveform) >= MIN_JUDGED and bool(spoken.waveform.any())
    reference = normalise(prompt.reference or prompt.text, language)
    heard = normalise(judges.recognise(spoken.waveform), language) if audible else ""
    errors = word_errors(reference, heard)
    likeness, rectified = compare(judges, spoken.waveform, target) if audible else (None, None)
    return SentenceResult(
        id=prompt.id,
        prompt=prompt.text,
        voice=prompt.voice,
        instructions=prompt.instructions,
        directive=prompt.directive.name if prompt.directive else "",
        reference=reference,
        heard=heard,
        substitutions=errors.substitutions,
        deletions=errors.deletions,
        insertions=errors.insertions,
        num_units=errors.num_units,
        duration_s=len(spoken.waveform) / SPEAK_HZ,
        compute_s=spoken.seconds,
        first_audio_s=spoken.first_audio_s,
        finish_reason=spoken.finish_reason,
        mos=judges.rate(spoken.waveform) if judges.rate and audible else None,
        similarity=likeness,
        rectified_similarity=rectified,
        delivery=delivery(spoken.waveform, reference) if audible else None,
        error=error,
    )


def compare(judges: Judges, waveform: Tensor, target: Tensor | None) -> tuple[float | None, float | None]:
    """Return how like its voice a waveform is, on both scales, where there is a judge and a voice."""
    if judges.embed is None or target is None:
        return None, None
    embedding = judges.embed(waveform)
    return similarity(embedding, target), rectified_similarity(embedding, target)


def summarise_voices(results: Sequence[SentenceResult]) -> Iterable[VoiceResult]:
    """Sum up the plain readings, voice by voice."""
    plain = [result for result in results if not result.directive]
    for voice in dict.fromkeys(result.voice for result in plain):
        yield summarise_voice(voice or "", [result for result in plain if result.voice == voice])


def summarise_voice(voice: str, results: Sequence[SentenceResult]) -> VoiceResult:
    """Sum up the plain readings of one voice."""
    deliveries = [result.delivery for result in results if result.delivery]
    audio_s = sum(result.duration_s for result in results)
    first_ms = [1000 * result.first_audio_s for result in results if result.first_audio_s is not None]
    pitches = [each.median_f0_hz for each in deliveries if each.median_f0_hz > 0]
    return VoiceResult(
        voice=voice,
        num_sentences=len(results),
        num_failed=sum(result.failed for result in results),
        wer=ratio([result.num_errors for result in results], [result.num_units for result in results]),
        mos=mean([result.mos for result in results]),
        similarity=mean([result.similarity for result in results]),
        rectified_similarity=mean([result.rectified_similarity for result in results]),
        median_f0_hz=float(np.median(pitches)) if pitches else None,
        f0_spread=float(np.mean([each.f0_spread for each in deliveries])) if deliveries else None,
        words_per_s=float(np.mean([each.words_per_s for each in deliveries])) if deliveries else None,
        minutes=audio_s / 60,
        real_time_factor=sum(result.compute_s for result in results) / audio_s if audio_s else 0.0,
        first_audio_ms=float(np.median(first_ms)) if first_ms else None,
        first_audio_p95_ms=float(np.percentile(first_ms, 95)) if first_ms else None,
    )


def summarise_directives(prompts: Sequence[Prompt], results: Sequence[SentenceResult]) -> Iterable[DirectiveResult]:
    """Compare the directed readings with the plain ones, one name after the other."""
    by_id = {result.id: result for result in results}
    for name in dict.fromkeys(prompt.directive.name for prompt in prompts if prompt.directive):
        yield summarise_directive(
            [(p.directive, by_id[p.id], by_id[p.plain_id]) for p in prompts if p.directive and p.directive.name == name]
        )


Directed = tuple[Directive, SentenceResult, SentenceResult]
"""A way of asking, the reading that came of it, and the plain one."""


def summarise_directive(readings: Sequence[Directed]) -> DirectiveResult:
    """Compare directed readings with their plain ones; what was not said did not move."""
    directive, ones = readings[0][0], [1] * len(readings)
    moves = [movement(directive, directed.delivery, plain.delivery) for _, directed, plain in readings]
    wrong = sum(directed.num_errors for _, directed, _ in readings)
    return DirectiveResult(
        name=directive.name,
        kind=directive.kind,
        feature=directive.feature,
        upwards=directive.upwards,
        num_sentences=len(readings),
        moved=ratio([int(move > 0) for move in moves], ones),
        clear=ratio([int(move >= 1) for move in moves], ones),
        plain=mean_feature(directive, [plain.delivery for *_, plain in readings]),
        directed=mean_feature(directive, [directed.delivery for _, directed, _ in readings]),
        spoken=sum(read_aloud(way, directed) for way, directed, _ in readings) / len(readings),
        wer=wrong / max(1, sum(directed.num_units for _, directed, _ in readings)),
    )


def movement(directive: Directive, directed: Delivery | None, plain: Delivery | None) -> float:
    """Say how far the directive's feature moved as asked, in changes that nobody misses; below 0 the other way."""
    if directed is None or plain is None:
        return 0.0
    now, before = getattr(directed, directive.feature), getattr(plain, directive.feature)
    is_ratio = directive.feature in RATIOS
    change = math.log2(max(now, LEAST) / max(before, LEAST)) if is_ratio else now - before
    return (change if directive.upwards else -change) / CLEAR[directive.feature]


def mean_feature(directive: Directive, deliveries: Sequence[Delivery | None]) -> float:
    """Return the mean of the directive's feature over what was said."""
    values = [getattr(each, directive.feature) for each in deliveries if each]
    return float(np.mean(values)) if values else 0.0


def read_aloud(directive: Directive, result: SentenceResult) -> bool:
    """Say whether words of the directive were heard that are not in the sentence; small ones are misheard anyway."""
    wording = {word for word in normalise(directive.wording, "en").split() if len(word) >= MIN_LETTERS}
    return bool(wording & set(result.heard.split()) - set(result.reference.split()))


def ratio(parts: Sequence[int], wholes: Sequence[int]) -> Estimate:
    """Divide sums of counts, with an interval over sentences."""
    low, high = bootstrap_interval(np.array(parts), np.array(wholes), SEED)
    return Estimate(mean=sum(parts) / max(1, sum(wholes)), low=low, high=high)


def mean(values: Sequence[float | None]) -> Estimate | None:
    """Average what there is, with an interval over sentences; None where there is nothing."""
    known = np.array([value for value in values if value is not None])
    if not len(known):
        return None
    random = np.random.default_rng(SEED)
    draws = known[random.integers(0, len(known), (NUM_RESAMPLES, len(known)))].mean(axis=1)
    low, high = np.percentile(draws, [2.5, 97.5])
    return Estimate(mean=float(known.mean()), low=float(low), high=float(high))


def build_prompts(
    sentences: Mapping[str, str],
    voices: Sequence[str | None] = (None,),
    directives: Sequence[Directive] = (),
    num_directed: int = NUM_DIRECTED,
) -> list[Prompt]:
    """Ask for every sentence plainly in every voice, and for `num_directed` under every directive.

    Those are the first ones, or the next for each of several directives of a name.

    Args:
        sentences: What to say, by the sentences' names.
        voices: Names of voices; None is the synthesiser's own choice. Directives are tried on the first.
        directives: Ways of asking.
        num_directed: Sentences for each directive.
    """
    plain = [
        Prompt(id=f"{name} {voice}" if len(voices) > 1 else name, text=text, voice=voice, reference=text)
        for voice in voices
        for name, text in sentences.items()
    ]
    own = [replace(prompt, plain_id=prompt.id) for prompt in plain[: len(sentences)]]
    number = min(num_directed, len(own))
    places = [(directive, directive.place * number + n) for directive in directives for n in range(number)]
    return plain + [directive.prompt(own[place % len(own)]) for directive, place in places]


def read_directives(path: str | Path) -> tuple[Directive, ...]:
    """Read ways of asking, JSON lines as `python -m tristep.corpus.wordings` writes them.

    Raises:
        ValueError: If the file can't be read, or a line is none.
    """
    try:
        rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
        found = tuple(Directive(**row, place=place) for place, row in enumerate(rows, start=1))
    except (OSError, json.JSONDecodeError, TypeError) as error:
        raise ValueError(
            f"{str(path)!r} can't be read as directives ({error}): give JSON lines with name, wording, feature and "
            "upwards"
        ) from error
    if unknown := sorted({directive.feature for directive in found} - CLEAR.keys()):
        raise ValueError(f"{path}: there is no feature {unknown[0]!r}; expected some of {', '.join(CLEAR)}")
    return found


def read_sentences(path: str | Path, lines: str | None = None) -> dict[str, str]:
    """Read sentences, one a line; empty lines and those that begin with `#` are none.

    Args:
        path: A text file.
        lines: Which sentences, counted from 1, such as `601-720`; all if not given.

    Returns:
        The sentences by their numbers.

    Raises:
        ValueError: If the file can't be read, or has no such sentences.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(path)!r} can't be read as text ({error}): give a file of sentences") from error
    found = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    match = re.fullmatch(r"(\d+)-(\d+)", lines or f"1-{len(found)}")
    first, last = map(int, match.groups()) if match else (0, 0)
    if not 1 <= first <= last <= len(found):
        raise ValueError(f"{path} has {len(found)} sentences: asked for {lines!r}; expected two of them as FIRST-LAST")
    return {str(number): found[number - 1] for number in range(first, last + 1)}


def from_model(model: Any, **settings: Any) -> Synthesise:
    """Turn a loaded model into the function that `evaluate_tts` asks for; `settings` go to its `stream_speech`.

    Any model will do whose `stream_speech(text, voice=, instructions=, seed=)` yields waveforms at 24 kHz, shape
    `(S,)`, and has a `finish_reason` once it has ended.
    """
    if not hasattr(model, "stream_speech"):
        raise ValueError("this model has no codec and can't speak: give weights that were trained to")

    def synthesise(text: str, voice: str | None, instructions: str | None, seed: int) -> Spoken:
        start = time.perf_counter()
        stream = model.stream_speech(text, voice=voice, instructions=instructions or "", seed=seed, **settings)
        chunks, first_audio_s = [torch.zeros(0)], None
        for chunk in stream:
            first_audio_s = first_audio_s or time.perf_counter() - start
            chunks.append(chunk)
        return Spoken(torch.cat(chunks), stream.finish_reason, time.perf_counter() - start, first_audio_s)

    return synthesise
