"""ASR, joint decoding: what is written has to agree with the letters that the adaptor heard.

A decoder that began as a language model goes on as texts do where it is unsure of the sound, and can leave the sound
altogether. The adaptor's letters know nothing of texts, and are sure of their place. So both choose, as in hybrid
CTC/attention decoding (Watanabe et al. 2017): what a token's letters lose on the best CTC path after what is written
counts against it, in full where it is small. A great loss is hardly worse than a middling one: where the letters agree
with nothing, the decoder decides.

The loss depends on the clip, on what is written and on the decoder's own logits: drafts are verified against it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from tristep.text import LETTERS, letter_places, speakable, spoken_words
from tristep.vocab import TextTokenizer

FLOOR = -30.0
"""No letter is less likely than this: nothing is impossible to hear."""
NEVER = -1e9
WEIGHT, SOFTNESS = 0.5, 6.0
"""Logits that the first nat of the letters is worth, and the nats after which another one is worth half of that."""
MAX_LOSS = 10.0
"""Logits that a token can lose: whatever lies further below the best one is out of the question."""
NUM_CANDIDATES = 10
"""Tokens among which both choose."""
KEPT_LETTERS, MOST_COLUMNS = 80, 2_000
"""Columns of so many letters back are remembered, once there are so many of them."""


class Column(NamedTuple):
    """Scores of the best paths that have spelt some letters after each number of frames, both of shape `(N + 1,)`."""

    letter: np.ndarray
    """The last frame is the last letter."""
    blank: np.ndarray
    """The last frame is blank."""

    @property
    def best(self) -> np.ndarray:
        """The better of the two, shape `(N + 1,)`."""
        return np.maximum(self.letter, self.blank)


class LetterPaths:
    """The best CTC paths of one clip that begin with given letters; a path of any letters scores 0."""

    def __init__(self, logprobs: Tensor) -> None:
        """Take log-probabilities over `LETTERS` and blank, shape `(N, 29)`."""
        edge = np.full((1, len(LETTERS) + 1), FLOOR)
        edge[0, 0] = 0.0  # a space is heard before the first word and after the last
        heard = np.concatenate([edge, logprobs.double().cpu().numpy().clip(min=FLOOR), edge])
        lost = heard - heard.max(axis=1, keepdims=True)
        self.sums = np.concatenate([np.zeros_like(edge), lost.cumsum(axis=0)]).T.copy()  # (29, N + 1)
        nothing = np.full_like(self.sums[0], NEVER)
        self.anywhere = Column(nothing, np.zeros_like(nothing))
        """Any letters have been spelt."""
        start = nothing.copy()
        start[0] = 0.0
        self.columns: dict[tuple[int, ...], Column] = {(): Column(nothing, np.maximum(start, self.sums[-1]))}

    def forget(self, num_letters: int) -> None:
        """Forget what is known of beginnings with fewer letters, but of the very first, if that is much."""
        if len(self.columns) > MOST_COLUMNS:
            kept = (key for key in self.columns if not key or len(key) >= num_letters)
            self.columns = {key: self.columns[key] for key in kept}

    def after(self, letters: tuple[int, ...]) -> Column:
        """Return the paths that have spelt `letters`; remembers what it has worked out."""
        known = next(end for end in range(len(letters), -1, -1) if letters[:end] in self.columns)
        for end in range(known, len(letters)):
            self.columns[letters[: end + 1]] = self.extended(self.columns[letters[:end]], letters[:end], letters[end])
        return self.columns[letters]

    def extended(self, column: Column, letters: Sequence[int], letter: int) -> Column:
        """Spell one more letter; between two equal ones lies a blank."""
        enter = column.blank if letters and letters[-1] == letter else column.best
        spelt = self.held(enter, letter)
        return Column(spelt, self.held(spelt, -1))

    def held(self, enter: np.ndarray, label: int) -> np.ndarray:
        """Emit `label` for one or more frames after `enter` `(N + 1,)`: a running maximum in place of a loop."""
        sums, out = self.sums[label], np.empty_like(enter)
        out[0] = NEVER
        np.add(sums[1:], np.maximum.accumulate((enter - sums)[:-1]), out=out[1:])
        return out

    def cost_anywhere(self, letters: Sequence[int]) -> float:
        """Return what it costs at least to spell `letters` somewhere in the clip, in nats."""
        column = self.anywhere
        for place, letter in enumerate(letters):
            column = self.extended(column, letters[:place], letter)
        return -float(column.best.max())

    def best_after(self, letters: tuple[int, ...], ends: bool = False) -> float:
        """Return the score of the best path that begins with `letters`, or, if it `ends`, has no others."""
        if not ends:
            return float(self.after(letters).best.max())
        return float(self.after((*letters, 0) if letters else ()).best[-1])

    def cost_next(self, before: tuple[int, ...], letters: tuple[int, ...]) -> float:
        """Return what it costs to spell `letters` right after `before`, in nats."""
        return self.best_after(before) - self.best_after(before + letters)


class LetterBias:
    """What the tokens that may come next lose in one clip, by their letters."""

    def __init__(self, paths: LetterPaths, tokenizer: TextTokenizer, turn_end: int) -> None:
        self.paths, self.tokenizer, self.turn_end = paths, tokenizer, turn_end

    def __call__(self, written: Sequence[int], logits: Tensor) -> dict[int, float]:
        """Return what is added to the logits `(V,)` of some tokens after `written`, language tag first."""
        if not written:
            return {}
        best = logits.topk(min(NUM_CANDIDATES, len(logits)))
        candidates = best.indices[best.values >= best.values[0] - MAX_LOSS].tolist()
        if len(candidates) == 1 or (before := spelt(self.tokenizer.decode(written[1:]))) is None:
            return {}
        self.paths.forget(len(before) - KEPT_LETTERS)
        return self.losses(written[1:], before, candidates)

    def losses(self, body: Sequence[int], before: tuple[int, ...], candidates: Sequence[int]) -> dict[int, float]:
        """Return what each candidate loses beyond the one that loses least, so that one of them is chosen.

        What has no letters, such as a comma, loses no more than any that has.
        """
        here, lost = self.paths.best_after(before), {}
        for token in candidates:
            ends = token == self.turn_end
            letters = before if ends else spelt(self.tokenizer.decode([*body, token]))
            if letters is None:
                lost[token] = MAX_LOSS
            elif ends or letters != before:
                lost[token] = loss_of(here - self.paths.best_after(letters, ends))
        least = min(lost.values(), default=0.0)
        return {token: least - lost.get(token, least) for token in candidates}


def loss_of(cost: float) -> float:
    """Turn what the letters lose, in nats, into what a token's logit does.

    It may also gain: after `3`, another digit makes a thirty of a three.
    """
    return min(WEIGHT * SOFTNESS * math.log1p(max(cost, 0.0) / SOFTNESS), MAX_LOSS)


def spelt(text: str) -> tuple[int, ...] | None:
    """Spell what is written as it sounds, a space before each word; None where nobody can."""
    words = spoken_words(text)
    words = spoken_words(speakable(text)) if words is None else words
    return None if words is None else tuple(letter_places("".join(" " + word for word in words)))
