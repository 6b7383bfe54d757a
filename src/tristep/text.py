"""Text: normalisation before scoring, word and character error rate.

Two transcripts are compared as Whisper's authors compare them: English through their English normaliser
(spelling, numbers, contractions), other languages through the basic one, and languages written without
spaces character by character. The rate is the micro average, all errors over all units, and its interval
comes from resampling clips, because errors inside a clip are not independent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version

import jiwer
import numpy as np
from numpy.typing import NDArray
from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

NORMALISER = f"whisper-normalizer {version('whisper-normalizer')}"
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
        Units separated by single spaces: words, or characters for the languages scored by them.
    """
    return " ".join(_normaliser(_base(language))(text).split())


def word_errors(reference: str, hypothesis: str) -> WordErrors:
    """Count the edits between two texts whose units are separated by spaces.

    Args:
        reference: What was said, normalised; may be empty, then every unit of the hypothesis is an insertion.
        hypothesis: What was recognised, normalised.

    Returns:
        The counts of one alignment with the fewest edits.
    """
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
    if base == "en":
        return EnglishTextNormalizer()
    return BasicTextNormalizer(split_letters=base in CHARACTER_LANGUAGES)
