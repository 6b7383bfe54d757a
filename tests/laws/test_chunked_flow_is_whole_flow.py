"""Law: mel decoded from chunks of codes is the mel of all codes at once, and so is the sound."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tristep.codec.flow import Flow, Manner, frame_noise
from tristep.config import FlowConfig, TokenizerConfig

TOKENIZER = TokenizerConfig(stride=4, levels=(4, 3, 3))
CONFIG = FlowConfig(
    dim=16, lookahead=2, num_code_layers=1, num_frame_layers=1, num_layers=3, attend_every=2, num_heads=2, num_mels=8
)


def flow() -> Flow:
    torch.manual_seed(0)
    made = Flow(CONFIG, TOKENIZER).eval()
    for parameter in made.parameters():  # what begins at zero must count too
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return made


FLOW = flow()


@torch.no_grad()
def manner(num_frames: int) -> Manner:
    mel = torch.randn(1, 8, num_frames, generator=torch.Generator().manual_seed(0)) - 5
    return FLOW.manner_encoder(torch.ones(1, 192), mel, torch.tensor([num_frames]), torch.tensor([[3, -1]]))


def decode(codes: torch.Tensor, sizes: list[int], seed: int, guidance: float) -> torch.Tensor:
    stream = FLOW.stream(manner(30), seed, num_steps=3, guidance=guidance)
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    chunks = [codes[start:end] for start, end in zip([0, *ends], [*ends, len(codes)], strict=True)]
    return torch.cat([*(stream.push(chunk) for chunk in chunks), stream.finish()], dim=1)


@settings(deadline=None, max_examples=30)
@given(
    num_codes=st.integers(0, 30),
    sizes=st.lists(st.integers(0, 9), max_size=6),
    seed=st.integers(0, 2**31),
    guidance=st.sampled_from([0.0, 0.7]),
)
def test_every_chunking_gives_the_whole_mel(num_codes: int, sizes: list[int], seed: int, guidance: float) -> None:
    codes = torch.randint(36, (num_codes,), generator=torch.Generator().manual_seed(seed))
    whole = decode(codes, [], seed, guidance)
    assert whole.shape == (8, num_codes * 8)
    torch.testing.assert_close(decode(codes, sizes, seed, guidance), whole, rtol=0, atol=1e-4)


def test_what_comes_after_the_lookahead_changes_nothing() -> None:
    codes = torch.randint(36, (20,), generator=torch.Generator().manual_seed(1))
    changed = torch.cat([codes[:12], (codes[12:] + 1) % 36])
    mel, other = (decode(row, [], 0, 0.7) for row in (codes, changed))
    torch.testing.assert_close(mel[:, : 10 * 8], other[:, : 10 * 8], rtol=0, atol=1e-4)
    assert (mel[:, 10 * 8 : 11 * 8] - other[:, 10 * 8 : 11 * 8]).abs().max() > 1e-3


@torch.no_grad()
def test_a_batch_is_spoken_as_streams_speak_its_rows() -> None:
    codes = torch.randint(36, (2, 9), generator=torch.Generator().manual_seed(2))
    noise = torch.stack([frame_noise(seed, 0, 28, 16) for seed in (4, 5)])
    both = Manner(*(field.repeat_interleave(2, dim=0) for field in vars(manner(30)).values()))
    spoken = FLOW.unscaled(FLOW.speak(codes, both, noise))
    for row, seed in enumerate((4, 5)):
        streamed = FLOW.stream(manner(30), seed).push(codes[row])
        torch.testing.assert_close(spoken[row], streamed, rtol=0, atol=1e-4)


def test_what_is_spoken_teaches_by_its_last_step_alone() -> None:
    codes, noise = torch.zeros(1, 6, dtype=torch.long), torch.ones(1, 16, 16)
    velocities: list[torch.Tensor] = []
    with FLOW.estimator.register_forward_hook(lambda module, given, made: velocities.append(made)):
        FLOW.speak(codes, manner(30), noise)
    assert [made.requires_grad for made in velocities] == [False] * (2 * CONFIG.num_steps - 1) + [True]
