from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tristep.audio import SPEAK_HZ, speech_mel
from tristep.codec.vocoder import (
    NUM_BINS,
    Vocoder,
    bands_to_bins,
    by_sample,
    cycles,
    pulse_train,
    white_noise,
)
from tristep.config import VocoderConfig

TOY = VocoderConfig(dim=16, num_blocks=2, pitch_dim=16, num_pitch_blocks=1, num_pitch_bins=64)


def steady(f0: float, num_frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    by_frame = torch.full((1, num_frames), f0, dtype=torch.float64)
    return by_sample(by_frame), cycles(by_sample(by_frame))


@pytest.mark.parametrize("f0", [61.0, 123.4, 440.0])
def test_a_pulse_train_is_the_sum_of_its_cosines(f0: float) -> None:
    frequencies, passed = steady(f0, 20)
    room = SPEAK_HZ / 2 / f0 - 1
    weights = [1.0] * int(room) + [room - int(room)]
    cosines = sum(w * torch.cos(2 * math.pi * (k + 1) * passed) for k, w in enumerate(weights))
    torch.testing.assert_close(pulse_train(frequencies, passed), cosines * math.sqrt(2 / room), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("f0", [61.0, 123.4, 440.0])
def test_pulses_have_the_same_power_at_any_pitch(f0: float) -> None:
    assert float(pulse_train(*steady(f0, 300)).square().mean()) == pytest.approx(1, abs=0.02)


@given(start=st.integers(0, 10_000), num_samples=st.integers(1, 500), seed=st.integers(0, 1 << 40))
@settings(max_examples=30, deadline=None)
def test_noise_depends_on_the_position_and_the_seed_alone(start: int, num_samples: int, seed: int) -> None:
    whole = white_noise(start + num_samples, 0, torch.tensor([seed]))
    assert torch.equal(white_noise(num_samples, start, torch.tensor([seed])), whole[:, start:])


def test_noise_is_white_and_of_unit_power_and_seeds_do_not_resemble_each_other() -> None:
    one, other = white_noise(100_000, 0, torch.tensor([0, 1]))
    assert float(one.square().mean()) == pytest.approx(1, abs=0.02)
    for lag in range(1, 6):
        assert abs(float((one[lag:] * one[:-lag]).mean())) < 0.02
    assert abs(float((one * other).mean())) < 0.02


def test_every_bin_takes_its_gain_from_the_bands_around_it() -> None:
    spread = bands_to_bins()
    assert spread.shape == (NUM_BINS, 80)
    torch.testing.assert_close(spread.sum(1), torch.ones(NUM_BINS))
    assert (spread.argmax(1).diff() >= 0).all()


def test_an_untrained_vocoder_already_follows_the_mel() -> None:
    torch.manual_seed(0)
    vocoder = Vocoder(TOY).eval()
    envelope = torch.linspace(1, 0.05, 24_000) * (1 + torch.sin(torch.arange(24_000) / 3000))
    mel = speech_mel((torch.randn(24_000) * 0.1 * envelope)[None])
    with torch.no_grad():
        again = speech_mel(vocoder(mel))
    assert float(torch.corrcoef(torch.stack([mel.flatten(), again.flatten()]))[0, 1]) > 0.8


def test_each_clip_of_a_batch_is_vocoded_as_if_alone() -> None:
    torch.manual_seed(0)
    vocoder = Vocoder(TOY).eval()
    mels = torch.randn(3, 80, 30) * 2 - 4
    with torch.no_grad():
        together = vocoder(mels, seed=5)
        for row in range(3):
            alone = vocoder(mels[row : row + 1], seed=5)[0]
            torch.testing.assert_close(together[row], alone, atol=2e-4 * float(alone.abs().max()), rtol=0)


def test_draws_of_noise_through_the_same_filters_are_those_of_each_seed() -> None:
    torch.manual_seed(0)
    vocoder = Vocoder(TOY).eval()
    mel, f0 = torch.randn(2, 80, 20) - 4, torch.full((2, 20), 150.0)
    with torch.no_grad():
        draws = vocoder.synthesise(mel, f0, torch.tensor([[1, 2], [3, 4]]))
        assert draws.shape == (2, 2, 4800)
        for k in range(2):
            alone = vocoder.synthesise(mel, f0, torch.tensor([1 + k, 3 + k]))
            torch.testing.assert_close(draws[:, k], alone, atol=1e-5, rtol=1e-5)


def test_a_frequency_comes_back_from_its_class() -> None:
    predictor = Vocoder(TOY).pitch
    f0 = torch.tensor([[55.0, 123.0, 250.0, 500.0]])
    distance = torch.arange(TOY.num_pitch_bins) - predictor.places(f0)[..., None]
    torch.testing.assert_close(predictor.frequency(-(distance**2) / 2).float(), f0, rtol=2e-3, atol=0)


def test_no_frames_are_no_samples() -> None:
    assert Vocoder(TOY)(torch.zeros(1, 80, 0)).shape == (1, 0)
