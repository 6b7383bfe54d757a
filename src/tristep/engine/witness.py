"""The witness: what can be measured of a reading and heard in it, put into words that a judge can read.

A small model hears little by itself, so it is told: how many of the words an independent recogniser heard, how alike
the voice is to the one that was asked for, and pace, pitch and volume against that voice's own. The numbers are there
beside the degrees, and the judge weighs them. Nothing is told of where a reading comes from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from tristep.audio import SPEAK_HZ
from tristep.codec.pitch import pitch
from tristep.codec.speaker import similarity
from tristep.codec.voice import LEVEL_WINDOW, is_sound, level_db, without_edges
from tristep.modes.judge.data import Answer, Case, Clause, Side
from tristep.text import normalise, spoken_words, word_errors

DEGREES: dict[str, tuple[str, ...]] = {
    "pace": ("very slow", "slow", "usual", "fast", "very fast"),
    "pitch": ("very low", "low", "usual", "high", "very high"),
    "volume": ("very quiet", "quiet", "usual", "loud", "very loud"),
}
USUAL = 3
EDGES = {"pace": (0.17, 0.5), "pitch": (1.5, 5.0), "volume": (4.0, 10.0)}
"""Where the degrees are cut, up and down alike: octaves of pace, semitones of pitch, dB of volume."""
DIGITS = {"pace": 2, "pitch": 1, "volume": 0}
"""Digits behind the point that are told of each."""
VOICES = ("other", "near", "same")
VOICE_EDGES = (0.45, 0.65)
"""CAM++ similarities below which a voice is another's, and above which it is the same."""
MIN_PAUSE_S = 0.15
MIN_SPEECH_S = 0.2
"""Shorter sound has neither pitch nor voice to speak of."""


@dataclass(frozen=True, eq=False)
class Reading:
    """What was measured of a sound and heard in it."""

    heard: str
    letters_per_s: float
    """Letters heard in a second, pauses not counted; 0 where nothing was heard."""
    pitch_hz: float
    """Median of the voiced frames, 0 where there are none."""
    level_db: float
    embedding: Tensor | None = None
    """CAM++, shape `(192,)`; None where voices are not compared."""


@dataclass(frozen=True)
class SpeechPrompt:
    """What a reading was to be."""

    text: str
    usual: Reading
    """How the voice that was asked for speaks when nothing is asked of it."""
    instructions: str = ""


@dataclass(frozen=True)
class Evidence:
    """A reading against its prompt."""

    heard: str
    num_right: int
    num_words: int
    num_extra: int
    """Words that were heard and not asked for."""
    similarity: float | None
    changes: dict[str, float]
    """Octaves of pace, semitones of pitch and dB of volume against the voice's own; none where it has none."""

    @property
    def words(self) -> str:
        """What became of the words."""
        extra = f" and {self.num_extra} more" if self.num_extra else ""
        return f"{self.num_right} of {self.num_words}{extra}"

    @property
    def voice(self) -> str:
        """Whose voice it is, `unknown` where voices are not compared."""
        if self.similarity is None:
            return "unknown"
        return VOICES[sum(self.similarity >= edge for edge in VOICE_EDGES)]

    def degree(self, feature: str) -> int:
        """Return pace, pitch or volume in degrees from 1 to 5, 3 being the voice's own; 3 where there is none."""
        change, edges = self.changes.get(feature, 0.0), EDGES[feature]
        return USUAL + int(math.copysign(sum(abs(change) >= edge for edge in edges), change))

    def __str__(self) -> str:
        alike = "" if self.similarity is None else f" {self.similarity:.2f}"
        manner = [
            f"{name} {DEGREES[name][self.degree(name) - 1]} {self.changes.get(name, 0.0):+.{digits}f}"
            for name, digits in DIGITS.items()
        ]
        return f'"{self.heard}", words {self.words}, voice {self.voice}{alike}, {", ".join(manner)}'


@dataclass(frozen=True)
class Witness:
    """Listens to readings."""

    recognise: Callable[[Tensor], str]
    """Writes down what a waveform at 24 kHz says; not the judge's own weights, so that it has no mistakes in common."""
    embed: Callable[[Tensor], Tensor] | None = None
    """Turns a waveform at 24 kHz into the embedding of its voice (CAM++)."""

    def hear(self, waveform: Tensor) -> Reading:
        """Measure a sound at 24 kHz, shape `(S,)`."""
        speech = without_edges(waveform)
        if len(speech) < MIN_SPEECH_S * SPEAK_HZ or not bool(speech.any()):
            return Reading("", 0.0, 0.0, level_db(waveform))
        heard = self.recognise(waveform)
        f0 = pitch(speech)
        voiced = f0[f0 > 0]
        return Reading(
            heard=" ".join(heard.split()),
            letters_per_s=sum(map(len, spoken_words(heard) or heard.split())) / speaking_s(speech),
            pitch_hz=float(voiced.median()) if len(voiced) else 0.0,
            level_db=level_db(speech),
            embedding=self.embed(speech) if self.embed else None,
        )


