from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tristep.audio import SPEAK_HZ
from tristep.engine.witness import (
    Evidence,
    Reading,
    SpeechPrompt,
    Witness,
    evidence_of,
    speaking_s,
    speech_case,
    speech_clauses,
    usual_reading,
)

VOICE = torch.tensor([1.0, 0.0])
USUAL = Reading("", 12.0, 120.0, -25.0, VOICE)
PROMPT = SpeechPrompt("The red fox ran.", USUAL)
PLAIN = replace(USUAL, heard="the red fox ran")


def buzz(pitch_hz: float, duration_s: float = 1.0, level: float = 0.1) -> Tensor:
    times = torch.arange(round(duration_s * SPEAK_HZ)) / SPEAK_HZ
    return level * sum(torch.sin(2 * torch.pi * pitch_hz * n * times) / n for n in range(1, 11))  # type: ignore[no-any-return]


def told(**changed: object) -> Evidence:
    return evidence_of(PROMPT, replace(PLAIN, **changed))  # type: ignore[arg-type]


def test_a_plain_reading_has_every_word_the_voice_and_the_usual_manner() -> None:
    evidence = told()
    assert (evidence.words, evidence.voice) == ("4 of 4", "same")
    assert [evidence.degree(name) for name in ("pace", "pitch", "volume")] == [3, 3, 3]


@pytest.mark.parametrize(
    ("heard", "words"),
    [("the fox ran", "3 of 4"), ("the red fox ran home", "4 of 4 and 1 more"), ("", "0 of 4"),
     ("the red box ran", "3 of 4")],
)  # fmt: skip
def test_words_are_counted_right_missing_and_more(heard: str, words: str) -> None:
    assert told(heard=heard).words == words


@pytest.mark.parametrize(
    ("changed", "feature", "degree"),
    [({"letters_per_s": 24.0}, "pace", 5), ({"letters_per_s": 10.0}, "pace", 2), ({"pitch_hz": 140.0}, "pitch", 4),
     ({"pitch_hz": 60.0}, "pitch", 1), ({"level_db": -31.0}, "volume", 2), ({"level_db": -10.0}, "volume", 5)],
)  # fmt: skip
def test_manner_is_measured_against_the_voices_own(changed: dict[str, float], feature: str, degree: int) -> None:
    evidence = told(**changed)
    assert evidence.degree(feature) == degree
    others = {"pace", "pitch", "volume"} - {feature}
    assert all(evidence.degree(name) == 3 for name in others)


def test_another_voice_is_told_apart_and_an_unknown_one_is_unknown() -> None:
    assert told(embedding=torch.tensor([0.0, 1.0])).voice == "other"
    assert told(embedding=torch.tensor([1.0, 1.6])).voice == "near"
    assert told(embedding=None).voice == "unknown"


def test_silence_has_neither_pace_nor_pitch() -> None:
    witness = Witness(lambda waveform: "never asked")
    silence = witness.hear(torch.zeros(SPEAK_HZ))
    assert (silence.heard, silence.pitch_hz, silence.letters_per_s) == ("", 0.0, 0.0)
    evidence = evidence_of(PROMPT, silence)
    assert evidence.changes.keys() == {"volume"}
    assert evidence.degree("pitch") == 3


def test_a_witness_measures_pitch_level_and_pace() -> None:
    witness = Witness(lambda waveform: "red fox", lambda waveform: VOICE)
    low, high = witness.hear(buzz(110)), witness.hear(buzz(220, level=0.2))
    assert low.pitch_hz == pytest.approx(110, rel=0.02)
    assert high.pitch_hz == pytest.approx(220, rel=0.02)
    assert high.level_db - low.level_db == pytest.approx(6, abs=0.3)
    assert low.letters_per_s == pytest.approx(6, rel=0.05)


def test_pauses_do_not_count_as_speaking() -> None:
    gap = torch.zeros(SPEAK_HZ // 2)
    assert speaking_s(torch.cat([buzz(110), gap, buzz(110)])) == pytest.approx(2, abs=0.05)
    assert speaking_s(torch.cat([buzz(110), gap[: SPEAK_HZ // 10], buzz(110)])) == pytest.approx(2.1, abs=0.05)


def test_a_voices_manner_is_the_median_of_its_plain_readings() -> None:
    readings = [replace(USUAL, pitch_hz=pitch) for pitch in (100.0, 120.0, 400.0)]
    usual = usual_reading(readings)
    assert usual.pitch_hz == 120.0
    assert usual.embedding is not None
    assert torch.allclose(usual.embedding, VOICE)
    with pytest.raises(ValueError, match="at least one plain reading"):
        usual_reading([])


def test_the_case_tells_both_readings_and_what_was_asked() -> None:
    case = speech_case(replace(PROMPT, instructions="slowly"), told(), told(heard="the"), (3, 4))
    assert case.prompt == 'Text: "The red fox ran."\nAsked: slowly'
    assert "voice same 1.00, pace usual +0.00, pitch usual +0.0, volume usual +0" in case.first.text
    assert case.second.text.startswith('"the", words 1 of 4')
    assert (case.first.num_slots, case.second.num_slots) == (3, 4)


def test_who_is_better_follows_what_was_asked() -> None:
    slow, plain = told(letters_per_s=9.0), told()
    assert speech_clauses(slow, plain, {})["pace"].side == "second"
    assert speech_clauses(slow, plain, {"pace": 2})["pace"].side == "first"
    assert speech_clauses(slow, plain, {"pace": 4})["pace"].side == "second"
    assert {clause.side for name, clause in speech_clauses(slow, plain, {}).items() if name != "pace"} == {"alike"}


def test_to_do_more_of_what_was_asked_is_no_fault() -> None:
    slower, slow = told(letters_per_s=6.0), told(letters_per_s=9.0)
    assert (slower.degree("pace"), slow.degree("pace")) == (1, 2)
    assert speech_clauses(slower, slow, {"pace": 2})["pace"].side == "alike"
    assert speech_clauses(slower, slow, {})["pace"].side == "second"
