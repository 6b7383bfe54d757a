"""What the vocoder learns from: distances between spectra, and light discriminators of spectrograms.

The distance compares logarithms and cube-root-like powers of magnitudes at several resolutions, each bin weighted
by how much of the mel scale it covers. Alone it would teach the vocoder to avoid noise: two draws of noise are
farther apart than a draw is from its median. So two draws through the same filters also repel each other, which
makes the whole a proper score of the distribution (Gritsenko et al. 2020, "A Spectral Energy Distance for Parallel
Speech Synthesis", eq. 5). The discriminators are UnivNet's (Jang et al. 2021) on complex spectrograms, with a
small part of the work: they look where harmonics lie, below `DISCRIMINATOR_TOP_HZ`. What is above costs the vocoder
nothing that DistillMOS hears, what is below costs it all (`docs/log.md`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from tristep.audio import SPEAK_HZ

RESOLUTIONS = (2048, 1024, 512, 256)
"""STFT windows of the distance, in samples; each hops by a quarter."""
FLOOR = 1e-4
"""Least magnitude, where white noise of standard deviation 1 has magnitudes about 1."""
LOUDNESS = 0.3
"""Exponent that turns a magnitude into something like loudness."""
LOUDNESS_WEIGHT = 3.0
SLOPE = 0.1
"""Of the discriminators' activations below 0."""
DISCRIMINATOR_FFTS = (1024, 512, 256, 128)
"""The shorter the window, the sooner pulses give the vocoder away (`docs/log.md`)."""
DISCRIMINATOR_TOP_HZ = 4800.0


