"""Speech tokenizer: what was said, and roughly how, as one stream of codes.

Supervised semantic codes in the family of CosyVoice 2 and Step-Audio 2 (report section 2.3): finite scalar
quantisation (Mentzer et al. 2023) in the middle of a recogniser that stands on the frozen audio encoder. What
differs, and why. The encoder stays frozen, as it is the backbone's own ear. It was trained to forget prosody, so
the raw log-mel goes in beside its frames. And letters alone would teach the codes to forget prosody again, so the
second half of the recogniser, `CodeReader`, also has to read melody, energy and, given the voice, the spectrum
from the codes. Timbre need not be in the codes then, and with so few bits there is no room for it.

The encoder attends to everything it is given. So that a stream's codes are those of the whole clip, both are
computed in the same windows of fixed size: each gives the codes of `hop_s` and hears `context_s` before and
`lookahead_s` after it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tristep.audio import MEL_TAIL_S, LogMelStream, normalise, raw_log_mel
from tristep.config import TokenizerConfig

MEL_HZ = 100
"""Frames a second of both mel spectrograms, the one that is heard and the one that is spoken."""
SILENT_MEL = -10.0
"""Raw log-mel of digital silence."""
NUM_PROSODY = 3
"""Melody (octaves from the clip's median), logit of voiced, energy (from the clip's mean)."""
VOICE_DIM = 192
MEL_PER_FRAME = 2
"""Mel frames (100 Hz) under one frame of the frozen encoder (50 Hz)."""
BLURRED = 0.5
"""Share of the clips in training whose codes are blurred instead of rounded."""

AudioEncoder = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Log-mel `(B, M, F)` and its lengths `(B,)` to frames `(B, F / 2, De)` and their lengths: the frozen encoder."""


