"""Measure when a session speaks and when it is silent, in time as it passes.

A client is assumed that plays sound in the order in which it came, and stops when it is told that the user speaks.

* First audio: from the end of the user's last word to the first sound; answering: from the moment at which the session
  held the turn to be over. What lies between (hangover) is the wait for more words, and for a step that was under way.
* Real-time factor: from that moment to the last sound, over the length of the sound, while the user is listened to;
  gaps: how long playing it stood still. What comes in one piece has neither.
* Lowered, yielded: from the beginning of words spoken into an answer until it is lowered, and until it stops.
* A false stop: noise stopped an answer. Ended early: a pause was held for the end of a turn; took over: sound came
  before the user's last word was over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from tristep.audio import SPEAK_HZ
from tristep.engine.dialogue import (
    AudioDelta,
    Ducked,
    ResponseDone,
    SemanticVad,
    ServerVad,
    SessionSettings,
    SpeechStarted,
    SpeechStopped,
)
from tristep.engine.engine import Engine
from tristep.engine.session import Session
from tristep.engine.turns import SMART_TURN, EndOfTurn, SmartTurn
from tristep.evaluation.asr import conditions
from tristep.evaluation.tts import ratio
from tristep.evaluation.tts_report import Estimate
from tristep.evaluation.turn_cases import LEAD_S, Case, Kind, words_in
from tristep.evaluation.turn_driver import Chunk, Clock, Course, Talk, run
from tristep.evaluation.turn_report import CaseResult, DuplexResult, Spread, SystemResult, TurnsReport

YIELD_MS = 200.0
"""Who is spoken to should be silent by then."""
GOES_ON_S = 0.2
"""An answer that is spoken into has to go on for so long, for its end to mean anything."""
DETECTIONS: dict[str, ServerVad | SemanticVad] = {"server_vad": ServerVad(), "semantic_vad": SemanticVad()}
ALL_KINDS: tuple[Kind, ...] = ("question", "pause", "barge_in", "noise")
ENDS_OF_TURNS: tuple[Kind, ...] = ("question", "pause")
"""What depends on how turns end; how an answer is interrupted does not, as long as speech is found in the same way."""
System = Callable[[Case], Course]
"""What cases are tried on."""
Measures = Iterator[tuple[str, float | bool | None]]
"""Fields of a `CaseResult`."""


@dataclass(frozen=True)
class Sessions:
    """What cases are tried on: every time a new session."""

    engine: Engine
    settings: SessionSettings = field(default_factory=SessionSettings)
    end_of_turn: EndOfTurn | None = None
    """Judges for `SemanticVad` whether a turn sounds finished; the engine's if not given."""
    is_live: bool = True
    """Whether time in which nothing happens passes too."""

    def talk(self) -> Talk:
        """Begin to talk to one."""
        session = Session(self.engine, self.settings, end_of_turn=self.end_of_turn)
        return Talk(session, Clock(sleep=time.sleep if self.is_live else None))

    def __call__(self, case: Case) -> Course:
        return run(self.talk(), case)


def read_end_of_turn(folder: Path) -> EndOfTurn:
    """Load what judges whether a turn sounds finished.

    Raises:
        ValueError: If it is not there, or what it needs is not installed.
    """
    loaded = SmartTurn.load(folder)
    if loaded is None:
        raise ValueError(
            f"there is no {SMART_TURN} in {str(folder)!r}, or no onnxruntime: pip install 'tristep[realtime]'"
        )
    return loaded


def build_systems(
    engine: Engine, settings: SessionSettings, detections: Sequence[str], end_of_turn: EndOfTurn | None, is_live: bool
) -> dict[str, Sessions]:
    """Return sessions that find the ends of turns in several ways."""
    named = {name: replace(settings, turn_detection=DETECTIONS[name]) for name in detections}
    return {name: Sessions(engine, each, end_of_turn, is_live) for name, each in named.items()}


def evaluate_turns(
    systems: Mapping[str, System],
    cases: Sequence[Case],
    kinds: Mapping[str, Collection[Kind]] | None = None,
    *,
    duplex: Sequence[DuplexResult] = (),
    model: str = "",
    progress: bool = True,
) -> TurnsReport:
    """Try cases on systems: each case on all of them in turn, so that all have the same machine.

    Args:
        systems: By the names that the report gives them.
        cases: What they are tried on.
        kinds: Which kinds a system is tried on, by its name; all of them if not given.
        duplex: What Full-Duplex-Bench found.
        model: How the report names the weights.
        progress: Whether to draw a progress bar to standard error.

    Raises:
        ValueError: If there is nothing to try.
    """
    tries = [(name, case) for case in cases for name in systems if case.kind in (kinds or {}).get(name, ALL_KINDS)]
    if not tries and not duplex:
        raise ValueError("there are no cases: give recordings")
    start_s = time.perf_counter()
    for name, first in dict(reversed(tries)).items():
        systems[name](first)  # so that what is loaded once is loaded
    found: dict[str, list[CaseResult]] = {name: [] for name in systems}
    for name, case in track(tries, "cases:", console=Console(stderr=True), disable=not progress):
        found[name].append(measure(case, systems[name](case)))
    return TurnsReport(
        systems=tuple(summarise(name, results) for name, results in found.items() if results),
        duplex=tuple(duplex),
        conditions=conditions(model, 1),
        wall_s=time.perf_counter() - start_s,
    )


# One case


def measure(case: Case, course: Course) -> CaseResult:
    """Say what came of a case."""
    measures = {"question": answered, "pause": waited, "barge_in": yielded, "noise": went_on}
    found = CaseResult(id=case.id, kind=case.kind, what=case.what, answer=course.text(), lag_ms=1000 * course.lag_s)
    return found.model_copy(update=dict(measures[case.kind](case, course)))


