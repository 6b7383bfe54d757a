from __future__ import annotations

import io
import math
import os
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor
from transformers import WhisperFeatureExtractor
from transformers.audio_utils import mel_filter_bank

from tristep.audio import (
    HOP_LENGTH,
    LISTEN_HZ,
    SPEAK_HZ,
    AudioError,
    log_mel,
    mel_filters,
    raw_log_mel,
    read_audio,
    speech_mel,
    step_audio_log_mel,
    stream_audio,
    transposition,
    write_audio,
)

DATA = Path(__file__).parent / "data"
JFK = DATA / "jfk.flac"


def tone(sample_rate: int, duration_s: float = 1.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(round(duration_s * sample_rate)) / sample_rate)).astype("f4")


def encoded(samples: np.ndarray, sample_rate: int, kind: str, subtype: str | None = None) -> bytes:
    """Write samples `(S,)` or `(S, channels)` into the bytes of a file, a second at a time."""
    file = io.BytesIO()
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    with soundfile.SoundFile(file, "w", sample_rate, channels, format=kind, subtype=subtype) as sound:
        for start in range(0, len(samples), sample_rate):
            sound.write(samples[start : start + sample_rate])
    return file.getvalue()


def encoded_with_av(samples: np.ndarray, sample_rate: int, container: str, codec: str) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=sample_rate, layout="mono")
        for start in range(0, len(samples), 960):
            frame = av.AudioFrame.from_ndarray(samples[None, start : start + 960].copy(), "fltp", "mono")
            frame.sample_rate, frame.pts = sample_rate, start
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def is_tone(waveform: Tensor, tolerance: float = 0.02) -> bool:
    """Tell whether the middle of a waveform at `LISTEN_HZ` is a sine of amplitude 0.5."""
    middle = waveform[2000:-2000].double()
    angle = 2 * math.pi * 440 * torch.arange(len(middle)) / LISTEN_HZ
    basis = torch.stack([angle.sin(), angle.cos()], dim=1).double()
    weights = torch.linalg.lstsq(basis, middle[:, None]).solution
    residual = (basis @ weights)[:, 0] - middle
    return abs(float(weights.norm()) - 0.5) < tolerance and float(residual.std()) < tolerance


