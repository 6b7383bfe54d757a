"""Law: a stream's codes are the whole clip's codes, however the sound is cut into chunks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tristep.audio import LISTEN_HZ
from tristep.backbone.audio_encoder import AudioEncoder
from tristep.codec.tokenizer import SpeechTokenizer, TokenizerStream
from tristep.config import EncoderConfig, TokenizerConfig

torch.manual_seed(0)
CONFIG = TokenizerConfig(
    stride=4, levels=(5, 4, 3), encoder_dim=16, num_mels=8, dim=16, hop_s=0.32, context_s=0.24, lookahead_s=0.16
)
ENCODER = AudioEncoder(EncoderConfig(num_mels=8, dim=16, num_layers=1, num_heads=2)).eval()
TOKENIZER = SpeechTokenizer(CONFIG).eval()


def sound(num_samples: int, seed: int) -> torch.Tensor:
    return 0.1 * torch.randn(num_samples, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=20, deadline=None)
@given(
    num_samples=st.integers(0, 2 * LISTEN_HZ),
    chunk_sizes=st.lists(st.integers(1, LISTEN_HZ), min_size=1, max_size=5),
    seed=st.integers(0, 100),
)
def test_chunks_of_any_sizes_give_the_codes_of_the_whole_clip(
    num_samples: int, chunk_sizes: list[int], seed: int
) -> None:
    waveform = sound(num_samples, seed)
    stream = TokenizerStream(TOKENIZER, ENCODER)
    codes, start = [], 0
    while start < num_samples:
        size = chunk_sizes[len(codes) % len(chunk_sizes)]
        codes.append(stream.push(waveform[start : start + size]))
        start += size
    codes.append(stream.finish())
    assert torch.equal(torch.cat(codes), TOKENIZER.encode(waveform, ENCODER))


def test_a_stream_delivers_codes_before_its_end() -> None:
    stream = TokenizerStream(TOKENIZER, ENCODER)
    assert len(stream.push(sound(LISTEN_HZ, 0))) == pytest.approx(0.64 * 12.5)  # two hops have their lookahead


def test_what_comes_after_the_lookahead_changes_no_code() -> None:
    waveform = sound(LISTEN_HZ, 0)
    changed = waveform.clone()
    changed[round(0.82 * LISTEN_HZ) :] = 0
    codes, others = (TOKENIZER.encode(clip, ENCODER) for clip in (waveform, changed))
    assert torch.equal(codes[:8], others[:8])
    assert not torch.equal(codes, others)
