"""Voices are made from clips that are fit for it, and asked for by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tristep.audio import SPEAK_HZ, read_audio, speech_mel
from tristep.codec.speaker import SpeakerEncoder
from tristep.codec.voice import (
    Voice,
    level_db,
    list_voices,
    read_voice,
    voice_from_clip,
    without_edges,
    write_voice,
)

CLIP = Path(__file__).parents[1] / "data" / "jfk.flac"
TEXT = "And so my fellow Americans ask not"


@pytest.fixture(scope="module")
def speech() -> Tensor:
    return read_audio(CLIP, SPEAK_HZ)[: 5 * SPEAK_HZ]


@pytest.fixture(scope="module")
def speaker() -> SpeakerEncoder:
    torch.manual_seed(0)
    return SpeakerEncoder(dim=8, width=8, growth=4, num_planes=4)


def every_second(waveform: Tensor) -> Tensor:
    """Stand for a tokenizer: one code for each second."""
    return torch.arange(len(waveform) // SPEAK_HZ)


def rising(waveform: Tensor) -> Tensor:
    """Stand for a pitch tracker: 100 to 200 Hz, the first half unvoiced."""
    f0 = torch.linspace(0, 200, len(waveform) // 240)
    return f0 * (f0 >= 100)


def make(clip: Tensor, speaker: SpeakerEncoder, **changes) -> Voice:  # type: ignore[no-untyped-def]
    settings = {"name": "jfk", "speaker": speaker, "encode": every_second, "pitch": rising, "text": TEXT} | changes
    return voice_from_clip(clip, **settings)


def test_a_voice_holds_what_its_clip_says(speech: Tensor, speaker: SpeakerEncoder) -> None:
    voice = make(speech, speaker, licence="public domain")
    assert (voice.name, voice.reference_text, voice.licence) == ("jfk", TEXT, "public domain")
    assert voice.embedding.shape == (8,)
    assert voice.reference_codes.tolist() == list(range(len(without_edges(speech)) // SPEAK_HZ))
    assert voice.median_f0_hz == pytest.approx(150, abs=2)
    assert voice.energy_db == pytest.approx(level_db(speech), abs=0.1)
    torch.testing.assert_close(voice.reference_mel, speech_mel(without_edges(speech)[None])[0])


def test_silence_around_the_speech_changes_little(speech: Tensor, speaker: SpeakerEncoder) -> None:
    silence = torch.zeros(SPEAK_HZ)
    trimmed = without_edges(speech)
    padded = torch.cat([silence, trimmed, silence])
    assert abs(len(without_edges(padded)) - len(trimmed)) <= SPEAK_HZ // 10
    assert make(padded, speaker).energy_db == pytest.approx(make(speech, speaker).energy_db, abs=0.1)


def test_the_reference_mel_is_at_most_five_seconds(speaker: SpeakerEncoder) -> None:
    clip = read_audio(CLIP, SPEAK_HZ)[: 9 * SPEAK_HZ]
    assert make(clip, speaker).reference_mel.shape == (80, 500)


def test_a_clip_that_is_not_fit_is_refused_with_the_reason(speech: Tensor, speaker: SpeakerEncoder) -> None:
    mostly_silent = torch.cat([speech[:SPEAK_HZ], torch.zeros(4 * SPEAK_HZ)])
    for clip, reason in (
        (speech[: 2 * SPEAK_HZ], r"2\.0 s: expected one channel of 3 to 10 s"),
        (speech.repeat(3), r"15\.0 s: expected"),
        (speech[None], "expected one channel"),
        (speech[:0], r"0\.0 s: expected"),
        (torch.zeros_like(speech), "level is -100 dB.*louder"),
        (speech * 0.001, "louder"),
        (torch.full_like(speech, torch.nan), "not numbers"),
        ((speech * 50).clamp(-1, 1), "clipped"),
        (mostly_silent, "the rest is silence"),
    ):
        with pytest.raises(ValueError, match=reason):
            make(clip, speaker)


def test_a_clip_without_pitch_or_text_is_refused(speech: Tensor, speaker: SpeakerEncoder) -> None:
    with pytest.raises(ValueError, match=r"only 0\.0 s of the clip have a pitch"):
        make(speech, speaker, pitch=lambda waveform: torch.zeros(len(waveform) // 240))
    with pytest.raises(ValueError, match="no text"):
        make(speech, speaker, text=" \n")


def test_a_voice_read_back_is_the_one_written(speech: Tensor, speaker: SpeakerEncoder, tmp_path: Path) -> None:
    voice = make(speech, speaker, licence="CC0, somebody")
    path = write_voice(tmp_path / "voices", voice)
    assert [entry.name for entry in (tmp_path / "voices").iterdir()] == ["jfk.safetensors"]
    again = read_voice(path.parent, "jfk")
    for field in ("name", "reference_text", "median_f0_hz", "energy_db", "licence"):
        assert getattr(again, field) == getattr(voice, field)
    for field in ("embedding", "reference_mel", "reference_codes"):
        assert torch.equal(getattr(again, field), getattr(voice, field))
    assert again.reference_codes.dtype == torch.int64


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../jfk",
        "a/b",
        "a\\b",
        "/etc/passwd",
        "jfk.safetensors",
        "Jfk",
        "jfk\n",
        "a b",
        "é",
        "x" * 65,
        "a\0",
    ],
)
def test_what_could_be_a_path_is_no_name(name: str, speech: Tensor, speaker: SpeakerEncoder, tmp_path: Path) -> None:
    write_voice(tmp_path, make(speech, speaker))
    with pytest.raises(ValueError, match="is no name of a voice"):
        read_voice(tmp_path / "voices", name)
    with pytest.raises(ValueError, match="is no name of a voice"):
        make(speech, speaker, name=name)


def test_an_unknown_name_is_answered_with_the_known_ones(
    speech: Tensor, speaker: SpeakerEncoder, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"no voice 'anna': there are none"):
        read_voice(tmp_path / "nowhere", "anna")
    for name in ("jfk", "bob-2"):
        write_voice(tmp_path, make(speech, speaker, name=name))
    (tmp_path / "Not a name.safetensors").touch()
    (tmp_path / "notes.txt").touch()
    assert list_voices(tmp_path) == ["bob-2", "jfk"]
    with pytest.raises(ValueError, match="no voice 'anna': there are bob-2, jfk"):
        read_voice(tmp_path, "anna")


def test_a_damaged_file_is_one_sentence(speech: Tensor, speaker: SpeakerEncoder, tmp_path: Path) -> None:
    path = write_voice(tmp_path, make(speech, speaker))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="the file of the voice 'jfk' can't be read"):
        read_voice(tmp_path, "jfk")


def test_other_tensors_are_no_voice(speaker: SpeakerEncoder, tmp_path: Path) -> None:
    speaker.save(tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="the file of the voice 'weights' can't be read"):
        read_voice(tmp_path, "weights")


def test_tensors_of_the_wrong_shape_are_no_voice(speech: Tensor, speaker: SpeakerEncoder) -> None:
    with pytest.raises(ValueError, match=r"expected \(D,\), \(M, R\) and \(T,\)"):
        replace(make(speech, speaker), embedding=torch.zeros(1, 8))
