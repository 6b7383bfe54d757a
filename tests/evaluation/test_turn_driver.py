from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from engine.toy_dialogue import ANSWER, engine, of, plain, session, silence, speech

from tristep.audio import SPEAK_HZ
from tristep.engine.dialogue import (
    AudioDelta,
    Event,
    ResponseDone,
    ServerVad,
    SessionSettings,
    SpeechStarted,
    SpeechStopped,
    TextDelta,
)
from tristep.engine.session import Session
from tristep.evaluation.turn_cases import LEAD_S, Case
from tristep.evaluation.turn_driver import Clock, Course, Talk, run

QUESTION = Case("q", "question", torch.cat([silence(400), speech(1200), silence(300)]), ((LEAD_S, 1.6),))


def talk(look_s: float = 0.0, frame_s: float = 0.02, **settings: Any) -> Talk:
    """Talk to a toy: every look at the clock is so much later than the one before, and nothing else takes time."""
    looks = itertools.count()
    return Talk(session(**settings), Clock(lambda: look_s * next(looks), None), frame_s)


def sound(at_s: float, duration_s: float, item_id: str = "a") -> tuple[float, AudioDelta]:
    return at_s, AudioDelta("r", item_id, 0, 0, torch.ones(round(duration_s * SPEAK_HZ)))


def test_a_clock_waits_by_sleeping_or_by_skipping() -> None:
    slept: list[float] = []
    clock = Clock(lambda: 5.0, slept.append)
    clock.wait_until(2.0)
    clock.wait_until(-1.0)
    assert slept == [2.0]
    skipping = Clock(lambda: 5.0, None)
    skipping.wait_until(2.0)
    skipping.wait_until(1.0)
    assert skipping.now() == 2.0


def test_sound_arrives_in_its_own_time() -> None:
    talking = talk(modality="text")
    talking.hear(QUESTION.waveform)
    assert talking.spoken_s == pytest.approx(1.9)
    assert talking.clock.now() == pytest.approx(1.9)
    assert talking.session.now_ms == pytest.approx(1900, abs=35)
    assert talking.lag_s == pytest.approx(0, abs=1e-9)


def test_a_machine_that_takes_no_time_answers_when_the_turn_is_over() -> None:
    course = run(talk(), QUESTION)
    (stopped_s,) = course.times(SpeechStopped)
    assert stopped_s == pytest.approx(1.6 + 0.5, abs=0.1)
    assert course.first(AudioDelta) == stopped_s
    assert course.text() == ANSWER
    assert course.text(after_s=60) == ""


def test_work_takes_time() -> None:
    instant, quick, slow = (run(talk(look_s), QUESTION) for look_s in (0.0, 0.002, 0.006))
    waits_s = [course.times(AudioDelta)[0] - course.times(SpeechStopped)[0] for course in (instant, quick, slow)]
    assert waits_s[0] < waits_s[1] < waits_s[2]
    assert instant.lag_s < quick.lag_s < slow.lag_s


class Plodding(Session):
    """A session whose steps take 0.1 s."""

    now_s = 0.0
    calls = ""

    def append(self, waveform: torch.Tensor, sample_rate: int = SPEAK_HZ) -> list[Event]:
        self.calls += "a"
        return super().append(waveform, sample_rate)

    def step(self) -> list[Event]:
        self.calls, self.now_s = self.calls + "s", self.now_s + 0.1
        return super().step()


def test_frames_that_come_during_a_step_are_heard_together_after_it() -> None:
    plodding = Plodding(engine(), SessionSettings(modality="text"))
    talking = Talk(plodding, Clock(lambda: plodding.now_s, None))
    talking.hear(QUESTION.waveform)
    talking.wait(20.0, lambda: talking.is_answered)
    assert "saaaaas" in plodding.calls
    assert 0.08 <= talking.lag_s <= 0.1
    plodding.calls = ""
    talking.wait(0.2)
    assert plodding.calls == 10 * "a"  # nothing is left to do


def test_time_changes_when_things_happen_and_not_what() -> None:
    courses = [run(talk(*how), QUESTION) for how in ((0.0, 0.02), (0.004, 0.02), (0.0, 0.04))]
    kinds = [plain([event for _, event in course.events]) for course in courses]
    assert kinds[0] == kinds[1] == kinds[2]


def test_a_question_is_over_when_it_is_answered() -> None:
    course = run(talk(modality="text", turn_detection=ServerVad(silence_duration_ms=800)), QUESTION)
    assert len(of(ResponseDone, [event for _, event in course.events])) == 1
    assert course.events[-1][0] < 3.0


def test_a_client_plays_one_chunk_after_the_other() -> None:
    chunks = Course([sound(1.0, 0.5), sound(1.1, 0.5), sound(3.0, 0.5)]).played()
    assert [(chunk.start_s, chunk.end_s) for chunk in chunks] == [(1.0, 1.5), (1.5, 2.0), (3.0, 3.5)]


def test_a_client_stops_when_it_is_told_that_the_user_speaks() -> None:
    course = Course([sound(1.0, 0.5), sound(1.1, 0.5), (1.7, SpeechStarted("item", 0)), sound(2.0, 0.1, "b")])
    assert [(chunk.start_s, pytest.approx(chunk.end_s)) for chunk in course.played()] == [
        (1.0, 1.5),
        (1.5, 1.7),
        (2.0, 2.1),
    ]
    track = course.track(2.05)
    assert len(track) == round(2.05 * SPEAK_HZ)
    assert track[round(0.99 * SPEAK_HZ)] == track[round(1.8 * SPEAK_HZ)] == 0
    assert track[round(1.6 * SPEAK_HZ)] == track[-1] == 1


def test_what_is_asked_in_writing_is_answered_before_the_sound_comes() -> None:
    case = Case("b", "barge_in", torch.cat([silence(400), speech(600)]), ((0.4, 1.0),), asked="Hello", after_s=0.3)
    course = run(talk(), case)
    first_s = course.first(AudioDelta)
    assert first_s is not None
    assert course.begun_s == pytest.approx(first_s + 0.3, abs=0.03)
    assert course.first(TextDelta) is not None
