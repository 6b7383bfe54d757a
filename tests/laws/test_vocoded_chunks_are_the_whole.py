"""Law: a mel vocoded in chunks of any sizes gives the samples of the whole."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tristep.codec.vocoder import Vocoder
from tristep.config import VocoderConfig


@pytest.fixture(scope="module")
def vocoder() -> Vocoder:
    torch.manual_seed(0)
    config = VocoderConfig(dim=16, num_blocks=4, pitch_dim=16, num_pitch_blocks=2, num_pitch_bins=32)
    vocoder = Vocoder(config).eval()
    torch.nn.init.normal_(vocoder.filters.head.weight, std=0.3)  # filters that differ from frame to frame
    return vocoder


def some_mel(num_frames: int, seed: int) -> Tensor:
    return torch.randn(80, num_frames, generator=torch.Generator().manual_seed(seed)) * 2 - 4


def chunked(vocoder: Vocoder, mel: Tensor, sizes: list[int], seed: int) -> Tensor:
    stream, start, chunks = vocoder.stream(seed), 0, []
    while start < mel.shape[1]:
        size = sizes[len(chunks) % len(sizes)]
        chunks.append(stream.push(mel[:, start : start + size]))
        start += size
    return torch.cat([*chunks, stream.finish()])


@given(
    num_frames=st.integers(1, 160), sizes=st.lists(st.integers(1, 60), min_size=1, max_size=4), seed=st.integers(0, 99)
)
@settings(max_examples=25, deadline=None)
def test_chunks_joined_are_the_whole(vocoder: Vocoder, num_frames: int, sizes: list[int], seed: int) -> None:
    mel = some_mel(num_frames, seed)
    with torch.no_grad():
        whole = vocoder(mel[None], seed)[0]
    joined = chunked(vocoder, mel, sizes, seed)
    assert joined.shape == whole.shape == (num_frames * 240,)
    torch.testing.assert_close(joined, whole, atol=2e-4 * float(whole.abs().max()), rtol=0)


def test_samples_come_as_soon_as_their_lookahead_is_there(vocoder: Vocoder) -> None:
    stream = vocoder.stream()
    assert len(stream.push(some_mel(vocoder.lookahead, 0))) == 0
    assert len(stream.push(some_mel(1, 1))) == 240


def test_a_long_stream_keeps_only_the_frames_that_matter(vocoder: Vocoder) -> None:
    stream = vocoder.stream()
    for second in range(5):
        stream.push(some_mel(100, second))
    kept = vocoder.filters.left_context + 6 + vocoder.lookahead
    assert stream._mel.shape[2] == kept
