"""The judge, decoding constraint: text until the reasons are over, then one of five digits and nothing else.

The level is read as a distribution over the five digits and not as the most probable one: how sure the judge is comes
with every verdict, and an expected level is a finer reward than a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tristep.modes.judge.data import NUM_LEVELS
from tristep.vocab import TextTokenizer, Vocab

MAX_REASON_TOKENS = 160
"""Reasons are over by then, whether the judge is done or not: one clause an aspect takes half of it."""


def level_tokens(tokenizer: TextTokenizer) -> list[int]:
    """Return the tokens of the levels, the lowest first.

    Raises:
        ValueError: If the tokenizer does not write each as one token.
    """
    written = [tokenizer.encode(str(level)) for level in range(1, NUM_LEVELS + 1)]
    if any(len(tokens) != 1 for tokens in written):
        raise ValueError(f"a level has to be one token, this tokenizer writes {written}: use one that splits digits")
    return [tokens[0] for tokens in written]


@dataclass(frozen=True)
class Constraint:
    """What the judge may write."""

    vocab: Vocab
    levels: Sequence[int]
    """The tokens of the levels."""

    def reasons(self) -> Tensor:
        """Return the tokens allowed while it reasons, shape `(V,)`: text, and the end of the reasons."""
        allowed = torch.zeros(self.vocab.size, dtype=torch.bool)
        allowed[: self.vocab.config.num_text] = True
        allowed[list(self.vocab.control_ids)] = False
        allowed[self.vocab.control("think_end")] = True
        return allowed

    def level(self) -> Tensor:
        """Return the tokens allowed after the reasons, shape `(V,)`."""
        allowed = torch.zeros(self.vocab.size, dtype=torch.bool)
        allowed[list(self.levels)] = True
        return allowed


@dataclass
class Deliberation:
    """One verdict on its way to being written."""

    think_end: int
    """The token that ends the reasons."""
    budget: int = MAX_REASON_TOKENS
    tokens: list[int] = field(default_factory=list)
    """What the reasons say so far."""
    is_decided: bool = False
    """Whether the reasons are over, so that the level comes next."""
    level_probs: tuple[float, ...] | None = None
    """The probability of each level, the lowest first; None while it is being written."""

    def write(self, token: int) -> int:
        """Take the token that the judge chose, and return what it has to read next."""
        if token == self.think_end or len(self.tokens) >= self.budget:
            self.is_decided = True
            return self.think_end
        self.tokens.append(token)
        return token
