"""TTS, decoding constraint: where speech falls silent, by a cue such as `(long pause)` or by its manner.

A pause is the one thing of a reading that needs no voice: its codes say silence, and the model reads them like any
others and goes on. Cues of a pause work before any word but the first. A manner with long pauses puts them after marks,
and before the words that open a phrase.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tristep.modes.tts.data import MARKS, Manner
from tristep.text import Text, join_parts, split_cues, without_cues, written_words

SHORT_S, LONG_S = 0.5, 1.0
"""What `(pause)` and `(long pause)` take."""
BY_DEGREE_S = {3: 0.0, 4: 0.5}
"""What a pause between phrases takes, by the manner's degree."""
MIN_PHRASE = 3
"""Words of a phrase that may be followed by a pause without a mark."""
OPENERS = frozenset((
    "about", "after", "although", "and", "as", "at", "because", "before", "but", "by", "during", "for", "from", "if",
    "in", "into", "near", "of", "off", "on", "onto", "or", "over", "since", "so", "than", "that", "though", "through",
    "to", "toward", "under", "until", "upon", "when", "where", "which", "while", "who", "with", "without",
))  # fmt: skip
"""English words that open phrases."""
_PAUSE = re.compile(r"(?<!\bno )(?<!\bfew )(?<!\bwithout )\b(pauses?|pausing|silences?)\b", re.IGNORECASE)
_LONG = re.compile(r"\b(long|pauses for a while)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Pauses:
    """Where a recital falls silent."""

    silence: int = 0
    """The code that says it."""
    code_rate_hz: float = 0.0
    cued_s: tuple[float, ...] = ()
    """What cues ask for before each word, seconds."""
    opens: tuple[bool, ...] = ()
    """Whether each word opens a phrase."""

    @classmethod
    def of(cls, piece: str, silence: int, code_rate_hz: float) -> Pauses:
        """Find the pauses of a piece of text with its cues."""
        said: list[Text] = []
        words = written_words(without_cues(piece))
        cued = [0.0] * (len(words) + 1)
        for part in split_cues(piece):
            if isinstance(part, Text):
                said.append(part)
            elif is_pause(part.text):
                cued[len(written_words(join_parts(said)))] += LONG_S if _LONG.search(part.text) else SHORT_S
        return cls(silence, code_rate_hz, tuple(cued[:-1]), phrase_openings(words))

    def before(self, word: int, manner: Manner) -> list[int]:
        """Return the codes of silence before a word."""
        return [self.silence] * self._num_codes(word, manner.pauses)

    @property
    def longest(self) -> int:
        """The most codes before any word."""
        return max((self._num_codes(word, max(BY_DEGREE_S)) for word in range(len(self.opens))), default=0)

    @property
    def most(self) -> int:
        """The most codes in all."""
        return sum(self._num_codes(word, max(BY_DEGREE_S)) for word in range(len(self.opens)))

    def _num_codes(self, word: int, degree: int) -> int:
        if not word or not self.opens:
            return 0
        by_manner = BY_DEGREE_S[degree] if self.opens[word] else 0.0
        return round(self.code_rate_hz * (self.cued_s[word] + by_manner))


def is_pause(directive: str) -> bool:
    """Say whether a cue, or an instruction, asks for pauses."""
    return bool(_PAUSE.search(directive))


def phrase_openings(words: Sequence[str]) -> tuple[bool, ...]:
    """Mark the words before which a speaker may pause: after marks and before openers; else in the middle."""
    opens, since = [False] * len(words), 0
    for number in range(1, len(words)):
        since += 1
        after_mark = words[number - 1][-1] in MARKS
        if after_mark or (since >= MIN_PHRASE and words[number].lower().strip(MARKS) in OPENERS):
            opens[number], since = True, 0
    if not any(opens) and len(words) > MIN_PHRASE:
        opens[len(words) // 2] = True
    return tuple(opens)
