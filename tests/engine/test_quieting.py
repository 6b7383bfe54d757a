"""Noise that goes on is held down; speech passes, chunk by chunk as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tristep.audio import LISTEN_HZ, read_audio
from tristep.engine.quieting import DELAY, Distance, Quieter

CLIP = Path(__file__).parents[1] / "data" / "kathleen_a0249.opus"


def speech() -> Tensor:
    return read_audio(CLIP)


def noise(num_samples: int, level: float = 0.02) -> Tensor:
    return level * torch.randn(num_samples, generator=torch.Generator().manual_seed(0))


def quiet(waveform: Tensor, distance: Distance) -> Tensor:
    quieter = Quieter(distance)
    return torch.cat([quieter.push(waveform), quieter.finish()])


def snr(clean: Tensor, heard: Tensor) -> float:
    """Return how far a sound rises above what was added to it, in dB, each frequency weighed as it is."""
    return float(10 * torch.log10(clean.square().sum() / (heard - clean).square().sum()))


@pytest.mark.parametrize(("distance", "decibels"), [("near_field", -7), ("far_field", -10)])
def test_a_noise_that_goes_on_is_held_down(distance: Distance, decibels: float) -> None:
    waveform = noise(3 * LISTEN_HZ)
    left = quiet(waveform, distance)
    assert len(left) == len(waveform)
    after = slice(LISTEN_HZ, None)
    assert 10 * torch.log10(left[after].square().mean() / waveform[after].square().mean()) < decibels


@pytest.mark.parametrize("distance", ["near_field", "far_field"])
def test_speech_rises_further_above_a_noise(distance: Distance) -> None:
    clean = torch.cat([torch.zeros(LISTEN_HZ), speech()])
    noisy = clean + noise(len(clean))
    assert snr(clean, quiet(noisy, distance)) > snr(clean, noisy) + 3


@pytest.mark.parametrize("distance", ["near_field", "far_field"])
def test_speech_without_a_noise_passes(distance: Distance) -> None:
    assert snr(speech(), quiet(speech(), distance)) > 12


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, LISTEN_HZ), max_size=6))
def test_chunks_are_quieted_as_the_whole(cuts: list[int]) -> None:
    waveform, quieter = speech()[:LISTEN_HZ], Quieter("near_field")
    chunks = [quieter.push(chunk) for chunk in waveform.tensor_split(sorted(cuts))]
    assert sum(map(len, chunks)) >= len(waveform) - 2 * DELAY
    torch.testing.assert_close(torch.cat([*chunks, quieter.finish()]), quiet(waveform, "near_field"))
