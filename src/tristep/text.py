"""Text: how it is read aloud, which of it is cues, normalisation before scoring, word and character error rate.

Two transcripts are compared as Whisper's authors compare them: English through their English normaliser
(spelling, numbers, contractions), other languages through the basic one, and languages written without
spaces character by character. The rate is the micro average, all errors over all units, and its interval
comes from resampling clips, because errors inside a clip are not independent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, version

import numpy as np
from num2words import CONVERTER_CLASSES, num2words
from numpy.typing import NDArray

from tristep import english


def _installed(package: str) -> str:
    """Name a package of the `evaluate` extra and its version; everything but scoring works without it."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} (not installed)"


NORMALISER = _installed("whisper-normalizer")
"""Printed beside every error rate: a rate means nothing without its normaliser."""
CHARACTER_LANGUAGES = frozenset({"zh", "cmn", "yue", "wuu", "ja", "th", "lo", "my"})
"""Languages scored by CER: written without spaces between words."""
NUM_RESAMPLES = 1000


@dataclass(frozen=True)
class WordErrors:
    """The least edits that turn one reference into its hypothesis."""

    substitutions: int
    deletions: int
    insertions: int
    num_units: int
    """Words of the reference, or characters where the language is scored by them."""

    @property
    def num_errors(self) -> int:
        """Edits of all three kinds."""
        return self.substitutions + self.deletions + self.insertions


@dataclass(frozen=True)
class ErrorRate:
    """A word or character error rate over many clips, as a fraction."""

    rate: float
    """All errors over all units. With no units at all, errors over one unit."""
    substitutions: int
    deletions: int
    insertions: int
    num_units: int
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end of the 95 % interval."""


def scored_by_character(language: str) -> bool:
    """Say whether a language's rate is CER and not WER; takes `zh` as well as `zh-CN` or `cmn_hans_cn`."""
    return _base(language) in CHARACTER_LANGUAGES


def normalise(text: str, language: str) -> str:
    """Bring a transcript into the form in which it is scored.

    Args:
        text: A transcript as written by a person or a model.
        language: Its language, such as `en`, `zh-CN` or `cmn_hans_cn`.

    Returns:
        Units separated by single spaces: words, or characters for the languages scored by them. A curly apostrophe
        is an apostrophe, which the normalisers do not know.
    """
    return " ".join(_normaliser(_base(language))(text.replace("\u2019", "'")).split())


def word_errors(reference: str, hypothesis: str) -> WordErrors:
    """Count the edits between two texts whose units are separated by spaces.

    Args:
        reference: What was said, normalised; may be empty, then every unit of the hypothesis is an insertion.
        hypothesis: What was recognised, normalised.

    Returns:
        The counts of one alignment with the fewest edits.
    """
    import jiwer

    reference, hypothesis = " ".join(reference.split()), " ".join(hypothesis.split())
    if not reference:
        return WordErrors(0, 0, len(hypothesis.split()), 0)
    aligned = jiwer.process_words(reference, hypothesis)
    return WordErrors(aligned.substitutions, aligned.deletions, aligned.insertions, len(reference.split()))


def error_rate(references: Sequence[str], hypotheses: Sequence[str], language: str) -> ErrorRate:
    """Score transcripts against what was said.

    Args:
        references: What was said, one text per clip; an empty one is a clip without speech.
        hypotheses: What was recognised, in the same order.
        language: Language of all of them; decides the normaliser, and words or characters.

    Returns:
        The micro-averaged rate, its counts, and a 95 % percentile bootstrap interval over clips (seed 0).

    Raises:
        ValueError: If there are no clips, or not as many hypotheses as references.
    """
    if not references or len(references) != len(hypotheses):
        raise ValueError(
            f"{len(references)} references and {len(hypotheses)} hypotheses: expected one hypothesis for "
            "each of at least one reference; pass empty strings for clips without text"
        )
    clips = [
        word_errors(normalise(reference, language), normalise(hypothesis, language))
        for reference, hypothesis in zip(references, hypotheses, strict=True)
    ]
    errors = np.array([clip.num_errors for clip in clips])
    units = np.array([clip.num_units for clip in clips])
    low, high = bootstrap_interval(errors, units)
    return ErrorRate(
        rate=_ratio(errors, units),
        substitutions=sum(clip.substitutions for clip in clips),
        deletions=sum(clip.deletions for clip in clips),
        insertions=sum(clip.insertions for clip in clips),
        num_units=int(units.sum()),
        low=low,
        high=high,
    )


