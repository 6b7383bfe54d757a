from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import torch

from tristep.audio import LISTEN_HZ
from tristep.corpus.annotate import CUES, PHRASES
from tristep.corpus.prosody import pauses
from tristep.corpus.synthesize import Clip, Reading, in_named_voices, in_new_voice, in_new_voices, synthesize
from tristep.text import Cue, split_cues, without_cues


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

    def say(self, text: str, voice: str, speed: float) -> Reading | None:
        """A fifth of a second for every word, at 220 Hz."""
        if not text:
            return None
        times = np.arange(round(4_800 * len(text.split()) / speed)) / 24_000
        return Reading(np.sin(2 * np.pi * 220 * times).astype(np.float32), 24_000, voice, speed)


SENTENCES = [("a", "one two"), ("empty", ""), ("b", "three")]


def pitch_hz(waveform: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(waveform))
    return float(np.fft.rfftfreq(len(waveform), 1 / LISTEN_HZ)[spectrum.argmax()])


def test_pitch_moves_the_tone_and_shortens_the_clip_alike() -> None:
    reading = Reading(np.sin(2 * np.pi * 440 * np.arange(24_000) / 24_000).astype(np.float32), 24_000, "w", 1.0)
    for pitch in (0.9, 1.0, 1.1):
        waveform = in_new_voice(reading, pitch, LISTEN_HZ)
        assert abs(len(waveform) - LISTEN_HZ / pitch) < 10
        assert abs(pitch_hz(waveform) - 440 * pitch) < 3
        assert np.isclose(np.abs(waveform).max(), 0.7, atol=1e-3)


def test_every_sentence_that_could_be_read_has_its_file_and_its_row(tmp_path: Path) -> None:
    rows = list(synthesize(SENTENCES, in_new_voices(Whistler()), tmp_path, seed=0))
    assert [(row["id"], row["text"]) for row in rows] == [("a", "one two"), ("b", "three")]
    for row in rows:
        info = soundfile.info(tmp_path / row["audio"])
        assert (info.samplerate, row["sample_rate"]) == (LISTEN_HZ, LISTEN_HZ)
        assert abs(info.duration - row["duration"]) < 0.001
    assert not list(tmp_path.rglob("*.partial"))


def test_a_killed_run_reads_on_where_it_stopped_and_draws_the_same(tmp_path: Path) -> None:
    whole = list(synthesize(SENTENCES, in_new_voices(Whistler()), tmp_path / "whole", seed=3))
    started = synthesize(SENTENCES, in_new_voices(Whistler()), tmp_path / "killed", seed=3)
    rows = [next(started)]
    started.close()
    again = Whistler()
    rows += synthesize(SENTENCES, in_new_voices(again), tmp_path / "killed", seed=3)
    assert rows == whole
    assert again.num_read == 2  # "a" is there, "empty" cannot be


def test_named_voices_are_read_as_they_are_at_the_asked_rate(tmp_path: Path) -> None:
    perform = in_named_voices(Whistler(), ["whistle"], 24_000, style_labels=False)
    row, _ = synthesize(SENTENCES, perform, tmp_path, seed=0, sample_rate=24_000)
    assert (row["speaker"], row["speed"], row["sample_rate"]) == ("whistle", 1.0, 24_000)
    assert soundfile.info(tmp_path / row["audio"]).samplerate == 24_000
    assert "instruction" not in row


TEXT = "When it was late, we all went home, and nobody ever came back to the house by the sea."


def performed(num: int) -> list[Clip]:
    perform = in_named_voices(Whistler(), ["whistle", "hum"], 24_000, style_labels=True)
    clips = [perform(TEXT, np.random.default_rng(seed)) for seed in range(num)]
    return [clip for clip in clips if clip is not None]


def test_the_labels_of_a_styled_clip_are_what_was_done_to_it() -> None:
    for clip in performed(40):
        labels = clip.labels
        assert without_cues(labels["cued_text"]) == TEXT
        cues = [part.text for part in split_cues(labels["cued_text"]) if isinstance(part, Cue)]
        assert cues == [] if labels["inline"] is None else cues[0] in CUES[labels["inline"]]
        phrases = [PHRASES[style] for style in labels["styles"] or ["neutral"]]
        assert all(any(phrase.lower() in labels["instruction"].lower() for phrase in many) for many in phrases)
        assert (labels["delivery"]["speed"] < 0.8) == ("slow" in labels["styles"])
        assert labels["delivery"]["whisper"] == ("whisper" in labels["styles"])


def test_pauses_are_heard_where_they_were_asked_for() -> None:
    clips = performed(60)
    paused = [clip for clip in clips if "pauses" in clip.labels["styles"]]
    plain = [clip for clip in clips if not clip.labels["styles"] and clip.labels["inline"] is None]
    assert paused
    assert plain
    for clip in paused:
        assert len([p for p in pauses(torch.from_numpy(clip.waveform), 24_000) if p[1] - p[0] > 0.5]) >= 2
    for clip in plain:
        assert not pauses(torch.from_numpy(clip.waveform), 24_000)


def test_a_long_pause_stands_where_its_cue_does() -> None:
    clips = [clip for clip in performed(80) if clip.labels["inline"] == "long pause" and not clip.labels["styles"]]
    assert clips
    for clip in clips:
        ((start_s, end_s),) = pauses(torch.from_numpy(clip.waveform), 24_000)
        assert end_s - start_s > 0.7
        words_before = len(clip.labels["cued_text"].split("(")[0].split())
        assert abs(start_s - 0.2 * words_before) < 0.1
