"""Transcriptions: what was said in a sound, segment by segment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tristep.engine.itn import inverse_normalised
from tristep.engine.words import Word, carried
from tristep.modes.asr.decoding import FinishReason

UNSPACED = frozenset({"zh", "yue", "ja", "th", "lo", "my", "km", "bo"})
"""Languages that put no space between sentences."""
GRAVITY: tuple[FinishReason, ...] = ("repetition", "length", "stop", "silence")
"""How a whole sound ended: the first of these that any of its segments has."""


@dataclass(frozen=True)
class Token:
    """A piece of a text as it was written."""

    text: str
    logprob: float
    """Among what was allowed there."""


@dataclass(frozen=True)
class Segment:
    """A stretch of speech and what was said in it."""

    start_s: float
    end_s: float
    text: str
    """Empty where the model heard no words."""
    confidence: float
    """The mean probability of the tokens that it wrote."""
    min_confidence: float
    """The probability of the token that it was least sure of."""
    finish_reason: FinishReason
    language: str | None
    words: tuple[Word, ...] | None = None
    """What is said when; None if nobody asked."""
    tokens: tuple[Token, ...] | None = None
    """What it was written in, before numbers became digits; None if nobody asked."""
    num_tokens: int = field(default=0, compare=False)
    """Tokens that were settled, and the passes of the backbone that this took: fewer where drafts were right."""
    num_passes: int = field(default=0, compare=False)

    @property
    def acceptance_length(self) -> float:
        """Tokens settled per pass; 1 without drafts."""
        return self.num_tokens / max(self.num_passes, 1)

    @property
    def duration_s(self) -> float:
        """Length of the stretch."""
        return self.end_s - self.start_s


@dataclass(frozen=True)
class Transcription:
    """What was said in one sound."""

    text: str
    language: str | None
    """The language of most of the speech, None where nobody speaks."""
    duration_s: float
    segments: tuple[Segment, ...]
    confidence: float
    """The segments' mean by duration; in silence, how sure it is that nobody speaks."""
    finish_reason: FinishReason
    """`silence`: nobody speaks. `length` and `repetition`: a segment was cut off, because it outgrew every
    honest transcript, or repeated itself. Otherwise `stop`."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)


def joined(segments: Sequence[Segment], duration_s: float, silence: float) -> Transcription:
    """Join the segments of one sound."""
    total_s = sum(segment.duration_s for segment in segments)
    weighted = sum(segment.confidence * segment.duration_s for segment in segments)
    language = main_language(segments)
    reasons = {segment.finish_reason for segment in segments} or {"silence"}
    return Transcription(
        text=("" if language in UNSPACED else " ").join(segment.text for segment in segments if segment.text),
        language=language,
        duration_s=duration_s,
        segments=tuple(segments),
        confidence=weighted / total_s if segments else silence,
        finish_reason=next(reason for reason in GRAVITY if reason in reasons),
    )


def main_language(segments: Sequence[Segment]) -> str | None:
    """Return the language that is spoken longest, None where nobody speaks."""
    spoken: dict[str | None, float] = {}
    for segment in segments:
        spoken[segment.language] = spoken.get(segment.language, 0.0) + segment.duration_s * bool(segment.text)
    return max(spoken, key=lambda language: spoken[language], default=None)


def in_digits(segment: Segment) -> Segment:
    """Write a segment's numbers in digits; its words keep their times."""
    text = inverse_normalised(segment.text, segment.language)
    words = None if segment.words is None else tuple(carried(segment.words, text.split()))
    return replace(segment, text=text, words=words)
