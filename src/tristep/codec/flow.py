"""Flow decoder: codes and a voice -> speaking mel, in chunks.

Conditional flow matching on optimal-transport paths (Lipman et al. 2023; Matcha-TTS, CosyVoice 2): a network learns
the velocity that carries noise to mel, and a few Euler steps follow it, guided away from what it would say without
its condition (Ho and Salimans 2022). What differs from Step-Audio 2 (report section 8.7), and why: the estimator is
convolutional and causal, a fifteenth of the size, and works on pairs of mel frames, so that two CPU cores keep up.
The reference is not put before the codes but attended to as a set, so its length costs nothing per frame and
streaming needs no prompt. And pitch and energy against the voice's own are inputs, by which instructions act.

Streamed is whole: every convolution keeps its own left context for every Euler step, nothing but the first layer looks
ahead (`lookahead` codes), and the noise is a function of the seed and of the absolute frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tristep.audio import SPEECH_FLOOR
from tristep.codec.tokenizer import ConvBlock, Lattice, inside, run_blocks
from tristep.config import FlowConfig, TokenizerConfig

PAIR = 2
"""Mel frames (100 Hz) that the flow handles as one (50 Hz)."""
REFERENCE_STACK = 4
"""Mel frames of the reference under one entry of the set that is attended to."""
NOISE_BLOCK = 64
"""Frame pairs whose noise is drawn at once."""
NO_CODE = -1
"""Stands where a code is not there: beyond the end."""
UNKNOWN = -1
"""Prosody bin that says nothing."""
PITCH_EDGES = (-4.5, -2.5, -1.0, 1.0, 2.5, 4.5)
"""Semitones from the voice's median between the bins of pitch; the middle bin is the voice's own."""
ENERGY_EDGES = (-9.0, -4.5, -1.5, 1.5, 4.5, 9.0)
"""Decibels from the voice's level between the bins of energy."""

Memory = dict[nn.Module, Tensor]
"""The last frames that each causal convolution has heard: what a stream carries from chunk to chunk."""


def pitch_bin(semitones: float) -> int:
    """Return the bin of a pitch so many semitones above the voice's own."""
    return int(torch.bucketize(torch.tensor(semitones), torch.tensor(PITCH_EDGES)))


def energy_bin(decibels: float) -> int:
    """Return the bin of an energy so many decibels above the voice's own."""
    return int(torch.bucketize(torch.tensor(decibels), torch.tensor(ENERGY_EDGES)))


def euler_times(num_steps: int) -> list[float]:
    """Return where steps from noise (0) to mel (1) begin and end; early ones are short (report section 8.7)."""
    return [1 - math.cos(math.pi / 2 * step / num_steps) for step in range(num_steps)] + [1.0]


