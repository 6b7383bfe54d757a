"""TTS, data construction: text and context in, and an answer in which each word's text leads its codes.

The report leaves the layout open (sections 2.3, 5.1). Here the system turn holds the instructions and, for a cloned
voice, what the reference says and its codes (the order of Step-Audio-EditX, section 5.4); the user turn holds the
text with its inline cues. The assistant first writes down how it will speak (pace, pitch, volume, pauses), then goes
through the text word by word: a word's phones, then the codes of its sound. The text is given, so in speaking only the
choice "another code or the next word" is the model's own: it can neither skip a word nor say one twice, and a small
model needs no long training to find its place in the text. `NEXT` is that choice; it is predicted and never read. The
user's text comes in the text model's own tokens, for its meaning; the answer spells each word as it sounds, because a
few hours of speech teach how phones sound, and not how tens of thousands of words are pronounced.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from tristep.chat import Chat, Codes, Control, Part, Turn
from tristep.pronouncing import english
from tristep.vocab import TextTokenizer

DEGREES = {"pace": range(1, 6), "pitch": range(1, 6), "volume": range(1, 6), "pauses": range(3, 5)}
"""What the assistant settles before it speaks, and in which degrees: 3 is the voice's own. Pauses are usual or long."""
FEATURES = tuple(DEGREES)
NEXT = "tts_pad"
"""Predicted where a word's codes are over and the next word's text follows."""
IGNORED = -100
"""The target of a position that predicts nothing."""
INSTRUCTION = "Speak the text."
X_SAMPA = dict(zip("æðŋɑɔəɚɛɜɡɪɹɾʃʊʌʒθ", "{DNAO@RE3gIr4SUVZT", strict=True))
"""Phones that ASCII lacks, in one character each, nearly X-SAMPA's (Wells 1995): the text model has tokens for them."""
MARKS = ".,;:?!"
"""What is kept of a word's punctuation."""
MOST_REMEMBERED = 65_536
"""Words whose spelling is kept at hand: a language's, and not all that a server is ever sent."""
LEAD_S = 0.08
"""A word's text is written this long before the word sounds."""


@dataclass(frozen=True)
class Manner:
    """How something is said, in `DEGREES`."""

    pace: int = 3
    pitch: int = 3
    volume: int = 3
    pauses: int = 3

    def controls(self) -> list[str]:
        """Name the control tokens that say so."""
        return [f"{feature}_{getattr(self, feature)}" for feature in FEATURES]


@dataclass(frozen=True)
class Word:
    """A word as it is written, punctuation and all."""

    text: str
    first_code: int
    """The word is written before this code."""


@dataclass(frozen=True)
class Utterance:
    """What was said and how it sounds."""

    words: tuple[Word, ...]
    codes: tuple[int, ...]
    manner: Manner = Manner()

    @property
    def text(self) -> str:
        """The words in a row."""
        return " ".join(word.text for word in self.words)


def first_codes(starts_s: Sequence[float], code_rate_hz: float, num_codes: int) -> list[int]:
    """Turn the times at which words start into the codes before which they are written; the first leads them all."""
    leading = [math.floor(max(start - LEAD_S, 0.0) * code_rate_hz) for start in starts_s]
    return [0, *(min(code, num_codes) for code in leading[1:])]


def turns(text: str, instructions: str = "", reference: Utterance | None = None) -> list[Turn]:
    """Build what the model is given: context in the system turn, the text with its cues in the user turn."""
    context: list[Part] = [f"{INSTRUCTION} {instructions}".strip()]
    if reference is not None:
        context += [f"\n{reference.text}", Control("tts_start"), Codes(reference.codes), Control("tts_end")]
    return [Turn("system", tuple(context)), Turn("user", (text,))]


def phones_of(word: str) -> str:
    """Return how a word sounds, in `tristep.phones.PHONES`; empty if it has no letters."""
    return "".join(english().pronounce(part) for part in word.split("-"))


@lru_cache(maxsize=MOST_REMEMBERED)
def spelt(word: str, tokenizer: TextTokenizer) -> tuple[int, ...]:
    """Spell a word as it sounds, each phone in tokens of its own, the first with a space before it.

    Marks before and after the word stay, for its melody; a word without letters is spelt as it is written.
    """
    marks = word[len(word.rstrip(MARKS)) :]
    sounds = "".join(X_SAMPA.get(phone, phone) for phone in phones_of(word))
    letters = sounds + marks if sounds else word.lower()
    return tuple(token for letter in (" " + letters[0], *letters[1:]) for token in tokenizer.encode(letter))


@dataclass(frozen=True)
class Sample:
    """One utterance, ready for the backbone."""

    tokens: list[int]
    targets: list[int]
    """What each position predicts, a control token or a code; `IGNORED` where it predicts nothing."""


def render_manner(chat: Chat, context: Sequence[Turn], manner: Manner) -> Sample:
    """Write a sample of what nobody has spoken yet: the prompt, and the manner that it asks for."""
    prompt = chat.prompt(context)
    opening = [chat.vocab.control(name) for name in (*manner.controls(), "tts_start")]
    return Sample(prompt + opening, [IGNORED] * (len(prompt) - 1) + opening + [IGNORED])


def render(chat: Chat, context: Sequence[Turn], utterance: Utterance) -> Sample:
    """Write one training sample: the prompt, then manner, words and codes with what each position predicts."""
    opening = render_manner(chat, context, utterance.manner)
    tokens, targets = opening.tokens, opening.targets
    ends = [word.first_code for word in utterance.words[1:]] + [len(utterance.codes)]
    for word, end in zip(utterance.words, ends, strict=True):
        text = list(spelt(word.text, chat.tokenizer))
        codes = [chat.vocab.code_token(code) for code in utterance.codes[word.first_code : end]]
        tokens += text + codes
        # The last token of the text and every code predict a code, or that these were the last ones.
        targets += [IGNORED] * (len(text) - 1) + [*codes, chat.vocab.control(NEXT)]
    targets[-1] = chat.vocab.control("tts_end")
    return Sample([*tokens, chat.vocab.control("tts_end")], [*targets, IGNORED])
