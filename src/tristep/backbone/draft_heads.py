"""Draft heads: K chained blocks, each of which guesses one token further ahead than the one before it.

At position `t` the backbone predicts token `t + 1`, and head `h` token `t + 1 + h`, from the hidden state of the head
before it and the embedding of token `t + h` (report section 4.3, after DeepSeek-V3's). Embedding, final norm and output
layer are the backbone's own.

What is chosen where the report is silent: the first head reads the backbone's hidden state after its final norm, not
before. The head norms what it reads anyway, so that the two differ by a scale per channel, which the weight of that
norm can undo, and every caller of the backbone has the normed state already. A head attends to all positions up to its
own, the sound among them. Embedding first, then hidden state, as in the public ports of Step 3.5 Flash.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from tristep.backbone.low_rank import merge_low_rank
from tristep.backbone.transformer import Block, Context, Decoder, RMSNorm
from tristep.config import DecoderConfig


class DraftHead(nn.Module):
    """One link of the chain: two norms, a projection from both to the width of one, and a decoder block."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.embedding_norm = RMSNorm(config.dim, config.norm_eps)
        self.hidden_norm = RMSNorm(config.dim, config.norm_eps)
        self.projection = nn.Linear(2 * config.dim, config.dim, bias=False)
        self.block = Block(config)

    def forward(self, hidden: Tensor, ahead: Tensor, context: Context, layer: int) -> Tensor:
        """Go one token further.

        Args:
            hidden: What the head before this one, or the backbone, knows at each position, shape `(B, T, D)`.
            ahead: Embeddings of the token that it guessed there, shape `(B, T, D)`.
            context: Positions, mask and the heads' own cache.
            layer: The head's layer of that cache.
        """
        joined = torch.cat([self.embedding_norm(ahead), self.hidden_norm(hidden)], dim=-1)  # (B, T, 2D)
        return self.block(self.projection(joined), context, layer)


class DraftHeads(nn.ModuleList):
    """The chain."""

    def __init__(self, config: DecoderConfig, num_heads: int) -> None:
        super().__init__(DraftHead(config) for _ in range(num_heads))

    def copy_block(self, decoder: Decoder) -> None:
        """Start every head's block as the decoder's last one, as it computes with its low-rank updates."""
        last = nn.ModuleList([deepcopy(decoder.blocks[-1])])
        merge_low_rank(last)
        for head in self:
            assert isinstance(head, DraftHead)
            head.block.load_state_dict(last[0].state_dict())

    def forward(self, hidden: Tensor, embeddings: Tensor, context: Context) -> list[Tensor]:
        """Run the whole chain over known tokens, as in training.

        Args:
            hidden: The backbone's hidden states `(B, T, D)`.
            embeddings: What it read at the same positions, shape `(B, T, D)`.
            context: Positions and mask, without a cache.

        Returns:
            One tensor `(B, T, D)` per head, before the final norm. Head `h` says nothing about the last `h` positions
            of a sequence, whose next tokens are another sequence's.
        """
        branches = []
        for layer, head in enumerate(self):
            hidden = head(hidden, embeddings.roll(-layer - 1, dims=1), context, layer)
            branches.append(hidden)
        return branches
