from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tristep.server.realtime_sound import Incoming, Law, Outgoing, WireFormat

LAWS: list[tuple[Law, str]] = [("audio/pcmu", "pcm_mulaw"), ("audio/pcma", "pcm_alaw")]


def tone(seconds: float, sample_rate: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return (0.4 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * sample_rate)) / sample_rate)).astype(np.float32)


@pytest.mark.parametrize(("law", "codec"), LAWS)
def test_g711_is_read_as_ffmpeg_reads_it(law: Law, codec: str) -> None:
    data = bytes(range(256))
    decoder: Any = av.CodecContext.create(codec, "r")
    decoder.sample_rate, decoder.layout = 8000, "mono"
    packet = av.Packet(data)
    packet.time_base = Fraction(1, 8000)
    (frame,) = decoder.decode(packet)
    np.testing.assert_array_equal(WireFormat(law, 8000).decode(data) * 32768, frame.to_ndarray()[0])


@pytest.mark.parametrize("law", [law for law, _ in LAWS])
def test_every_level_of_g711_is_written_as_itself(law: Law) -> None:
    wire = WireFormat(law, 8000)
    heard = wire.decode(bytes(range(256)))
    np.testing.assert_array_equal(wire.decode(wire.encode(heard)), heard)


@pytest.mark.parametrize(
    "wire", [WireFormat(), WireFormat("audio/pcm", 16_000), *(WireFormat(law, 8000) for law, _ in LAWS)]
)
def test_what_goes_out_comes_back(wire: WireFormat) -> None:
    sent = tone(0.5, 24_000)
    outgoing = Outgoing(wire, 24_000)
    data = outgoing.push(sent) + outgoing.finish()
    assert wire.duration_s(len(data)) == pytest.approx(0.5, abs=0.001)
    back = Incoming(wire, 24_000).push(data)
    middle = slice(2000, 8000)
    np.testing.assert_allclose(back[middle], sent[middle], atol=0.03)


def test_what_is_too_loud_is_clipped() -> None:
    loud = np.array([-2, -1, 1, 2], np.float32)
    assert WireFormat().decode(WireFormat().encode(loud)).tolist() == [-1, -1, 32767 / 32768, 32767 / 32768]


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=5))
def test_pieces_of_any_length_are_one_sound(data: bytes, cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(data)]
    pieces = [data[start:end] for start, end in pairwise(places)]
    incoming = Incoming(WireFormat(), 24_000)
    heard = np.concatenate([incoming.push(piece) for piece in pieces])
    np.testing.assert_array_equal(heard, WireFormat().decode(data[: len(data) // 2 * 2]))