def speaking_s(speech: Tensor) -> float:
    """Return the time without pauses of a waveform at 24 kHz without silent edges."""
    sound = is_sound(speech)
    places = sound.nonzero().flatten()
    gaps = (places.diff() - 1) * LEVEL_WINDOW / SPEAK_HZ
    paused_s = float(gaps[gaps >= MIN_PAUSE_S].sum())
    return max(len(sound) * LEVEL_WINDOW / SPEAK_HZ - paused_s, MIN_SPEECH_S)


def usual_reading(readings: Sequence[Reading]) -> Reading:
    """Say how a voice speaks, from some readings of which nothing was asked: the medians of what was measured.

    Raises:
        ValueError: If there are none.
    """
    if not readings:
        raise ValueError("a voice's usual manner is the median of at least one plain reading: give some")
    embeddings = [reading.embedding for reading in readings if reading.embedding is not None]
    return Reading(
        heard="",
        letters_per_s=median(reading.letters_per_s for reading in readings),
        pitch_hz=median(reading.pitch_hz for reading in readings),
        level_db=median(reading.level_db for reading in readings),
        embedding=torch.stack([e / e.norm() for e in embeddings]).mean(dim=0) if embeddings else None,
    )


def evidence_of(prompt: SpeechPrompt, reading: Reading) -> Evidence:
    """Hold a reading against its prompt."""
    counts = word_errors(*(normalise(text, "en") for text in (prompt.text, reading.heard)))
    usual = prompt.usual
    alike = None
    if reading.embedding is not None and usual.embedding is not None:
        alike = similarity(reading.embedding, usual.embedding)
    changes: dict[str, float] = {"volume": reading.level_db - usual.level_db}
    if reading.letters_per_s > 0 < usual.letters_per_s:
        changes["pace"] = math.log2(reading.letters_per_s / usual.letters_per_s)
    if reading.pitch_hz > 0 < usual.pitch_hz:
        changes["pitch"] = 12 * math.log2(reading.pitch_hz / usual.pitch_hz)
    return Evidence(
        heard=reading.heard,
        num_right=counts.num_units - counts.substitutions - counts.deletions,
        num_words=counts.num_units,
        num_extra=counts.insertions,
        similarity=alike,
        changes=changes,
    )


def speech_case(prompt: SpeechPrompt, first: Evidence, second: Evidence, num_slots: Sequence[int] = ()) -> Case:
    """Put two readings before the judge, as evidence and, where it hears, as sounds of so many embeddings."""
    asked = f'Text: "{prompt.text}"\nAsked: {prompt.instructions or "nothing else."}'
    slots = num_slots or (0, 0)
    return Case("speech", asked, Answer(str(first), slots[0]), Answer(str(second), slots[1]))


def speech_clauses(first: Evidence, second: Evidence, wanted: dict[str, int]) -> dict[str, Clause]:
    """Compare two pieces of evidence aspect by aspect: what a judge should see in them.

    Args:
        first: The first reading.
        second: The second one.
        wanted: The degrees that were asked for; what is not named is to be as usual.
    """
    faults = [t.num_words - t.num_right + t.num_extra for t in (first, second)]
    clauses = {"words": Clause(better(*faults), (first.words, second.words))}
    strangeness = [-VOICES.index(t.voice) if t.voice in VOICES else 0 for t in (first, second)]
    clauses["voice"] = Clause(better(*strangeness), (first.voice, second.voice))
    for name, degrees in DEGREES.items():
        target, found = wanted.get(name, USUAL), (first.degree(name), second.degree(name))
        side = better(*(short_of(degree, target) for degree in found))
        findings = (degrees[found[0] - 1], degrees[found[1] - 1])
        clauses[name] = Clause(side, findings, f"{degrees[target - 1]} asked")
    return clauses


def short_of(degree: int, target: int) -> int:
    """Return how far a degree is from what was asked; to do more of it than asked is no fault, unless it was none."""
    if target == USUAL:
        return abs(degree - USUAL)
    return max(0, (target - degree) if target > USUAL else (degree - target))


def better(first_faults: float, second_faults: float) -> Side:
    """Return the side with fewer faults."""
    if first_faults == second_faults:
        return "alike"
    return "first" if first_faults < second_faults else "second"
