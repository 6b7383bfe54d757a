from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tristep.audio import LISTEN_HZ, read_audio
from tristep.corpus.babble import GAP_S, LEAD_S, LETTER_S, TAIL_S, say, write_corpus
from tristep.engine.segments import speech_segments
from tristep.phones import PHONES, frame_phones


def test_every_row_knows_when_its_phones_end(tmp_path: Path) -> None:
    write_corpus(tmp_path, num_clips=10, seed=0)
    rows = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert [row["split"] for row in rows] == ["train"] * 9 + ["dev", "voice"]
    for row in rows:
        assert "".join(symbol for symbol, _ in row["phones"]) == " " + row["text"]
        assert row["phones"][-1][1] + TAIL_S == pytest.approx(row["duration"])
        assert all(symbol in PHONES for symbol, _ in row["phones"])
    assert rows[-1]["duration"] >= 3


def test_letters_sound_when_their_phones_say() -> None:
    waveform, phones = say("a u", np.random.default_rng(0))
    labels = frame_phones(phones, len(waveform) // 480)
    levels = torch.from_numpy(waveform[: len(labels) * 480]).view(-1, 480).abs().amax(dim=1)
    sounding = labels != PHONES.index(" ")
    assert sounding.sum() == round(2 * LETTER_S / 0.02)
    assert levels[sounding].min() > 5 * levels[~sounding].max()
    assert round(len(waveform) / 24000, 2) == round(LEAD_S + 2 * LETTER_S + GAP_S + TAIL_S, 2)


def test_the_speech_detector_takes_it_for_speech(tmp_path: Path) -> None:
    write_corpus(tmp_path, num_clips=12, seed=3)
    rows = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    waveforms = [read_audio(tmp_path / row["audio"], LISTEN_HZ) for row in rows]
    assert all(list(speech_segments([waveform])) for waveform in waveforms)


def test_the_same_seed_writes_the_same_clips(tmp_path: Path) -> None:
    for name in ("one", "other"):
        write_corpus(tmp_path / name, num_clips=3, seed=5)
    files = sorted(path.name for path in (tmp_path / "one" / "audio").iterdir())
    assert len(files) == 4
    for name in files:
        assert (tmp_path / "one/audio" / name).read_bytes() == (tmp_path / "other/audio" / name).read_bytes()
