from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tristep.audio import LISTEN_HZ, SPEAK_HZ
from tristep.engine.dialogue import SessionError
from tristep.engine.microphone import Microphone
from tristep.engine.voice_activity import FRAME_SIZE

SOUND = torch.rand(5000, generator=torch.Generator().manual_seed(1)) - 0.5


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 4999), max_size=8), st.sampled_from([LISTEN_HZ, SPEAK_HZ]))
def test_frames_do_not_depend_on_the_chunks(cuts: list[int], sample_rate: int) -> None:
    whole, chunked = Microphone(), Microphone()
    expected = whole.push(SOUND, sample_rate)
    frames = [frame for chunk in SOUND.tensor_split(sorted(cuts)) for frame in chunked.push(chunk, sample_rate)]
    assert len(frames) == len(expected)
    assert all(torch.equal(*pair) for pair in zip(frames, expected, strict=True))
    assert chunked.num_samples == whole.num_samples == 5000 * LISTEN_HZ // sample_rate
    assert torch.equal(chunked.between(0, 5000), whole.between(0, 5000))


@pytest.mark.parametrize(("hz", "gain"), [(200, 1.0), (3000, 1.0), (6000, 1.0), (9000, 0.0), (11000, 0.0)])
def test_what_is_above_half_the_rate_is_gone_and_the_rest_as_it_was(hz: int, gain: float) -> None:
    times = torch.arange(SPEAK_HZ, dtype=torch.float64) / SPEAK_HZ
    microphone = Microphone()
    microphone.push(torch.sin(2 * torch.pi * hz * times).float(), SPEAK_HZ)
    expected = gain * torch.sin(2 * torch.pi * hz * torch.arange(LISTEN_HZ, dtype=torch.float64) / LISTEN_HZ)
    error = microphone.between(0, LISTEN_HZ).double() - expected
    assert float(error[200:-200].abs().max()) < 0.01


def test_what_lies_before_is_forgotten() -> None:
    microphone = Microphone()
    frames = microphone.push(SOUND, LISTEN_HZ)
    microphone.forget(FRAME_SIZE + 10)
    assert microphone.first == FRAME_SIZE
    assert torch.equal(microphone.between(0, 2 * FRAME_SIZE), frames[1])
    assert torch.equal(microphone.between(FRAME_SIZE + 5, 5000), SOUND[FRAME_SIZE + 5 :])


@pytest.mark.parametrize("sound", [torch.zeros(2, 100), torch.zeros(10).long(), torch.tensor([0.0, float("nan")])])
def test_what_is_no_sound_is_refused(sound: torch.Tensor) -> None:
    with pytest.raises(SessionError, match="expected finite floats"):
        Microphone().push(sound, SPEAK_HZ)


def test_another_rate_is_refused() -> None:
    microphone = Microphone()
    with pytest.raises(SessionError, match="8000 Hz: expected 16000 or 24000"):
        microphone.push(SOUND, 8000)
    microphone.push(SOUND, LISTEN_HZ)
    with pytest.raises(SessionError, match="expected 16000 Hz, all through"):
        microphone.push(SOUND, SPEAK_HZ)
