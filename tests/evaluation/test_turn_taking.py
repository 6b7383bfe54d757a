from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from engine.toy_dialogue import cough, engine, session, silence, speech, voice
from rich.console import Console

from tristep.audio import SPEAK_HZ
from tristep.engine.dialogue import (
    AudioDelta,
    Ducked,
    Event,
    Response,
    ResponseDone,
    ResponseOptions,
    ServerVad,
    SessionSettings,
    SpeechStarted,
    SpeechStopped,
)
from tristep.evaluation.turn_cases import ASKED, Case, build_barge_in, build_pause, words_in
from tristep.evaluation.turn_driver import Clock, Course, Talk, run
from tristep.evaluation.turn_report import TurnsReport, read_json, tables, write_report
from tristep.evaluation.turn_taking import (
    ENDS_OF_TURNS,
    Sessions,
    build_systems,
    evaluate_turns,
    measure,
    read_end_of_turn,
    spread,
)

LONG = "One is here. Two is here. Three is here. Four is here."
QUESTION = Case("q", "question", silence(2000), ((0.4, 1.0),))
PAUSE = Case("p", "pause", silence(3000), ((0.4, 1.0), (2.0, 2.5)), "1.00 s")
BARGE_IN = Case("b", "barge_in", silence(1500), ((0.5, 1.5),), asked=ASKED, after_s=0.3)
NOISE = Case("n", "noise", silence(1500), what="cough", asked=ASKED, after_s=0.3)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def sound(at_s: float, duration_s: float, level: float = 0.5) -> tuple[float, AudioDelta]:
    return at_s, AudioDelta("r", "a", 0, 0, level * torch.ones(round(duration_s * SPEAK_HZ)))


def done(at_s: float) -> tuple[float, ResponseDone]:
    return at_s, ResponseDone(Response("r", "completed", "audio", ResponseOptions()))


def started(at_s: float) -> tuple[float, SpeechStarted]:
    return at_s, SpeechStarted("i", 0)


def stopped(at_s: float) -> tuple[float, SpeechStopped]:
    return at_s, SpeechStopped("i", 0)


def instant(**settings: object) -> Callable[[Case], Course]:
    """Try cases on a toy on a machine that takes no time."""
    return lambda case: run(Talk(session(LONG, **settings), Clock(lambda: 0.0, None)), case)


# One case, by what happened


def test_an_answer_is_timed_from_the_last_word_and_from_the_end_of_the_turn() -> None:
    events = [started(0.7), stopped(1.5), sound(1.8, 0.2, 0.0), sound(1.9, 0.5), sound(3.0, 0.3), done(3.1)]
    found = measure(QUESTION, Course(events, lag_s=0.05))
    assert found.first_audio_ms == pytest.approx(800)
    assert found.hangover_ms == pytest.approx(500)
    assert found.answering_ms == pytest.approx(300)
    assert found.silence_ms == pytest.approx(200)
    assert found.gap_ms == pytest.approx(500)  # the first 0.7 s are played by 2.5 s
    assert found.real_time_factor == pytest.approx(1.5)
    assert found.lag_ms == pytest.approx(50)
    assert found.took_over is False


def test_a_turn_that_goes_on_counts_from_its_last_end() -> None:
    events = [started(0.5), stopped(0.8), sound(0.9, 0.2), started(0.95), stopped(1.6), sound(1.7, 1.0), done(2.0)]
    found = measure(QUESTION, Course(events))
    assert found.took_over
    assert found.first_audio_ms == pytest.approx(700)
    assert found.answering_ms == pytest.approx(100)


def test_an_answer_in_one_piece_has_no_real_time_factor() -> None:
    found = measure(QUESTION, Course([stopped(1.5), sound(1.8, 1.0), done(1.9)]))
    assert found.answering_ms == pytest.approx(300)
    assert found.real_time_factor is found.gap_ms is None


def test_a_question_without_an_answer_has_no_times() -> None:
    found = measure(QUESTION, Course([started(0.5), stopped(1.5), done(1.6)]))
    assert found.first_audio_ms is None
    assert found.real_time_factor is None


@pytest.mark.parametrize(
    ("events", "ended_early", "took_over"),
    [
        ([started(0.6), stopped(3.0), sound(3.1, 1.0)], False, False),
        ([started(0.6), stopped(1.9), started(2.2)], True, False),
        ([started(0.6), stopped(1.5), sound(1.7, 1.0), started(2.2)], True, True),
    ],
)
def test_a_pause_is_waited_through_or_not(
    events: list[tuple[float, Event]], ended_early: bool, took_over: bool
) -> None:
    found = measure(PAUSE, Course(events))
    assert (found.ended_early, found.took_over) == (ended_early, took_over)


def test_yielding_is_timed_from_the_first_word() -> None:
    events = [sound(1.0, 0.5), sound(1.2, 3.0), (1.65, Ducked(True)), started(1.72)]
    found = measure(BARGE_IN, Course(events, begun_s=1.1))
    assert found.lowered_ms == pytest.approx(50)
    assert found.yield_ms == pytest.approx(120)
    assert found.is_stopped


def test_an_answer_that_never_yields_has_no_time() -> None:
    found = measure(BARGE_IN, Course([sound(1.0, 4.0), done(1.1)], begun_s=1.1))
    assert found.is_stopped is False
    assert found.yield_ms is None