def bootstrap_interval(errors: NDArray[np.int64], units: NDArray[np.int64], seed: int = 0) -> tuple[float, float]:
    """Estimate where the micro-averaged rate of another sample of clips would fall, 95 times in 100.

    Args:
        errors: Errors in each clip, shape `(N,)`.
        units: Units in each clip, shape `(N,)`.
        seed: Seed of the resampling.

    Returns:
        The 2.5th and 97.5th percentile over `NUM_RESAMPLES` draws of N clips with replacement.
    """
    random = np.random.default_rng(seed)
    draws = (random.integers(0, len(units), len(units)) for _ in range(NUM_RESAMPLES))
    low, high = np.percentile([_ratio(errors[draw], units[draw]) for draw in draws], [2.5, 97.5])
    return float(low), float(high)


def _ratio(errors: NDArray[np.int64], units: NDArray[np.int64]) -> float:
    return int(errors.sum()) / max(1, int(units.sum()))


def _base(language: str) -> str:
    return re.split(r"[-_]", language.lower())[0]


@lru_cache(maxsize=32)
def _normaliser(base: str) -> Callable[[str], str]:
    from whisper_normalizer.basic import BasicTextNormalizer
    from whisper_normalizer.english import EnglishTextNormalizer

    if base == "en":
        return EnglishTextNormalizer()
    return BasicTextNormalizer(split_letters=base in CHARACTER_LANGUAGES)


LETTERS = " 'abcdefghijklmnopqrstuvwxyz"
"""What plain English words are spelt with; CTC over letters has one class for each, and blank after them."""
_PLACES = str.maketrans(LETTERS, "".join(map(chr, range(len(LETTERS)))))
_AS_ASCII = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2026": " ", "\u2013": " ", "\u2014": " ", "-": " "}
)


def spoken_words(text: str) -> list[str] | None:
    """Reduce a transcript to lower-case words as they sound; None if it holds digits or symbols that are read out."""
    text = text.lower().translate(_AS_ASCII)
    if re.search(r"[^\W_a-z]|[&@#$%+=/*]", text, re.ASCII) or not text.isascii():
        return None
    return [word for word in (w.strip("'") for w in re.sub(r"[^a-z' ]", " ", text).split()) if word]


def spell_letters(text: str) -> list[int] | None:
    """Spell a transcript as indices into `LETTERS`, one space between words; None where `spoken_words` has none."""
    words = spoken_words(text)
    return None if words is None else list(letter_places(" ".join(words)))


def letter_places(text: str) -> bytes:
    """Return the index into `LETTERS` of each letter of a text that has no others."""
    return text.translate(_PLACES).encode("ascii")


def written_words(text: str) -> list[str]:
    """Cut a text at its spaces into words that sound; a lone dash goes with the word before, or else after."""
    words: list[str] = []
    lead: list[str] = []
    for piece in text.split():
        if any(map(str.isalpha, piece)):
            words.append(" ".join([*lead, piece]))
            lead = []
        elif words:
            words[-1] += " " + piece
        else:
            lead.append(piece)
    return words


@dataclass(frozen=True)
class Text:
    """A stretch of text that is spoken."""

    text: str


@dataclass(frozen=True)
class Cue:
    """An inline directive, without its brackets: it says how to go on and is not spoken."""

    text: str


_BRACKETS = re.compile(r"(?P<before>\w?)[(\uff08](?P<content>[^()\uff08\uff09]*)[)\uff09]")
_ENDING = 3
"""Letters that an optional ending such as `(s)` has at most."""


