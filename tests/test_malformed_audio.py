"""Two hundred broken files: each is refused in one sentence, or, where a flipped bit left it whole, read."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import random
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch

from tristep.audio import LISTEN_HZ, AudioError, read_audio, stream_audio

NUM_CASES = 200
LIMIT_S = 60.0
TWELVE_HOURS = 12 * 3600 * LISTEN_HZ * 2  # bytes of 16-bit samples


def wav(
    samples: bytes,
    *,
    rate: int = LISTEN_HZ,
    channels: int = 1,
    bits: int = 16,
    encoding: int = 1,
    num_bytes: int | None = None,
) -> bytes:
    """Write a WAV by hand, so that its header can lie."""
    num_bytes = len(samples) if num_bytes is None else num_bytes
    block = min(channels * bits // 8, 0xFFFF)
    header = struct.pack("<HHIIHH", encoding, channels, rate, min(rate * block, 2**32 - 1), block, bits)
    data = b"fmt " + struct.pack("<I", 16) + header + b"data" + struct.pack("<I", num_bytes) + samples
    return b"RIFF" + struct.pack("<I", min(4 + len(data) + num_bytes - len(samples), 2**32 - 1)) + b"WAVE" + data


def noise(num_samples: int) -> np.ndarray:
    return (1000 * np.random.default_rng(0).normal(size=num_samples)).astype("<i2")


@lru_cache
def whole(kind: str) -> bytes:
    """Encode two seconds of noise into a file without fault."""
    file = io.BytesIO()
    samples = noise(2 * LISTEN_HZ)
    if kind == "M4A":
        with av.open(file, "w", format="ipod") as output:
            stream = output.add_stream("aac", rate=LISTEN_HZ, layout="mono")
            frame = av.AudioFrame.from_ndarray(samples[None], "s16p", "mono")
            frame.sample_rate = LISTEN_HZ
            output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
    else:
        kind, _, subtype = kind.partition(" ")
        soundfile.write(file, samples, LISTEN_HZ, format=kind, subtype=subtype or None)
    return file.getvalue()


@lru_cache
def bomb(kind: str, subtype: str | None) -> bytes:
    """Encode ten minutes of silence, which takes next to no bytes."""
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", 8_000, 1, format=kind, subtype=subtype) as sound:
        for _ in range(600):
            sound.write(np.zeros(8_000, "i2"))
    return file.getvalue()


def flac_of_unknown_length(data: bytes) -> bytes:
    """Clear the total of samples in STREAMINFO, as an encoder does that writes to a pipe."""
    start = data.index(b"fLaC") + 8 + 13
    return data[:start] + bytes([data[start] & 0xF0]) + bytes(4) + data[start + 5 :]


def zipped(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return file.getvalue()


def truncated() -> Iterator[tuple[str, bytes]]:
    """Cut files where it shows that something is missing; an OGG has no end to miss."""
    seeded = random.Random(0)
    shares = {"WAV": 0.9, "FLAC": 0.9, "M4A": 0.9, "MP3": 0.8, "OGG VORBIS": 0.1, "OGG OPUS": 0.02}
    for kind, share in shares.items():
        data = whole(kind)
        for size in sorted(seeded.sample(range(1, round(share * len(data))), 11)):
            yield f"{kind} cut at byte {size}", data[:size]
    yield "nothing", b""
    yield "WAV without samples", wav(b"")
    yield "FLAC magic only", b"fLaC"
    yield "OGG magic only", b"OggS"


def wrong_types() -> Iterator[tuple[str, bytes]]:
    yield "text", b"This is not a recording, it only has its name.\n" * 50
    yield "utf-16 text", "This is no recording".encode("utf-16")
    yield "json", json.dumps({"audio": [0.0] * 100}).encode()
    yield "html", b"<!doctype html><html><body>404 not found</body></html>"
    yield "subtitles", b"1\n00:00:01,000 --> 00:00:02,000\nhello\n\n"
    yield "playlist", b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
    yield "concatenation script", b"ffconcat version 1.0\nfile /etc/passwd\n"
    yield "session description", b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=audio 5004 RTP/AVP 0\n"
    yield "zip of a WAV", zipped("a.wav", whole("WAV"))
    yield "zip bomb", zipped("a.wav", bytes(10**7))
    yield "gzip of a WAV", gzip.compress(whole("WAV"))
    yield "gzip bomb", gzip.compress(bytes(10**7))
    yield "pickle", pickle.dumps({"a": 1})
    yield "elf", b"\x7fELF\x02\x01\x01" + bytes(200)
    yield "png", bytes.fromhex("89504e470d0a1a0a0000000d49484452") + bytes(100)
    yield "pdf", b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n%%EOF"
    yield "zeros", bytes(5000)
    yield "ones", b"\xff" * 5000
    for seed in range(12):
        yield f"random bytes {seed}", random.Random(seed).randbytes(50 + 400 * seed)


def lying_headers() -> Iterator[tuple[str, bytes]]:
    samples = noise(LISTEN_HZ).tobytes()
    for rate in (0, 1, 100, 3999, 1_000_000, 2**31 - 1, 2**32 - 1):
        yield f"WAV of {rate} Hz", wav(samples, rate=rate)
    for channels in (0, 17, 64, 255, 1025, 65_535):
        yield f"WAV of {channels} channels", wav(samples * 2, channels=channels)
    for bits in (0, 128, 1000):
        yield f"WAV of {bits} bits", wav(samples, bits=bits)
    for encoding in (0x0000, 0x0099, 0xBEEF):
        yield f"WAV in encoding {encoding:#x}", wav(samples, encoding=encoding)
    yield "12 hours without a sample", wav(b"", num_bytes=TWELVE_HOURS)
    for num_samples in (1, 100, 16_000):
        yield f"12 hours with {num_samples} samples", wav(samples[: 2 * num_samples], num_bytes=TWELVE_HOURS)
    for promised in (2, 5, 50):
        yield f"{promised} times the samples there are", wav(samples, num_bytes=promised * len(samples))
    sixty_four = io.BytesIO()
    soundfile.write(sixty_four, np.zeros((100, 64), "f4"), LISTEN_HZ, format="W64", subtype="FLOAT")
    yield "64 channels of W64", sixty_four.getvalue()


def no_numbers() -> Iterator[tuple[str, bytes]]:
    for kind, dtype in (("FLOAT", "f4"), ("DOUBLE", "f8")):
        for value in (np.nan, np.inf, -np.inf, 1e30, -32768.0):
            for place in (0, 9_999, 199_999):
                samples = np.zeros(200_000, dtype)
                samples[place] = value
                file = io.BytesIO()
                soundfile.write(file, samples, LISTEN_HZ, format="WAV", subtype=kind)
                yield f"{value} at sample {place} in {kind}", file.getvalue()


def bombs() -> Iterator[tuple[str, bytes]]:
    for kind, subtype in (("FLAC", None), ("OGG", "OPUS"), ("OGG", "VORBIS")):
        yield f"ten minutes in {len(bomb(kind, subtype))} bytes of {subtype or kind}", bomb(kind, subtype)
    yield "FLAC bomb of unknown length", flac_of_unknown_length(bomb("FLAC", None))


def flipped(num_cases: int) -> Iterator[tuple[str, bytes]]:
    """Flip one to four bits in the first bytes of a file; it may survive that."""
    seeded = random.Random(1)
    for case in range(num_cases):
        kind = ("WAV", "FLAC", "M4A", "MP3", "OGG VORBIS", "OGG OPUS")[case % 6]
        data = bytearray(whole(kind))
        places = [seeded.randrange(200 if case % 2 else 48) for _ in range(1 + case % 4)]
        for place in places:
            data[place] ^= 1 << seeded.randrange(8)
        yield f"{kind} with bits flipped in bytes {places}", bytes(data)


REFUSED = [*truncated(), *wrong_types(), *lying_headers(), *no_numbers(), *bombs()]
FLIPPED = [*flipped(NUM_CASES - len(REFUSED))]


def refusal(data: bytes | str | Path) -> str:
    """Return the sentence with which a file is refused."""
    with pytest.raises(AudioError) as caught:
        read_audio(data, max_duration_s=LIMIT_S)
    return str(caught.value)


def waveform_or_refusal(data: bytes) -> torch.Tensor | str:
    try:
        return read_audio(data, max_duration_s=LIMIT_S)
    except AudioError as error:
        return str(error)


def test_there_are_two_hundred_different_cases() -> None:
    assert len({data for _, data in REFUSED + FLIPPED}) == NUM_CASES
    assert len(FLIPPED) >= 30


@pytest.mark.parametrize("data", [pytest.param(data, id=label) for label, data in REFUSED])
def test_a_malformed_file_is_refused_in_one_sentence(data: bytes) -> None:
    sentence = refusal(data)
    assert sentence.isprintable()
    assert 40 < len(sentence) < 400
    assert ": expected " in sentence
    assert "; " in sentence


@pytest.mark.parametrize("data", [pytest.param(data, id=label) for label, data in FLIPPED])
def test_a_file_with_flipped_bits_is_refused_or_read(data: bytes) -> None:
    outcome = waveform_or_refusal(data)
    if isinstance(outcome, str):
        assert outcome.isprintable()
    else:
        assert len(outcome) > 0
        assert bool(torch.isfinite(outcome).all())
        assert float(outcome.abs().max()) <= 1


def test_malformed_files_take_neither_memory_nor_time() -> None:
    tracemalloc.start()
    started = time.monotonic()
    for label, data in [*lying_headers(), *bombs()]:
        tracemalloc.reset_peak()
        refusal(data)
        peak = tracemalloc.get_traced_memory()[1]
        assert peak < 4 * LIMIT_S * LISTEN_HZ * 4, label
    tracemalloc.stop()
    assert time.monotonic() - started < 10


def test_a_stream_refuses_what_a_reader_refuses() -> None:
    for label, data in REFUSED[::7]:
        with pytest.raises(AudioError) as caught:
            for _ in stream_audio(data, 1.0, max_duration_s=LIMIT_S):
                pass
        assert str(caught.value) == refusal(data), label


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("no_such_folder/no_such_file.wav", "No such file"),
        (".", "is a folder or a device"),
        ("/dev/zero", "is a folder or a device"),
        ("a\0b.wav", "null characters"),
        ("x" * 5000, "name too long"),
        ("two\nlines.wav", r"two\nlines.wav"),
        ("", "is a folder or a device"),
    ],
)
def test_a_path_that_leads_to_no_file_is_told(path: str, sentence: str) -> None:
    message = refusal(path)
    assert sentence in message
    assert message.isprintable()
    assert len(message) < 500


def test_text_renamed_wav_is_named_in_the_sentence(tmp_path: Path) -> None:
    (tmp_path / "speech.wav").write_text("no sound at all")
    assert refusal(tmp_path / "speech.wav").startswith(f"{tmp_path / 'speech.wav'} is not audio")


def test_files_that_are_closed_or_give_text_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc")
    with (tmp_path / "a.txt").open() as file, pytest.raises(AudioError, match="open it with mode 'rb'"):
        read_audio(file)  # type: ignore[arg-type]
    with pytest.raises(AudioError, match="is closed"):
        read_audio(file)  # type: ignore[arg-type]
    with pytest.raises(AudioError, match="expected a path, bytes or an open file"):
        read_audio(torch.zeros(10))  # type: ignore[arg-type]
