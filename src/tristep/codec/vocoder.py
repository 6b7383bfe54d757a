"""The vocoder: speaking mel -> waveform, in chunks, without seams.

A source and a filter, in the family of HiFT (Li et al. 2023, "HiFTNet") and of the neural source-filter models
before it. The sources are a pulse train with the pitch that a small network reads from the mel, and white noise.
For every mel frame the filter predictor writes a gain and a phase for each bin of the pulses' STFT and a gain
for each bin of the noise's; their sum is turned back by one inverse STFT, where HiFT upsamples through
transposed convolutions. Three things make it learn in minutes: harmonics need not be invented; the pulses
have constant power per Hz, so the gains don't depend on pitch; and the predictor starts from the answer of
a channel vocoder, the wanted mel over the pulses' own mel.

Both sources are functions of the absolute position and of the seed, and every network sees a bounded number of
frames, so chunks of any sizes give what the whole gives.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tristep.audio import (
    SPEAK_HZ,
    SPEECH_HOP,
    SPEECH_MELS,
    SPEECH_N_FFT,
    SPEECH_TOP_HZ,
    mel_filters,
    speech_log_mel,
)
from tristep.config import VocoderConfig

NUM_BINS = SPEECH_N_FFT // 2 + 1
KERNEL_SIZE = 7
"""Frames that one convolution sees."""
MAX_LOG_GAIN = 6.0
SOURCE_FRAMES = -(-SPEECH_N_FFT // (2 * SPEECH_HOP))
"""Frames on either side that share samples with a frame's STFT window."""


class ConvBlock(nn.Module):
    """A ConvNeXt block over frames (Liu et al. 2022), seeing `lookahead` of its 7 frames ahead."""

    def __init__(self, dim: int, lookahead: int) -> None:
        super().__init__()
        self.padding = (KERNEL_SIZE - 1 - lookahead, lookahead)
        self.conv = nn.Conv1d(dim, dim, KERNEL_SIZE, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, 3 * dim)
        self.contract = nn.Linear(3 * dim, dim)
        self.scale = nn.Parameter(torch.full((dim,), 0.3))

    def forward(self, hidden: Tensor) -> Tensor:
        """Refine `(B, F, D)`."""
        mixed = self.conv(F.pad(hidden.transpose(1, 2), self.padding)).transpose(1, 2)  # (B, F, D)
        return hidden + self.scale * self.contract(F.gelu(self.expand(self.norm(mixed))))


class PitchPredictor(nn.Module):
    """Reads F0 and voicing from the mel: a class per third of a semitone, refined to between the classes."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.pitch_dim
        self.stem = nn.Conv1d(SPEECH_MELS, dim, KERNEL_SIZE)
        self.blocks = nn.ModuleList(ConvBlock(dim, 1) for _ in range(config.num_pitch_blocks))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, config.num_pitch_bins + 1)

    @property
    def lookahead(self) -> int:
        """Mel frames after a frame that its pitch depends on."""
        return 1 + len(self.blocks)

    def forward(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Classify the pitch of each frame of `(B, M, F)`.

        Returns:
            Logits of the F0 classes, shape `(B, F, num_pitch_bins)`, and of being voiced, shape `(B, F)`.
        """
        hidden = self.stem(F.pad(normalised(mel), (KERNEL_SIZE - 2, 1))).transpose(1, 2)  # (B, F, D)
        for block in self.blocks:
            hidden = block(hidden)
        logits = self.head(self.norm(hidden)).float()
        return logits[..., :-1], logits[..., -1]

    def places(self, f0: Tensor) -> Tensor:
        """Return where frequencies lie on the scale of classes, as fractions of a class."""
        octaves = math.log2(self.config.max_f0_hz / self.config.min_f0_hz)
        return (f0 / self.config.min_f0_hz).log2() / octaves * (self.config.num_pitch_bins - 1)

    def frequency(self, logits: Tensor) -> Tensor:
        """Turn logits `(B, F, num_pitch_bins)` into Hz `(B, F)`: the mean around the likeliest class.

        In float64, as the pulses add up every error.
        """
        logits = logits.double()
        classes = torch.arange(logits.shape[-1], device=logits.device)
        far = (classes - logits.argmax(-1, keepdim=True)).abs() > 4
        place = (logits.masked_fill(far, -math.inf).softmax(-1) * classes).sum(-1)
        octaves = math.log2(self.config.max_f0_hz / self.config.min_f0_hz)
        return self.config.min_f0_hz * 2 ** (place / (self.config.num_pitch_bins - 1) * octaves)


