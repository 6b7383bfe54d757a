"""The backbone: embed sound and text, run the decoder, logits. It has never heard of a mode."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tristep.backbone.audio_encoder import Adapted, AudioEncoder, build_adaptor
from tristep.backbone.draft_heads import DraftHeads
from tristep.backbone.transformer import Decoder, KVCache, cached_mask, causal_mask, draw_normal, positions_in
from tristep.config import BackboneConfig
from tristep.vocab import Vocab

Region = Literal["all", "text", "codes"]


class TokenTable(nn.Module):
    """A table of token vectors in two parts: the pretrained rows, and those that the vocabulary gained.

    The parts are separate parameters, so that the pretrained rows can stay frozen, or be stored in few bits, while
    the new ones learn at their own rate (report section 3.2, stage 2a).
    """

    def __init__(self, num_pretrained: int, num_grown: int, dim: int) -> None:
        super().__init__()
        self.weight, self.grown = (nn.Parameter(torch.empty(num_rows, dim)) for num_rows in (num_pretrained, num_grown))
        for rows in (self.weight, self.grown):
            draw_normal(rows, 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Look tokens up: any shape `(...)` -> `(..., D)`."""
        first = len(self.weight)
        old = F.embedding(tokens.clamp(max=first - 1), self.weight)
        if not len(self.grown):
            return old
        new = F.embedding((tokens - first).clamp(min=0), self.grown)
        return torch.where((tokens < first)[..., None], old, new)

    def logits(self, hidden: Tensor) -> Tensor:
        """Score every token: `(..., D)` -> `(..., V)`."""
        old = F.linear(hidden, self.weight)
        return torch.cat([old, F.linear(hidden, self.grown)], dim=-1) if len(self.grown) else old

    def grown_logits(self, hidden: Tensor) -> Tensor:
        """Score only the rows that the vocabulary gained, control tokens and codes: `(..., D)` -> `(..., V_grown)`."""
        return F.linear(hidden, self.grown)

    def grow(self, num_rows: int) -> None:
        """Append rows; each starts as the mean of the pretrained ones plus a little noise."""
        mean, spread = self.weight.mean(dim=0), self.weight.std(dim=0)
        rows = mean + 0.1 * spread * torch.randn(num_rows, len(mean), device=mean.device)
        self.grown = nn.Parameter(torch.cat([self.grown.data, rows.to(self.grown.dtype)]))


