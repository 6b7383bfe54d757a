"""Law: a mel whose pace is changed chunk by chunk gives the frames of the whole."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tristep.codec.codec import Pace


@given(
    num_frames=st.integers(1, 120),
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=4).filter(any),
    tempo=st.sampled_from([0.5, 2 ** (-0.24), 0.9, 1.0, 2**0.12, 1.3, 2.0, 3.1]),
)
def test_chunks_joined_are_the_whole(num_frames: int, sizes: list[int], tempo: float) -> None:
    mel = torch.randn(4, num_frames, generator=torch.Generator().manual_seed(num_frames))
    pace, start, chunks = Pace(tempo), 0, []
    while start < num_frames:
        size = sizes[len(chunks) % len(sizes)]
        chunks.append(pace.push(mel[:, start : start + size]))
        start += size
    whole = Pace(tempo).push(mel)
    torch.testing.assert_close(torch.cat(chunks, dim=1), whole, atol=1e-5, rtol=0)
    assert abs(whole.shape[1] - num_frames / tempo) <= 1 / min(tempo, 1) + 1
