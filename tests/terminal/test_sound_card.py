from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from terminal.portaudio import PortAudio

from tristep.terminal import sound_card
from tristep.terminal.sound_card import DUCKED_GAIN, SoundCard


def card_on(portaudio: PortAudio) -> SoundCard:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "sounddevice", portaudio)  # type: ignore[arg-type]
        return SoundCard()


def filled(card: SoundCard, num_samples: int) -> np.ndarray:  # type: ignore[type-arg]
    """Return what the loudspeaker is handed next."""
    samples = np.full((num_samples, 1), np.nan, np.float32)
    card.fill(samples, num_samples, None, None)
    return samples[:, 0]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=5), st.lists(st.integers(1, 50), min_size=1, max_size=5))
def test_what_is_played_comes_out_in_order_in_blocks_of_any_size(chunks: list[int], blocks: list[int]) -> None:
    card = card_on(PortAudio())
    sound = torch.rand(sum(chunks), generator=torch.Generator().manual_seed(0)) + 0.1
    for chunk in sound.clamp(max=1).split(chunks):
        card.play(chunk)
    out = np.concatenate([filled(card, size) for size in blocks])
    num_played = min(len(sound), len(out))
    assert card.num_played == num_played
    np.testing.assert_array_equal(out[:num_played], sound.clamp(max=1)[:num_played].numpy())
    assert not out[num_played:].any()


def test_cleared_it_is_silent_at_once_and_counts_only_what_was_taken() -> None:
    card = card_on(PortAudio())
    card.play(torch.ones(100))
    filled(card, 60)
    card.clear()
    assert not filled(card, 60).any()
    assert card.num_played == 60
    card.play(torch.ones(10))
    assert filled(card, 20).sum() == 10


def test_ducked_it_glides_to_a_lower_loudness_and_back() -> None:
    card = card_on(PortAudio())
    card.play(torch.ones(1000))
    card.duck(True)
    down, low = filled(card, 200), filled(card, 200)
    card.duck(False)
    up, usual = filled(card, 200), filled(card, 200)
    assert (down[0], down[-1]) == pytest.approx((1, DUCKED_GAIN))
    assert low == pytest.approx(DUCKED_GAIN)
    assert (up[0], up[-1]) == pytest.approx((DUCKED_GAIN, 1))
    assert (usual == 1).all()
    assert max(np.abs(np.diff(np.concatenate([down, low, up, usual])))) < 0.01


def test_what_is_captured_is_read_once_and_counted_before() -> None:
    card = card_on(PortAudio())
    assert len(card.read(wait=False)) == 0
    block = np.arange(6, dtype=np.float32)[:, None]
    card.capture(block[:4], 4, None, None)
    card.capture(block[4:], 2, None, None)
    block[:] = 9  # PortAudio's memory is its own
    assert card.num_heard == 6
    assert card.read(wait=True).tolist() == [0, 1, 2, 3, 4, 5]
    assert len(card.read(wait=False)) == 0


def test_it_runs_while_it_is_open() -> None:
    said = torch.rand(2000, generator=torch.Generator().manual_seed(0))
    portaudio = PortAudio(said)
    with card_on(portaudio) as card:
        assert len(portaudio.open) == 2
        heard = torch.zeros(0)
        while len(heard) < len(said):
            heard = torch.cat([heard, card.read(wait=True)])
    assert portaudio.open == []
    assert torch.equal(heard[:2000], said)


def test_a_microphone_that_goes_silent_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sound_card, "DEAD_S", 0.01)
    with pytest.raises(ValueError, match=r"a microphone\) has delivered nothing for 0.01 s: check"):
        card_on(PortAudio()).read(wait=True)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("input", "there is no microphone: PortAudio finds only a loudspeaker; connect one"),
        ("output", "there is no loudspeaker: PortAudio finds only a microphone; connect one"),
        ("both", "there is no microphone: PortAudio finds no sound device at all; connect one"),
    ],
)
def test_a_device_that_is_missing_is_told_with_those_there_are(missing: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        card_on(PortAudio(missing=missing))


def test_devices_that_refuse_the_rate_are_closed_again() -> None:
    portaudio = PortAudio(most_hz=16_000)
    with (
        pytest.raises(ValueError, match=r"\(a microphone\) .* opened at 24000 Hz.*Invalid sample rate"),
        card_on(portaudio),
    ):
        pass
    assert portaudio.open == []
