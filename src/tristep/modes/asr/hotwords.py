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

from torch import Tensor

from tristep.modes.asr.data import Style
from tristep.modes.asr.letters import LetterPaths, spelt
from tristep.text import speakable, spell_letters
from tristep.vocab import TextTokenizer

MAX_COST = 1.5
"""Nats per letter that a hotword's path may lose on the best path where the hotword is still what is said."""
BONUS = 12.0
"""What a token of a hotword gains where its path loses nothing; at `MAX_COST` it gains half."""


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


class HotwordBias:
    """The bonus of each token of the hotwords that may be said in one clip, after what has been written."""

    def __init__(self, hotwords: Sequence[Hotword], paths: LetterPaths, tokenizer: TextTokenizer) -> None:
        self.hotwords = hotwords
        self.paths = paths
        self.tokenizer = tokenizer

    def __call__(self, written: Sequence[int], logits: Tensor) -> dict[int, float]:
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


def bonus_at(cost: float, hotword: Hotword) -> float:
    """Turn what a hotword's path loses into what its tokens gain."""
    share = cost / (len(hotword.letters) - 2) / MAX_COST
    return BONUS * (1 - share / 2) if share < 1 else 0.0


def listen_for(hotwords: Sequence[Hotword], paths: LetterPaths, tokenizer: TextTokenizer) -> HotwordBias | None:
    """Return the bias of the hotwords that one clip's letters agree with anywhere; None if there are none."""
    heard = [hotword for hotword in hotwords if bonus_at(paths.cost_anywhere(hotword.letters), hotword)]
    return HotwordBias(heard, paths, tokenizer) if heard else None