def split_cues(text: str) -> list[Text | Cue]:
    """Part what is spoken from the cues in round brackets, ASCII or full-width.

    A bracket is a cue unless it can't be one: it holds a digit, as `(2019)` does, or no letter, or capitals only, as
    `(FBI)` does, or it is a word's optional ending, as in `word(s)`. Such a bracket is text and is read. Of nested
    brackets the innermost may be a cue.

    Returns:
        The parts in order, without the spaces around them and without empty ones.
    """
    parts: list[Text | Cue] = []
    start = 0
    for bracket in _BRACKETS.finditer(text):
        if _is_cue(bracket["content"], bracket["before"]):
            parts += [Text(text[start : bracket.end("before")].strip()), Cue(bracket["content"].strip())]
            start = bracket.end()
    parts.append(Text(text[start:].strip()))
    return [part for part in parts if part.text]


def _is_cue(content: str, before: str) -> bool:
    letters = [character for character in content if character.isalpha()]
    is_acronym = len(letters) > 1 and content.isupper()
    is_ending = before.isalpha() and before.isascii() and content.isalpha() and len(content) <= _ENDING
    return bool(letters) and not (any(map(str.isdigit, content)) or is_acronym or is_ending)


def join_parts(parts: Iterable[Text | Cue]) -> str:
    """Write parts as one text again, cues in ASCII brackets; what begins with punctuation joins what is before it."""
    pieces = (part.text if isinstance(part, Text) else f"({part.text})" for part in parts)
    return re.sub(r" (?=[,.;:!?](?:\s|$))", "", " ".join(pieces))


def without_cues(text: str) -> str:
    """Return what is spoken of a text."""
    return join_parts(part for part in split_cues(text) if isinstance(part, Text))


def speakable(text: str, language: str = "en") -> str:
    """Write a text the way it is read aloud: no digits and no symbols; cues stay as they are.

    English has rules for dates, times, money, units, symbols and abbreviations (`tristep.english`); in other languages
    only whole and decimal numbers are named, in the few dozen languages that num2words has.

    Args:
        text: What to say, cues in round brackets included.
        language: Its language, such as `en` or `de-AT`.

    Raises:
        ValueError: If the text holds numbers in a language whose numbers nobody named.
    """
    read = english.read_aloud if _base(language) == "en" else partial(_named_numbers, language=_base(language))
    return join_parts(Text(read(part.text)) if isinstance(part, Text) else part for part in split_cues(text))


def _named_numbers(text: str, language: str) -> str:
    def named(number: re.Match[str]) -> str:
        try:
            return str(num2words(number[0], lang=language))
        except NotImplementedError:
            raise ValueError(
                f"{number[0]!r} can't be read aloud in {language!r}: write its numbers in words, or choose one of "
                f"{', '.join(sorted(CONVERTER_CLASSES))}"
            ) from None

    return re.sub(r"\d+(?:\.\d+)?", named, text)


MAX_SENTENCE = 240
"""Characters after which a sentence is cut at its commas, and at its spaces if it has none."""


def sentences(text: str) -> list[str]:
    """Cut a text that is to be read aloud into sentences short enough to be spoken in one go."""
    whole = re.split(r"(?<=[.!?\u2026\u3002\uff01\uff1f])[\"')\u201d\u2019]*\s+|\n\s*", text.strip())
    return [piece for sentence in whole for piece in _short_pieces(sentence.strip()) if piece]


def _short_pieces(sentence: str) -> list[str]:
    """Cut a long sentence near its middle, at a comma if there is one, until every piece is short enough."""
    if len(sentence) <= MAX_SENTENCE:
        return [sentence]
    cuts = [match.end() for match in re.finditer(r"[,;:](?=\s)", sentence)]
    cuts = cuts or [match.start() for match in re.finditer(r"\s", sentence)] or [MAX_SENTENCE]
    cut = min(cuts, key=lambda place: abs(place - len(sentence) // 2))
    return _short_pieces(sentence[:cut].strip()) + _short_pieces(sentence[cut:].strip())