class FilterPredictor(nn.Module):
    """Predicts the filters of one frame after the other from the wanted mel and the pulses' own."""

    noise_mel: Tensor
    spread: Tensor

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        dim = config.dim
        self.stem = nn.Conv1d(SPEECH_MELS, dim, KERNEL_SIZE)
        self.source = nn.Linear(SPEECH_MELS, dim)
        ahead = config.num_blocks // 2
        self.blocks = nn.ModuleList(ConvBlock(dim, int(i < ahead)) for i in range(config.num_blocks))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 3 * NUM_BINS)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        power = torch.full((1, NUM_BINS, 1), float(torch.hann_window(SPEECH_N_FFT).square().sum()))
        self.register_buffer("noise_mel", speech_log_mel(power), persistent=False)  # (1, M, 1)
        self.register_buffer("spread", bands_to_bins(), persistent=False)

    @property
    def source_lookahead(self) -> int:
        """Frames of the pulses after a frame that its filters depend on; of the mel it is one more."""
        return len(self.blocks) // 2

    @property
    def left_context(self) -> int:
        """Mel frames before a frame that its filters depend on."""
        return (KERNEL_SIZE - 1) * (1 + len(self.blocks)) - 1 - self.source_lookahead

    def forward(self, mel: Tensor, pulse_mel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Predict filters from two mels of shape `(B, M, F)`.

        Returns:
            Log gain and phase of the pulses and log gain of the noise, each of shape `(B, NUM_BINS, F)`.
        """
        hidden = self.stem(F.pad(normalised(mel), (KERNEL_SIZE - 2, 1))).transpose(1, 2)  # (B, F, D)
        hidden = hidden + self.source(((mel - pulse_mel) / 4).transpose(1, 2))
        for block in self.blocks:
            hidden = block(hidden)
        raw = self.head(self.norm(hidden)).float().transpose(1, 2)  # (B, 3 * NUM_BINS, F)
        pulse_gain, phase, noise_gain = raw.chunk(3, dim=1)
        with torch.autocast(mel.device.type, enabled=False):
            pulse_gain = pulse_gain + self.spread @ ((mel - pulse_mel) / 2)
            noise_gain = noise_gain + self.spread @ ((mel - self.noise_mel) / 2)
        return pulse_gain.clamp(max=MAX_LOG_GAIN), phase, noise_gain.clamp(max=MAX_LOG_GAIN)


class Vocoder(nn.Module):
    """Turns the speaking mel into a waveform."""

    window: Tensor

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        self.config = config
        self.pitch = PitchPredictor(config)
        self.filters = FilterPredictor(config)
        self.register_buffer("window", torch.hann_window(SPEECH_N_FFT), persistent=False)

    def forward(self, mel: Tensor, seed: int = 0) -> Tensor:
        """Vocode `(B, M, F)` into a waveform `(B, F * SPEECH_HOP)`."""
        if mel.shape[-1] == 0:
            return mel.new_zeros(len(mel), 0)
        seeds = torch.full((len(mel),), seed, device=mel.device)
        return self.synthesise(mel, self.f0(mel), seeds)

    @property
    def lookahead(self) -> int:
        """Mel frames after a frame that its samples depend on."""
        return self.pitch.lookahead + self.filters.source_lookahead + 2 * SOURCE_FRAMES

    def stream(self, seed: int = 0) -> VocoderStream:
        """Begin a waveform that will come in chunks."""
        return VocoderStream(self, seed)

    def f0(self, mel: Tensor) -> Tensor:
        """Read the pitch from a mel `(B, M, F)`: Hz for every frame, voiced or not, shape `(B, F)`."""
        return self.pitch.frequency(self.pitch(mel)[0])

    @torch.no_grad()
    def voiced_f0(self, mel: Tensor) -> Tensor:
        """Read the pitch where there is one from a mel `(B, M, F)`: Hz, 0 where unvoiced, shape `(B, F)`."""
        logits, voiced = self.pitch(mel)
        return self.pitch.frequency(logits).float() * (voiced > 0)

    def synthesise(
        self, mel: Tensor, f0: Tensor, seeds: Tensor, start: int = 0, start_cycles: Tensor | None = None
    ) -> Tensor:
        """Filter the sources.

        Args:
            mel: Shape `(B, M, F)`.
            f0: Hz, above 0 everywhere, shape `(B, F)`.
            seeds: Of the noise, shape `(B,)` or, for several draws through the same filters, `(B, K)`.
            start: Absolute position of the first frame's centre, in samples.
            start_cycles: Periods of the pulse train that lie before it, shape `(B,)`; none if not given.

        Returns:
            Shape `(B, F * SPEECH_HOP)`, or `(B, K, F * SPEECH_HOP)`.
        """
        num_samples = mel.shape[-1] * SPEECH_HOP
        with torch.no_grad(), torch.autocast(mel.device.type, enabled=False):
            f0_by_sample = by_sample(f0.double())
            pulses = self.stft(pulse_train(f0_by_sample, cycles(f0_by_sample, start_cycles)).float())
            noise = self.stft(white_noise(num_samples, start, seeds))
            pulse_mel = speech_log_mel(pulses.abs() ** 2)
        pulse_gain, phase, noise_gain = self.filters(mel, pulse_mel)
        with torch.autocast(mel.device.type, enabled=False):
            voiced = torch.polar(pulse_gain.exp(), phase) * pulses  # (B, NUM_BINS, F)
            if seeds.dim() == 1:
                return self.inverse_stft(voiced + noise_gain.exp() * noise, num_samples)
            return self.inverse_stft(voiced[:, None] + noise_gain.exp()[:, None] * noise, num_samples)

    def stft(self, waveform: Tensor) -> Tensor:
        """Return the frames `(..., NUM_BINS, F)` of `(..., S)`, centred as the mel's; outside lies silence."""
        rows = waveform.reshape(-1, waveform.shape[-1])
        spectrum = torch.stft(
            rows, SPEECH_N_FFT, SPEECH_HOP, window=self.window, pad_mode="constant", return_complex=True
        )[..., :-1]  # (rows, NUM_BINS, F)
        return spectrum.reshape(*waveform.shape[:-1], *spectrum.shape[1:])

    def inverse_stft(self, spectrum: Tensor, num_samples: int) -> Tensor:
        """Overlap and add frames `(..., NUM_BINS, F)` into `(..., S)`."""
        rows = spectrum.reshape(-1, *spectrum.shape[-2:])
        waveform = torch.istft(rows, SPEECH_N_FFT, SPEECH_HOP, window=self.window, length=num_samples)
        return waveform.reshape(*spectrum.shape[:-2], num_samples)


class VocoderStream:
    """Vocodes a mel that comes in chunks of any sizes; its waveforms joined are what the whole mel gives.

    It keeps the frames that samples to come depend on and runs the vocoder over them again with every chunk,
    so chunks of half a second and more are the cheapest.
    """

    def __init__(self, vocoder: Vocoder, seed: int = 0) -> None:
        """Start at the beginning of a waveform."""
        self.vocoder = vocoder
        device = vocoder.window.device
        self._seeds = torch.tensor([seed], device=device)
        self._mel = torch.zeros(1, SPEECH_MELS, 0, device=device)
        self._f0 = torch.zeros(1, 0, dtype=torch.float64, device=device)
        self._first = 0  # absolute number of the first frame that is kept
        self._num_done = 0  # frames whose samples have been given
        self._start_cycles = torch.zeros(1, dtype=torch.float64, device=device)

    def push(self, mel: Tensor) -> Tensor:
        """Take the next frames, shape `(M, F)`, and return the samples they settle, shape `(S,)`."""
        self._mel = torch.cat([self._mel, mel[None].to(self._mel)], dim=2)
        return self._advance(ended=False)

    def finish(self) -> Tensor:
        """Return the samples that were waiting for more frames, shape `(S,)`."""
        return self._advance(ended=True)

    @torch.no_grad()
    def _advance(self, ended: bool) -> Tensor:
        num_frames = self._first + self._mel.shape[2]
        settled = num_frames if ended else num_frames - self.vocoder.lookahead
        if settled <= self._num_done:
            return self._mel.new_zeros(0)
        known = num_frames if ended else num_frames - self.vocoder.pitch.lookahead
        f0 = self.vocoder.f0(self._mel)  # its first frames may lack context: those are known already
        self._f0 = torch.cat([self._f0, f0[:, self._f0.shape[1] : known - self._first]], dim=1)
        held = torch.cat([self._f0, self._f0[:, -1:].expand(-1, num_frames - known)], dim=1)
        start = self._first * SPEECH_HOP
        waveform = self.vocoder.synthesise(self._mel, held, self._seeds, start, self._start_cycles)[0]
        chunk = waveform[self._num_done * SPEECH_HOP - start : settled * SPEECH_HOP - start]
        self._num_done = settled
        self._forget()
        return chunk

    def _forget(self) -> None:
        """Drop the frames that no sample to come depends on, and count the periods that go with them."""
        needed = self.vocoder.filters.left_context + 2 * SOURCE_FRAMES
        num = max(0, self._num_done - needed - self._first)
        passed = by_sample(self._f0.double())[:, : num * SPEECH_HOP].sum(1) / SPEAK_HZ
        self._start_cycles = (self._start_cycles + passed) % 1
        self._mel, self._f0, self._first = self._mel[:, :, num:], self._f0[:, num:], self._first + num


def normalised(mel: Tensor) -> Tensor:
    """Shift and scale the speaking mel to about unit size."""
    return (mel + 4) / 4


def bands_to_bins() -> Tensor:
    """Build the matrix `(NUM_BINS, M)` that interpolates mel bands at the bins of the STFT."""
    filters = mel_filters(SPEECH_MELS, SPEAK_HZ, SPEECH_N_FFT, SPEECH_TOP_HZ).T.clone()  # (NUM_BINS, M)
    spread = filters / filters.amax(0)
    spread[0, 0] = 1.0
    spread[int(SPEECH_TOP_HZ * SPEECH_N_FFT / SPEAK_HZ) :, -1] = 1.0  # above the mel: as its last band
    return spread / spread.sum(1, keepdim=True)


def by_sample(f0: Tensor) -> Tensor:
    """Interpolate frames `(B, F)` linearly to samples `(B, F * SPEECH_HOP)`; the last frame is held."""
    ahead = torch.cat([f0[:, 1:], f0[:, -1:]], 1)
    share = torch.arange(SPEECH_HOP, dtype=f0.dtype, device=f0.device) / SPEECH_HOP
    return (f0[..., None] + (ahead - f0)[..., None] * share).flatten(1)


def cycles(f0: Tensor, start_cycles: Tensor | None = None) -> Tensor:
    """Count the periods that lie before each sample, shape `(B, S)`, from Hz by sample in float64."""
    passed = (f0 / SPEAK_HZ).cumsum(1) - f0 / SPEAK_HZ
    return passed if start_cycles is None else passed + start_cycles[:, None]


def pulse_train(f0: Tensor, cycles: Tensor) -> Tensor:
    """Sum all cosines below the Nyquist frequency, with unit power per sample.

    The sum of `K` equal cosines is Dirichlet's kernel; the next one fades in with the fraction of it that
    fits, so that nothing clicks where `K` changes. The amplitude falls with `K`, so the power per Hz is constant.

    Args:
        f0: Hz by sample, shape `(B, S)`.
        cycles: Periods before each sample, float64, shape `(B, S)`.

    Returns:
        Shape `(B, S)`.
    """
    room = SPEAK_HZ / 2 / f0 - 1
    num_harmonics = room.floor()
    half = math.pi * (cycles - cycles.round())  # half the phase, in [-pi / 2, pi / 2]
    close = half.abs() < 1e-6
    half = half.masked_fill(close, 1.0)
    kernel = (((2 * num_harmonics + 1) * half).sin() / half.sin() - 1) / 2
    kernel = torch.where(close, num_harmonics, kernel)
    last = (2 * (num_harmonics + 1) * half.masked_fill(close, 0.0)).cos()
    return (kernel + (room - num_harmonics) * last) * (2 / room).sqrt()


def white_noise(num_samples: int, start: int, seeds: Tensor) -> Tensor:
    """Return noise of unit power that depends on the absolute position and the seed alone.

    Wellons' 32-bit integer hash ("lowbias32") of position and seed gives an even distribution; a filter's
    window makes it normal.

    Args:
        num_samples: How many samples.
        start: Absolute position of the first.
        seeds: Shape `(...)`.

    Returns:
        Shape `(..., num_samples)`, float32.
    """
    positions = torch.arange(start, start + num_samples, device=seeds.device)
    hashed = _hash(positions ^ _hash(seeds.long() + 1)[..., None])
    return (hashed.float() / 2**31 - 1) * math.sqrt(3)


def _hash(number: Tensor) -> Tensor:
    number = number & 0xFFFFFFFF
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        number = ((number ^ (number >> shift)) * factor) & 0xFFFFFFFF
    return number ^ (number >> 16)
