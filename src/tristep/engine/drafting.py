"""Drafts: tokens that are guessed, so that one pass of the backbone can verify many of them (`verify.py`).

Two sources guess. The draft heads are the report's (section 4.3). The other is ours: a hypothesis of the whole
transcript, which an adaptor with a CTC head has for nothing; it is read along with what is written, and what follows
there is the guess. Each row takes the source that has been right more often in it, and as many guesses as pay: none is
a choice, too. A wrong guess costs time and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tristep.backbone.model import Backbone
from tristep.backbone.transformer import KVCache, cached_mask
from tristep.vocab import TextTokenizer, Vocab

MOST_DRAFTS = 12
"""Guesses for one row in one pass."""
MOST_DRAFTED_ROWS = 2
"""On a CPU a batch of more rows is decoded without drafts: it fills the processor as it is (`benchmarks/asr.py`)."""
SHORTLIST = 16_384
"""On a CPU the heads guess among the first so many text tokens: a byte-pair vocabulary is sorted by frequency, these
are nine of ten tokens of English transcripts, and scoring all of nano's would cost a head as much as seven blocks."""
TOKENS_AT_ONCE = 4
"""Rows that the CPU's kernel multiplies at once."""


@dataclass(frozen=True)
class PassCosts:
    """What a pass costs by the number of tokens that it reads, in passes over a single token."""

    token: float
    """What each further token costs."""
    block: float = 0.0
    """What every four tokens after the first four cost in addition."""

    def of(self, num_tokens: int) -> float:
        """Return the cost of a pass over all rows' tokens."""
        further = max(num_tokens - 1, 0)
        return 1 + self.token * further + self.block * (further // TOKENS_AT_ONCE)


COSTS = {"cpu": PassCosts(token=0.05, block=0.4), "cuda": PassCosts(token=0.003)}
"""Nano in int8 on one core, by `benchmarks/asr.py --costs`; a GPU reads some hundred tokens in the time of one."""


def best_depth(rate: float, num_rows: int, most: int, costs: PassCosts, guess: float = 0.0) -> tuple[int, float]:
    """Choose how many tokens to draft in each row.

    Args:
        rate: The probability that a guess is right where those before it are.
        num_rows: Rows that share a pass.
        most: The most tokens that can be drafted.
        costs: What passes cost.
        guess: What one guess costs before it is verified, in passes.

    Returns:
        The depth, 0 where no drafts pay, and the tokens that a row then settles in the time of one pass.
    """
    speeds, settled = [], 0.0
    for depth in range(most + 1):
        settled += rate**depth  # the backbone's own token, and each guess that is right with all before it
        speeds.append(settled / (costs.of(num_rows * (depth + 1)) + guess * depth))
    best = max(range(most + 1), key=lambda depth: speeds[depth])
    return best, speeds[best]


@dataclass
class Tally:
    """How often a source has been right in one row; it starts with the benefit of the doubt."""

    num_right: float = 3.2
    num_asked: float = 4.0

    @property
    def rate(self) -> float:
        """The share of right guesses among those before which all were right."""
        return self.num_right / self.num_asked

    def count(self, guessed: Sequence[int], settled: Sequence[int]) -> int:
        """Compare guesses with what was written instead; return how many are right."""
        num_right = agreement(guessed, settled)
        self.num_right += num_right
        self.num_asked += min(num_right + 1, len(guessed), len(settled))
        return num_right


def agreement(first: Sequence[int], second: Sequence[int]) -> int:
    """Count the tokens that both begin with."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))


class Hypothesis:
    """A guess of the whole transcript, read along with what is written.

    The place in it is the end of the beginning that is nearest to what is written, in edits of letters: words that were
    heard otherwise, left out or put in move it as they should, whatever the tokens they are written in.
    """

    def __init__(self, text: str, vocab: Vocab, tokenizer: TextTokenizer) -> None:
        self.text, self.vocab, self.tokenizer = text, vocab, tokenizer
        self.letters = np.array(small_letters(text), dtype=np.int64)
        self.ends = np.arange(len(self.letters) + 1)
        self.num_edits = self.ends
        """Edits between what is written and each beginning of the hypothesis, by its length."""
        self.tally = Tally()
        self.is_off = False
        """Whether the last token that was written was another than the one here."""

    def guess(self, num_tokens: int) -> list[int]:
        """Return the next tokens, at most so many, the end of the turn after the last."""
        rest = self.text[self.place :]
        if self.is_off and not rest.startswith(" "):
            rest = "".join(rest.partition(" ")[1:])  # another word was written: go on after this one
        tokens = [*self.tokenizer.encode(rest), self.vocab.control("turn_end")]
        return tokens[:num_tokens]

    @property
    def place(self) -> int:
        """Letters that are written already, in one way or another."""
        return len(self.num_edits) - 1 - int(self.num_edits[::-1].argmin())

    def read(self, tokens: Sequence[int]) -> None:
        """Follow what was written, and count whether it was right here; the language tag is no part of it."""
        tokens = [token for token in tokens if self.vocab.language_of(token) is None]
        self.is_off = self.tally.count(self.guess(len(tokens)), tokens) < len(tokens)
        text = [token for token in tokens if self.vocab.region(token) == "text"]
        for letter in small_letters(self.tokenizer.decode(text)):
            self.num_edits = self.after(letter)

    def after(self, letter: int) -> np.ndarray:
        """Return the edits after one more letter: written here too, instead, or in addition."""
        edits = self.num_edits + 1
        edits[1:] = np.minimum(edits[1:], self.num_edits[:-1] + (self.letters != letter))
        return np.minimum.accumulate(edits - self.ends) + self.ends  # or left out here


def small_letters(text: str) -> list[int]:
    """Number the letters of a text, capitals as small ones: one number each, also where a small one is two."""
    return [ord(letter.lower()[0]) for letter in text]


class HeadDrafts:
    """The draft heads at work on a batch.

    What the heads know of a position is computed from settled tokens: the last positions, which depend on guesses, are
    computed again when the tokens are known.
    """

    def __init__(
        self, backbone: Backbone, num_heads: int, batch_size: int, num_positions: int, forbidden: Tensor
    ) -> None:
        """Reserve room.

        Args:
            backbone: A model with draft heads.
            num_heads: How many of them guess.
            batch_size: Rows.
            num_positions: Tokens that a row may come to have, drafts included.
            forbidden: Minus infinity for what may not be written, shape `(V,)`.
        """
        assert backbone.draft_heads is not None
        self.backbone, self.heads = backbone, list(backbone.draft_heads)[:num_heads]
        like = backbone.embedding.weight
        config = backbone.config.decoder.model_copy(update={"num_layers": len(self.heads)})
        self.cache = KVCache.empty(config, batch_size, num_positions, like)
        self.hidden = like.new_zeros(batch_size, num_positions, config.dim)
        self.embeddings = like.new_zeros(batch_size, num_positions, config.dim)
        self.done = torch.zeros(len(self.heads), batch_size, dtype=torch.long, device=like.device)
        """Positions that each head has seen, per row."""
        self.candidates = shortlist(forbidden, backbone.vocab)
        self.rows = backbone.head(self.candidates)

    @property
    def cost(self) -> float:
        """What one guess costs, in passes: the share of the weights that it reads."""
        config = self.backbone.config.decoder
        block, scored = sum(p.numel() for p in self.heads[0].parameters()), self.rows.numel()
        return (block + scored) / (block * config.num_layers + self.backbone.vocab.size * config.dim)

    def keep(self, places: list[int]) -> None:
        """Forget all rows but those at `places`."""
        self.cache = KVCache(self.cache.keys[:, places], self.cache.values[:, places], self.cache.lengths[places])
        self.hidden, self.embeddings, self.done = self.hidden[places], self.embeddings[places], self.done[:, places]

    def reserve(self, num_positions: int) -> None:
        """Make room for so many positions; what is known stays."""
        num_rows, size, _ = self.hidden.shape
        config = self.backbone.config.decoder.model_copy(update={"num_layers": len(self.heads)})
        cache = KVCache.empty(config, num_rows, num_positions, self.hidden)
        room = self.cache.keys.shape[3]
        cache.keys[:, :, :, :room], cache.values[:, :, :, :room] = self.cache.keys, self.cache.values
        self.cache = cache
        self.hidden, self.embeddings = (
            F.pad(known, (0, 0, 0, num_positions - size)) for known in (self.hidden, self.embeddings)
        )

    def move(self, source: int, target: int) -> None:
        """Copy what is known of the row `source` to the row `target`."""
        for table in (self.cache.keys, self.cache.values, self.done):
            table[:, target] = table[:, source]
        for known in (self.hidden, self.embeddings):
            known[target] = known[source]

    def see(self, first: Tensor, hidden: Tensor, embeddings: Tensor, row: int = 0) -> None:
        """Take the backbone's hidden states and what it read, `(B, T, D)`, from position `first` `(B,)` on.

        The first of these rows is `row`.
        """
        places = first[:, None] + torch.arange(hidden.shape[1], device=first.device)  # (B, T)
        rows = torch.arange(row, row + len(first), device=first.device)[:, None]
        self.hidden[rows, places] = hidden
        self.embeddings[rows, places] = embeddings.to(hidden.dtype)

    def guess(self, lengths: Tensor, tokens: Tensor, num_tokens: int) -> Tensor:
        """Guess what follows the last settled token of each of the first `B` rows.

        Args:
            lengths: Positions that the backbone has read, shape `(B,)`.
            tokens: The token that was settled last, which comes next, shape `(B,)`.
            num_tokens: How far to guess, at most the number of heads.

        Returns:
            Ids, shape `(B, num_tokens)`.
        """
        num_rows = len(lengths)
        num_new = int((lengths - self.done[:num_tokens, :num_rows]).max())
        window = torch.arange(num_new + len(self.heads) - 1, device=lengths.device)
        places = (lengths[:, None] - len(window) + window).clamp(min=0)  # (B, T), the last ones read
        rows = torch.arange(num_rows, device=lengths.device)
        context = self.backbone.decoder.context(places, cached_mask(places), self.cache.view(0, num_rows))
        hidden, guesses = self.hidden[rows[:, None], places], []
        for layer in range(num_tokens):
            self.embeddings[rows, lengths + layer] = self.backbone.embedding(tokens)
            ahead = self.embeddings[rows[:, None], places + layer + 1]
            hidden = self.heads[layer](hidden, ahead, context, layer)  # (B, T, D)
            scores = F.linear(self.backbone.decoder.norm(hidden[:, -1]), self.rows)
            tokens = self.candidates[scores.argmax(dim=-1)]
            guesses.append(tokens)
        self.done[:num_tokens, :num_rows] = lengths
        return torch.stack(guesses, dim=1)


def shortlist(forbidden: Tensor, vocab: Vocab) -> Tensor:
    """Choose the tokens among which the heads guess, shape `(N,)`."""
    allowed = (forbidden == 0).nonzero()[:, 0]
    if forbidden.device.type != "cpu":
        return allowed
    return allowed[(allowed < SHORTLIST) | (allowed == vocab.control("turn_end"))]


@dataclass
class RowSources:
    """What guesses for one row."""

    hypothesis: Hypothesis | None
    heads: Tally = field(default_factory=Tally)
    by_heads: list[int] = field(default_factory=list)
    """What the heads guessed for the next pass."""

    def read(self, settled: Sequence[int]) -> None:
        """Follow what was written."""
        self.heads.count(self.by_heads, settled)
        if self.hypothesis:
            self.hypothesis.read(settled)


@dataclass(frozen=True)
class DraftSources:
    """What may guess for the rows of a batch; nothing, if not given."""

    hypotheses: Sequence[Hypothesis | None] | None = None
    """A guess of each row's whole transcript, where there is one."""
    num_heads: int = 0
    """How many of the draft heads guess."""
    costs: PassCosts | None = None
    """What passes cost on this machine; by its kind if not given."""


class Drafter:
    """Guesses for the rows of a batch, each from the source that pays more there."""

    def __init__(
        self, sources: DraftSources, rows: Sequence[Sequence[int]], heads: HeadDrafts | None, device: str
    ) -> None:
        """Begin.

        Args:
            sources: What may guess.
            rows: What each row has written so far.
            heads: The draft heads, if they may.
            device: The kind of device that the backbone runs on.
        """
        self.heads, self.costs = heads, sources.costs or COSTS[device]
        self.rows = [RowSources(hypothesis) for hypothesis in sources.hypotheses or [None] * len(rows)]
        self.read(rows)

    def read(self, settled: Sequence[Sequence[int]]) -> None:
        """Follow what was written in each row."""
        for row, tokens in zip(self.rows, settled, strict=True):
            row.read(tokens)

    def keep(self, places: list[int]) -> None:
        """Forget all rows but those at `places`."""
        self.rows = [self.rows[place] for place in places]
        if self.heads:
            self.heads.keep(places)

    def draft(self, most: Sequence[int], lengths: Tensor, tokens: Sequence[int]) -> list[list[int]]:
        """Guess what follows in each row.

        Args:
            most: The most tokens that may be guessed, per row.
            lengths: Positions that the backbone has read, shape `(B,)`.
            tokens: The token that was settled last, per row.
        """
        plans = [self.plan(row, min(limit, MOST_DRAFTS)) for row, limit in zip(self.rows, most, strict=True)]
        num_ahead = max(by_heads for _, by_heads in plans)
        if self.heads and num_ahead:
            guesses = self.heads.guess(lengths, lengths.new_tensor(tokens), num_ahead).tolist()
        else:
            guesses = [[]] * len(plans)
        drafts = []
        for row, guessed, (by_hypothesis, by_heads) in zip(self.rows, guesses, plans, strict=True):
            row.by_heads = guessed
            told = row.hypothesis.guess(by_hypothesis) if row.hypothesis else []
            drafts.append(told or guessed[:by_heads])
        return drafts

    def plan(self, row: RowSources, most: int) -> tuple[int, int]:
        """Choose how many tokens the hypothesis and how many the heads guess: one of the two is 0."""
        by_hypothesis = by_heads = 0
        speed = speed_of_heads = 0.0
        if row.hypothesis:
            by_hypothesis, speed = best_depth(row.hypothesis.tally.rate, len(self.rows), most, self.costs)
        if self.heads:
            guess = self.heads.cost * self.costs.of(len(self.rows))
            limit = min(most, len(self.heads.heads))
            by_heads, speed_of_heads = best_depth(row.heads.rate, len(self.rows), limit, self.costs, guess)
        return (by_hypothesis, 0) if speed >= speed_of_heads else (0, by_heads)
