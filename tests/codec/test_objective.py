from __future__ import annotations

import torch

from tristep.codec.objective import (
    crowding,
    flow_path,
    frame_errors,
    mel_loss,
    phone_loss,
    prosody_losses,
    relative_energy,
    relative_melody,
)
from tristep.phones import UNLABELLED

F0 = torch.tensor([[100.0, 200.0, 0.0, 400.0, 999.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
NUM_FRAMES = torch.tensor([4, 5])


def test_melody_is_in_octaves_from_the_median_of_the_clip() -> None:
    assert relative_melody(F0, NUM_FRAMES).tolist() == [[-1, 0, 0, 1, 0], [0, 0, 0, 0, 0]]


def test_melody_is_the_same_for_a_higher_voice() -> None:
    torch.testing.assert_close(relative_melody(1.5 * F0, NUM_FRAMES), relative_melody(F0, NUM_FRAMES))


def test_energy_is_the_same_at_another_loudness() -> None:
    mel = torch.randn(2, 8, 5)
    energy = relative_energy(mel, NUM_FRAMES)
    torch.testing.assert_close(relative_energy(mel + 2, NUM_FRAMES), energy)
    torch.testing.assert_close(energy.sum(dim=1), torch.zeros(2), atol=1e-5, rtol=0)


def test_what_lies_beyond_a_clips_end_changes_no_loss() -> None:
    torch.manual_seed(0)
    prosody, mel, read = torch.randn(2, 5, 3), torch.randn(2, 8, 5), torch.randn(2, 8, 5)

    def losses() -> list[float]:
        parts = prosody_losses(prosody, F0, mel, NUM_FRAMES)
        pairs = frame_errors(read.mT, mel.mT, NUM_FRAMES, power=2)
        return [*map(float, parts.values()), float(mel_loss(read, mel, NUM_FRAMES)), float(pairs)]

    before = losses()
    prosody[0, 4], mel[0, :, 4], read[0, :, 4] = 9.0, 9.0, -9.0
    assert losses() == before


def test_a_perfect_reading_costs_nothing() -> None:
    mel = torch.randn(2, 8, 5)
    logits = torch.where(F0 > 0, 99.0, -99.0)
    prosody = torch.stack([relative_melody(F0, NUM_FRAMES), logits, relative_energy(mel, NUM_FRAMES)], dim=2)
    losses = prosody_losses(prosody, F0, mel, NUM_FRAMES)
    assert losses.pop("melody_targets") == 3
    assert sum(losses.values()) < 1e-9
    assert mel_loss(mel, mel, NUM_FRAMES) == 0


def test_the_path_leads_from_noise_to_mel() -> None:
    noise, mel = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    time = torch.tensor([0.0, 0.25])
    noisy, velocity = flow_path(noise, mel, time)
    assert torch.equal(noisy[0], noise[0])
    torch.testing.assert_close(noisy + (1 - time)[:, None, None] * velocity, mel)


def test_an_even_use_of_the_lattice_is_not_crowded() -> None:
    points = 2 * torch.rand(4, 500, 3, generator=torch.Generator().manual_seed(0)) - 1
    num_codes = torch.full((4,), 500)
    assert crowding(1.3 * points, num_codes) < 0.01
    assert crowding(points[..., :1].expand(-1, -1, 3), num_codes) > 0.9
    assert crowding(0.01 * points, num_codes) > 0.3
    assert crowding(torch.zeros(4, 500, 3), num_codes).isfinite()


def test_padding_is_no_crowd() -> None:
    points = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0))
    padded = torch.cat([points, torch.full((2, 20, 3), 9.0)], dim=1)
    torch.testing.assert_close(crowding(padded, torch.tensor([50, 50])), crowding(points, torch.tensor([50, 50])))


def test_phones_that_are_not_known_cost_nothing() -> None:
    logits = torch.randn(1, 5, 4, generator=torch.Generator().manual_seed(0))
    phones = torch.tensor([[2, UNLABELLED, 1]])
    expected = -(logits[0, 0].log_softmax(dim=0)[2] + logits[0, 2].log_softmax(dim=0)[1])
    torch.testing.assert_close(phone_loss(logits, phones), expected)
