"""TTS, decoding constraint: manner first, then codes, word by word; it knows where it is in the text and when to stop.

The text of the answer is given, so `Recital` says at every step either which token has to be read next or which
tokens may be written. A word can't be skipped, every word has a budget of codes, and how it ended is said: speech
that goes wrong is cut short and marked, it never becomes minutes of noise. Where a cue asks for a pause, or the manner
is one with long pauses, silence is not left to chance either: its codes are given (`pauses.py`). And where somebody can
tell how well a word will be understood (`codec.code_listener`), one that will not be is mended, or taken back and said
again, a few times at most; the best attempt stays. So a draft of speech is verified as one of text is, but by what it
is for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from tristep.codec.code_listener import WELL, Verify
from tristep.modes.tts.data import DEGREES, FEATURES, NEXT, Manner, phones_of, spelt
from tristep.modes.tts.pauses import Pauses
from tristep.vocab import TextTokenizer, Vocab

FinishReason = Literal["stop", "length"]

SECONDS_PER_WORD = 0.6
SECONDS_PER_LETTER = 0.22
"""No honest word is longer than this: slow speech takes 0.12 s a letter."""
MAX_PAUSE_S = 1.2
"""Room for a pause before the next word."""
TAIL = 2
"""Codes after a word's own that still sound of it."""


def word_budget(word: str, code_rate_hz: float) -> int:
    """Return the most codes that a word and the pause after it may take."""
    return round((SECONDS_PER_WORD + SECONDS_PER_LETTER * len(word) + MAX_PAUSE_S) * code_rate_hz)