def frame_noise(seed: int, first: int, num_frames: int, width: int) -> Tensor:
    """Draw standard normal noise for frame pairs `first` to `first + num_frames`, shape `(num_frames, width)`.

    It is cut from blocks that depend on nothing but the seed and their own number.
    """
    start = first // NOISE_BLOCK
    blocks = []
    for number in range(start, (first + num_frames - 1) // NOISE_BLOCK + 1):
        generator = torch.Generator().manual_seed((seed * 1_000_003 + number) % (1 << 63))
        blocks.append(torch.randn(NOISE_BLOCK, width, generator=generator))
    skipped = first - start * NOISE_BLOCK
    return torch.cat(blocks)[skipped : skipped + num_frames] if blocks else torch.zeros(0, width)


class CausalConv(nn.Conv1d):
    """A depthwise convolution over the frames up to now; `(B, F, D)` -> `(B, F, D)`."""

    def __init__(self, dim: int, kernel_size: int, dilation: int) -> None:
        super().__init__(dim, dim, kernel_size, dilation=dilation, groups=dim)
        self.num_left = (kernel_size - 1) * dilation

    def forward(self, hidden: Tensor, memory: Memory | None = None) -> Tensor:
        """Convolve the frames after those in the memory, which is brought up to date."""
        left = None if memory is None else memory.get(self)
        left = hidden.new_zeros(len(hidden), self.num_left, hidden.shape[2]) if left is None else left
        heard = torch.cat([left, hidden], dim=1)
        if memory is not None:
            memory[self] = heard[:, -self.num_left :]
        return super().forward(heard.transpose(1, 2)).transpose(1, 2)


class FlowBlock(nn.Module):
    """A causal ConvNeXt block whose norm is scaled and shifted by the condition (FiLM)."""

    def __init__(self, dim: int, kernel_size: int, dilation: int) -> None:
        super().__init__()
        self.local = CausalConv(dim, kernel_size, dilation)
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.film = nn.Linear(dim, 2 * dim)
        self.up_proj, self.down_proj = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.scale = nn.Parameter(torch.full((dim,), 0.1))
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(self, hidden: Tensor, condition: Tensor, memory: Memory | None) -> Tensor:
        """Transform `(B, F, D)` under a condition `(B, D)`."""
        scale, shift = self.film(condition)[:, None].chunk(2, dim=-1)
        local = self.norm(self.local(hidden, memory)) * (1 + scale) + shift
        return hidden + self.scale * self.down_proj(F.gelu(self.up_proj(local)))


class ReferenceAttention(nn.Module):
    """Every frame looks through the reference, which is a set: it has no order."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(dim)
        self.q_proj, self.kv_proj, self.o_proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        nn.init.zeros_(self.o_proj.weight)
        nn.init.zeros_(self.o_proj.bias)

    def forward(self, hidden: Tensor, manner: Manner, memory: Memory | None) -> Tensor:
        """Add to `(B, F, D)` what its frames find in the reference."""
        B, N, D = hidden.shape
        entries = None if memory is None else memory.get(self)
        if entries is None:  # the reference is the same for all chunks
            entries = self.kv_proj(manner.reference).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if memory is not None:
            memory[self] = entries
        q = self.q_proj(self.norm(hidden)).view(B, N, self.num_heads, -1).transpose(1, 2)
        found = F.scaled_dot_product_attention(q, entries[0], entries[1], attn_mask=manner.known[:, None, None])
        return hidden + self.o_proj(found.transpose(1, 2).reshape(B, N, D))


@dataclass(frozen=True)
class Manner:
    """Whose voice, and how high and loud: what holds for a whole utterance."""

    vector: Tensor
    """Shape `(B, D)`."""
    reference: Tensor
    """The set that is attended to, shape `(B, R, D)`."""
    known: Tensor
    """Its valid entries, shape `(B, R)`."""


class MannerEncoder(nn.Module):
    """Voice embedding, reference mel and prosody bins -> a vector, and a set of entries to attend to."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        D, num_bins = config.dim, config.num_prosody_bins
        self.config = config
        self.voice = nn.Linear(config.voice_dim, D)
        self.stack = nn.Linear(REFERENCE_STACK * config.num_mels, D)
        self.blocks = nn.ModuleList(ConvBlock(D, 5) for _ in range(2))
        self.norm = nn.LayerNorm(D)
        self.pooled = nn.Linear(D, D)
        self.pitch, self.energy = nn.Embedding(num_bins + 1, D), nn.Embedding(num_bins + 1, D)
        self.mix = nn.Sequential(nn.GELU(), nn.Linear(D, D))
        self.nobody = nn.Parameter(torch.zeros(D))
        self.nothing = nn.Parameter(torch.zeros(D))

    def forward(self, voice: Tensor, reference_mel: Tensor, num_frames: Tensor, prosody: Tensor) -> Manner:
        """Encode a padded batch.

        Args:
            voice: CAM++ embeddings, shape `(B, 192)`.
            reference_mel: Speaking mel of the voice, shape `(B, M, R)`.
            num_frames: Its valid frames, shape `(B,)`.
            prosody: Bins of pitch and energy, `UNKNOWN` where nothing is asked, shape `(B, 2)`.
        """
        mel = (reference_mel.transpose(1, 2) - self.config.mel_mean) / self.config.mel_std  # (B, F, M)
        mel = mel * inside(num_frames, mel.shape[1])
        mel = F.pad(mel, (0, 0, 0, -mel.shape[1] % REFERENCE_STACK))
        stacked = self.stack(mel.reshape(len(mel), -1, REFERENCE_STACK * mel.shape[2]))  # (B, R, D)
        known = inside((num_frames + REFERENCE_STACK - 1) // REFERENCE_STACK, stacked.shape[1])
        entries = self.norm(run_blocks(self.blocks, stacked, known))
        mean = (entries * known).sum(dim=1) / known.sum(dim=1).clamp(min=1)
        bins = torch.where(prosody == UNKNOWN, self.config.num_prosody_bins, prosody)
        vector = self.voice(F.normalize(voice, dim=-1) * voice.shape[-1] ** 0.5) + self.pooled(mean)
        vector = self.mix(vector + self.pitch(bins[:, 0]) + self.energy(bins[:, 1]))
        return Manner(vector, entries, known[:, :, 0])

    def without(self, manner: Manner, dropped: Tensor) -> Manner:
        """Take the manner from the rows that `dropped` `(B,)` marks."""
        vector = torch.where(dropped[:, None], self.nobody, manner.vector)
        return Manner(vector, torch.where(dropped[:, None, None], self.nothing, manner.reference), manner.known)


class CodeEncoder(nn.Module):
    """Codes -> the flow's condition at 50 Hz, and a first guess of the mel."""

    def __init__(self, config: FlowConfig, tokenizer: TokenizerConfig) -> None:
        super().__init__()
        D = config.dim
        self.lattice, self.lookahead, self.stride = Lattice(tokenizer.levels), config.lookahead, tokenizer.stride
        self.digits = nn.Embedding(sum(tokenizer.levels), D)
        self.num_phones = math.prod(tokenizer.levels[: tokenizer.num_phone_dims])
        self.phones = nn.Embedding(self.num_phones, D)
        self.prosody = nn.Embedding(self.lattice.size // self.num_phones, D)
        self.ahead = nn.Conv1d(D, D, config.lookahead + 1)
        self.code_blocks = nn.ModuleList(FlowBlock(D, config.kernel_size, 1) for _ in range(config.num_code_layers))
        self.attention = ReferenceAttention(D, config.num_heads)
        self.spread = nn.Linear(D, tokenizer.stride * D)
        self.frame_blocks = nn.ModuleList(FlowBlock(D, config.kernel_size, 1) for _ in range(config.num_frame_layers))
        self.norm = nn.LayerNorm(D)
        self.to_mel = nn.Linear(D, PAIR * config.num_mels)
        nn.init.normal_(self.digits.weight, std=0.5)
        nn.init.zeros_(self.phones.weight)
        nn.init.zeros_(self.prosody.weight)

    def forward(self, codes: Tensor, manner: Manner, memory: Memory | None = None) -> tuple[Tensor, Tensor]:
        """Encode `T` codes and their lookahead.

        Args:
            codes: Shape `(B, T + lookahead)`, `NO_CODE` where there is none.
            manner: Whose voice and how.
            memory: What a stream remembers.

        Returns:
            The condition `(B, N, D)`, `N = stride * T`, and the mel, scaled, `(B, N, 2 M)`.
        """
        embedded = self.embed(codes)
        hidden = embedded[:, : codes.shape[1] - self.lookahead] + self.ahead(embedded.mT).mT  # (B, T, D)
        for block in self.code_blocks:
            hidden = block(hidden, manner.vector, memory)
        hidden = self.attention(hidden, manner, memory)
        hidden = self.spread(hidden).unflatten(2, (self.stride, -1)).flatten(1, 2)  # (B, N, D)
        for block in self.frame_blocks:
            hidden = block(hidden, manner.vector, memory)
        hidden = self.norm(hidden)
        return hidden, self.to_mel(hidden)

    def embed(self, codes: Tensor) -> Tensor:
        """Sum the embeddings of codes' digits, phones and prosody: `(B, T)` -> `(B, T, D)`; no code is zero."""
        known, levels = codes.clamp(min=0), torch.tensor([0, *self.lattice.levels[:-1]], device=codes.device)
        embedded = self.digits(self.lattice.digits(known) + levels.cumsum(dim=0)).sum(dim=-2)
        embedded = embedded + self.phones(known % self.num_phones) + self.prosody(known // self.num_phones)
        return embedded * (codes != NO_CODE)[..., None]


class Estimator(nn.Module):
    """Estimates the velocity of scaled mel on its way from noise."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        D, width, num = config.dim, PAIR * config.num_mels, config.num_layers
        self.time = nn.Sequential(nn.Linear(D, D), nn.GELU(), nn.Linear(D, D))
        self.stack = nn.Linear(2 * width + D, D)
        gaps = [config.dilations[layer % len(config.dilations)] for layer in range(num)]
        self.blocks = nn.ModuleList(FlowBlock(D, config.kernel_size, gap) for gap in gaps)
        self.attend_every = config.attend_every
        num_looks = num // config.attend_every
        self.attentions = nn.ModuleList(ReferenceAttention(D, config.num_heads) for _ in range(num_looks))
        self.norm = nn.LayerNorm(D)
        self.to_velocity = nn.Linear(D, width)
        nn.init.zeros_(self.to_velocity.weight)
        nn.init.zeros_(self.to_velocity.bias)

    def forward(
        self, noisy: Tensor, time: Tensor, guess: Tensor, hidden: Tensor, manner: Manner, memory: Memory | None = None
    ) -> Tensor:
        """Estimate the velocity at a time.

        Args:
            noisy: Where the frames are on their way, shape `(B, N, 2 M)`.
            time: From 0 (noise) to 1 (mel), shape `(B,)`.
            guess: The code encoder's first guess, shape `(B, N, 2 M)`.
            hidden: Its condition, shape `(B, N, D)`.
            manner: Whose voice and how.
            memory: What a stream remembers of this Euler step.
        """
        frames = self.stack(torch.cat([noisy, guess, hidden], dim=-1))
        condition = manner.vector + self.time(time_features(time, frames.shape[2]))
        for layer, block in enumerate(self.blocks):
            frames = block(frames, condition, memory)
            if (layer + 1) % self.attend_every == 0:
                frames = self.attentions[layer // self.attend_every](frames, manner, memory)
        return self.to_velocity(self.norm(frames))


def time_features(time: Tensor, dim: int) -> Tensor:
    """Return sines and cosines of a time in [0, 1]: `(B,)` -> `(B, dim)`."""
    frequencies = torch.exp(torch.linspace(0, math.log(1000), dim // 2, device=time.device))
    angles = time[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class Flow(nn.Module):
    """The flow decoder."""

    def __init__(self, config: FlowConfig, tokenizer: TokenizerConfig) -> None:
        super().__init__()
        self.config, self.stride = config, tokenizer.stride
        self.manner_encoder = MannerEncoder(config)
        self.code_encoder = CodeEncoder(config, tokenizer)
        self.estimator = Estimator(config)

    def scaled(self, mel: Tensor) -> Tensor:
        """Scale and pair mel frames: `(B, M, 2 N)` -> `(B, N, 2 M)`."""
        frames = (mel.transpose(1, 2) - self.config.mel_mean) / self.config.mel_std  # (B, 2 N, M)
        return frames.reshape(len(mel), -1, PAIR * mel.shape[1])

    def unscaled(self, pairs: Tensor) -> Tensor:
        """Undo `scaled`: `(B, N, 2 M)` -> `(B, M, 2 N)`; nothing lies below the floor of the speaking mel."""
        frames = pairs.reshape(len(pairs), -1, self.config.num_mels)  # (B, 2 N, M)
        mel = frames.transpose(1, 2) * self.config.mel_std + self.config.mel_mean
        return mel.clamp(min=math.log(SPEECH_FLOOR))

    def velocity(self, noisy: Tensor, time: Tensor, codes: Tensor, manner: Manner, dropped: Tensor) -> Velocity:
        """Estimate the velocity of whole stretches, as training needs it.

        Args:
            noisy: Where the frames are on their way, shape `(B, N, 2 M)`.
            time: Shape `(B,)`.
            codes: Codes and their lookahead, shape `(B, N / stride + lookahead)`.
            manner: Whose voice and how.
            dropped: Rows whose estimator gets no condition, shape `(B,)`: how guidance is learnt.
        """
        hidden, guess = self.code_encoder(codes, manner)
        kept = ~dropped[:, None, None]
        known = self.manner_encoder.without(manner, dropped)
        return Velocity(self.estimator(noisy, time, guess * kept, hidden * kept, known), guess)

    def speak(self, codes: Tensor, manner: Manner, noise: Tensor) -> Tensor:
        """Lead noise to mel as a stream does, in whole stretches; gradients pass the last step alone.

        Args:
            codes: Codes and their lookahead, shape `(B, N / stride + lookahead)`.
            manner: Whose voice and how.
            noise: Standard normal, shape `(B, N, 2 M)`.

        Returns:
            The mel, scaled and in pairs, shape `(B, N, 2 M)`.
        """
        hidden, guess = self.code_encoder(codes, manner)
        nobody = self.manner_encoder.without(manner, torch.ones(len(codes), dtype=torch.bool, device=codes.device))
        frames, learns = self.config.temperature * noise, torch.is_grad_enabled()
        for start, end in pairwise(euler_times(self.config.num_steps)):
            time = torch.full((len(codes),), start, device=codes.device)
            with torch.no_grad():
                unconditional = self.estimator(frames, time, 0 * guess, 0 * hidden, nobody)
            with torch.set_grad_enabled(learns and end == 1):
                velocity = self.estimator(frames, time, guess, hidden, manner)
                guided = (1 + self.config.guidance) * velocity - self.config.guidance * unconditional
                frames = frames + (end - start) * guided
        return frames

    def stream(
        self, manner: Manner, seed: int = 0, num_steps: int | None = None, guidance: float | None = None
    ) -> FlowStream:
        """Begin an utterance.

        Args:
            manner: Whose voice and how, one row.
            seed: Of the noise.
            num_steps: Euler steps, the config's if not given.
            guidance: How far to go beyond the condition, the config's if not given; 0 costs half.
        """
        config = self.config
        return FlowStream(
            self, manner, seed, num_steps or config.num_steps, config.guidance if guidance is None else guidance
        )


@dataclass(frozen=True)
class Velocity:
    """What the flow says of a batch in training."""

    velocity: Tensor
    """Shape `(B, N, 2 M)`."""
    guess: Tensor
    """The code encoder's first guess of the mel, scaled and in pairs, shape `(B, N, 2 M)`."""


class FlowStream:
    """Decodes codes as they come: the mels joined are those of all codes at once."""

    def __init__(self, flow: Flow, manner: Manner, seed: int, num_steps: int, guidance: float) -> None:
        self.flow, self.seed, self.guidance = flow, seed, guidance
        self.times = euler_times(num_steps)
        self.manner = self.spoken = manner
        if guidance:
            twice = Manner(*(field.repeat_interleave(2, dim=0) for field in vars(manner).values()))
            dropped = torch.tensor([False, True], device=manner.vector.device)
            self.manner = flow.manner_encoder.without(twice, dropped)
        self._code_memory: Memory = {}
        self._memories: list[Memory] = [{} for _ in range(num_steps)]
        self._held = torch.zeros(0, dtype=torch.long, device=manner.vector.device)
        self._num_frames = 0

    @torch.no_grad()
    def push(self, codes: Tensor) -> Tensor:
        """Take the next codes `(T,)` and return the mel that they complete, shape `(M, F)`."""
        self._held = torch.cat([self._held, codes.to(self._held.device)])
        return self._mel()

    @torch.no_grad()
    def finish(self) -> Tensor:
        """Return the mel of the codes whose lookahead never came."""
        self._held = F.pad(self._held, (0, self.flow.config.lookahead), value=NO_CODE)
        return self._mel()

    def _mel(self) -> Tensor:
        num_codes = max(0, len(self._held) - self.flow.config.lookahead)
        if num_codes == 0:
            return self.manner.vector.new_zeros(self.flow.config.num_mels, 0)
        hidden, guess = self.flow.code_encoder(self._held[None], self.spoken, self._code_memory)
        self._held = self._held[num_codes:]
        noise = frame_noise(self.seed, self._num_frames, guess.shape[1], guess.shape[2])[None].to(guess)
        frames = self.flow.config.temperature * noise
        self._num_frames += guess.shape[1]
        if self.guidance:
            hidden, guess = (torch.cat([field, torch.zeros_like(field)]) for field in (hidden, guess))
        for start, end, memory in zip(self.times, self.times[1:], self._memories, strict=False):
            frames = frames + (end - start) * self._velocity(frames, start, guess, hidden, memory)
        return self.flow.unscaled(frames)[0]

    def _velocity(self, frames: Tensor, time: float, guess: Tensor, hidden: Tensor, memory: Memory) -> Tensor:
        rows = len(guess)
        times = torch.full((rows,), time, device=frames.device)
        found = self.flow.estimator(frames.expand(rows, -1, -1), times, guess, hidden, self.manner, memory)
        return found if rows == 1 else (1 + self.guidance) * found[:1] - self.guidance * found[1:]
