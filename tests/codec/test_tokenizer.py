from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tristep.audio import LISTEN_HZ, raw_log_mel
from tristep.backbone.audio_encoder import AudioEncoder
from tristep.codec.tokenizer import CodeReader, Lattice, Reading, SpeechTokenizer, Tokenized, windowed_frames, windows
from tristep.config import EncoderConfig, TokenizerConfig

CONFIG = TokenizerConfig(stride=4, levels=(4, 3), num_phone_dims=1, encoder_dim=16, num_mels=8, dim=16)
lattices = st.lists(st.integers(2, 9), min_size=1, max_size=5).map(lambda levels: Lattice(tuple(levels)))


def batch(num_frames: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    N = max(num_frames)
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(len(num_frames), N, 16, generator=generator)
    return frames, torch.randn(len(num_frames), 8, 2 * N, generator=generator), torch.tensor(num_frames)


@settings(deadline=None)
@given(lattices, st.integers(0, 10**6))
def test_a_codes_point_is_quantised_to_that_code(lattice: Lattice, number: int) -> None:
    code = torch.tensor([number % lattice.size])
    levels, point = torch.tensor(lattice.levels), lattice.points(code)
    bounded = point * (levels // 2)
    half = (levels - 1) * (1 + 1e-3) / 2
    offset = (levels % 2 == 0) * 0.5
    inner = ((bounded + offset) / half).clamp(-0.9999, 0.9999)
    latent = torch.atanh(inner) - torch.atanh(offset / half)
    again, codes = lattice.quantise(latent)
    assert torch.equal(codes, code)
    torch.testing.assert_close(again, point)


@settings(deadline=None)
@given(lattices)
def test_every_code_has_digits_of_its_own(lattice: Lattice) -> None:
    codes = torch.arange(min(lattice.size, 500))
    digits = lattice.digits(codes)
    assert len(digits.unique(dim=0)) == len(codes)
    assert (digits >= 0).all()
    assert (digits < torch.tensor(lattice.levels)).all()
    assert lattice.points(codes).abs().max() <= 1


def test_every_code_can_be_reached() -> None:
    lattice = Lattice((4, 3, 2))
    _, codes = lattice.quantise(10 * torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0)))
    assert codes.unique().tolist() == list(range(lattice.size))


def test_gradients_pass_the_rounding() -> None:
    latents = torch.tensor([[0.3, -0.2]], requires_grad=True)
    Lattice((4, 3)).quantise(latents)[0].sum().backward()
    assert latents.grad is not None
    assert (latents.grad > 0).all()


def test_blurred_points_are_as_far_off_as_rounded_ones_and_their_codes_are_the_rounded() -> None:
    lattice, latents = Lattice((5, 5)), torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    blurred, codes = lattice.quantise(latents, torch.ones(4000, dtype=torch.bool))
    rounded, expected = lattice.quantise(latents, torch.zeros(4000, dtype=torch.bool))
    assert torch.equal(codes, expected)
    exact = torch.tanh(latents) * 2 * (1 + 1e-3) / 2
    errors = [float((points - exact).square().mean().sqrt()) for points in (blurred, rounded)]
    assert errors[0] == pytest.approx(errors[1], rel=0.1)
    assert not torch.equal(blurred, rounded)


def test_a_batch_of_clips_gets_the_codes_of_each_alone() -> None:
    torch.manual_seed(0)
    tokenizer = SpeechTokenizer(CONFIG).eval()
    frames, mel, num_frames = batch([7, 20, 12])
    together = tokenizer(frames, mel, num_frames)
    assert together.num_codes.tolist() == [2, 5, 3]
    for row, num in enumerate(num_frames.tolist()):
        alone = tokenizer(frames[row : row + 1, :num], mel[row : row + 1, :, : 2 * num], num_frames[row : row + 1])
        assert torch.equal(together.codes[row, : int(together.num_codes[row])], alone.codes[0])


def test_the_reader_reads_50_phones_and_100_frames_a_second() -> None:
    reader = CodeReader(CONFIG, num_phones=28)
    tokenized = Tokenized(torch.randn(2, 5, 2), torch.zeros(2, 5), torch.tensor([5, 3]), torch.randn(2, 18, 16))
    reading = reader(tokenized, torch.randn(2, 192))
    assert reading.phones.shape == reading.early_phones.shape == (2, 20, 28)
    assert reading.prosody.shape == (2, 40, 3)
    assert reading.mel.shape == (2, 8, 40)


def test_phones_are_read_from_the_first_dimensions_of_each_code_alone_and_prosody_from_the_others() -> None:
    torch.manual_seed(0)
    reader = CodeReader(CONFIG, num_phones=28)
    points, voice = torch.randn(1, 5, 2), torch.randn(1, 192)

    def read(points: torch.Tensor) -> Reading:
        return reader(Tokenized(points, torch.zeros(1, 5), torch.tensor([5]), torch.zeros(1, 20, 16)), voice)

    other_phone, other_prosody = points.clone(), points.clone()
    other_phone[0, 2, 0] += 1
    other_prosody[0, 2, 1] += 1
    before, phone, prosody = read(points), read(other_phone), read(other_prosody)
    moved = (phone.phones - before.phones).abs().sum(dim=(0, 2)) > 0
    assert moved.tolist() == [False] * 8 + [True] * 4 + [False] * 8
    assert torch.equal(phone.prosody, before.prosody)
    assert torch.equal(prosody.phones, before.phones)
    assert not torch.equal(prosody.prosody, before.prosody)
    assert not torch.equal(phone.mel, before.mel)


def test_windows_tile_a_clip_and_hear_around_it() -> None:
    cut = list(windows(1050, CONFIG))
    assert [(w.first, w.last) for w in cut] == [(0, 400), (400, 800), (800, 1050)]
    assert [(w.start, w.end) for w in cut] == [(0, 500), (0, 900), (400, 1050)]


@pytest.mark.parametrize("num_samples", [0, 100, LISTEN_HZ, 11 * LISTEN_HZ])
def test_windowed_frames_are_50_a_second(num_samples: int) -> None:
    encoder = AudioEncoder(EncoderConfig(num_mels=8, dim=16, num_layers=1, num_heads=2)).eval()
    mel = raw_log_mel(0.1 * torch.randn(num_samples), num_mels=8)
    assert windowed_frames(mel, encoder, CONFIG).shape == (num_samples // 320, 16)
