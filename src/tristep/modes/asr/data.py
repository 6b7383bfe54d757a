"""ASR, data construction: the task in the system turn, sound in the user turn, language tag and transcript out.

The layout is the report's (section 4.1); its exact strings are not public, these are ours. Sound without speech is
answered by the `nospeech` tag and an empty transcript. Corpora differ in style: LibriSpeech is lower case without
punctuation, others are written out. Each style has its own instruction, so that one model learns both and a user
gets the written one by default.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Literal

import torch
from torch import Tensor

from tristep.chat import Chat, Control, Rendered, Sound, Turn
from tristep.text import spoken_words
from tristep.vocab import TextTokenizer

Style = Literal["written", "spoken"]

INSTRUCTIONS: dict[Style, str] = {
    "written": "Transcribe the speech.",
    "spoken": "Transcribe the speech in lower case, without punctuation.",
}


def turns(num_slots: int, style: Style = "written") -> list[Turn]:
    """Build what the model is given: the task, and a sound of `num_slots` audio embeddings."""
    return [Turn("system", (INSTRUCTIONS[style],)), Turn("user", (Sound(num_slots),))]


def transcript(text: str, language: str) -> Turn:
    """Build what the model has to write; empty text means that nobody spoke."""
    if not text.strip():
        return Turn("assistant", (Control("nospeech"),))
    return Turn("assistant", (Control(f"lang_{language}"), text.strip()))


def render(chat: Chat, num_slots: int, text: str, language: str, style: Style = "written") -> Rendered:
    """Write one training sample: tokens, and the mask of those that the assistant writes."""
    return chat.render([*turns(num_slots, style), transcript(text, language)])


class CtcSpeller:
    """Spells transcripts in the few thousand text tokens that the CTC head knows.

    A word is written as the text model itself writes it where the head knows all its tokens, and otherwise in the
    longest known pieces from left to right; single letters are always known, so every word can be spelt.
    """

    def __init__(self, tokenizer: TextTokenizer, ctc_tokens: Sequence[int]) -> None:
        self.tokenizer = tokenizer
        self.pieces = {tokenizer.decode([token]): index for index, token in enumerate(ctc_tokens)}
        self.index_of = {token: index for index, token in enumerate(ctc_tokens)}
        self.longest = max(map(len, self.pieces))
        self._cache: dict[str, list[int]] = {}

    def spell(self, text: str) -> list[int] | None:
        """Return the head's class indices for a transcript; None where it is not plain words."""
        words = spoken_words(text)
        return None if words is None else [index for word in words for index in self.spell_word(word)]

    def spell_word(self, word: str) -> list[int]:
        """Return the class indices of one word, with the space before it."""
        if word not in self._cache:
            tokens = self.tokenizer.encode(" " + word)
            known = all(token in self.index_of for token in tokens)
            self._cache[word] = [self.index_of[t] for t in tokens] if known else self.longest_pieces(" " + word)
        return self._cache[word]

    def longest_pieces(self, word: str) -> list[int]:
        """Cut a word into the longest known pieces, left to right."""
        indices = []
        while word:
            size = next(n for n in range(min(self.longest, len(word)), 0, -1) if word[:n] in self.pieces)
            indices.append(self.pieces[word[:size]])
            word = word[size:]
        return indices


def choose_ctc_tokens(tokenizer: TextTokenizer, texts: Iterable[str], num_tokens: int) -> list[int]:
    """Choose the CTC head's tokens: the letters, with and without a space before, then the most frequent ones.

    If the texts hold fewer, the rest are the tokenizer's first ones: a byte-pair vocabulary is sorted by frequency.
    """
    letters = [*"abcdefghijklmnopqrstuvwxyz'", *(" " + letter for letter in "abcdefghijklmnopqrstuvwxyz"), " '"]
    counts = Counter(
        token for text in texts for word in spoken_words(text) or [] for token in tokenizer.encode(" " + word)
    )
    needed = dict.fromkeys(tokenizer.encode(letter)[0] for letter in letters)
    others = (token for token in range(tokenizer.tokenizer.get_vocab_size()) if tokenizer.decode([token]))
    ranked = chain(needed, (token for token, _ in counts.most_common()), others)
    chosen = list(islice(dict.fromkeys(ranked), num_tokens))
    if len(chosen) < num_tokens or num_tokens < len(needed):
        raise ValueError(
            f"the CTC head has {num_tokens} tokens: expected at least {len(needed)}, to spell any word, and at most "
            "as many as the tokenizer has; change num_ctc_tokens"
        )
    return chosen


@dataclass(frozen=True)
class SpecAugment:
    """Masks over time and channels of acoustic features (Park et al. 2019; report section 4.1, numbers free)."""

    num_time_masks: int = 2
    max_time_share: float = 0.05
    """Longest time mask, as a share of the clip."""
    num_channel_masks: int = 2
    max_channel_share: float = 0.1
    """Widest channel mask, as a share of the channels."""
    noise: float = 0.0
    """Gaussian noise added first, as a share of the features' own spread."""

    def __call__(self, features: Tensor, generator: torch.Generator) -> Tensor:
        """Return `features` `(F, D)` with random stretches of time and of channels set to zero."""
        features = features.clone()
        if self.noise:
            features += self.noise * features.std() * torch.randn(features.shape, generator=generator)
        for axis, count, share in ((0, self.num_time_masks, self.max_time_share),
                                   (1, self.num_channel_masks, self.max_channel_share)):  # fmt: skip
            size = features.shape[axis]
            for _ in range(count):
                width = int(torch.randint(0, int(size * share) + 1, (), generator=generator))
                start = int(torch.randint(0, size - width + 1, (), generator=generator))
                features.narrow(axis, start, width).zero_()
        return features
