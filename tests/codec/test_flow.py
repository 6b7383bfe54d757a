from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tristep.codec.flow import UNKNOWN, Flow, Manner, energy_bin, frame_noise, pitch_bin
from tristep.config import FlowConfig, TokenizerConfig

TOKENIZER = TokenizerConfig(stride=4, levels=(4, 3, 3))
CONFIG = FlowConfig(dim=16, lookahead=2, num_code_layers=1, num_layers=2, attend_every=1, num_heads=2, num_mels=8)


def flow() -> Flow:
    torch.manual_seed(0)
    made = Flow(CONFIG, TOKENIZER).eval()
    for parameter in made.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return made


def manners(made: Flow, lengths: list[int], bins: tuple[int, int] = (UNKNOWN, UNKNOWN)) -> Manner:
    generator = torch.Generator().manual_seed(0)
    mel = torch.randn(len(lengths), 8, max(lengths), generator=generator) - 5
    voice = torch.randn(len(lengths), 192, generator=generator)
    return made.manner_encoder(voice, mel, torch.tensor(lengths), torch.tensor([bins] * len(lengths)))


@torch.no_grad()
def test_what_lies_beyond_a_references_end_is_not_heard() -> None:
    made = flow()
    padded, alone = manners(made, [12, 30]), None
    generator = torch.Generator().manual_seed(0)
    mel = torch.randn(2, 8, 30, generator=generator)[:1, :, :12] - 5
    voice = torch.randn(2, 192, generator=generator)[:1]
    alone = made.manner_encoder(voice, mel, torch.tensor([12]), torch.tensor([[UNKNOWN, UNKNOWN]]))
    torch.testing.assert_close(padded.vector[:1], alone.vector)
    torch.testing.assert_close(padded.reference[0, padded.known[0]], alone.reference[0])


@torch.no_grad()
def test_a_dropped_row_hears_neither_codes_nor_voice() -> None:
    made = flow()
    manner, other = manners(made, [20, 20]), manners(made, [20, 20], (0, 6))
    codes = torch.randint(36, (2, 7), generator=torch.Generator().manual_seed(0))
    noisy, time, dropped = torch.ones(2, 20, 16), torch.tensor([0.3, 0.3]), torch.tensor([True, False])
    first = made.velocity(noisy, time, codes, manner, dropped).velocity
    second = made.velocity(noisy, time, codes.flip(1), other, dropped).velocity
    torch.testing.assert_close(first[0], second[0])
    assert not torch.allclose(first[1], second[1], atol=1e-3)


@torch.no_grad()
def test_scaling_is_undone() -> None:
    made, mel = flow(), torch.randn(2, 8, 10) - 5
    assert made.scaled(mel).shape == (2, 5, 16)
    torch.testing.assert_close(made.unscaled(made.scaled(mel)), mel)


@given(st.integers(0, 300), st.integers(0, 200), st.integers(0, 2**40))
def test_noise_depends_on_the_frame_and_not_on_the_chunk(first: int, num_frames: int, seed: int) -> None:
    whole = frame_noise(seed, 0, first + num_frames, 3)
    assert torch.equal(frame_noise(seed, first, num_frames, 3), whole[first:])


def test_another_seed_is_another_noise() -> None:
    noise = frame_noise(1, 0, 500, 4)
    assert abs(float(noise.mean())) < 0.1
    assert abs(float(noise.std()) - 1) < 0.1
    assert not torch.equal(noise, frame_noise(2, 0, 500, 4))


def test_the_middle_bins_are_the_voices_own() -> None:
    assert [pitch_bin(semitones) for semitones in (-9.0, -0.5, 0.0, 0.5, 9.0)] == [0, 3, 3, 3, 6]
    assert [energy_bin(decibels) for decibels in (-20.0, 0.0, 20.0)] == [0, 3, 6]
