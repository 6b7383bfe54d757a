from __future__ import annotations

import torch

from tristep.codec.adversary import Adversary, adversarial_losses, bin_weights, loudness, spectral_distance


def noise(seed: int, num_rows: int = 2) -> torch.Tensor:
    return torch.randn(num_rows, 9600, generator=torch.Generator().manual_seed(seed)) * 0.1


def test_a_waveform_is_at_no_distance_from_itself_and_at_a_growing_one_from_louder_ones() -> None:
    quiet = loudness(noise(0))
    distances = [float(spectral_distance(loudness(noise(0) * gain), quiet).sum()) for gain in (1, 1.5, 3)]
    assert distances[0] == 0
    assert distances[1] < distances[2]


def test_what_lies_above_the_top_does_not_count() -> None:
    spectrum = torch.fft.rfft(noise(1))
    spectrum[:, round(8500 / 12_000 * spectrum.shape[1]) :] = 0
    low = torch.fft.irfft(spectrum, 9600)
    distances = spectral_distance(loudness(noise(1)), loudness(low), torch.tensor([7600.0, 12_000.0]))
    assert float(distances[0]) < 0.05 * float(distances[1])


def test_low_bins_weigh_more_and_bins_above_the_top_nothing() -> None:
    weights = bin_weights(9, torch.tensor([6000.0, 12_000.0]), torch.device("cpu"))
    assert (weights[1].diff() < 0).all()
    assert (weights[0, :5] == weights[1, :5]).all()
    assert (weights[0, 5:] == 0).all()


def test_with_full_repulsion_the_best_level_of_noise_is_the_true_one() -> None:
    wanted = loudness(noise(2, 8))

    def score(gain: float, repulsion: float) -> float:
        one, other = loudness(noise(3, 8) * gain), loudness(noise(4, 8) * gain)
        attraction = (spectral_distance(one, wanted) + spectral_distance(other, wanted)) / 2
        return float((attraction - repulsion / 2 * spectral_distance(one, other)).mean())

    gains = [0.7, 0.85, 1.0, 1.2, 1.4]
    assert min(gains, key=lambda gain: score(gain, 1.0)) == 1.0


def test_one_backward_pass_trains_both_sides_and_neither_for_the_other() -> None:
    torch.manual_seed(0)
    adversary, fake = Adversary(dim=4), noise(5).requires_grad_()
    losses = adversarial_losses(adversary, noise(6), fake)
    (losses["fool"] + losses["match"]).backward(retain_graph=True)
    assert fake.grad is not None
    assert float(fake.grad.abs().sum()) > 0
    assert all(parameter.grad is None for parameter in adversary.parameters())
    fake.grad = None
    losses["discriminate"].backward()
    assert fake.grad is None
    assert all(parameter.grad is not None for parameter in adversary.parameters())


def test_discriminators_do_not_see_what_recordings_at_16_khz_lack() -> None:
    torch.manual_seed(0)
    adversary = Adversary(dim=4)
    spectrum = torch.fft.rfft(noise(1))
    spectrum[:, round(7600 / 12_000 * spectrum.shape[1]) :] = 0
    low = torch.fft.irfft(spectrum, 9600)
    for one, other in zip(adversary(noise(1)), adversary(low), strict=True):
        assert float((one[-1] - other[-1]).detach().abs().amax()) < 0.02 * float(one[-1].detach().abs().amax())


def test_discriminators_learn_to_tell_noise_from_a_tone() -> None:
    torch.manual_seed(0)
    adversary = Adversary(dim=4)
    tone = torch.sin(torch.arange(9600) * 0.2).expand(2, -1) * 0.1
    optimizer = torch.optim.Adam(adversary.parameters(), 1e-2)
    for step in range(25):
        loss = adversarial_losses(adversary, tone, noise(step))["discriminate"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3  # one that can't tell is best off at 0.5
