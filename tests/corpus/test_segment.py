from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tristep.audio import LISTEN_HZ, AudioError, read_audio, write_audio
from tristep.corpus.segment import bandwidth_hz, clipped_share, grade, pieces, read_stretch
from tristep.engine.segments import MAX_SEGMENT_S

JFK = Path(__file__).parents[1] / "data" / "jfk.flac"


@pytest.fixture(scope="module")
def speech() -> Tensor:
    return read_audio(JFK)


def tone(frequency_hz: float, duration_s: float = 1.0) -> Tensor:
    return torch.sin(2 * math.pi * frequency_hz * torch.arange(int(duration_s * LISTEN_HZ)) / LISTEN_HZ)


def test_a_short_recording_is_one_piece(speech: Tensor) -> None:
    ((stretch, is_whole),) = pieces(JFK)
    assert is_whole
    assert stretch.start_s == 0
    assert torch.equal(stretch.waveform, speech)


def test_a_long_recording_is_cut_where_nobody_speaks(tmp_path: Path, speech: Tensor) -> None:
    pause = torch.zeros(3 * LISTEN_HZ)
    long = torch.cat([speech, pause, speech, pause, speech])
    write_audio(tmp_path / "long.flac", long, LISTEN_HZ)
    found = list(pieces(tmp_path / "long.flac"))
    assert len(found) == 3
    for number, (stretch, is_whole) in enumerate(found):
        assert not is_whole
        assert stretch.duration_s <= MAX_SEGMENT_S
        assert stretch.start_s == pytest.approx(number * (len(speech) / LISTEN_HZ + 3), abs=0.7)
        again = read_stretch(tmp_path / "long.flac", stretch.start_s, stretch.end_s)
        torch.testing.assert_close(again, stretch.waveform)


def test_a_recording_that_can_not_be_read_says_so(tmp_path: Path) -> None:
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    with pytest.raises(AudioError, match=r"broken\.wav"):
        list(pieces(tmp_path / "broken.wav"))


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 20.0])
def test_the_noise_that_was_added_is_found(speech: Tensor, snr_db: float) -> None:
    noise = torch.randn(len(speech), generator=torch.Generator().manual_seed(0))
    spoken = speech.square().mean() * grade(speech).speech_share ** -1  # power while somebody speaks
    noisy = speech + noise * (spoken * 10 ** (-snr_db / 10)).sqrt()
    assert grade(noisy).snr_db == pytest.approx(snr_db, abs=3)


def test_nobody_speaks_in_silence_and_in_nothing() -> None:
    for waveform in (torch.zeros(LISTEN_HZ), torch.zeros(0)):
        found = grade(waveform)
        assert (found.speech_share, found.snr_db, found.bandwidth_hz, found.clipped_share) == (0, -20, 0, 0)


def test_tops_that_were_cut_off_are_clipped_and_a_loud_tone_is_not() -> None:
    assert clipped_share(tone(200)) < 0.01
    assert clipped_share((2 * tone(200)).clamp(-1, 1)) > 0.5
    assert clipped_share((2 * tone(200)).clamp(-1, 1) * 0.3) > 0.5  # turned down afterwards


def test_a_telephone_is_heard_by_its_bandwidth(speech: Tensor) -> None:
    spectrum = torch.fft.rfft(speech)
    spectrum[int(len(spectrum) * 3400 / 8000) :] = 0
    telephone = torch.fft.irfft(spectrum, n=len(speech))
    assert grade(telephone).bandwidth_hz == pytest.approx(3400, abs=150)
    assert grade(speech).bandwidth_hz > 4500
    assert bandwidth_hz(tone(1000)[: 512 * 31].view(31, 512)) == pytest.approx(1000, abs=150)
