from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tristep.audio import SPEAK_HZ, read_audio, write_audio
from tristep.evaluation.suites import Clip
from tristep.evaluation.turn_cases import (
    LEAD_S,
    NOISES,
    PAUSE_S,
    Case,
    build_barge_in,
    build_cases,
    build_noises,
    build_pause,
    chosen,
    read_recordings,
    room,
    words_in,
)

DATA = Path(__file__).parents[1] / "data"
CLIPS = [Clip("jfk", DATA / "jfk.flac", "ask not", "en"), Clip("a0249", DATA / "kathleen_a0249.opus", "", "en")]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def tone(duration_s: float, level: float = 0.3) -> torch.Tensor:
    return level * torch.sin(torch.arange(round(duration_s * SPEAK_HZ)) * 0.05)


def silence(duration_s: float) -> torch.Tensor:
    return torch.zeros(round(duration_s * SPEAK_HZ))


@settings(max_examples=25, deadline=None)
@given(st.floats(0, 2), st.floats(0.1, 2), st.floats(0, 5), st.floats(0.1, 0.9), st.booleans())
def test_words_are_found_where_they_are(
    before_s: float, words_s: float, after_s: float, level: float, a_room: bool
) -> None:
    sound = torch.cat([silence(before_s), tone(words_s, level), silence(after_s)])
    if a_room:
        sound = sound + room(len(sound), rng())
    assert words_in(sound) == pytest.approx((before_s, before_s + words_s), abs=0.021)


def test_there_are_no_words_in_silence_or_in_a_click() -> None:
    assert words_in(silence(1.0)) is None
    assert words_in(silence(0.0)) is None
    assert words_in(torch.cat([silence(0.5), tone(0.01), silence(0.5)])) is None


def test_a_pause_is_put_into_a_recording_and_the_rest_stays() -> None:
    words = tone(2.0)
    words[SPEAK_HZ : SPEAK_HZ + 2400] *= 0.01  # a quiet moment in the middle
    case = build_pause("a", words, (0.0, 2.0), rng())
    (first, second), pause_s = case.words, float(case.what.split()[0])
    assert PAUSE_S[0] <= pause_s <= PAUSE_S[1]
    assert first == pytest.approx((LEAD_S, LEAD_S + 1.0), abs=0.03)
    assert second == pytest.approx((LEAD_S + 1.1 + pause_s, LEAD_S + 2.0 + pause_s), abs=0.03)
    quiet = case.waveform[round((first[1] + 0.03) * SPEAK_HZ) : round((second[0] - 0.03) * SPEAK_HZ)]
    assert quiet.abs().max() < 0.01
    assert float(case.waveform.square().sum()) == pytest.approx(float(words.square().sum()), rel=0.02)


def test_who_barges_in_begins_with_a_word() -> None:
    case = build_barge_in("a", torch.cat([silence(0.7), tone(3.0), silence(0.5)]), (0.7, 3.7), rng())
    assert words_in(case.waveform) == pytest.approx(case.words[0], abs=0.03)
    assert case.words[0][1] - case.words[0][0] == 1.5
    assert case.asked


def test_noises_are_of_every_kind_and_the_seed_settles_them() -> None:
    noises, again = (list(build_noises(2 * len(NOISES), rng())) for _ in range(2))
    assert [case.what for case in noises] == 2 * list(NOISES)
    for case, same in zip(noises, again, strict=True):
        assert torch.equal(case.waveform, same.waveform)
        assert case.waveform.isfinite().all()
        assert 0.05 < case.waveform.abs().max() <= 1
        assert not case.words
    assert not torch.equal(noises[0].waveform, noises[len(NOISES)].waveform)


def test_recordings_become_cases_of_every_kind() -> None:
    cases = build_cases(CLIPS, num_noises=3)
    assert [case.kind for case in cases] == [*2 * ["question"], *2 * ["pause"], *2 * ["barge_in"], *3 * ["noise"]]
    question = cases[0]
    found = words_in(read_audio(CLIPS[0].path, SPEAK_HZ))
    assert found is not None
    assert question.words[0] == pytest.approx((found[0] + LEAD_S, found[1] + LEAD_S))
    assert ids(build_cases(CLIPS, 3)) == ids(cases)


def ids(cases: list[Case]) -> list[tuple[str, str, float]]:
    return [(case.id, case.what, float(case.waveform.sum())) for case in cases]


def test_recordings_without_words_are_no_cases(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", silence(1.0), SPEAK_HZ)
    nothing = Clip("a", tmp_path / "a.wav", "", "en")
    assert len(build_cases([nothing, CLIPS[0]], num_noises=0)) == 3
    with pytest.raises(ValueError, match="words in none of 1 recordings"):
        build_cases([nothing])


def test_recordings_are_read_from_a_manifest_and_from_dialogues(tmp_path: Path) -> None:
    assert [clip.id for clip in read_recordings(DATA / "manifest.jsonl", split="all")]
    turns = [{"text": "Hi!", "audio": "a.wav"}, {"text": "Well?"}]
    (tmp_path / "script.jsonl").write_text(json.dumps({"id": "one", "card": {"id": "one"}, "turns": turns}) + "\n")
    clips = read_recordings(tmp_path / "script.jsonl")
    assert [(clip.id, clip.path, clip.text) for clip in clips] == [("one-0", tmp_path / "a.wav", "Hi!")]
    (tmp_path / "silent.jsonl").write_text(json.dumps({"id": "one", "card": {"id": "one"}, "turns": turns[1:]}) + "\n")
    with pytest.raises(ValueError, match="holds no recordings"):
        read_recordings(tmp_path / "silent.jsonl")
    with pytest.raises(ValueError, match="there is no test set"):
        read_recordings(tmp_path / "nowhere.jsonl")


def test_some_recordings_are_drawn_in_their_order() -> None:
    clips = [Clip(str(number), Path(), "", "en") for number in range(9)]
    drawn = [int(clip.id) for clip in chosen(clips, 4, seed=1)]
    assert drawn == sorted(set(drawn))
    assert len(drawn) == 4
    assert chosen(clips, 20) == clips
