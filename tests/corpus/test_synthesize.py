from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from tristep.audio import LISTEN_HZ
from tristep.corpus.synthesize import Reading, synthesize, to_listening_rate


class Whistler:
    """A teacher that whistles: a second at 440 Hz for every word, and refuses to read nothing."""

    def __init__(self) -> None:
        self.num_read = 0

    def read(self, text: str, rng: np.random.Generator) -> Reading | None:
        self.num_read += 1
        if not text:
            return None
        times = np.arange(24_000 * len(text.split())) / 24_000
        return Reading(
            np.sin(2 * np.pi * 440 * times).astype(np.float32), 24_000, "whistle", float(rng.uniform(0.8, 1.2))
        )


SENTENCES = [("a", "one two"), ("empty", ""), ("b", "three")]


def pitch_hz(waveform: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(waveform))
    return float(np.fft.rfftfreq(len(waveform), 1 / LISTEN_HZ)[spectrum.argmax()])


def test_pitch_moves_the_tone_and_shortens_the_clip_alike() -> None:
    reading = Reading(np.sin(2 * np.pi * 440 * np.arange(24_000) / 24_000).astype(np.float32), 24_000, "w", 1.0)
    for pitch in (0.9, 1.0, 1.1):
        waveform = to_listening_rate(reading, pitch)
        assert abs(len(waveform) - LISTEN_HZ / pitch) < 10
        assert abs(pitch_hz(waveform) - 440 * pitch) < 3
        assert np.isclose(np.abs(waveform).max(), 0.7, atol=1e-3)


def test_every_sentence_that_could_be_read_has_its_file_and_its_row(tmp_path: Path) -> None:
    rows = list(synthesize(SENTENCES, Whistler(), tmp_path, seed=0))
    assert [(row["id"], row["text"]) for row in rows] == [("a", "one two"), ("b", "three")]
    for row in rows:
        info = soundfile.info(tmp_path / row["audio"])
        assert (info.samplerate, row["sample_rate"]) == (LISTEN_HZ, LISTEN_HZ)
        assert abs(info.duration - row["duration"]) < 0.001
    assert not list(tmp_path.rglob("*.partial"))


def test_a_killed_run_reads_on_where_it_stopped_and_draws_the_same(tmp_path: Path) -> None:
    whole = list(synthesize(SENTENCES, Whistler(), tmp_path / "whole", seed=3))
    started = synthesize(SENTENCES, Whistler(), tmp_path / "killed", seed=3)
    rows = [next(started)]
    started.close()
    again = Whistler()
    rows += synthesize(SENTENCES, again, tmp_path / "killed", seed=3)
    assert rows == whole
    assert again.num_read == 2  # "a" is there, "empty" cannot be