@pytest.mark.parametrize("sample_rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000])
def test_every_rate_is_resampled_to_the_one_asked_for(sample_rate: int) -> None:
    waveform = read_audio(encoded(tone(sample_rate), sample_rate, "WAV"))
    assert waveform.dtype == torch.float32
    assert abs(len(waveform) - LISTEN_HZ) <= 1
    assert is_tone(waveform)


def test_the_rate_asked_for_may_be_another() -> None:
    assert read_audio(JFK, 24_000).shape == (11 * 24_000,)


SOUNDFILE_KINDS = [
    "WAV PCM_U8",
    "WAV PCM_24",
    "WAV FLOAT",
    "WAV ULAW",
    "AIFF PCM_16",
    "AU PCM_16",
    "RF64 PCM_16",
]
SOUNDFILE_KINDS += ["W64 PCM_16", "FLAC PCM_16", "OGG VORBIS", "OGG OPUS", "MP3 MPEG_LAYER_III"]
AV_KINDS = ["mp4 aac", "ipod aac", "adts aac", "webm libopus", "matroska flac", "mov alac", "avi pcm_s16le"]


@pytest.mark.parametrize("kind", SOUNDFILE_KINDS)
def test_soundfiles_formats_are_read(kind: str) -> None:
    waveform = read_audio(encoded(tone(48_000), 48_000, *kind.split()))
    assert abs(len(waveform) - LISTEN_HZ) < 0.1 * LISTEN_HZ
    assert is_tone(waveform)


@pytest.mark.parametrize("kind", [*AV_KINDS, "mpegts mp2"])
def test_containers_beyond_soundfile_are_read(kind: str) -> None:
    waveform = read_audio(encoded_with_av(tone(48_000), 48_000, *kind.split()))
    assert abs(len(waveform) - LISTEN_HZ) < 0.1 * LISTEN_HZ
    assert is_tone(waveform, tolerance=0.05)


def test_channels_are_mixed_down_by_their_mean() -> None:
    left = tone(LISTEN_HZ)
    stereo = np.stack([left, np.zeros_like(left)], axis=1)
    waveform = read_audio(encoded(stereo, LISTEN_HZ, "WAV", "FLOAT"))
    assert torch.equal(waveform, torch.from_numpy(left / 2))


def test_ten_channels_of_a_container_beyond_soundfile_are_mixed_down() -> None:
    file = io.BytesIO()
    samples = np.tile(np.arange(10, dtype="i2") * 1000, LISTEN_HZ)[None]  # (1, S * channels)
    with av.open(file, "w", format="matroska") as output:
        stream = output.add_stream("pcm_s16le", rate=LISTEN_HZ, layout="5.1.4")
        frame = av.AudioFrame.from_ndarray(samples, "s16", stream.layout)
        frame.sample_rate = LISTEN_HZ
        output.mux(stream.encode(frame))
    waveform = read_audio(file.getvalue())
    assert torch.allclose(waveform, torch.full((LISTEN_HZ,), 4500 / 32768), atol=1e-4)


def test_paths_bytes_files_and_pipes_give_the_same() -> None:
    data = JFK.read_bytes()
    expected = read_audio(JFK)
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as pipe:
        os.write(write_end, short := encoded(tone(LISTEN_HZ, 0.5), LISTEN_HZ, "WAV"))
        os.close(write_end)
        assert torch.equal(read_audio(pipe), read_audio(short))
    with JFK.open("rb") as file:
        assert torch.equal(read_audio(file), expected)
    assert torch.equal(read_audio(str(JFK)), expected)
    assert torch.equal(read_audio(data), expected)
    assert torch.equal(read_audio(io.BytesIO(data)), expected)


def test_a_misleading_name_does_not_matter(tmp_path: Path) -> None:
    for name in ("speech.raw", "speech.txt", "speech"):
        (tmp_path / name).write_bytes(JFK.read_bytes())
        assert torch.equal(read_audio(tmp_path / name), read_audio(JFK))
        with (tmp_path / name).open("rb") as file:
            assert torch.equal(read_audio(file), read_audio(JFK))


def test_the_recordings_at_hand_are_as_long_as_they_say() -> None:
    for name, duration_s in {"jfk.flac": 11.0, "kathleen_b0442.opus": 2.9, "lj002_0154.opus": 9.0}.items():
        waveform = read_audio(DATA / name)
        assert len(waveform) / LISTEN_HZ == pytest.approx(duration_s, abs=0.02)
        assert 0.1 < waveform.abs().max() <= 1


@pytest.mark.parametrize("chunk_s", [0.01, 0.7, 5.0, 11.0, 60.0])
@pytest.mark.parametrize("sample_rate", [LISTEN_HZ, 24_000])
def test_streamed_chunks_joined_are_the_whole(chunk_s: float, sample_rate: int) -> None:
    chunks = list(stream_audio(JFK, chunk_s, sample_rate))
    assert torch.equal(torch.cat(chunks), read_audio(JFK, sample_rate))
    assert {len(chunk) for chunk in chunks[:-1]} <= {round(chunk_s * sample_rate)}
    assert 0 < len(chunks[-1]) <= round(chunk_s * sample_rate)


def test_a_long_recording_streams_in_little_memory() -> None:
    data = encoded(np.zeros(900 * LISTEN_HZ, "i2"), LISTEN_HZ, "FLAC")
    tracemalloc.start()
    tracemalloc.reset_peak()
    num_samples = sum(len(chunk) for chunk in stream_audio(data, 10.0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert num_samples == 900 * LISTEN_HZ
    assert peak < 8e6  # the whole would be 58 MB


def test_a_chunk_of_no_duration_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least one sample"):
        next(stream_audio(JFK, 0.0))


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.opus", "a.mp3"])
def test_what_is_written_can_be_read(tmp_path: Path, name: str) -> None:
    waveform = torch.from_numpy(tone(LISTEN_HZ, 2.0))
    write_audio(tmp_path / name, waveform, LISTEN_HZ)
    again = read_audio(tmp_path / name)
    assert abs(len(again) - len(waveform)) < 0.1 * LISTEN_HZ
    assert is_tone(again)


def test_a_wav_keeps_its_samples_to_sixteen_bits(tmp_path: Path) -> None:
    waveform = torch.linspace(-1.5, 1.5, 5000)
    write_audio(tmp_path / "a.wav", waveform, 24_000)
    again = read_audio(tmp_path / "a.wav", 24_000)
    assert torch.allclose(again, waveform.clamp(-1, 1), atol=1 / 32_000)


def test_minutes_of_vorbis_are_written(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.ogg", torch.zeros(120 * LISTEN_HZ), LISTEN_HZ)
    assert len(read_audio(tmp_path / "a.ogg")) == 120 * LISTEN_HZ


@pytest.mark.parametrize("waveform", [torch.zeros(2, 5), torch.tensor([0.0, math.nan]), torch.tensor(1.0)])
def test_only_one_finite_channel_is_written(tmp_path: Path, waveform: Tensor) -> None:
    with pytest.raises(AudioError, match=r"expected finite samples of shape \(S,\)"):
        write_audio(tmp_path / "a.wav", waveform, LISTEN_HZ)


@pytest.mark.parametrize(
    ("name", "sample_rate"), [("a.xyz", 16_000), ("none/a.wav", 16_000), ("a.opus", 11_025), ("a.wav", 0)]
)
def test_an_impossible_place_or_rate_is_told(tmp_path: Path, name: str, sample_rate: int) -> None:
    with pytest.raises(AudioError, match="can't be written") as caught:
        write_audio(tmp_path / name, torch.zeros(100), sample_rate)
    assert "\n" not in str(caught.value)


def test_a_recording_longer_than_allowed_is_refused() -> None:
    assert len(read_audio(JFK, max_duration_s=11.0)) == 11 * LISTEN_HZ
    with pytest.raises(AudioError, match=r"promises 11.0 s of sound: expected at most 10 s; cut it"):
        read_audio(JFK, max_duration_s=10)
    with pytest.raises(AudioError, match="expected at most 10 s"):
        next(stream_audio(JFK, max_duration_s=10))


def test_a_recording_that_hides_its_length_is_cut_off_at_the_limit() -> None:
    data = encoded_with_av(np.zeros(48_000 * 20, "f4"), 48_000, "webm", "libopus")
    with pytest.raises(AudioError, match=r"goes on after 5 s: expected at most that"):
        read_audio(data, max_duration_s=5)


@pytest.mark.parametrize("num_mels", [80, 128])
def test_mel_filters_are_the_published_ones(num_mels: int) -> None:
    published = mel_filter_bank(201, num_mels, 0.0, 8000.0, 16_000, norm="slaney", mel_scale="slaney")
    assert torch.allclose(mel_filters(num_mels), torch.from_numpy(published.T).float(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("num_mels", [80, 128])
def test_the_log_mel_is_whispers(num_mels: int) -> None:
    waveform = read_audio(JFK)
    extractor = WhisperFeatureExtractor(feature_size=num_mels)
    features = extractor(waveform.numpy(), sampling_rate=LISTEN_HZ, return_tensors="np")["input_features"][0]
    ours = log_mel(torch.nn.functional.pad(waveform, (0, 30 * LISTEN_HZ - len(waveform))), num_mels)
    assert torch.allclose(ours, torch.from_numpy(features), rtol=0, atol=1e-5)


def test_the_log_mel_of_noise_is_whispers() -> None:
    waveform = 0.3 * torch.randn(30 * LISTEN_HZ, generator=torch.Generator().manual_seed(0))
    features = WhisperFeatureExtractor()(waveform.numpy(), sampling_rate=LISTEN_HZ)["input_features"][0]
    assert torch.allclose(log_mel(waveform), torch.from_numpy(features), rtol=0, atol=1e-5)


def test_the_step_audio_front_end_is_the_published_formula() -> None:
    waveform = read_audio(JFK)[: 5 * LISTEN_HZ + 77]
    filters = mel_filter_bank(201, 128, 0.0, 8000.0, 16_000, norm="slaney", mel_scale="slaney")
    padded = torch.nn.functional.pad(waveform, (0, 479))
    spectrum = torch.stft(padded, 400, 160, window=torch.hann_window(400), return_complex=True)
    power = torch.from_numpy(filters.T).float() @ (spectrum[..., :-1].abs() ** 2)
    log_power = torch.clamp(power, min=1e-10).log10()
    published = (torch.maximum(log_power, log_power.max() - 8.0) + 4.0) / 4.0
    assert torch.allclose(step_audio_log_mel(waveform), published, rtol=0, atol=1e-5)


def test_a_piece_of_25_seconds_has_the_published_number_of_frames() -> None:
    assert step_audio_log_mel(torch.zeros(25 * LISTEN_HZ)).shape == (128, 2502)


@pytest.mark.parametrize("num_samples", [0, 1, 159, 160, 200, 201, 320, 399, 400, 16_001])
def test_a_clip_of_any_length_has_a_frame_every_hop(num_samples: int) -> None:
    waveform = torch.rand(2, num_samples)
    assert log_mel(waveform).shape == (2, 80, num_samples // HOP_LENGTH)
    assert log_mel(waveform[0]).shape == (80, num_samples // HOP_LENGTH)
    assert torch.isfinite(log_mel(waveform)).all()


def test_a_clip_has_the_same_log_mel_in_a_batch_as_alone() -> None:
    waveform = torch.stack([read_audio(JFK)[:32_000], 0.01 * torch.ones(32_000)])
    batched = log_mel(waveform)
    assert torch.allclose(batched[0], log_mel(waveform[0]), rtol=0, atol=1e-5)
    assert torch.allclose(batched[1], log_mel(waveform[1]), rtol=0, atol=1e-5)


def test_silence_has_the_lowest_log_mel() -> None:
    assert torch.equal(raw_log_mel(torch.zeros(1600)), torch.full((80, 10), -10.0))
    assert torch.equal(log_mel(torch.zeros(1600)), torch.full((80, 10), -1.5))


def test_a_waveform_of_three_dimensions_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \(S,\) or \(B, S\)"):
        log_mel(torch.zeros(1, 1, 400))


def test_the_speaking_filters_are_the_published_ones() -> None:
    published = mel_filter_bank(513, 80, 0.0, 8000.0, SPEAK_HZ, norm="slaney", mel_scale="slaney")
    assert np.allclose(mel_filters(80, SPEAK_HZ, 1024, 8000.0).T.numpy(), published, rtol=0, atol=1e-6)


@pytest.mark.parametrize("num_samples", [0, 1, 239, 240, 512, 513, 1024, 24_001])
def test_a_clip_of_any_length_has_a_speaking_frame_every_hop(num_samples: int) -> None:
    mel = speech_mel(torch.rand(2, num_samples))
    assert mel.shape == (2, 80, num_samples // 240)
    assert torch.isfinite(mel).all()


def test_a_speaking_frame_is_centred_on_its_hop() -> None:
    click = torch.zeros(1, 24_000)
    click[0, 50 * 240] = 1
    assert int(speech_mel(click).sum(1).argmax()) == 50


def test_a_speaking_mel_needs_the_batch_dimension() -> None:
    with pytest.raises(ValueError, match=r"expected \(B, S\)"):
        speech_mel(torch.zeros(400))


@pytest.mark.parametrize("semitones", [-4.0, -2.0, 2.0, 4.0])
def test_a_transposed_mel_is_that_of_another_tone(semitones: float) -> None:
    def harmonics(hz: float) -> torch.Tensor:
        times = torch.arange(SPEAK_HZ, dtype=torch.float64) / SPEAK_HZ
        return sum(torch.sin(2 * torch.pi * hz * number * times) for number in range(1, 9)).float() / 8  # type: ignore[union-attr]

    wanted = speech_mel(harmonics(300 * 2 ** (semitones / 12))[None])[0, :, 10:90].mean(dim=1)
    moved = (transposition(semitones) @ speech_mel(harmonics(300)[None])[0])[:, 10:90].mean(dim=1)
    loud = wanted > wanted.max() - 6
    away = speech_mel(harmonics(300)[None])[0, :, 10:90].mean(dim=1)
    assert float((moved - wanted)[loud].abs().mean()) < 0.5 * float((away - wanted)[loud].abs().mean())


def test_what_is_not_transposed_stays() -> None:
    torch.testing.assert_close(transposition(0.0), torch.eye(80))