def answered(case: Case, course: Course) -> Measures:
    """Time the answer to a question; the turn was over when it was last held to be."""
    last_word_s = course.begun_s + case.words[-1][1]
    stops = course.times(SpeechStopped)
    first_s = course.first(AudioDelta, stops[-1]) if stops else None
    yield "took_over", any(at_s < last_word_s for at_s in course.times(AudioDelta))
    if first_s is None:
        return
    chunks = [chunk for chunk in course.played() if chunk.start_s >= first_s]
    duration_s = sum(len(chunk.waveform) for chunk in chunks) / SPEAK_HZ
    yield "first_audio_ms", 1000 * (first_s - last_word_s)
    yield "answering_ms", 1000 * (first_s - stops[-1])
    yield "hangover_ms", 1000 * (stops[-1] - last_word_s)
    yield "silence_ms", silence_ms(torch.cat([chunk.waveform for chunk in chunks]))
    if len(chunks) == 1:
        return
    yield "gap_ms", 1000 * sum(max(0.0, after.start_s - before.end_s) for before, after in pairs(chunks))
    yield "real_time_factor", (course.times(AudioDelta)[-1] - stops[-1]) / duration_s


def waited(case: Case, course: Course) -> Measures:
    """Say whether a pause was waited through."""
    (_, pause_s), (_, last_word_s) = ((course.begun_s + at_s for at_s in stretch) for stretch in case.words)
    yield "ended_early", any(pause_s <= at_s < last_word_s for at_s in course.times(SpeechStopped))
    yield "took_over", any(pause_s <= at_s < last_word_s for at_s in course.times(AudioDelta))


def yielded(case: Case, course: Course) -> Measures:
    """Time how soon an answer stops that is spoken into; nothing where it was over by itself."""
    onset_s = course.begun_s + case.words[0][0]
    if not goes_on(course, onset_s):
        return
    lowered_s, stopped_s = course.first(Ducked, course.begun_s), course.first(SpeechStarted, course.begun_s)
    yield "is_stopped", stopped_s is not None
    yield "lowered_ms", None if lowered_s is None else 1000 * (lowered_s - onset_s)
    yield "yield_ms", None if stopped_s is None else 1000 * (stopped_s - onset_s)


def went_on(case: Case, course: Course) -> Measures:
    """Say whether an answer went on in spite of a noise; nothing where it was over by itself."""
    if goes_on(course, course.begun_s + LEAD_S):
        yield "is_stopped", course.first(SpeechStarted, course.begun_s) is not None


def goes_on(course: Course, at_s: float) -> bool:
    """Say whether there is an answer that would still go on after a time."""
    sounds = Course([(came_s, event) for came_s, event in course.events if isinstance(event, AudioDelta)])
    is_done = any(
        isinstance(event, ResponseDone) and event.response.status == "completed" and came_s <= at_s
        for came_s, event in course.events
    )
    chunks = [chunk for chunk in sounds.played() if chunk.start_s <= at_s]
    return bool(chunks) and (not is_done or sounds.played()[-1].end_s >= at_s + GOES_ON_S)


def silence_ms(waveform: Tensor) -> float | None:
    """Return how long an answer, shape `(S,)`, is silent before its first word."""
    words = words_in(waveform)
    return 1000 * words[0] if words else None


def pairs(chunks: Sequence[Chunk]) -> Iterator[tuple[Chunk, Chunk]]:
    """Return each piece of an answer with the one after it."""
    return ((one, other) for one, other in pairwise(chunks) if one.item_id == other.item_id)


# All cases


def summarise(name: str, results: Sequence[CaseResult]) -> SystemResult:
    """Sum up what one system did; intervals are over cases."""
    by_kind = {kind: [each for each in results if each.kind == kind] for kind in ALL_KINDS}
    questions, pauses = by_kind["question"], by_kind["pause"]
    interrupted = [each for each in by_kind["barge_in"] if each.is_stopped is not None]
    disturbed = [each for each in by_kind["noise"] if each.is_stopped is not None]
    return SystemResult(
        name=name,
        num_questions=len(questions),
        num_answered=sum(each.first_audio_ms is not None for each in questions),
        first_audio_ms=spread([each.first_audio_ms for each in questions]),
        answering_ms=spread([each.answering_ms for each in questions]),
        hangover_ms=spread([each.hangover_ms for each in questions]),
        silence_ms=spread([each.silence_ms for each in questions]),
        real_time_factor=spread([each.real_time_factor for each in questions]),
        gap_ms=spread([each.gap_ms for each in questions]),
        num_barge_ins=len(interrupted),
        yielded=share([each.yield_ms is not None and each.yield_ms <= YIELD_MS for each in interrupted]),
        lowered=share([each.lowered_ms is not None and each.lowered_ms <= YIELD_MS for each in interrupted]),
        yield_ms=spread([each.yield_ms for each in interrupted]),
        lowered_ms=spread([each.lowered_ms for each in interrupted]),
        num_noises=len(disturbed),
        false_stops=share([bool(each.is_stopped) for each in disturbed]),
        num_pauses=len(pauses),
        ended_early=share([bool(each.ended_early) for each in pauses]),
        took_over=share([bool(each.took_over) for each in pauses]),
        lag_ms=spread([each.lag_ms for each in results]),
        cases=tuple(results),
    )


def share(is_so: Sequence[bool]) -> Estimate | None:
    """Return how often something is so, with an interval; None where there is nothing to tell."""
    return ratio(list(map(int, is_so)), [1] * len(is_so)) if is_so else None


def spread(values: Sequence[float | None]) -> Spread | None:
    """Sum up what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    p50, p95 = np.percentile(known, [50, 95])
    return Spread(num=len(known), p50=float(p50), p95=float(p95), most=max(known))