def complex_stft(waveform: Tensor, n_fft: int) -> Tensor:
    """Return the STFT `(B, n_fft // 2 + 1, F)` of `(B, S)`, scaled so that white noise keeps its magnitude."""
    window = torch.hann_window(n_fft, device=waveform.device)
    spectrum = torch.stft(waveform, n_fft, n_fft // 4, window=window, return_complex=True)
    return spectrum / window.square().sum().sqrt()


def loudness(waveform: Tensor) -> list[Tensor]:
    """Describe waveforms `(B, S)` by what `spectral_distance` compares.

    Returns:
        For every resolution the log magnitudes and the weighted powers of them, `(B, 2, n_fft // 2 + 1, F)`.
    """
    described = []
    with torch.autocast(waveform.device.type, enabled=False):
        for n_fft in RESOLUTIONS:
            spectrum = torch.view_as_real(complex_stft(waveform.float(), n_fft))
            logs = spectrum.square().sum(-1).clamp(min=FLOOR**2).log() / 2
            described.append(torch.stack([logs, (LOUDNESS * logs).exp() * LOUDNESS_WEIGHT], dim=1))
    return described


def spectral_distance(described: list[Tensor], others: list[Tensor], top_hz: Tensor | None = None) -> Tensor:
    """Compare two waveforms by what `loudness` says of them.

    Args:
        described: One waveform, by resolution `(B, 2, bins, F)`.
        others: The other.
        top_hz: Bins above are left out, by row, shape `(B,)`; recordings made at 16 kHz have nothing there.

    Returns:
        The distance of each row, shape `(B,)`.
    """
    total = torch.zeros(len(others[0]), device=others[0].device)
    for mine, wanted in zip(described, others, strict=True):
        weights = bin_weights(mine.shape[2], top_hz, mine.device)  # (B or 1, bins)
        difference = (mine - wanted).abs().mean(3).sum(1)  # (B, bins)
        total = total + (difference * weights).sum(1) / weights.sum(1)
    return total / len(described)


def bin_weights(num_bins: int, top_hz: Tensor | None, device: torch.device) -> Tensor:
    """Weigh bins by (mels per Hz) ** 0.7, and not at all above `top_hz`; shape `(B or 1, num_bins)`."""
    frequencies = torch.linspace(0, SPEAK_HZ / 2, num_bins, device=device)
    weights = (1 + frequencies / 700) ** -0.7
    return weights[None] if top_hz is None else weights * (frequencies <= top_hz[:, None])


class Discriminator(nn.Module):
    """Judges patches of the low part of a complex spectrogram at one resolution."""

    def __init__(self, n_fft: int, dim: int) -> None:
        super().__init__()
        self.n_fft = n_fft
        self.num_bins = round(DISCRIMINATOR_TOP_HZ / SPEAK_HZ * n_fft)
        self.layers = nn.ModuleList(
            [
                nn.Conv2d(2, dim, (7, 5), (2, 1), (3, 2)),
                nn.Conv2d(dim, dim, (5, 3), (2, 1), (2, 1)),
                nn.Conv2d(dim, dim, (5, 3), (2, 2), (2, 1)),
                nn.Conv2d(dim, dim, (3, 3), (2, 1), (1, 1)),
                nn.Conv2d(dim, 1, (3, 3), 1, (1, 1)),
            ]
        )
        for name, parameter in self.layers.named_parameters():  # by default too little passes five layers
            if name.endswith("weight"):
                nn.init.kaiming_normal_(parameter, SLOPE, nonlinearity="leaky_relu")
            else:
                nn.init.zeros_(parameter)

    def forward(self, waveform: Tensor) -> list[Tensor]:
        """Judge `(B, S)`: the activations of every layer, the last of which are the scores `(B, 1, bins, F)`."""
        with torch.autocast(waveform.device.type, enabled=False):
            spectrum = complex_stft(waveform.float(), self.n_fft)[:, : self.num_bins]
            power = torch.view_as_real(spectrum).square().sum(-1).clamp(min=FLOOR**2)
            hidden = torch.view_as_real(spectrum * power ** ((LOUDNESS - 1) / 2))  # (B, bins, F, 2)
        hidden = hidden.movedim(-1, 1)
        activations = []
        for layer in self.layers:
            hidden = layer(hidden)
            activations.append(hidden)
            hidden = F.leaky_relu(hidden, SLOPE)
        return activations


class Adversary(nn.Module):
    """Discriminators at several resolutions."""

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.discriminators = nn.ModuleList(Discriminator(n_fft, dim) for n_fft in DISCRIMINATOR_FFTS)

    def forward(self, waveform: Tensor) -> list[list[Tensor]]:
        """Return every discriminator's activations on `(B, S)`."""
        return [discriminator(waveform) for discriminator in self.discriminators]


def adversarial_losses(adversary: Adversary, real: Tensor, fake: Tensor) -> Mapping[str, Tensor]:
    """Compute both sides of the game, with least squares (Mao et al. 2017).

    One backward pass serves both: the discriminators see the fake without its gradient, and the vocoder is judged
    by discriminators whose weights are held.

    Args:
        adversary: The discriminators.
        real: Recorded waveforms, shape `(B, S)`.
        fake: Vocoded waveforms, shape `(B, S)`.

    Returns:
        `discriminate` trains the discriminators; `fool` and `match` (of activations) train the vocoder.
    """
    on_real = adversary(real)
    on_fake = adversary(fake.detach())
    discriminate = sum(
        ((1 - r[-1].float()) ** 2).mean() + (f[-1].float() ** 2).mean() for r, f in zip(on_real, on_fake, strict=True)
    )
    held = {name: parameter.detach() for name, parameter in adversary.named_parameters()}
    judged: list[list[Tensor]] = functional_call(adversary, held, (fake,))
    fool = sum(((1 - activations[-1].float()) ** 2).mean() for activations in judged)
    match = torch.zeros((), device=real.device)
    for wanted, activations in zip(on_real, judged, strict=True):
        for r, f in zip(wanted[:-1], activations[:-1], strict=True):
            target = r.detach().float()
            match = match + (f.float() - target).abs().mean() / target.abs().mean().clamp(min=1e-3) / len(wanted)
    count = len(judged)
    return {"discriminate": discriminate / count, "fool": fool / count, "match": match / count}
