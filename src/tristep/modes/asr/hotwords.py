"""ASR, hotwords: names that a user expects become likelier where the sound agrees, and nowhere else.

The usual way adds a bonus along a trie of the hotwords' tokens, everywhere (shallow fusion, e.g. Zhao et al. 2019), and
takes it back where a word is not completed; greedy decoding can't take anything back, and such a bonus leaks. Here the
adaptor's letters decide, which are known for the whole clip before the first token is written. After each token,
the best CTC path that spells what is written, then the hotword, then anything, is compared with the best that spells
what is written, then anything. Where they are close, the hotword is what is said next, and its tokens gain a bonus.

So the bonus depends on the clip and on what is written, on nothing else: drafts are verified against it as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tristep.modes.asr.data import Style
from tristep.text import LETTERS, speakable, spell_letters, spoken_words
from tristep.vocab import TextTokenizer

MAX_COST = 1.5
"""Nats per letter that a hotword's path may lose on the best path where the hotword is still what is said."""
BONUS = 12.0
"""What a token of a hotword gains where its path loses nothing; at `MAX_COST` it gains half."""
FLOOR = -30.0
"""No letter is less likely than this: nothing is impossible to hear."""
NEVER = -1e9


@dataclass(frozen=True)
class Hotword:
    """A word or phrase to listen for."""

    text: str
    letters: tuple[int, ...]
    """As it sounds, with a space before and after."""
    first: tuple[int, ...]
    """Its tokens at the beginning of a transcript."""
    later: tuple[int, ...]
    """Its tokens after a space."""


def read_hotwords(texts: Sequence[str], tokenizer: TextTokenizer, style: Style) -> tuple[Hotword, ...]:
    """Prepare hotwords; in the spoken style they are written in lower case.

    Raises:
        ValueError: If one can't be spelt in letters, once its numbers are read aloud.
    """
    return tuple(_read_hotword(text, tokenizer, style) for text in dict.fromkeys(texts))


def _read_hotword(text: str, tokenizer: TextTokenizer, style: Style) -> Hotword:
    letters = spell_letters(speakable(text))
    if not letters:
        raise ValueError(f"the hotword {text!r} can't be spelt: write it in the letters a to z, as it sounds")
    written = " ".join(text.split())
    written = written.lower() if style == "spoken" else written
    first, later = tuple(tokenizer.encode(written)), tuple(tokenizer.encode(" " + written))
    return Hotword(text, (0, *letters, 0), first, later)


class Column(NamedTuple):
    """Scores of the best paths that have spelt some letters after each number of frames, both of shape `(N + 1,)`."""

    letter: Tensor
    """The last frame is the last letter."""
    blank: Tensor
    """The last frame is blank."""

    @property
    def best(self) -> Tensor:
        """The better of the two, shape `(N + 1,)`."""
        return torch.maximum(self.letter, self.blank)


class LetterPaths:
    """The best CTC paths of one clip that begin with given letters; a path of any letters scores 0."""

    def __init__(self, logprobs: Tensor) -> None:
        """Take log-probabilities over `LETTERS` and blank, shape `(N, 29)`."""
        edge = torch.full((1, len(LETTERS) + 1), FLOOR, dtype=torch.float64)
        edge[0, 0] = 0.0  # a space is heard before the first word and after the last
        logprobs = torch.cat([edge, logprobs.double().cpu().clamp(min=FLOOR), edge])
        lost = logprobs - logprobs.amax(dim=1, keepdim=True)
        self.sums = torch.cat([torch.zeros_like(edge), lost.cumsum(dim=0)]).T.contiguous()  # (29, N + 1)
        nothing = torch.full_like(self.sums[0], NEVER)
        self.anywhere = Column(nothing, torch.zeros_like(nothing))
        """Any letters have been spelt."""
        start = nothing.clone()
        start[0] = 0.0
        self.columns: dict[tuple[int, ...], Column] = {(): Column(nothing, torch.maximum(start, self.sums[-1]))}

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

    def held(self, enter: Tensor, label: int) -> Tensor:
        """Emit `label` for one or more frames after `enter` `(N + 1,)`: a running maximum in place of a loop."""
        sums = self.sums[label]
        best = (enter - sums).cummax(dim=0).values
        return torch.cat([best.new_full((1,), NEVER), sums[1:] + best[:-1]])

    def cost_anywhere(self, letters: Sequence[int]) -> float:
        """Return what it costs at least to spell `letters` somewhere in the clip, in nats."""
        column = self.anywhere
        for place, letter in enumerate(letters):
            column = self.extended(column, letters[:place], letter)
        return -float(column.best.max())

    def cost_next(self, before: tuple[int, ...], letters: tuple[int, ...]) -> float:
        """Return what it costs to spell `letters` right after `before`, in nats."""
        return float(self.after(before).best.max() - self.after(before + letters).best.max())


class HotwordBias:
    """The bonus of each token of the hotwords that may be said in one clip, after what has been written."""

    def __init__(self, hotwords: Sequence[Hotword], paths: LetterPaths, tokenizer: TextTokenizer) -> None:
        self.hotwords = hotwords
        self.paths = paths
        self.tokenizer = tokenizer

    def __call__(self, written: Sequence[int]) -> dict[int, float]:
        """Return what is added to the logits of some tokens after `written`, language tag first."""
        bonuses: dict[int, float] = {}
        body = tuple(written[1:])
        for hotword in self.hotwords if written else ():
            for start, tokens in beginnings(body, hotword):
                token, bonus = tokens[len(body) - start], self.bonus(body[:start], hotword)
                bonuses[token] = max(bonus, bonuses.get(token, 0.0))
        return {token: bonus for token, bonus in bonuses.items() if bonus}

    def bonus(self, before: tuple[int, ...], hotword: Hotword) -> float:
        """Return what each token of a hotword gains where it begins after the tokens `before`."""
        text = self.tokenizer.decode(before)
        letters = spelt(text)
        if letters is None or text.endswith(" "):  # no word begins with two spaces
            return 0.0
        return bonus_at(self.paths.cost_next(letters, hotword.letters), hotword)


def beginnings(body: tuple[int, ...], hotword: Hotword) -> list[tuple[int, tuple[int, ...]]]:
    """List where a hotword can have begun in what is written so far, and its tokens from there; here and now too."""
    places = [(0, hotword.first)] if body == hotword.first[: len(body)] != hotword.first else []
    for num in range(min(len(hotword.later) - 1, len(body) - 1) + 1):
        if body[len(body) - num :] == hotword.later[:num]:
            places.append((len(body) - num, hotword.later))
    return places


def spelt(text: str) -> tuple[int, ...] | None:
    """Spell what is written as it sounds, a space before each word; None where nobody can."""
    words = spoken_words(text)
    words = spoken_words(speakable(text)) if words is None else words
    return None if words is None else tuple(LETTERS.index(letter) for word in words for letter in " " + word)


def bonus_at(cost: float, hotword: Hotword) -> float:
    """Turn what a hotword's path loses into what its tokens gain."""
    share = cost / (len(hotword.letters) - 2) / MAX_COST
    return BONUS * (1 - share / 2) if share < 1 else 0.0


def listen_for(hotwords: Sequence[Hotword], logprobs: Tensor, tokenizer: TextTokenizer) -> HotwordBias | None:
    """Return the bias of the hotwords that one clip's letters, shape `(N, 29)`, agree with anywhere; None if none."""
    paths = LetterPaths(logprobs)
    heard = [hotword for hotword in hotwords if bonus_at(paths.cost_anywhere(hotword.letters), hotword)]
    return HotwordBias(heard, paths, tokenizer) if heard else None
