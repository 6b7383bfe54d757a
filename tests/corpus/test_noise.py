from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from tristep.audio import LISTEN_HZ, read_audio
from tristep.corpus.noise import KINDS, main, sound_without_speech
from tristep.training.mixture import CorpusSettings, read_corpus


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_a_sound_is_as_long_as_asked_finite_and_never_clips(kind: str, seed: int) -> None:
    waveform = sound_without_speech(kind, 12_345, np.random.default_rng(seed))
    assert waveform.shape == (12_345,)
    assert waveform.dtype == np.float32
    assert np.isfinite(waveform).all()
    assert 0 < np.abs(waveform).max() <= 0.71


def test_silence_is_quieter_than_all_else() -> None:
    levels = {kind: sound_without_speech(kind, 16_000, np.random.default_rng(0)).std() for kind in KINDS}
    assert levels["silence"] < 0.1 * min(level for kind, level in levels.items() if kind != "silence")


def test_a_hum_is_at_the_mains_frequency() -> None:
    waveform = sound_without_speech("hum", LISTEN_HZ, np.random.default_rng(0))
    assert int(np.abs(np.fft.rfft(waveform)).argmax()) == 50  # one bin is 1 Hz


def test_the_corpus_says_nothing_and_can_be_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["noise", "--out", str(tmp_path), "--clips", "10"])
    main()
    rows = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert [row["split"] for row in rows].count("dev") == 1
    cuts = read_corpus(CorpusSettings(path="manifest.jsonl"), tmp_path)
    assert len(cuts) == 9
    assert all(cut.supervisions[0].text == "" for cut in cuts)
    assert len(read_audio(cuts[0].recording.sources[0].source)) == round(cuts[0].duration * LISTEN_HZ)
