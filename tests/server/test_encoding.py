from __future__ import annotations

import io
from typing import Any

import av
import numpy as np
import pytest

from tristep.mark import SYNTHETIC
from tristep.server.encoding import FORMATS, Delivery, Encoder

RATE = 24_000
TONE = (0.3 * np.sin(np.arange(2 * RATE) * 2 * np.pi * 440 / RATE)).astype(np.float32)


def encoded(delivery: Delivery, size: int = 4800) -> bytes:
    encoder = Encoder(delivery, RATE)
    pieces = [encoder.push(TONE[start : start + size]) for start in range(0, len(TONE), size)]
    return b"".join([*pieces, encoder.finish()])


def decoded(data: bytes, delivery: Delivery) -> tuple[Any, np.ndarray[Any, Any], int]:
    raw = {"format": "s16le", "options": {"sample_rate": str(delivery.sample_rate)}} if delivery.format == "pcm" else {}
    with av.open(io.BytesIO(data), **raw) as container:
        frames = list(container.decode(audio=0))
        tags = container.metadata | container.streams[0].metadata
    mono = av.AudioResampler(format="flt", layout="mono", rate=delivery.sample_rate)
    samples = [part.to_ndarray()[0] for frame in [*frames, None] for part in mono.resample(frame)]
    return tags, np.concatenate(samples), frames[0].layout.nb_channels


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_holds_the_sound_as_one_channel(name: str) -> None:
    _, samples, num_channels = decoded(encoded(Delivery(name)), Delivery(name))
    assert num_channels == 1
    assert len(samples) / RATE == pytest.approx(2.0, abs=0.08)  # lossy codecs add silence at the ends
    spectrum = np.abs(np.fft.rfft(samples))
    assert np.argmax(spectrum) * RATE / len(samples) == pytest.approx(440, abs=2)


@pytest.mark.parametrize("name", sorted(FORMATS.keys() - {"pcm"}))
def test_a_container_says_that_a_machine_spoke(name: str) -> None:
    assert decoded(encoded(Delivery(name)), Delivery(name))[0]["comment"] == SYNTHETIC
    silent = Delivery(name, is_tagged=False)
    assert SYNTHETIC not in decoded(encoded(silent), silent)[0].values()


@pytest.mark.parametrize("name", ["wav", "flac", "pcm"])
def test_a_lossless_format_has_the_same_bytes_whatever_the_chunks(name: str) -> None:
    assert encoded(Delivery(name), 4800) == encoded(Delivery(name), 1111)


def test_pcm_has_no_header_and_whole_samples() -> None:
    data = encoded(Delivery("pcm"))
    assert len(data) == 2 * len(TONE)
    np.testing.assert_allclose(np.frombuffer(data, "<i2") / 32768, TONE, atol=1e-4)


@pytest.mark.parametrize("name", FORMATS)
def test_the_first_bytes_leave_before_the_end(name: str) -> None:
    encoder = Encoder(Delivery(name), RATE)
    assert len(encoder.push(TONE[:9600]) + encoder.push(TONE[9600:19200])) > 100


@pytest.mark.parametrize("rate", [8000, 16000, 48000])
def test_the_sample_rate_is_the_one_asked_for(rate: int) -> None:
    delivery = Delivery("wav", sample_rate=rate, volume=0.5)
    _, samples, _ = decoded(encoded(delivery), delivery)
    assert len(samples) == pytest.approx(2 * rate, rel=0.01)
    assert np.abs(samples).max() == pytest.approx(0.15, rel=0.05)


def test_a_rate_that_a_codec_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="opus takes 8000, 16000, 24000, 48000"):
        Delivery("opus", sample_rate=22050)
