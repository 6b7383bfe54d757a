"""TTS, decoding constraint: manner first, then codes, word by word; it knows where it is in the text and when to stop.

The text of the answer is given, so `Recital` says at every step either which token has to be read next or which
tokens may be written. A word can't be skipped, every word has a budget of codes, and how it ended is said: speech
that goes wrong is cut short and marked, it never becomes minutes of noise. Where a cue asks for a pause, or the manner
is one with long pauses, silence is not left to chance either: its codes are given (`pauses.py`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from tristep.modes.tts.data import DEGREES, FEATURES, NEXT, Manner, spelt
from tristep.modes.tts.pauses import Pauses
from tristep.vocab import TextTokenizer, Vocab

FinishReason = Literal["stop", "length"]

SECONDS_PER_WORD = 0.6
SECONDS_PER_LETTER = 0.22
"""No honest word is longer than this: slow speech takes 0.12 s a letter."""
MAX_PAUSE_S = 1.2
"""Room for a pause before the next word."""


def word_budget(word: str, code_rate_hz: float) -> int:
    """Return the most codes that a word and the pause after it may take."""
    return round((SECONDS_PER_WORD + SECONDS_PER_LETTER * len(word) + MAX_PAUSE_S) * code_rate_hz)


@dataclass
class Recital:
    """One text on its way to being spoken: what comes next, and what was said so far."""

    vocab: Vocab
    words: Sequence[Sequence[int]]
    """The tokens of each word."""
    budgets: Sequence[int]
    """The most codes of each word."""
    asked: dict[str, int] = field(default_factory=dict)
    """Degrees that the caller settles; the model chooses the others."""
    codes: list[int] = field(default_factory=list)
    manner: dict[str, int] = field(default_factory=dict)
    starts: list[int] = field(default_factory=list)
    """The number of codes before each word that was begun."""
    num_cut: int = 0
    """Words that used up their budget."""
    is_done: bool = False
    given: deque[int] = field(default_factory=deque)
    """Tokens that have to be read before the model chooses again."""
    silences: Pauses = field(default_factory=Pauses)
    """Where it falls silent."""

    @classmethod
    def of(
        cls,
        words: Sequence[str],
        vocab: Vocab,
        tokenizer: TextTokenizer,
        code_rate_hz: float,
        silences: Pauses | None = None,
        **asked: int,
    ) -> Recital:
        """Prepare to speak words, as `data.render` writes them."""
        if not words:
            raise ValueError("there are no words to speak: give a text with letters or numbers in it")
        tokens = [list(spelt(word, tokenizer)) for word in words]
        budgets = [word_budget(word, code_rate_hz) for word in words]
        return cls(vocab, tokens, budgets, asked, silences=silences or Pauses())

    @property
    def finish_reason(self) -> FinishReason | None:
        """`stop` if every word came to its own end, `length` if one was cut off; None while speaking."""
        if not self.is_done:
            return None
        return "length" if self.num_cut else "stop"

    @property
    def settled(self) -> Manner:
        """How it is spoken."""
        return Manner(**self.manner)

    @property
    def max_tokens(self) -> int:
        """Count the tokens of the longest answer."""
        return len(FEATURES) + 2 + sum(map(len, self.words)) + sum(self.budgets) + self.silences.most

    @property
    def most_given(self) -> int:
        """Return the most tokens that are ever given at once."""
        return max(map(len, self.words)) + self.silences.longest + len(FEATURES) + 1

    def allowed(self) -> list[range]:
        """Return the tokens that may be written next, as ranges of ids."""
        if len(self.manner) < len(FEATURES):
            feature = FEATURES[len(self.manner)]
            degrees = [self.asked[feature]] if feature in self.asked else DEGREES[feature]
            return [self._only(f"{feature}_{degree}") for degree in degrees]
        if not self.starts:
            return [self._only("tts_start")]
        if self.over is None:
            return [self._only(self._end_of_word)]
        return [range(self.vocab.first_code, self.vocab.size), range(self.over, self.over + 1)]

    @property
    def over(self) -> int | None:
        """The token that ends the word, where its codes may also go on."""
        if not self.starts or len(self.codes) - self.starts[-1] >= self.budgets[len(self.starts) - 1]:
            return None
        return self.vocab.control(self._end_of_word)

    @property
    def _end_of_word(self) -> str:
        return "tts_end" if len(self.starts) == len(self.words) else NEXT

    def write_forced(self) -> None:
        """Take what the model has no choice about: no pass is needed to choose it."""
        while not self.is_done and len(spans := self.allowed()) == len(spans[0]) == 1:
            self.write(spans[0].start)

    def write(self, token: int) -> None:
        """Take the token that the model chose."""
        if self.vocab.region(token) == "code":
            self.codes.append(self.vocab.token_code(token))
            self.given.append(token)
        elif len(self.manner) < len(FEATURES):
            feature = FEATURES[len(self.manner)]
            degrees = DEGREES[feature]
            self.manner[feature] = next(d for d in degrees if self.vocab.control(f"{feature}_{d}") == token)
            self.given.append(token)
        elif token == self.vocab.control("tts_start"):
            self.given.append(token)
            self._begin_word()
        else:
            self.num_cut += len(self.codes) - self.starts[-1] >= self.budgets[len(self.starts) - 1]
            self.is_done = token == self.vocab.control("tts_end")
            if not self.is_done:
                self._begin_word()

    def _begin_word(self) -> None:
        silence = self.silences.before(len(self.starts), self.settled)
        self.codes += silence
        self.given.extend(self.vocab.code_token(code) for code in silence)
        self.given.extend(self.words[len(self.starts)])
        self.starts.append(len(self.codes))

    def _only(self, name: str) -> range:
        token = self.vocab.control(name)
        return range(token, token + 1)


def allowed_mask(recitals: Sequence[Recital], first: int, size: int) -> Tensor:
    """Mark what each recital may write among the tokens from `first` on, shape `(B, size - first)`."""
    mask = torch.zeros(len(recitals), size - first, dtype=torch.bool)
    for row, recital in zip(mask, recitals, strict=True):
        for span in recital.allowed():
            row[span.start - first : span.stop - first] = True
    return mask