@dataclass(frozen=True)
class Attempt:
    """One way in which a word was said."""

    score: float
    codes: list[int]


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
    sizes: list[int] = field(default_factory=list)
    """The number of codes of each word that has ended."""
    is_done: bool = False
    given: deque[int] = field(default_factory=deque)
    """Tokens that have to be read before the model chooses again."""
    num_given: int = 0
    """Tokens that were ever given, but for those taken back."""
    num_taken_back: int = 0
    """Tokens that were read and no longer hold: whoever reads for it forgets them, and sets this to 0."""
    silences: Pauses = field(default_factory=Pauses)
    """Where it falls silent."""
    phones: Sequence[str] = ()
    """How each word sounds."""
    verify: Verify | None = None
    """Tells how well words will be understood, and mends them; without it, each is said once."""
    max_attempts: int = 1
    num_again: int = 0
    """Times that a word was said again."""
    attempts: list[Attempt] = field(default_factory=list)
    """How the first word that is not settled has been said."""
    marks: list[int] = field(default_factory=list)
    """Tokens that were given before the last one of each word's text."""
    num_settled_words: int = 0

    @classmethod
    def of(
        cls,
        words: Sequence[str],
        vocab: Vocab,
        tokenizer: TextTokenizer,
        code_rate_hz: float,
        silences: Pauses | None = None,
        verify: Verify | None = None,
        max_attempts: int = 1,
        **asked: int,
    ) -> Recital:
        """Prepare to speak words, as `data.render` writes them, each of them up to `max_attempts` times."""
        if not words:
            raise ValueError("there are no words to speak: give a text with letters or numbers in it")
        tokens = [list(spelt(word, tokenizer)) for word in words]
        budgets = [word_budget(word, code_rate_hz) for word in words]
        phones = [phones_of(word) for word in words]
        if max_attempts == 1:
            verify = None
        return cls(
            vocab, tokens, budgets, asked, silences=silences or Pauses(), phones=phones, verify=verify,
            max_attempts=max_attempts,
        )  # fmt: skip

    @property
    def finish_reason(self) -> FinishReason | None:
        """`stop` if every word came to its own end, `length` if one was cut off; None while speaking."""
        if not self.is_done:
            return None
        return "length" if self.num_cut else "stop"

    @property
    def num_cut(self) -> int:
        """Count the words that used up their budget."""
        return sum(size >= budget for size, budget in zip(self.sizes, self.budgets, strict=False))

    @property
    def num_settled(self) -> int:
        """Count the codes that stay as they are."""
        if self.verify is None or self.is_done or not self.starts:
            return len(self.codes)
        return self.starts[self.num_settled_words] if self.num_settled_words < len(self.starts) else len(self.codes)

    @property
    def settled(self) -> Manner:
        """How it is spoken."""
        return Manner(**self.manner)

    @property
    def max_tokens(self) -> int:
        """Count the tokens of the longest answer."""
        return len(FEATURES) + 2 + sum(map(len, self.words)) + sum(self.budgets) + self.silences.most

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
            self._give(token)
        elif len(self.manner) < len(FEATURES):
            feature = FEATURES[len(self.manner)]
            degrees = DEGREES[feature]
            self.manner[feature] = next(d for d in degrees if self.vocab.control(f"{feature}_{d}") == token)
            self._give(token)
        elif token == self.vocab.control("tts_start"):
            self._give(token)
            self._begin_word()
        else:
            self._end_word()
        if self.verify is not None and self.starts:
            self._settle()

    def take_given(self, most: int) -> list[int]:
        """Return the next tokens that have to be read, at most so many: they are read now."""
        return [self.given.popleft() for _ in range(min(most, len(self.given)))]

    def settle_all(self) -> None:
        """Let all that was said stay as it is, and the word that is being said."""
        self.num_settled_words, self.attempts = len(self.starts), []

    def _give(self, *tokens: int) -> None:
        self.given.extend(tokens)
        self.num_given += len(tokens)

    def _begin_word(self) -> None:
        silence = self.silences.before(len(self.starts), self.settled)
        self.codes += silence
        self._give(*(self.vocab.code_token(code) for code in silence), *self.words[len(self.starts)])
        self.starts.append(len(self.codes))
        self.marks.append(self.num_given - 1)

    def _end_word(self) -> None:
        self.sizes.append(len(self.codes) - self.starts[-1])
        self.is_done = len(self.starts) == len(self.words)
        if not self.is_done:
            self._begin_word()

    def _settle(self) -> None:
        """Judge the words that have ended and sounded out; take back one that will not be understood."""
        while (word := self.num_settled_words) < len(self.sizes) and self._has_sounded_out(word):
            attempt = self._attempt(word)
            self.attempts.append(attempt)
            if attempt.score < WELL and len(self.attempts) < self.max_attempts:
                self._take_back(word)
                self.num_again += 1
                return
            best = max(self.attempts, key=lambda attempt: attempt.score)
            if best.codes != self._codes_of(word):
                self._restore(word, best.codes)
            self.attempts.clear()
            self.num_settled_words += 1

    def _has_sounded_out(self, word: int) -> bool:
        return self.is_done or len(self.sizes) > word + 1 or len(self.codes) - self.starts[word + 1] >= TAIL

    def _codes_of(self, word: int) -> list[int]:
        return self.codes[self.starts[word] : self.starts[word] + self.sizes[word]]

    def _attempt(self, word: int) -> Attempt:
        """Judge how a word was said, and mend it."""
        assert self.verify is not None
        own = range(self.starts[word], self.starts[word] + self.sizes[word])
        return Attempt(*self.verify(self.codes[: own.stop + TAIL], own, self.phones[word]))

    def _take_back(self, word: int) -> None:
        """Return to where a word's codes begin: the last token of its text is to be read again."""
        self.num_taken_back += self.num_given - len(self.given) - self.marks[word]
        self.given.clear()
        self.num_given, self.is_done = self.marks[word], False
        del self.codes[self.starts[word] :], self.starts[word + 1 :], self.marks[word + 1 :], self.sizes[word:]
        self._give(self.words[word][-1])

    def _restore(self, word: int, codes: Sequence[int]) -> None:
        """Say a word as it was said before."""
        self._take_back(word)
        self.codes += codes
        self._give(*(self.vocab.code_token(code) for code in codes))
        self._end_word()

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
