"""Law: log-mel frames computed from chunks are those computed from the whole clip, for every chunking."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tristep.audio import LogMelStream, raw_log_mel


def streamed(stream: LogMelStream, waveform: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    chunks = [waveform[start:end] for start, end in zip([0, *ends], [*ends, len(waveform)], strict=True)]
    return torch.cat([stream.push(chunk) for chunk in chunks] + [stream.flush()], dim=1)


@settings(deadline=None, max_examples=150)
@given(
    num_samples=st.integers(0, 4000),
    sizes=st.lists(st.integers(0, 900), max_size=8),
    num_mels=st.sampled_from([80, 128]),
    seed=st.integers(0, 2**16),
)
def test_every_chunking_gives_the_offline_frames(num_samples: int, sizes: list[int], num_mels: int, seed: int) -> None:
    waveform = 0.1 * torch.randn(num_samples, generator=torch.Generator().manual_seed(seed))
    offline = raw_log_mel(waveform, num_mels)
    online = streamed(LogMelStream(num_mels), waveform, sizes)
    assert online.shape == offline.shape == (num_mels, num_samples // 160)
    assert torch.allclose(online, offline, rtol=0, atol=1e-5)


@settings(deadline=None, max_examples=20)
@given(num_samples=st.integers(1, 1200))
def test_one_sample_at_a_time_gives_the_offline_frames(num_samples: int) -> None:
    waveform = torch.sin(torch.arange(num_samples) * 0.1)
    online = streamed(LogMelStream(), waveform, [1] * num_samples)
    assert torch.allclose(online, raw_log_mel(waveform), rtol=0, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(num_samples=st.integers(0, 2000), size=st.integers(1, 500))
def test_a_frame_comes_with_the_last_sample_it_looks_at(num_samples: int, size: int) -> None:
    stream = LogMelStream()
    num_frames = 0
    for chunk in torch.randn(num_samples, generator=torch.Generator().manual_seed(0)).split(size):
        num_frames += stream.push(chunk).shape[1]
    assert num_frames == (0 if num_samples <= 200 else (num_samples - 200) // 160 + 1)


def test_a_flushed_stream_starts_the_next_clip_afresh() -> None:
    stream = LogMelStream()
    first, second = torch.randn(2, 3000, generator=torch.Generator().manual_seed(1))
    streamed(stream, first, [700, 700])
    assert torch.allclose(streamed(stream, second, [100, 900]), raw_log_mel(second), rtol=0, atol=1e-5)