class Backbone(nn.Module):
    """Frozen audio encoder -> adaptor -> decoder over one space of text, sound and control tokens."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab = Vocab(config.vocab)
        dim, num_rows = config.decoder.dim, config.decoder.vocab_size
        self.audio_encoder = AudioEncoder(config.encoder)
        self.audio_encoder.requires_grad_(False)
        self.adaptor = build_adaptor(config.adaptor, config.encoder.dim, dim)
        self.decoder = Decoder(config.decoder)
        num_grown = max(self.vocab.size - num_rows, 0)
        self.embedding = TokenTable(num_rows, num_grown, dim)
        self.head = self.embedding if config.decoder.tied else TokenTable(num_rows, num_grown, dim)
        self.draft_heads = DraftHeads(config.decoder, config.num_draft_heads) if config.num_draft_heads else None

    @torch.no_grad()
    def encode_audio(self, mel: Tensor, num_mel_frames: Tensor) -> tuple[Tensor, Tensor]:
        """Run the frozen encoder: mel `(B, M, F)` -> frames `(B, N, De)` and valid frames per row."""
        frames, num_frames = self.audio_encoder(mel, num_mel_frames)
        return frames, num_frames

    def adapt(self, frames: Tensor, num_frames: Tensor) -> Adapted:
        """Bring encoder frames `(B, N, De)` to the decoder's width at 12.5 Hz."""
        return self.adaptor(frames, num_frames, self.embedding.weight)

    def embed(self, tokens: Tensor, audio_embeddings: Tensor | None = None) -> Tensor:
        """Embed tokens `(B, T)` and put audio embeddings `(N, D)` into the audio slots, in reading order.

        Raises:
            ValueError: If the number of slots is not the number of audio embeddings.
        """
        hidden = self.embedding(tokens)  # (B, T, D)
        slots = tokens == self.vocab.control("audio_slot")
        num_given = 0 if audio_embeddings is None else len(audio_embeddings)
        if int(slots.sum()) != num_given:
            raise ValueError(f"the tokens have {int(slots.sum())} audio slots, got {num_given} audio embeddings")
        if audio_embeddings is None:
            return hidden
        return hidden.masked_scatter(slots[..., None], audio_embeddings.to(hidden.dtype))

    def forward(
        self,
        tokens: Tensor,
        audio_embeddings: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        kv_cache: KVCache | None = None,
    ) -> Tensor:
        """Read tokens and return the hidden state after each, normed, shape `(B, T, D)`.

        Args:
            tokens: Ids, shape `(B, T)`.
            audio_embeddings: Vectors for the audio slots in reading order, shape `(N, D)`.
            positions: Position of each token in its own sequence, shape `(B, T)`; counted from 0 in each packed
                sequence, or from what the cache holds, if not given.
            segments: Which packed sequence each token belongs to, shape `(B, T)`; one sequence per row if not given.
                Not together with a cache.
            kv_cache: Keys and values of what came before. It gains these tokens, and `lengths` grows by `T`; a
                caller whose rows are padded on the right sets `lengths` back to what is valid.
        """
        hidden = self.embed(tokens, audio_embeddings)
        if kv_cache is not None:
            return self.read(hidden, kv_cache, positions)
        segments = torch.zeros_like(tokens) if segments is None else segments
        positions = positions_in(segments) if positions is None else positions
        return self.decoder(hidden, self.decoder.context(positions, causal_mask(segments)))

    def read(self, embeddings: Tensor, kv_cache: KVCache, positions: Tensor | None = None) -> Tensor:
        """Read what is embedded already, `(B, T, D)`, as `forward` does with a cache."""
        T = embeddings.shape[1]
        if positions is None:
            positions = kv_cache.lengths[:, None] + torch.arange(T, device=embeddings.device)
        hidden = self.decoder(embeddings, self.decoder.context(positions, cached_mask(positions), kv_cache))
        kv_cache.lengths = kv_cache.lengths + T
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Score the next token: hidden `(..., D)` -> `(..., V)` over the whole id space."""
        return self.head.logits(hidden)

    def look_ahead(
        self, hidden: Tensor, tokens: Tensor, audio_embeddings: Tensor | None, segments: Tensor
    ) -> list[Tensor]:
        """Run the draft heads over known tokens, as in training.

        Args:
            hidden: What `forward` returned for these tokens, shape `(B, T, D)`.
            tokens: Shape `(B, T)`.
            audio_embeddings: Vectors for their audio slots, shape `(N, D)`.
            segments: Which packed sequence each token belongs to, shape `(B, T)`.

        Returns:
            For each head its hidden state after each position, normed, shape `(B, T, D)`: `logits` of head `h` at
            position `t` scores token `t + 1 + h`.
        """
        assert self.draft_heads is not None
        context = self.decoder.context(positions_in(segments), causal_mask(segments))
        branches = self.draft_heads(hidden, self.embed(tokens, audio_embeddings), context)
        return [self.decoder.norm(branch) for branch in branches]

    def new_cache(self, batch_size: int, num_positions: int) -> KVCache:
        """Reserve a cache of the weights' dtype and device."""
        return KVCache.empty(self.config.decoder, batch_size, num_positions, self.embedding.weight)

    def add_draft_heads(self, num_heads: int) -> None:
        """Give the backbone draft heads that have learnt nothing but the decoder's last block."""
        self.config = self.config.model_copy(update={"num_draft_heads": num_heads})
        self.draft_heads = DraftHeads(self.config.decoder, num_heads).to(self.embedding.weight)
        self.draft_heads.copy_block(self.decoder)

    def grow_vocabulary(self, num_codes: int) -> None:
        """Give the vocabulary audio codes, once the codec that speaks them exists (report section 3.2)."""
        vocab = self.config.vocab.model_copy(update={"num_codes": num_codes})
        self.config = self.config.model_copy(update={"vocab": vocab})
        added = Vocab(vocab).size - self.vocab.size
        self.vocab = Vocab(vocab)
        for table in self.tables:
            table.grow(added)

    @property
    def tables(self) -> list[TokenTable]:
        """The embedding, and the output layer where it is another table."""
        return [self.embedding] if self.head is self.embedding else [self.embedding, self.head]
