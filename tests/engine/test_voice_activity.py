from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tristep.audio import read_audio
from tristep.engine.voice_activity import FRAME_SIZE, Network, VoiceActivity, weights_path

CLIP = Path(__file__).parents[1] / "data" / "jfk.flac"


def frames() -> torch.Tensor:
    waveform = read_audio(CLIP)
    return waveform[: len(waveform) // FRAME_SIZE * FRAME_SIZE].view(-1, FRAME_SIZE)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_the_network_computes_what_sileros_own_computes() -> None:
    # The wheel carries a second set of weights inside a scripted model: it is the reference for the arithmetic.
    reference = torch.jit.load(weights_path().with_name("silero_vad.jit"))
    network = Network().requires_grad_(False)
    weights = reference._model.state_dict().values()  # in the same order as ours
    network.load_state_dict(dict(zip(network.state_dict(), weights, strict=True)))
    with torch.inference_mode():
        expected = [float(reference(frame[None], 16_000)) for frame in frames()]
    assert VoiceActivity(network)(frames()) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("num_frames", [1, 7, 100])
def test_chunks_are_judged_as_the_whole(num_frames: int) -> None:
    detector = VoiceActivity()
    chunked = [prob for chunk in torch.split(frames(), num_frames) for prob in detector(chunk)]
    assert chunked == pytest.approx(VoiceActivity()(frames()), abs=1e-5)


def test_two_sounds_do_not_disturb_each_other() -> None:
    first, second = VoiceActivity(), VoiceActivity()
    alone = VoiceActivity()(frames())
    for frame, expected in zip(frames()[:50], alone, strict=False):
        second(torch.rand(1, FRAME_SIZE))
        assert first(frame[None]) == pytest.approx([expected], abs=1e-5)