@dataclass(frozen=True)
class Lattice:
    """Finite scalar quantisation: every dimension is rounded to a few levels, and a code numbers the combination."""

    levels: tuple[int, ...]
    """Levels of each dimension."""

    @property
    def size(self) -> int:
        """Count the codes."""
        return math.prod(self.levels)

    def quantise(self, latents: Tensor, blurred: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Bound and round latents; gradients pass the rounding as if it weren't there.

        Args:
            latents: Shape `(..., D)`, of any size.
            blurred: Where noise as large as a rounding error takes the place of rounding, shape `(...)`: in training,
                it gives true gradients and keeps levels from being left empty.

        Returns:
            Points in [-1, 1], shape `(..., D)`, and their codes `(...)`.
        """
        levels = latents.new_tensor(self.levels)
        half = (levels - 1) * (1 + 1e-3) / 2
        offset = (levels % 2 == 0) * 0.5  # an even number of levels has no middle one
        bounded = torch.tanh(latents + torch.atanh(offset / half)) * half - offset
        error = (bounded.round() - bounded).detach()
        codes = self._codes((bounded.detach().round() + levels // 2).long())
        if blurred is not None:
            error = torch.where(blurred[..., None], torch.rand_like(error) - 0.5, error)
        return (bounded + error) / (levels // 2), codes

    def digits(self, codes: Tensor) -> Tensor:
        """Return the level of every dimension: `(...)` -> `(..., D)`."""
        return codes[..., None] // self._basis(codes) % codes.new_tensor(self.levels)

    def points(self, codes: Tensor) -> Tensor:
        """Return where codes lie, in [-1, 1]: `(...)` -> `(..., D)`; near points sound alike."""
        middle = codes.new_tensor(self.levels) // 2
        return (self.digits(codes) - middle).float() / middle

    def _codes(self, digits: Tensor) -> Tensor:
        return (digits * self._basis(digits)).sum(dim=-1)

    def _basis(self, like: Tensor) -> Tensor:
        levels = [1, *self.levels[:-1]]
        return torch.tensor(levels, device=like.device).cumprod(dim=0)


class ConvBlock(nn.Module):
    """ConvNeXt's block over time (Liu et al. 2022): depthwise convolution, norm, two projections, scaled residual."""

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__()
        self.local = nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.up_proj, self.down_proj = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.scale = nn.Parameter(torch.full((dim,), 0.1))

    def forward(self, hidden: Tensor, inside: Tensor) -> Tensor:
        """Transform `(B, F, D)`; what lies outside `(B, F, 1)` is not heard."""
        local = self.local((hidden * inside).transpose(1, 2)).transpose(1, 2)
        return hidden + self.scale * self.down_proj(F.gelu(self.up_proj(self.norm(local))))


def run_blocks(blocks: nn.ModuleList, hidden: Tensor, inside: Tensor) -> Tensor:
    """Run blocks one after the other."""
    for block in blocks:
        hidden = block(hidden, inside)
    return hidden


def inside(num: Tensor, length: int) -> Tensor:
    """Mark the first `num[b]` of `length` positions: `(B,)` -> `(B, length, 1)`."""
    return (torch.arange(length, device=num.device) < num[:, None])[:, :, None]


@dataclass(frozen=True)
class Tokenized:
    """What the tokenizer makes of a batch."""

    points: Tensor
    """Lattice points `(B, T, D)`; gradients reach the latents through them."""
    codes: Tensor
    """Shape `(B, T)`."""
    num_codes: Tensor
    """Valid codes per row, shape `(B,)`."""
    hidden: Tensor
    """What the first half knows at 50 Hz, before the lattice, shape `(B, N, dim)`."""


class SpeechTokenizer(nn.Module):
    """Frozen encoder frames and log-mel -> codes."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config, self.lattice, D = config, Lattice(config.levels), config.dim
        self.stack = nn.Linear(config.encoder_dim + 2 * config.num_mels, D)
        self.dropout = nn.Dropout(config.dropout)
        self.frame_blocks = nn.ModuleList(ConvBlock(D, config.kernel_size) for _ in range(config.num_frame_layers))
        self.reduce = nn.Linear(config.stride * D, D)
        self.code_blocks = nn.ModuleList(ConvBlock(D, config.kernel_size) for _ in range(config.num_code_layers))
        self.norm = nn.LayerNorm(D)
        self.to_latent = nn.Linear(D, len(config.levels))
        nn.init.normal_(self.to_latent.weight, std=D**-0.5)  # so that all levels are in use from the start

    @property
    def code_rate_hz(self) -> float:
        """Codes per second."""
        return MEL_HZ / self.mel_frames_per_code

    @property
    def mel_frames_per_code(self) -> int:
        """Mel frames that one code stands for."""
        return MEL_PER_FRAME * self.config.stride

    def forward(self, frames: Tensor, mel: Tensor, num_frames: Tensor) -> Tokenized:
        """Tokenize a padded batch; a row comes out as it would alone.

        Args:
            frames: Encoder frames at 50 Hz, shape `(B, N, De)`.
            mel: Raw log-mel (log10) at 100 Hz, shape `(B, M, 2 N)`.
            num_frames: Valid encoder frames per row, shape `(B,)`; a last incomplete code counts.
        """
        B, N, _ = frames.shape
        stride, known = self.config.stride, inside(num_frames, N)
        pairs = mel.transpose(1, 2).reshape(B, N, -1)  # (B, N, 2 M)
        hidden = self.dropout(self.stack(torch.cat([frames, (pairs + 4) / 4], dim=-1)))
        frame_hidden = run_blocks(self.frame_blocks, hidden, known) * known
        hidden = F.pad(frame_hidden, (0, 0, 0, -N % stride)).reshape(B, -1, stride * self.config.dim)
        num_codes = (num_frames + stride - 1) // stride
        hidden = run_blocks(self.code_blocks, self.reduce(hidden), inside(num_codes, hidden.shape[1]))
        latents = self.to_latent(self.norm(hidden)).float()  # (B, T, D)
        blurred = torch.rand(B, 1, device=mel.device).expand(latents.shape[:2]) < BLURRED if self.training else None
        points, codes = self.lattice.quantise(latents, blurred)
        return Tokenized(points, codes, num_codes, frame_hidden)

    @torch.no_grad()
    def encode(self, waveform: Tensor, encoder: AudioEncoder) -> Tensor:
        """Return the codes `(T,)` of a waveform `(S,)` at 16 kHz."""
        return torch.cat(list(self._encode_windows(raw_log_mel(waveform, self.config.num_mels), encoder)))

    def _encode_windows(self, mel: Tensor, encoder: AudioEncoder) -> Iterator[Tensor]:
        mel = F.pad(mel, (0, -mel.shape[1] % self.mel_frames_per_code), value=SILENT_MEL)
        yield mel.new_zeros(0, dtype=torch.long)
        for window in windows(mel.shape[1], self.config):
            yield self._encode_window(mel[:, window.start : window.end], window, encoder)

    def _encode_window(self, mel: Tensor, window: Window, encoder: AudioEncoder) -> Tensor:
        """Return the codes of the middle of a window, given its log-mel `(M, F)`."""
        frames = encode_frames(mel, encoder)[None]
        codes = self(frames, mel[None], torch.tensor([frames.shape[1]], device=mel.device)).codes[0]
        per_code = self.mel_frames_per_code
        return codes[(window.first - window.start) // per_code : (window.last - window.start) // per_code]


@dataclass(frozen=True)
class Window:
    """One stretch of sound that is encoded at once, in mel frames."""

    start: int
    """Where hearing begins."""
    first: int
    """Where its own codes begin."""
    last: int
    """Where its own codes end."""
    end: int
    """Where hearing ends."""


def windows(num_mel_frames: int, config: TokenizerConfig) -> Iterator[Window]:
    """Cut a clip into windows; none depends on what comes after its own end."""
    hop, context, lookahead = (round(s * MEL_HZ) for s in (config.hop_s, config.context_s, config.lookahead_s))
    for first in range(0, num_mel_frames, hop):
        last = min(first + hop, num_mel_frames)
        yield Window(max(0, first - context), first, last, min(first + hop + lookahead, num_mel_frames))


@torch.no_grad()
def encode_frames(mel: Tensor, encoder: AudioEncoder) -> Tensor:
    """Run the frozen encoder over one window and the silence that it needs after it.

    Args:
        mel: Raw log-mel, shape `(M, F)`, F even.
        encoder: The frozen encoder.

    Returns:
        Frames of shape `(F / 2, De)`.
    """
    padded = normalise(F.pad(mel, (0, round(MEL_TAIL_S * MEL_HZ)), value=SILENT_MEL))[None]
    frames, _ = encoder(padded, torch.tensor([padded.shape[-1]], device=mel.device))
    return frames[0, : mel.shape[1] // 2]


def windowed_frames(mel: Tensor, encoder: AudioEncoder, config: TokenizerConfig) -> Tensor:
    """Encode a clip of any length in the tokenizer's windows, as training needs it.

    Args:
        mel: Raw log-mel of the clip, shape `(M, F)`.
        encoder: The frozen encoder.
        config: Says how long the windows are.

    Returns:
        Frames of shape `(F // 2, De)`.
    """
    mel = mel[:, : mel.shape[1] // 2 * 2]
    parts = [
        encode_frames(mel[:, w.start : w.end], encoder)[(w.first - w.start) // 2 : (w.last - w.start) // 2]
        for w in windows(mel.shape[1], config)
    ]
    return torch.cat(parts) if parts else mel.new_zeros(0, config.encoder_dim)


class TokenizerStream:
    """Tokenizes chunks of any sizes: the codes joined are those of the whole clip."""

    def __init__(self, tokenizer: SpeechTokenizer, encoder: AudioEncoder) -> None:
        self.tokenizer, self.encoder = tokenizer, encoder
        self._mels = LogMelStream(tokenizer.config.num_mels)
        self._held = torch.zeros(tokenizer.config.num_mels, 0)
        self._dropped = 0  # mel frames before those held
        self._next = 0  # where the next codes begin

    @torch.no_grad()
    def push(self, chunk: Tensor) -> Tensor:
        """Take the next samples `(S,)` at 16 kHz and return the codes they complete, `(T,)`."""
        self._held = torch.cat([self._held, self._mels.push(chunk)], dim=1)
        return self._codes(ended=False)

    @torch.no_grad()
    def finish(self) -> Tensor:
        """Return the codes that were waiting for the end."""
        self._held = torch.cat([self._held, self._mels.flush()], dim=1)
        missing = -(self._dropped + self._held.shape[1]) % self.tokenizer.mel_frames_per_code
        self._held = F.pad(self._held, (0, missing), value=SILENT_MEL)
        return self._codes(ended=True)

    def _codes(self, ended: bool) -> Tensor:
        config, num_known = self.tokenizer.config, self._dropped + self._held.shape[1]
        complete = round((config.hop_s + config.lookahead_s) * MEL_HZ)
        ready = [torch.zeros(0, dtype=torch.long)]
        for window in windows(num_known, config):
            if window.first < self._next or (not ended and num_known < window.first + complete):
                continue
            mel = self._held[:, window.start - self._dropped : window.end - self._dropped]
            ready.append(self.tokenizer._encode_window(mel, window, self.encoder))
            self._next = window.last
        keep_from = max(self._dropped, self._next - round(config.context_s * MEL_HZ))
        self._held, self._dropped = self._held[:, keep_from - self._dropped :], keep_from
        return torch.cat(ready)


@dataclass(frozen=True)
class Reading:
    """What can be read from codes."""

    phones: Tensor
    """Logits over `PHONES` at 50 Hz, each read from one code, shape `(B, N, P)`."""
    early_phones: Tensor
    """The same, read before the lattice: they teach the first half before any code means anything."""
    prosody: Tensor
    """Shape `(B, F, NUM_PROSODY)`, 100 Hz."""
    mel: Tensor
    """Speaking mel, shape `(B, M, F)`."""


class CodeReader(nn.Module):
    """The recogniser's second half, which only training needs: codes -> phones, prosody and, given the voice, mel.

    The lattice's first dimensions say the phones, each code for itself, and the rest the prosody: what a code means is
    then the same wherever it stands, and whoever has to predict codes from text learns a spelling and a melody.
    """

    def __init__(self, config: TokenizerConfig, num_phones: int) -> None:
        super().__init__()
        D, self.stride, self.num_phone_dims = config.dim, config.stride, config.num_phone_dims
        self.num_mels = config.num_mels
        self.phones = nn.Sequential(
            nn.Linear(self.num_phone_dims, D), nn.GELU(), nn.Linear(D, D), nn.GELU(), nn.Linear(D, D // 2), nn.GELU(),
            nn.Linear(D // 2, config.stride * num_phones),
        )  # fmt: skip
        self.early_norm = nn.LayerNorm(D)
        self.early_phones = nn.Linear(D, num_phones)
        self.prosody_trunk = Trunk(config, len(config.levels) - self.num_phone_dims)
        self.prosody = nn.Linear(D, MEL_PER_FRAME * NUM_PROSODY)
        self.mel_trunk = Trunk(config, len(config.levels))
        self.voice = nn.Linear(VOICE_DIM, D)
        self.mel_block = ConvBlock(D, 7)
        self.mel = nn.Linear(D, MEL_PER_FRAME * self.num_mels)

    def forward(self, tokenized: Tokenized, voice: Tensor) -> Reading:
        """Read a padded batch, given the CAM++ embeddings `(B, VOICE_DIM)` of its speakers."""
        points, num_codes = tokenized.points, tokenized.num_codes
        phones = self.phones(points[..., : self.num_phone_dims]).unflatten(2, (self.stride, -1)).flatten(1, 2)
        prosodic = self.prosody_trunk(points[..., self.num_phone_dims :], num_codes)
        spectral = self.mel_trunk(points, num_codes) + self.voice(F.normalize(voice, dim=-1))[:, None]
        spectral = self.mel_block(spectral, inside(num_codes * self.stride, spectral.shape[1]))
        prosody = self.prosody(prosodic).unflatten(2, (MEL_PER_FRAME, NUM_PROSODY)).flatten(1, 2)
        mel = self.mel(spectral).unflatten(2, (MEL_PER_FRAME, self.num_mels)).flatten(1, 2).transpose(1, 2)
        return Reading(phones, self.read_early(tokenized.hidden, phones.shape[1]), prosody, mel)

    def read_early(self, frames: Tensor, num_frames: int) -> Tensor:
        """Read phones from the tokenizer's own frames `(B, N, D)`."""
        padded = F.pad(frames, (0, 0, 0, num_frames - frames.shape[1]))
        return self.early_phones(self.early_norm(padded))


class Trunk(nn.Module):
    """Lattice points at the rate of the codes -> hidden states at 50 Hz."""

    def __init__(self, config: TokenizerConfig, num_dims: int) -> None:
        super().__init__()
        D, self.stride = config.dim, config.stride
        self.from_points = nn.Linear(num_dims, D)
        self.code_blocks = nn.ModuleList(ConvBlock(D, config.kernel_size) for _ in range(config.num_code_layers))
        self.spread = nn.Linear(D, config.stride * D)
        self.blocks = nn.ModuleList(ConvBlock(D, 7) for _ in range(config.num_reader_layers))
        self.norm = nn.LayerNorm(D)

    def forward(self, points: Tensor, num_codes: Tensor) -> Tensor:
        """Transform `(B, T, d)` to `(B, T * stride, D)`."""
        hidden = run_blocks(self.code_blocks, self.from_points(points), inside(num_codes, points.shape[1]))
        hidden = self.spread(hidden).unflatten(2, (self.stride, -1)).flatten(1, 2)
        known = inside(num_codes * self.stride, hidden.shape[1])
        return self.norm(run_blocks(self.blocks, hidden, known))
