"""Sound on its way in: a frozen Whisper-layout encoder, then the adaptor down to 12.5 embeddings a second.

Three adaptors: `linear` is the report's (section 2.2), `conv` is Step-Audio 2's (section 8.3), and `ctc` is nano's.

The `ctc` adaptor differs from both on purpose. A frozen text model learns slowly to read foreign vectors, so this
adaptor writes in the model's own letters: a small recogniser, trained by CTC (Graves et al. 2006) on a few thousand
of the text model's tokens, and each audio embedding is the text embedding that it *expects* (blank is a learnt
vector), plus a learnt residual for what words don't carry. Sound then reaches the decoder as soft text. Frames that are
almost surely blank can be kept from the decoder (`skip_blank`): what is left reads like text, and is a third as long.
Halfway, at 25 Hz, a second head spells letters, and the tokens above are told what it spelt (self-conditioned CTC,
Nozaki and Komatsu 2021; from small to large units, Higuchi et al. 2022): a few hours of speech are enough to learn
thirty letters, and not enough to learn a thousand tokens from nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tristep.backbone.transformer import Block, Context, RMSNorm, draw_normal, rotary, stacked
from tristep.config import AdaptorConfig, DecoderConfig, EncoderConfig
from tristep.text import LETTERS

ROTARY_THETA = 10_000.0


def valid(num: Tensor, length: int) -> Tensor:
    """Mark the first `num[b]` of `length` positions: `(B,)` -> `(B, length)`."""
    return torch.arange(length, device=num.device) < num[:, None]


class EncoderBlock(nn.Module):
    """Whisper's pre-norm block: layer norm, biased projections (the key's has none), GELU."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(dim)
        self.q_proj, self.k_proj = nn.Linear(dim, dim), nn.Linear(dim, dim, bias=False)
        self.v_proj, self.o_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.ffn_norm = nn.LayerNorm(dim)
        self.up_proj, self.down_proj = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.qkv_proj: nn.Module | None = None

    def fuse(self) -> None:
        """Project in one call from now on, for inference: every row of the result is what it was."""
        self.qkv_proj = stacked(self.q_proj, self.k_proj, self.v_proj)
        del self.q_proj, self.k_proj, self.v_proj

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        B, N, D = hidden.shape
        parts = self.projected(self.attention_norm(hidden))
        q, k, v = (part.view(B, N, self.num_heads, -1).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(B, N, D)
        hidden = hidden + self.o_proj(attended)
        return hidden + self.down_proj(F.gelu(self.up_proj(self.ffn_norm(hidden))))

    def projected(self, normed: Tensor) -> tuple[Tensor, ...]:
        """Project to queries, keys and values, each `(B, N, D)`."""
        if self.qkv_proj is None:
            return self.q_proj(normed), self.k_proj(normed), self.v_proj(normed)
        return self.qkv_proj(normed).chunk(3, dim=-1)


def sinusoids(num_positions: int, dim: int) -> Tensor:
    """Whisper's fixed position table, shape `(num_positions, dim)`; on the processor, as meta tensors take a second."""
    scale = torch.exp(-torch.arange(dim // 2, device="cpu") * (math.log(10_000) / (dim // 2 - 1)))
    angles = torch.arange(num_positions, device="cpu")[:, None] * scale
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class AudioEncoder(nn.Module):
    """Log-mel at 100 Hz -> frames at 50 Hz (Whisper) or 25 Hz (`pool = 2`)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.conv1 = nn.Conv1d(config.num_mels, config.dim, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(config.dim, config.dim, kernel_size=3, stride=2, padding=1)
        for conv in (self.conv1, self.conv2):  # a frozen random encoder must not drown sound in its position table
            draw_normal(conv.weight, math.sqrt(2 / conv.weight[0].numel()))
        self.positions = nn.Parameter(sinusoids(config.max_frames, config.dim))
        self.blocks = nn.ModuleList(EncoderBlock(config.dim, config.num_heads) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, mel: Tensor, num_mel_frames: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a padded batch; a row comes out as it would alone.

        Args:
            mel: Log-mel, shape `(B, M, F)`, 100 frames a second; what lies beyond a row's length is ignored.
            num_mel_frames: Valid frames per row, its `tail_frames` among them, shape `(B,)`.

        Returns:
            Frames `(B, N, D)` and the number that counts in each row `(B,)`. What a row's tail leaves beyond
            that number (at most one frame, which a `conv` adaptor reaches into) is kept, all after it is zero.
        """
        inside = valid(num_mel_frames, mel.shape[-1])[:, None]
        hidden = F.gelu(self.conv1(mel * inside)) * inside
        hidden = F.gelu(self.conv2(hidden)).transpose(1, 2)  # (B, N, D)
        num_heard = (num_mel_frames + 1) // 2
        num_frames = (num_mel_frames - self.config.tail_frames + 1) // 2
        N = hidden.shape[1]
        if self.config.max_frames < N:
            raise ValueError(
                f"the encoder hears at most {self.config.max_frames / 50:.0f} s at once, got {N / 50:.1f} s: "
                "cut the sound into segments"
            )
        hidden = hidden + self.positions[:N]
        mask = valid(num_frames, N)[:, None, None]  # (B, 1, 1, N)
        for block in self.blocks:
            hidden = block(hidden, mask)
        if self.config.pool == 2:
            hidden = F.avg_pool1d(hidden.transpose(1, 2), 2).transpose(1, 2)
            num_heard, num_frames = num_heard // 2, num_frames // 2
        return self.norm(hidden) * valid(num_heard, hidden.shape[1])[:, :, None], num_frames


@dataclass(frozen=True)
class Adapted:
    """What the adaptor hands to the decoder."""

    audio_embeddings: Tensor
    """Shape `(B, N, D)`, 12.5 a second."""
    num_embeddings: Tensor
    """Valid embeddings per row, shape `(B,)`."""
    ctc_logits: Tensor | None = None
    """Shape `(B, N, V_ctc + 1)`, blank last; only the `ctc` adaptor has them."""
    letter_logits: Tensor | None = None
    """Shape `(B, N_letters, len(LETTERS) + 1)` at 25 Hz, blank last; only the `ctc` adaptor has them."""
    num_letter_frames: Tensor | None = None
    """Valid letter frames per row, shape `(B,)`."""
    worth_showing: Tensor | None = None
    """Embeddings that the decoder should see, shape `(B, N)`; None is all that are valid."""

    @property
    def shown(self) -> Tensor:
        """Mark the embeddings that the decoder sees, shape `(B, N)`: each takes one audio slot."""
        inside = valid(self.num_embeddings, self.audio_embeddings.shape[1])
        return inside if self.worth_showing is None else inside & self.worth_showing

    def flat(self) -> Tensor:
        """Return the embeddings that the decoder sees, all rows one after the other, shape `(sum, D)`."""
        return self.audio_embeddings[self.shown]


def side_by_side(heard: Sequence[Adapted]) -> Adapted:
    """Put what was heard row by row into one batch, padded with zeros."""

    def joined(name: str) -> Any:
        parts: list[Tensor] = [getattr(one, name) for one in heard]
        if parts[0] is None:
            return None
        return torch.cat(parts) if parts[0].dim() == 1 else pad_sequence([part[0] for part in parts], batch_first=True)

    return Adapted(**{field.name: joined(field.name) for field in fields(Adapted)})


class Adaptor(Protocol):
    """Any of the three adaptors."""

    def __call__(self, frames: Tensor, num_frames: Tensor, text_embeddings: Tensor) -> Adapted: ...

    def num_embeddings(self, num_frames: Tensor) -> Tensor: ...


class LinearAdaptor(nn.Module):
    """`stride` neighbouring frames side by side, one projection (report section 2.2)."""

    def __init__(self, config: AdaptorConfig, encoder_dim: int, dim: int) -> None:
        super().__init__()
        self.stride = config.stride
        self.linear = nn.Linear(encoder_dim * config.stride, dim)

    def num_embeddings(self, num_frames: Tensor) -> Tensor:
        """Count the embeddings of `num_frames` frames; a last incomplete group counts."""
        return (num_frames + self.stride - 1) // self.stride

    def forward(self, frames: Tensor, num_frames: Tensor, text_embeddings: Tensor) -> Adapted:
        B, N, D = frames.shape
        frames = frames * valid(num_frames, N)[:, :, None]
        frames = F.pad(frames, (0, 0, 0, -N % self.stride))
        return Adapted(self.linear(frames.reshape(B, -1, D * self.stride)), self.num_embeddings(num_frames))


class ConvAdaptor(nn.Module):
    """Step-Audio 2's: one strided convolution, two projections (report section 8.3)."""

    def __init__(self, config: AdaptorConfig, encoder_dim: int, dim: int) -> None:
        super().__init__()
        self.stride = config.stride
        self.conv = nn.Conv1d(encoder_dim, encoder_dim, kernel_size=3, stride=config.stride, padding=1)
        self.linear1 = nn.Linear(encoder_dim, config.hidden_dim)
        self.linear2 = nn.Linear(config.hidden_dim, dim)

    def num_embeddings(self, num_frames: Tensor) -> Tensor:
        """Count the embeddings of `num_frames` frames: `(n + 2 - 3) // stride + 1`."""
        return (num_frames - 1) // self.stride + 1

    def forward(self, frames: Tensor, num_frames: Tensor, text_embeddings: Tensor) -> Adapted:
        # Not masked: as published, the last window reaches into the one frame that is kept of the tail.
        hidden = F.gelu(self.conv(frames.transpose(1, 2))).transpose(1, 2)
        return Adapted(self.linear2(F.relu(self.linear1(hidden))), self.num_embeddings(num_frames))


class CtcAdaptor(nn.Module):
    """A small CTC recogniser whose expectations are the audio embeddings (see the module's docstring)."""

    ctc_tokens: Tensor
    """The vocabulary ids that the CTC head knows, shape `(V_ctc,)`; set by `choose_ctc_tokens`."""

    def __init__(self, config: AdaptorConfig, encoder_dim: int, dim: int) -> None:
        super().__init__()
        if config.stride % 2:
            raise ValueError(
                f"the ctc adaptor spells letters at half its stride: give an even stride, not {config.stride}"
            )
        self.stride, self.skip_blank, width = config.stride, config.skip_blank, config.hidden_dim
        self.letter_stride = config.stride // 2
        self.block_config = DecoderConfig(
            vocab_size=0, dim=width, num_layers=config.num_layers, num_heads=config.num_heads,
            num_kv_heads=config.num_heads, ffn_dim=2 * width, rope_theta=ROTARY_THETA,
        )  # fmt: skip
        self.stack = nn.Linear(encoder_dim * self.letter_stride, width)
        self.local = nn.Conv1d(width, width, kernel_size=7, padding=3, groups=width)
        self.letter_blocks = nn.ModuleList(Block(self.block_config) for _ in range(config.num_letter_layers))
        self.letter_norm = RMSNorm(width, 1e-6)
        self.letter_head = nn.Linear(width, len(LETTERS) + 1)
        self.spelt = nn.Linear(len(LETTERS) + 1, width)
        self.merge = nn.Linear(2 * width, width)
        self.blocks = nn.ModuleList(Block(self.block_config) for _ in range(config.num_layers))
        self.norm = RMSNorm(width, 1e-6)
        self.dropout = nn.Dropout(config.dropout)
        self.ctc_head = nn.Linear(width, config.num_ctc_tokens + 1)
        self.blank = nn.Parameter(torch.zeros(dim))
        self.residual = nn.Linear(width, dim)
        self.register_buffer("ctc_tokens", torch.arange(config.num_ctc_tokens, device="cpu"))
        nn.init.zeros_(self.residual.weight)
        nn.init.zeros_(self.residual.bias)

    def num_embeddings(self, num_frames: Tensor) -> Tensor:
        """Count the embeddings of `num_frames` frames; a last incomplete group counts."""
        return (num_frames + self.stride - 1) // self.stride

    def forward(self, frames: Tensor, num_frames: Tensor, text_embeddings: Tensor) -> Adapted:
        B, N, D = frames.shape
        frames = F.pad(frames * valid(num_frames, N)[:, :, None], (0, 0, 0, -N % self.stride))
        hidden = self.stack(frames.reshape(B, -1, D * self.letter_stride))  # (B, 2N / stride, width)
        num_letter_frames = (num_frames + self.letter_stride - 1) // self.letter_stride
        hidden, letter_logits = self.spell(hidden, valid(num_letter_frames, hidden.shape[1]))
        hidden = self.merge(hidden.reshape(B, hidden.shape[1] // 2, -1))  # (B, N / stride, width)
        num = self.num_embeddings(num_frames)
        hidden = self.attend(self.blocks, hidden, valid(num, hidden.shape[1]))
        hidden = self.dropout(self.norm(hidden))
        logits = self.ctc_head(hidden)
        probs = logits.float().softmax(dim=-1)
        embeddings = self.expected(hidden, probs.to(hidden.dtype), text_embeddings)
        return Adapted(embeddings, num, logits, letter_logits, num_letter_frames, probs[..., -1] < self.skip_blank)

    def spell(self, hidden: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        """Guess letters at 25 Hz; return the hidden states, told what was guessed, and the letters' logits."""
        hidden = self.dropout(hidden) * inside[:, :, None]
        hidden = hidden + self.local(hidden.transpose(1, 2)).transpose(1, 2)
        hidden = self.attend(self.letter_blocks, hidden, inside)
        logits = self.letter_head(self.dropout(self.letter_norm(hidden)))
        hidden = hidden + self.spelt(logits.float().softmax(dim=-1).to(hidden.dtype))
        return hidden * inside[:, :, None], logits

    def attend(self, blocks: nn.ModuleList, hidden: Tensor, inside: Tensor) -> Tensor:
        """Run blocks; every valid position sees every other."""
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        cos, sin = rotary(positions, self.block_config.width_of_head, ROTARY_THETA)
        context = Context(positions, cos, sin, inside[:, None, None])
        for layer, block in enumerate(blocks):
            hidden = block(hidden, context, layer)
        return hidden

    def expected(self, hidden: Tensor, probs: Tensor, text_embeddings: Tensor) -> Tensor:
        """Average the decoder's own text embeddings under the CTC posterior, and add the residual."""
        table = text_embeddings[self.ctc_tokens].to(hidden.dtype)  # (V_ctc, D)
        return probs[..., :-1] @ table + probs[..., -1:] * self.blank + self.residual(hidden)


def build_adaptor(config: AdaptorConfig, encoder_dim: int, dim: int) -> LinearAdaptor | ConvAdaptor | CtcAdaptor:
    """Build the adaptor that `config.kind` names, from encoder width to decoder width."""
    kinds: dict[str, type[LinearAdaptor] | type[ConvAdaptor] | type[CtcAdaptor]]
    kinds = {"linear": LinearAdaptor, "conv": ConvAdaptor, "ctc": CtcAdaptor}
    return kinds[config.kind](config, encoder_dim, dim)
