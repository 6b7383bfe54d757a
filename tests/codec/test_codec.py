from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tristep.backbone.audio_encoder import AudioEncoder
from tristep.codec.code_listener import CodeListener
from tristep.codec.codec import KNEE, LISTENER, Codec, as_toml, limited
from tristep.codec.voice import Voice
from tristep.config import CodecConfig, EncoderConfig, load_codec_config, load_toml


@pytest.fixture(scope="module")
def encoder() -> AudioEncoder:
    torch.manual_seed(0)
    return AudioEncoder(EncoderConfig(num_mels=80, dim=64, num_layers=1, num_heads=2)).eval()


@pytest.fixture(scope="module")
def codec(encoder: AudioEncoder) -> Codec:
    torch.manual_seed(0)
    return Codec(load_codec_config("codec-toy"), encoder)


@pytest.fixture(scope="module")
def voice() -> Voice:
    generator = torch.Generator().manual_seed(0)
    embedding, mel = torch.randn(192, generator=generator), torch.randn(80, 150, generator=generator) - 6
    return Voice("tester", embedding, mel, torch.zeros(0, dtype=torch.long), "", 120.0, -20.0, "")


@pytest.mark.parametrize("num_samples", [0, 24_000, 24_001])
def test_a_codec_writes_its_rate_of_codes(codec: Codec, num_samples: int) -> None:
    codes = codec.encode(0.1 * torch.randn(num_samples))
    assert codec.code_rate_hz == 12.5
    assert len(codes) == -(-num_samples // 1920)
    assert (codes < codec.codebook_size).all()


def test_chunks_of_codes_give_the_whole_waveform(codec: Codec, voice: Voice) -> None:
    codes = torch.randint(codec.codebook_size, (20,), generator=torch.Generator().manual_seed(0))
    whole = codec.decode(codes, voice, seed=3, semitones=2.0)
    assert whole.shape == (20 * 1920,)
    stream = codec.stream(voice, seed=3, semitones=2.0)
    chunks = [stream.push(codes[start : start + 3]) for start in range(0, 20, 3)]
    torch.testing.assert_close(torch.cat([*chunks, stream.finish()]), whole, rtol=0, atol=1e-3)
    assert sum(map(len, chunks)) > 0


def test_no_codes_are_no_sound(codec: Codec, voice: Voice) -> None:
    assert codec.decode(torch.zeros(0, dtype=torch.long), voice).shape == (0,)


def test_a_codec_is_saved_and_loaded(codec: Codec, encoder: AudioEncoder, voice: Voice, tmp_path: Path) -> None:
    codec.save(tmp_path)
    loaded = Codec.load(tmp_path, encoder)
    assert loaded.config == codec.config
    loaded.save(tmp_path / "again")
    again = Codec.load(tmp_path / "again", encoder)
    codes = torch.arange(12)
    assert torch.equal(again.decode(codes, voice), loaded.decode(codes, voice))


@pytest.mark.parametrize("name", ["codec-nano", "codec-nano-25hz", "codec-nano-wide", "codec-toy"])
def test_a_config_is_written_as_it_is_read(name: str, tmp_path: Path) -> None:
    config = load_codec_config(name)
    (tmp_path / "codec.toml").write_text(as_toml(config))
    assert load_toml(tmp_path / "codec.toml", CodecConfig) == config


def test_an_unknown_config_is_told_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"no codec config 'codec-huge'.*codec-nano"):
        load_codec_config("codec-huge")


def broken(path: Path, content: bytes | None) -> None:
    path.unlink()
    if content is not None:
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("flow", None, "flow.safetensors is missing: fetch the whole codec"),
        ("flow", b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        ("flow", b"nonsense", "is damaged"),
        ("code_listener", b"nonsense", "is damaged"),
    ],
)
def test_a_damaged_codec_says_what_to_do(
    codec: Codec, encoder: AudioEncoder, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    codec.save(tmp_path)
    CodeListener(codec.config.tokenizer).save(tmp_path / LISTENER)
    broken(tmp_path / f"{name}.safetensors", content)
    with pytest.raises(ValueError, match=message):
        Codec.load(tmp_path, encoder)


def test_weights_of_another_codec_are_refused(codec: Codec, encoder: AudioEncoder, tmp_path: Path) -> None:
    codec.save(tmp_path)
    (tmp_path / "codec.toml").write_text(as_toml(codec.config).replace("levels = [4, 4, 4]", "levels = [4, 4]"))
    with pytest.raises(ValueError, match=r"tokenizer.safetensors does not fit codec.toml"):
        Codec.load(tmp_path, encoder)


def test_loud_sound_is_bent_and_never_cut_off() -> None:
    loud = torch.linspace(-4, 4, 801)
    bent = limited(loud)
    quiet = loud.abs() <= KNEE
    torch.testing.assert_close(bent[quiet], loud[quiet])
    assert bent.abs().max() <= 1
    assert (bent[1:] >= bent[:-1]).all()
    torch.testing.assert_close(bent, -bent.flip(0))