@pytest.mark.parametrize("case", [BARGE_IN, NOISE])
def test_an_answer_that_was_over_by_itself_tells_nothing(case: Case) -> None:
    assert measure(case, Course([sound(1.0, 0.5), done(1.1)], begun_s=1.1)).is_stopped is None
    assert measure(case, Course([done(1.0)], begun_s=1.1)).is_stopped is None
    assert measure(case, Course([sound(1.0, 0.5)], begun_s=1.1)).is_stopped is not None  # more was to come


def test_a_noise_stops_an_answer_or_only_lowers_it() -> None:
    lowered = [sound(1.0, 4.0), (1.6, Ducked(True)), (1.7, Ducked(False))]
    assert measure(NOISE, Course(lowered, begun_s=1.1)).is_stopped is False
    assert measure(NOISE, Course([*lowered, started(1.8)], begun_s=1.1)).is_stopped


# A toy, on a machine that takes no time


def test_a_toy_yields_to_words_and_not_to_a_cough() -> None:
    words = speech(900)
    barge_in = build_barge_in("b", words, words_in(words) or (0.0, 0.9), rng())
    found = measure(barge_in, instant()(barge_in))
    assert found.lowered_ms is not None
    assert found.yield_ms is not None
    assert found.lowered_ms < found.yield_ms < 250
    noise = Case("n", "noise", torch.cat([silence(400), cough(), silence(800)]), asked=ASKED, after_s=0.3)
    assert measure(noise, instant()(noise)).is_stopped is False


def test_a_toy_waits_through_a_pause_as_long_as_it_is_told_to() -> None:
    words = speech(1900)
    pause = build_pause("p", words, words_in(words) or (0.0, 1.9), rng())
    hasty, patient = (ServerVad(silence_duration_ms=silence_ms) for silence_ms in (300, 1800))
    assert measure(pause, instant(turn_detection=hasty)(pause)).took_over
    found = measure(pause, instant(turn_detection=patient)(pause))
    assert (found.ended_early, found.took_over) == (False, False)


# All cases


def report() -> TurnsReport:
    quick = [started(0.7), stopped(1.5), sound(1.8, 1.0), done(2.0)]
    played = [sound(1.0, 4.0), (1.65, Ducked(True)), started(1.72)]

    def system(case: Case) -> Course:
        return Course(played, 1.1) if case.asked else Course([*quick, stopped(1.9)])

    cases = [QUESTION, PAUSE, BARGE_IN, NOISE]
    return evaluate_turns({"one": system, "two": system}, cases, {"two": ENDS_OF_TURNS}, model="toy", progress=False)


def test_all_systems_meet_their_cases() -> None:
    one, two = report().systems
    assert (one.num_questions, one.num_pauses, one.num_barge_ins, one.num_noises) == (1, 1, 1, 1)
    assert (two.num_questions, two.num_pauses, two.num_barge_ins, two.num_noises) == (1, 1, 0, 0)
    assert one.yielded is not None
    assert one.false_stops is not None
    assert one.ended_early is not None
    assert one.yielded.mean == one.false_stops.mean == one.ended_early.mean == 1
    assert two.yielded is None


def test_cases_alternate_between_systems_after_each_has_warmed_up() -> None:
    seen: list[str] = []

    def system(name: str) -> Callable[[Case], Course]:
        return lambda case: seen.append(name + case.id) or Course([])  # type: ignore[func-returns-value]

    systems = {"one": system("one "), "two": system("two ")}
    evaluate_turns(systems, [QUESTION, PAUSE], progress=False)
    assert sorted(seen[:2]) == ["one q", "two q"]
    assert seen[2:] == ["one q", "two q", "one p", "two p"]
    with pytest.raises(ValueError, match="there are no cases"):
        evaluate_turns(systems, [])


def test_a_spread_is_of_what_is_known() -> None:
    known = spread([None, 1.0, 3.0, 2.0])
    assert known is not None
    assert (known.num, known.p50, known.most) == (3, 2.0, 3.0)
    assert known.p95 == pytest.approx(2.9)
    assert spread([None]) is None


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = report()
    data, page = write_report(made, tmp_path / "r.json")
    assert read_json(data) == made
    text = page.read_text(encoding="utf-8")
    assert "<svg" in text
    assert "false take-overs" in text
    shown = io.StringIO()
    Console(width=120, file=shown).print(*tables(made))
    assert "silent within 200 ms" in shown.getvalue()


def test_sessions_are_new_for_every_case_and_differ_in_how_turns_end() -> None:
    systems = build_systems(engine(), SessionSettings(voice=voice()), ["server_vad", "semantic_vad"], None, False)
    assert list(systems) == ["server_vad", "semantic_vad"]
    first, second = systems["server_vad"].talk(), systems["server_vad"].talk()
    assert first.session is not second.session
    kinds = {name: type(system.settings.turn_detection).__name__ for name, system in systems.items()}
    assert kinds == {"server_vad": "ServerVad", "semantic_vad": "SemanticVad"}


def test_a_real_clock_measures_a_toy() -> None:
    question = Case("q", "question", torch.cat([silence(400), speech(900), silence(300)]), ((0.4, 1.3),))
    found = measure(question, Sessions(engine(), SessionSettings(voice=voice()), is_live=False)(question))
    assert found.first_audio_ms is not None
    assert found.hangover_ms is not None
    assert found.first_audio_ms > found.hangover_ms > 300


def test_what_judges_turns_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no smart-turn\.onnx"):
        read_end_of_turn(tmp_path)
