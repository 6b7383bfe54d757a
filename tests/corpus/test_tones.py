from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tristep.audio import LISTEN_HZ
from tristep.corpus.tones import CLIP_S, FORMANTS_HZ, LETTER_S, draw_text, say, write_corpus


def test_a_word_is_one_to_four_different_letters() -> None:
    texts = [draw_text(np.random.default_rng(seed)) for seed in range(200)]
    assert {len(text) for text in texts} == {1, 2, 3, 4}
    assert all(len(set(text)) == len(text) for text in texts)
    assert set("".join(texts)) == set(FORMANTS_HZ)


@pytest.mark.parametrize("letter", sorted(FORMANTS_HZ))
def test_a_letter_sounds_loudest_at_its_formants(letter: str) -> None:
    waveform = say(letter, np.random.default_rng(0))
    spectrum = np.abs(np.fft.rfft(waveform))
    hz = np.fft.rfftfreq(len(waveform), 1 / LISTEN_HZ)
    near = np.any([np.abs(hz - formant_hz) < 0.05 * formant_hz + 20 for formant_hz in FORMANTS_HZ[letter]], axis=0)
    assert (spectrum[near] ** 2).sum() > 0.95 * (spectrum**2).sum()


def test_letters_follow_one_another_and_silence_follows_them() -> None:
    waveform = say("ae", np.random.default_rng(0))
    levels = [float(part.std()) for part in np.split(waveform, round(CLIP_S / LETTER_S))]
    assert min(levels[:2]) > 10 * max(levels[2:])


def test_the_same_seed_writes_the_same_corpus_and_holds_a_tenth_out(tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        write_corpus(tmp_path / name, num_clips=20, seed=seed)
    one, again, other = ((tmp_path / name / "manifest.jsonl").read_text() for name in ("one", "again", "other"))
    assert one == again != other
    rows = [json.loads(line) for line in one.splitlines()]
    assert [row["split"] for row in rows].count("dev") == 2
    for row in rows:
        info = soundfile.info(tmp_path / "one" / row["audio"])
        assert (info.samplerate, info.frames) == (row["sample_rate"], round(row["duration"] * LISTEN_HZ))
