from __future__ import annotations

import math

import pytest
import torch

from tristep.codec.pitch import bridged, pitch


def buzz(f0_hz: float, num_samples: int) -> torch.Tensor:
    times = torch.arange(num_samples) / 24_000
    harmonics = range(1, 11)
    return torch.as_tensor(sum(0.05 * torch.sin(2 * math.pi * f0_hz * k * times) for k in harmonics))


@pytest.mark.parametrize("f0_hz", [90.0, 210.0, 420.0])
def test_the_pitch_of_a_buzz_is_its_frequency(f0_hz: float) -> None:
    track = pitch(buzz(f0_hz, 24_000))
    assert track.shape == (100,)
    inner = track[10:90]
    torch.testing.assert_close(inner, torch.full_like(inner, f0_hz), rtol=0.01, atol=0)


def test_voiced_frames_are_where_the_voice_is() -> None:
    waveform = torch.cat([torch.zeros(12_000), buzz(150, 12_000), torch.zeros(12_000)])
    voiced = pitch(waveform) > 0
    assert not voiced[:46].any()
    assert voiced[55:95].all()
    assert not voiced[105:].any()


def test_a_clip_too_short_to_have_a_pitch_has_none() -> None:
    assert torch.equal(pitch(torch.zeros(500)), torch.zeros(2))


def test_bridges_join_voiced_frames_on_a_log_scale() -> None:
    track = bridged(torch.tensor([0.0, 100.0, 0.0, 0.0, 0.0, 400.0, 0.0]))
    torch.testing.assert_close(track, torch.tensor([100, 100, 141.42, 200, 282.84, 400, 400.0]), rtol=1e-4, atol=0)


def test_a_track_without_voice_gets_a_pitch_all_the_same() -> None:
    assert (bridged(torch.zeros(5)) > 0).all()
