"""CAM++ equals the published network and Kaldi's filter bank on fixed numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soxr
import torch
import torch.nn.functional as F
from golden.campplus import DIM, FRAMES, GOLDEN, GROWTH, NUM_MELS, WIDTH, features, fill, waveform

from tristep.audio import LISTEN_HZ, SPEAK_HZ, read_audio, speech_mel
from tristep.codec.speaker import MIN_S, SpeakerEncoder, filter_bank, filter_bank_of_mel, similarity

CLIP = Path(__file__).parents[1] / "data" / "jfk.flac"


def tiny(num_mels: int = NUM_MELS) -> SpeakerEncoder:
    encoder = SpeakerEncoder(num_mels, DIM, WIDTH, GROWTH)
    fill(encoder)
    return encoder


def test_the_network_is_the_published_one() -> None:
    golden = torch.tensor(json.loads(GOLDEN.read_text())["embeddings"])
    with torch.no_grad():
        embeddings = tiny()(features())
    assert (embeddings < 0).any()
    torch.testing.assert_close(embeddings, golden, atol=1e-5, rtol=1e-5)


def test_the_filter_bank_is_kaldis() -> None:
    golden = torch.tensor(json.loads(GOLDEN.read_text())["filter_bank"])
    mel = filter_bank(waveform())
    assert mel.shape == (98, 80)
    torch.testing.assert_close(mel[list(FRAMES)], golden, atol=1e-3, rtol=0)


def test_silence_has_a_filter_bank_of_finite_numbers() -> None:
    assert torch.isfinite(filter_bank(torch.zeros(16_000))).all()


def test_a_clip_is_embedded_alike_however_loud_it_is() -> None:
    clip = read_audio(CLIP)[:48_000]
    encoder = tiny(80)
    assert encoder.embed(clip).shape == (DIM,)
    torch.testing.assert_close(encoder.embed(clip), encoder.embed(clip / 2), atol=2e-3, rtol=1e-2)


def test_the_shortest_clip_can_be_embedded_and_a_shorter_one_is_refused() -> None:
    shortest = round(MIN_S * 16_000)
    assert torch.isfinite(tiny(80).embed(waveform()[:shortest])).all()
    with pytest.raises(ValueError, match=r"0\.1 s at 16000 Hz; give a longer clip"):
        tiny(80).embed(waveform()[: shortest - 1])
    with pytest.raises(ValueError, match="one channel"):
        tiny(80).embed(waveform()[None])


def test_saved_weights_are_half_as_many_bytes_and_point_the_same_way(tmp_path: Path) -> None:
    encoder = tiny(80)
    encoder.save(tmp_path / "speaker.safetensors")
    loaded = SpeakerEncoder.load(tmp_path / "speaker.safetensors")
    size = sum(tensor.numel() for tensor in encoder.state_dict().values())
    assert (tmp_path / "speaker.safetensors").stat().st_size < 2.6 * size
    assert {tensor.dtype for tensor in loaded.parameters()} == {torch.float32}
    assert similarity(encoder.embed(waveform()), loaded.embed(waveform())) > 0.999


def test_published_weights_are_loaded_as_they_are(tmp_path: Path) -> None:
    encoder = tiny(80)
    torch.save(encoder.state_dict(), tmp_path / "campplus.pt")
    loaded = SpeakerEncoder.load(tmp_path / "campplus.pt")
    assert torch.equal(encoder.embed(waveform()), loaded.embed(waveform()))


@pytest.mark.parametrize("content", [b"", b"not weights", None])
def test_a_file_without_weights_is_one_sentence(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "speaker.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"speaker\.safetensors.*: (give|fetch)"):
        SpeakerEncoder.load(path)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"holds no CAM\+\+ weights"):
        SpeakerEncoder.load(tmp_path / "other.pt")


def test_its_statistics_stay_frozen_in_a_model_that_trains() -> None:
    encoder = tiny()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    torch.nn.ModuleList([encoder]).train()
    encoder(features())
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_a_speaking_mel_implies_the_filter_bank_that_is_measured() -> None:
    noise = torch.randn(4 * SPEAK_HZ, generator=torch.Generator().manual_seed(0))
    coloured = F.conv1d(noise[None, None], torch.tensor([[[0.2, 0.5, 1.0, -0.4]]]))[0, 0] / 10
    measured = filter_bank(torch.from_numpy(soxr.resample(coloured.numpy(), SPEAK_HZ, LISTEN_HZ)))
    implied = filter_bank_of_mel(speech_mel(coloured[None]))[0]
    powers = [bank.exp().mean(0)[2:78] for bank in (measured, implied)]  # beyond them, the resampling filter bites
    ratio = (powers[0] / powers[1]).log()
    assert (ratio - ratio.mean()).abs().max() < 0.35
