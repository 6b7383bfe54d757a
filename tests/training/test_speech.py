from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from tristep.audio import speech_mel
from tristep.training.mixture import Clip, CorpusSettings, read_clips
from tristep.training.speech import SpeechSource, Table, listening, top_hz

DURATIONS_S = {"a": 0.5, "b": 1.013, "c": 0.7}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "hums"
    folder.mkdir()
    rows = []
    for number, (name, duration_s) in enumerate(DURATIONS_S.items()):
        rate = 16_000 if name == "c" else 24_000
        times = np.arange(round(duration_s * rate)) / rate
        tone = sum(0.1 * np.sin(2 * np.pi * (120 + 40 * number) * k * times) for k in range(1, 6))
        soundfile.write(folder / f"{name}.wav", tone, rate)
        rows.append(
            {"id": name, "audio": f"{name}.wav", "text": name, "language": "en", "duration": len(times) / rate,
             "sample_rate": rate, "speaker": f"hum {name}"}
        )  # fmt: skip
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def clips_of(root: Path, **settings: object) -> list[Clip]:
    return read_clips([CorpusSettings(path="hums/manifest.jsonl", **settings)], root, 30.0)


@pytest.fixture
def source(root: Path) -> SpeechSource:
    return SpeechSource(clips_of(root), root / "speech")


def test_clips_are_cut_to_whole_encoder_frames(source: SpeechSource) -> None:
    assert source.num_frames.tolist() == [50, 100, 70]


def test_a_stored_waveform_is_the_files(root: Path, source: SpeechSource) -> None:
    samples, _ = soundfile.read(root / "hums" / "b.wav", dtype="float32")
    stored = source.store(source.clips[1]).waveform("b")
    np.testing.assert_allclose(stored.numpy(), samples[: len(stored)], atol=2e-4)


def test_the_stored_pitch_is_that_of_the_waveform(source: SpeechSource) -> None:
    f0 = source.store(source.clips[0]).f0("a", 10, 30)
    torch.testing.assert_close(f0, torch.full((30,), 120.0), rtol=0.02, atol=0)


def test_a_stretch_that_ends_after_its_clip_is_continued_by_silence(source: SpeechSource) -> None:
    waveform, f0 = source.crop(source.clips[0], 30, 40)
    assert waveform.shape == (40 * 240,)
    assert f0.shape == (40,)
    assert waveform[: 20 * 240].abs().max() > 0.1
    assert (waveform[20 * 240 :] == 0).all()


def test_stretches_are_a_function_of_the_generator(source: SpeechSource) -> None:
    def draw(seed: int) -> torch.Tensor:
        return source.crops(4, 30, (-6.0, 0.0), np.random.default_rng(seed)).waveform

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_a_batch_has_the_shapes_it_promises(source: SpeechSource) -> None:
    batch = source.crops(5, 60, (0.0, 0.0), np.random.default_rng(0))
    assert batch.waveform.shape == (5, 60 * 240)
    assert batch.mel.shape == (5, 80, 60)
    assert batch.f0.shape == (5, 60)
    torch.testing.assert_close(batch.mel, speech_mel(batch.waveform))
    assert set(batch.num_mel_frames.tolist()) <= {50, 60}


def test_a_recording_made_at_16_khz_is_known_to_hold_nothing_above(source: SpeechSource) -> None:
    assert [top_hz(clip) for clip in source.clips] == [11_400.0, 11_400.0, 7_600.0]


def test_another_speed_is_another_length_pitch_and_speaker(root: Path) -> None:
    clips = clips_of(root, speeds=(1.0, 1.25))
    source = SpeechSource(clips, root / "speech")
    fast = next(clip for clip in clips if clip.id == "b" and clip.speed == 1.25)
    store = source.store(fast)
    assert store.num_frames("b") == 80
    assert fast.speaker == "hum b at 1.25"
    torch.testing.assert_close(store.f0("b", 20, 40), torch.full((40,), 200.0), rtol=0.02, atol=0)


def test_resampling_to_listen_keeps_two_thirds_of_the_samples() -> None:
    assert listening(torch.zeros(4800)).shape == (3200,)


def test_what_frozen_models_say_is_computed_once(root: Path, source: SpeechSource) -> None:
    calls: list[int] = []

    def loudest(waveform: torch.Tensor) -> torch.Tensor:
        calls.append(len(waveform))
        return waveform.abs().max().expand(3)[None]

    store = source.stores["hums_train_speed1"]
    for _ in range(2):
        store.fill_table("voice-loudest", 3, source.clips, loudest)
    assert calls == [8000, 16_000, 11_200]
    assert store.tables["voice-loudest"].rows("a").shape == (1, 3)


def filled(folder: Path, names: str) -> Table:
    table = Table(folder, 2, np.float32)
    table.fill(names, lambda name: np.full((ord(name) - 96, 2), ord(name)))
    return table


def test_a_table_gives_back_rows_by_name_and_stretch(tmp_path: Path) -> None:
    table = filled(tmp_path, "abc")
    assert table.rows("b").tolist() == [[98, 98]] * 2
    assert len(table.rows("c", 1)) == 2
    assert len(table.rows("c", 1, 1)) == 1
    assert len(table.rows("c", 2, 5)) == 1


@pytest.mark.parametrize("cut", ["rows.bin", "index.jsonl"])
def test_a_table_that_was_cut_off_is_completed(tmp_path: Path, cut: str) -> None:
    filled(tmp_path, "abc")
    path = tmp_path / cut
    path.write_bytes(path.read_bytes()[:-3])
    assert list(Table(tmp_path, 2, np.float32).spans) == ["a", "b"]
    table = filled(tmp_path, "abcd")
    assert [len(table.rows(name)) for name in "abcd"] == [1, 2, 3, 4]
    assert table.rows("c").tolist() == [[99, 99]] * 3


def test_two_that_fill_the_same_table_do_not_mix(tmp_path: Path) -> None:
    early = Table(tmp_path, 2, np.float32)
    filled(tmp_path, "ab")
    early.fill("abc", lambda name: np.zeros((1, 2)))
    assert early.rows("b").tolist() == [[98, 98]] * 2
    assert list(Table(tmp_path, 2, np.float32).spans) == ["a", "b", "c"]
