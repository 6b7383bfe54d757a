"""Cache slots: places in one cache of keys and values that sequences take and leave.

The slots in use are kept together at the front, so that a pass reads no row that nobody uses: when a sequence leaves,
the last one moves into its place. Behind the slots there is one row more, where a prompt is read; once it has been, it
moves to the end of the slots in use. Beside that, rows are copied only when the cache has to grow.
"""

from __future__ import annotations

from torch import Tensor

from tristep.backbone.model import Backbone
from tristep.engine.drafting import HeadDrafts
from tristep.engine.sampling import penalties
from tristep.modes.asr.decoding import Constraint

GROWTH = 256
"""Positions by which the cache grows, so that it seldom does."""


class Slots:
    """The rows of one cache, and of what the draft heads keep."""

    def __init__(self, backbone: Backbone, num_slots: int) -> None:
        self.backbone, self.num_slots = backbone, num_slots
        self.cache = backbone.new_cache(num_slots + 1, 0)
        self.heads: HeadDrafts | None = None
        """What the draft heads know of each row, if there are any; they guess text."""
        if num_heads := backbone.config.num_draft_heads:
            _, forbidden = penalties(backbone, Constraint(backbone.vocab))
            self.heads = HeadDrafts(backbone, num_heads, num_slots + 1, 0, forbidden)
        self.num_used = 0

    @property
    def is_full(self) -> bool:
        """Whether every slot is in use."""
        return self.num_used == self.num_slots

    def open_prompt(self, num_positions: int) -> None:
        """Begin to read a prompt, of a sequence that needs so many positions at most."""
        self._reserve(num_positions)
        self.cache.lengths[self.num_slots] = 0
        if self.heads:
            self.heads.done[:, self.num_slots] = 0

    def read_prompt(self, embeddings: Tensor) -> Tensor:
        """Read the next chunk of the prompt `(1, T, D)`; return the hidden states, of the same shape."""
        row = self.cache.view(self.num_slots, self.num_slots + 1)
        first = row.lengths
        hidden = self.backbone.read(embeddings, row)
        if self.heads:
            self.heads.see(first, hidden, embeddings, self.num_slots)
        self.cache.lengths[self.num_slots] = row.lengths[0]
        return hidden

    @property
    def lengths(self) -> Tensor:
        """Tokens that each slot in use holds, shape `(B,)`."""
        return self.cache.lengths[: self.num_used]

    def read(self, tokens: Tensor) -> Tensor:
        """Read tokens `(B, T)` in the slots in use; return the hidden states, shape `(B, T, D)`.

        None of them stays before `keep` says so.
        """
        embeddings = self.backbone.embedding(tokens)
        hidden = self.backbone.read(embeddings, self.cache.view(0, self.num_used))
        if self.heads:
            self.heads.see(self.lengths, hidden, embeddings)
        return hidden

    def keep(self, num_tokens: list[int]) -> None:
        """Say how many of the tokens that each slot in use has just read stay."""
        self.cache.lengths[: self.num_used] += self.cache.lengths.new_tensor(num_tokens)

    def take(self, num_tokens: int) -> None:
        """Give a slot to the prompt that has been read, of so many tokens."""
        self.cache.lengths[self.num_slots] = num_tokens
        self._move(self.num_slots, self.num_used)
        self.num_used += 1

    def free(self, place: int) -> None:
        """Take a slot back; the last one in use moves there."""
        self.num_used -= 1
        if place != self.num_used:
            self._move(self.num_used, place)

    def _reserve(self, num_positions: int) -> None:
        """Let every row hold so many tokens at least; what the rows hold stays."""
        old = self.cache
        if num_positions > (size := old.keys.shape[3]):
            self.cache = self.backbone.new_cache(self.num_slots + 1, -(-num_positions // GROWTH) * GROWTH)
            self.cache.keys[:, :, :, :size] = old.keys
            self.cache.values[:, :, :, :size] = old.values
            self.cache.lengths = old.lengths
            if self.heads:
                self.heads.reserve(self.cache.keys.shape[3])

    def _move(self, source: int, target: int) -> None:
        self.cache.move(source, target)
        if self.heads:
            self.heads.move(source, target)
