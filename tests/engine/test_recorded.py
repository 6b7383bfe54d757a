from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from engine.toy_dialogue import ANSWER, HEARD, engine, session, speech, voice

from tristep.audio import SPEAK_HZ, read_audio, write_audio
from tristep.engine.recorded import Recorded, joined


def test_a_recording_is_answered(tmp_path: Path) -> None:
    write_audio(tmp_path / "question.wav", speech(1200), SPEAK_HZ)
    talk = engine().converse("a sailor", voice=voice(), seed=3)
    exchange = talk.hear(tmp_path / "question.wav")
    assert (exchange.heard, exchange.text) == (HEARD, ANSWER)
    assert exchange.first_text_s is not None
    assert exchange.first_audio_s is not None
    assert 0 < exchange.first_text_s < exchange.first_audio_s
    exchange.write(tmp_path / "answer.wav")
    assert len(read_audio(tmp_path / "answer.wav", SPEAK_HZ)) == len(exchange.waveform)
    both = joined([exchange, talk.hear(tmp_path / "question.wav")])
    assert len(both.waveform) > 1.5 * len(exchange.waveform)
    assert [item.role for item in talk.session.items] == ["user", "assistant", "user", "assistant"]


def test_the_same_seed_answers_the_same(tmp_path: Path) -> None:
    write_audio(tmp_path / "question.wav", speech(800), SPEAK_HZ)
    first, again = (engine().converse(aloud=False, seed=1).hear(tmp_path / "question.wav") for _ in range(2))
    assert first.text == again.text
    assert first.first_audio_s is None
    with pytest.raises(ValueError, match="there is no sound to write"):
        first.write(tmp_path / "answer.wav")


def test_latencies_count_from_the_end_of_the_sound() -> None:
    ticks = itertools.count()  # every look at the clock is 10 ms after the one before
    talk = Recorded(session(modality="text", turn_detection=None), lambda: next(ticks) / 100)
    exchange = talk.hear(torch.cat([torch.zeros(16_000), speech(900)[::3].repeat_interleave(2)]))
    assert exchange.first_text_s is not None
    assert 0 < exchange.first_text_s < 0.5  # the sound itself took longer, and is not counted


def test_a_session_that_finds_turns_itself_takes_no_recordings() -> None:
    with pytest.raises(ValueError, match="without turn detection"):
        Recorded(session())


def test_a_recording_without_sound_is_refused() -> None:
    with pytest.raises(ValueError, match="buffer is too small"):
        engine().converse(aloud=False).hear(torch.zeros(10))
