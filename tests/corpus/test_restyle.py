from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tristep.corpus.prosody import Prosody, measure
from tristep.corpus.restyle import (
    DIMENSIONS,
    NEUTRAL_DB,
    Delivery,
    Samples,
    deliver,
    draw_styles,
    joined,
    pieces,
    restyle,
    shifted,
    trimmed,
    whispered,
)

RATE = 24_000


def vowel(pitch_hz: float = 140, duration_s: float = 0.8) -> Samples:
    """Harmonics under two formants, with a little vibrato."""
    times = np.arange(round(duration_s * RATE)) / RATE
    phase = 2 * np.pi * pitch_hz * (times + 0.0004 * np.sin(2 * np.pi * 5 * times))
    waveform = sum(
        np.sin(n * phase) * sum(1 / (1 + ((n * pitch_hz - formant) / 120) ** 2) for formant in (700, 1800, 3000))
        for n in range(1, 40)
    )
    return np.asarray(0.1 * waveform / np.abs(waveform).max(), np.float32)


def measured(waveform: Samples) -> Prosody:
    return measure(torch.from_numpy(waveform), RATE)


def envelope_peak_hz(waveform: Samples) -> float:
    """The strongest third of an octave."""
    power = np.abs(np.fft.rfft(waveform)) ** 2
    frequencies = np.fft.rfftfreq(len(waveform), 1 / RATE)
    centres = 200 * 2 ** (np.arange(15) / 3)
    bands = [power[(frequencies > c / 2 ** (1 / 6)) & (frequencies < c * 2 ** (1 / 6))].sum() / c for c in centres]
    return float(centres[int(np.argmax(bands))])


@pytest.mark.parametrize("semitones", [-4.0, 4.0])
def test_a_shifted_voice_has_another_pitch_the_same_duration_and_the_same_formants(semitones: float) -> None:
    voice = vowel()
    moved = shifted(voice, RATE, semitones)
    assert len(moved) == len(voice)
    assert measured(moved).pitch_hz == pytest.approx(measured(voice).pitch_hz * 2 ** (semitones / 12), rel=0.03)
    assert envelope_peak_hz(moved) == envelope_peak_hz(voice)


def test_what_has_no_pitch_is_not_shifted() -> None:
    hiss = np.random.default_rng(0).standard_normal(RATE // 2).astype(np.float32) * 0.01
    assert len(shifted(hiss, RATE, 4)) == len(hiss)


def test_a_whisper_has_the_formants_of_the_voice_and_no_pitch() -> None:
    voice = vowel()
    whisper = whispered(voice, RATE, np.random.default_rng(0))
    assert len(whisper) == len(voice)
    assert measured(whisper).hnr_db < 3 < 10 < measured(voice).hnr_db or np.isnan(measured(whisper).hnr_db)
    assert abs(np.log2(envelope_peak_hz(whisper) / envelope_peak_hz(voice))) < 0.4  # the same band or the next


def test_every_level_is_what_was_asked_for_and_loud_speech_is_brighter() -> None:
    rng = np.random.default_rng(0)
    neutral = restyle(vowel(), RATE, Delivery(), rng)
    loud = restyle(vowel(), RATE, deliver("loud", rng), rng)
    quiet = restyle(vowel(), RATE, deliver("quiet", rng), rng)
    levels = [measured(waveform).level_db for waveform in (quiet, neutral, loud)]
    assert levels[1] == pytest.approx(NEUTRAL_DB, abs=0.5)
    assert levels[0] < NEUTRAL_DB - 7 < NEUTRAL_DB + 5 < levels[2]
    assert measured(quiet).centroid_hz < measured(neutral).centroid_hz < measured(loud).centroid_hz


def test_nothing_is_ever_clipped() -> None:
    click = np.zeros(RATE, np.float32)
    click[1000] = 1.0
    assert float(np.abs(restyle(click, RATE, Delivery(gain_db=8), np.random.default_rng(0))).max()) < 0.991


@given(seed=st.integers(0, 2000))
def test_drawn_styles_do_not_exclude_one_another(seed: int) -> None:
    styles = draw_styles(np.random.default_rng(seed))
    assert all(sum(style in dimension for style in styles) <= 1 for dimension in DIMENSIONS)
    assert not {"whisper", "low"} <= set(styles)
    assert not {"whisper", "high"} <= set(styles)


@pytest.mark.parametrize(
    ("style", "moves"),
    [("slow", "speed"), ("fast", "speed"), ("low", "semitones"), ("high", "semitones"), ("quiet", "gain_db"),
     ("loud", "gain_db"), ("whisper", "gain_db"), ("pauses", "pause_s")],
)  # fmt: skip
def test_a_style_moves_its_own_number_in_its_direction(style: str, moves: str) -> None:
    drawn = deliver(style, np.random.default_rng(0))
    change = getattr(drawn, moves) - getattr(Delivery(), moves)
    assert (change > 0) == (style in ("fast", "high", "loud", "pauses"))
    others = {"speed", "semitones", "gain_db", "pause_s"} - {moves}
    assert all(getattr(drawn, name) == getattr(Delivery(), name) for name in others)
    assert drawn.whisper == (style == "whisper")


def test_phrases_end_at_punctuation_and_are_broken_before_a_turn_of_phrase() -> None:
    text = "When it was late, we went home. The old man sat down on a bench and looked at the sea."
    assert pieces(text) == [
        "When it was late,",
        "we went home.",
        "The old man sat down on a bench and looked at the sea.",
    ]
    assert pieces(text, 7)[2:] == ["The old man sat down", "on a bench", "and looked at the sea."]
    assert pieces("Yes, of course I do.") == ["Yes, of course I do."]  # too short to stand alone


@given(text=st.text("ab ,.!", max_size=60), max_words=st.one_of(st.none(), st.integers(3, 8)))
def test_joined_phrases_are_the_text(text: str, max_words: int | None) -> None:
    assert " ".join(pieces(text, max_words)) == " ".join(text.split())


def test_readings_are_trimmed_and_joined_with_their_silences() -> None:
    padded = np.concatenate([np.zeros(RATE // 2, np.float32), vowel(), np.zeros(RATE // 2, np.float32)])
    short = trimmed(padded, RATE)
    assert len(short) / RATE == pytest.approx(0.86, abs=0.02)
    whole = joined([short, short], [0.7], RATE)
    assert len(whole) == 2 * len(short) + round(0.7 * RATE)
    assert measured(whole).longest_pause_s == pytest.approx(0.76, abs=0.05)
