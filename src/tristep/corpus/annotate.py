"""Annotation: what a clip's prosody is in words: one instruction for all of it, and cues inside its text.

The report (section 5.2) asks a language model, given discretised features, transcript and context. Here any endpoint
that speaks OpenAI's chat completions may be asked; without one, rules write both from the features alone, and many
phrases for the same style keep a model from learning one of them by heart. Whoever annotates, the words of the
transcript are not theirs: an annotation whose text without its cues is not the transcript is refused.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError
from rich.progress import track
from torch import Tensor

from tristep.arguments import existing
from tristep.audio import LISTEN_HZ, read_audio
from tristep.corpus.endpoint import ask
from tristep.corpus.prosody import BINS, MIN_DURATION_S, Prosody, measure
from tristep.objectives.alignment import Word
from tristep.text import without_cues

PHRASES: dict[str, tuple[str, ...]] = {
    "slow": (
        "slowly", "at a slow pace", "unhurriedly", "taking your time", "without any hurry", "at a leisurely pace",
        "slower than usual", "in a slow, measured way", "dragging the words a little", "in slow motion, almost",
        "as if there were all the time in the world", "slowly enough to write it down", "at an easy, slow tempo",
        "giving every word its time",
    ),
    "fast": (
        "fast", "quickly", "at a fast pace", "in a hurry", "rapidly", "faster than usual", "at a brisk tempo",
        "as if you were late", "hurriedly", "at high speed", "rushing through it", "with quick, tumbling words",
        "as fast as you can", "at a rapid clip",
    ),
    "low": (
        "in a low voice", "with a low pitch", "deeply", "in a deep voice", "at a low pitch", "lower than usual",
        "pitched down", "in the low part of your range", "with a deep tone", "down in your chest",
        "in a deeper voice than normal", "with your voice lowered in pitch",
    ),
    "high": (
        "in a high voice", "with a high pitch", "at a high pitch", "higher than usual", "pitched up",
        "in a bright, high tone", "in the high part of your range", "with a raised pitch",
        "in a higher voice than normal", "up in your head voice", "with a high-pitched tone",
        "with your pitch lifted",
    ),
    "quiet": (
        "quietly", "softly", "in a soft voice", "at a low volume", "gently and quietly", "not too loud",
        "in a hushed tone", "as if someone were asleep next door", "with little volume",
        "under your breath, but voiced", "in a small voice", "more softly than usual",
    ),
    "loud": (
        "loudly", "in a loud voice", "at full volume", "with a strong voice", "louder than usual",
        "at the top of your voice", "as if across a street", "projecting to the back row", "with a lot of volume",
        "forcefully and loud", "so that everyone can hear", "with your voice raised",
    ),
    "pauses": (
        "with long pauses", "pausing often", "with a long pause between phrases", "leaving long silences",
        "stopping for a moment after every phrase", "with generous pauses", "letting silence fall in between",
        "with dramatic pauses", "hesitating between phrases", "with lots of space between the words",
        "taking a long breath in between", "holding each break for a while",
    ),
    "whisper": (
        "in a whisper", "whispering", "as a whisper", "in a hushed whisper", "without your voice, only breath",
        "as if telling a secret", "whispered into someone's ear", "in a breathy whisper", "all in a whisper",
        "so that only one person can hear, whispering", "in barely a whisper", "whispering throughout",
    ),
    "neutral": (
        "normally", "in your normal voice", "in a neutral tone", "plainly", "naturally", "the way you always do",
        "in an everyday voice", "as usual", "without any special emphasis", "in a calm, ordinary tone", "evenly",
        "in a matter-of-fact way",
    ),
}  # fmt: skip
"""Many ways to ask for each style; each follows a verb of speaking."""
OPENERS = (
    "Speak", "Read this", "Say it", "Talk", "Please speak", "Please read this", "Say this", "Read it", "Deliver this",
    "Please say it", "Read the text", "Say the words",
)  # fmt: skip
CUES: dict[str, tuple[str, ...]] = {
    "slow": ("slowly", "slower", "taking time"),
    "fast": ("quickly", "faster", "hurried"),
    "low": ("low voice", "deeper", "in a low pitch"),
    "high": ("high voice", "higher", "in a high pitch"),
    "quiet": ("quietly", "softly", "quieter"),
    "loud": ("loudly", "louder", "raising the voice"),
    "whisper": ("whispering", "in a whisper", "whispers"),
    "neutral": ("normally", "normal voice", "as before"),
    "pause": ("pause", "short pause", "a pause"),
    "long pause": ("long pause", "a long silence", "pauses for a while"),
}
"""Short forms that stand in round brackets inside a text; a style lasts until the next one."""
MAX_INSTRUCTION = 200
"""Characters that an instruction has at most, as in the report's API (section 7.5)."""
PAUSE_S, LONG_PAUSE_S, PHRASE_GAP_S = 0.5, 1.0, 0.25
MIN_PHRASE_WORDS = 3
"""Shorter phrases are not measured: one word's vowel decides its pitch and rate."""
THRESHOLDS = {"letters_per_s": 0.4, "pitch_hz": 0.25, "level_db": 5.0}
"""Differences to the whole clip that earn a phrase a cue: octaves of rate and pitch, dB of level."""
MAX_HISTORY = 4
"""Turns of dialogue that are given as context."""
PROMPT = (
    "You label recorded speech for a text-to-speech model. You get a transcript, its context, and measured prosody: "
    "features in words, compared with the same speaker's other recordings. Answer with a JSON object: `instruction`, "
    f"one sentence of at most {MAX_INSTRUCTION} characters that tells a voice actor how to say the whole of it, "
    "without quoting it; and `text`, the transcript with zero to three short directives in round brackets, such as "
    "(softly) or (long pause), placed before the words they apply to. Copy every word and every sign of the "
    "transcript; add nothing but the directives."
)


@dataclass(frozen=True)
class Annotation:
    """How a clip is said, in words."""

    instruction: str
    """For the whole clip."""
    text: str
    """The transcript, with cues in round brackets."""


class _Answer(BaseModel):
    instruction: str
    text: str


def instruction(styles: Sequence[str], rng: np.random.Generator) -> str:
    """Write an instruction for some styles, one of very many ways; none is neutral.

    Raises:
        ValueError: If a style is not one of `PHRASES`.
    """
    if unknown := [style for style in styles if style not in PHRASES]:
        raise ValueError(f"no phrases for the style {unknown[0]!r}: expected some of {', '.join(PHRASES)}")
    phrases = [str(rng.choice(PHRASES[style])) for style in (styles or ["neutral"])]
    spoken = ", ".join(phrases[:-1]) + " and " + phrases[-1] if len(phrases) > 1 else phrases[0]
    if rng.random() < 0.25:
        return spoken[0].upper() + spoken[1:] + "."
    return f"{rng.choice(OPENERS)} {spoken}."


def cue(style: str, rng: np.random.Generator) -> str:
    """Write a cue for a style, without its brackets."""
    return str(rng.choice(CUES[style]))


def styles(bins: Mapping[str, str]) -> list[str]:
    """Choose the styles that a clip's bins stand for, at most two: the extreme bins first."""
    table = {
        "letters_per_s": ("slow", "fast"),
        "pitch_hz": ("low", "high"),
        "level_db": ("quiet", "loud"),
        "longest_pause_s": (None, "pauses"),
    }
    found = []
    for feature, (least, most) in table.items():
        rank = _rank(feature, bins)
        style = least if rank < 0 else most
        if rank and style:
            found.append((-abs(rank), style))
    return [style for _, style in sorted(found, key=lambda pair: pair[0])[:2]]


def _rank(feature: str, bins: Mapping[str, str]) -> int:
    """Place a bin: -2 and -1 below the middle, 0 in it or unknown, 1 and 2 above."""
    return BINS[feature].index(bins[feature]) - 2 if feature in bins else 0


def checked(annotation: Annotation, transcript: str) -> Annotation:
    """Return an annotation whose words are the transcript's.

    Raises:
        ValueError: If its text without cues is not the transcript, or its instruction is empty or too long.
    """
    if without_cues(annotation.text).split() != without_cues(transcript).split():
        raise ValueError(
            f"an annotation may only add cues: {without_cues(annotation.text)!r} is not the transcript {transcript!r}"
        )
    if not 0 < len(annotation.instruction.strip()) <= MAX_INSTRUCTION:
        raise ValueError(f"an instruction of {len(annotation.instruction)} characters: expected 1 to {MAX_INSTRUCTION}")
    return replace(annotation, instruction=annotation.instruction.strip())


def by_rules(row: Mapping[str, Any], rng: np.random.Generator, waveform: Tensor | None = None) -> Annotation:
    """Annotate a measured clip without asking anybody.

    Args:
        row: Its manifest row, with `prosody_bins`; for cues also with the text's `words` (text, start_s, end_s).
        rng: Draws the phrases.
        waveform: The clip at `LISTEN_HZ`, shape `(S,)`; without it the text gets no cues.
    """
    words = [Word(**word) for word in row.get("words", ())]
    text = row["text"]
    if waveform is not None and " ".join(word.text for word in words) == " ".join(text.split()):
        text = with_cues(words, waveform, rng)
    return checked(Annotation(instruction(styles(row["prosody_bins"]), rng), text), row["text"])


def with_cues(words: Sequence[Word], waveform: Tensor, rng: np.random.Generator) -> str:
    """Write words with cues for long pauses, and for phrases unlike the rest of their clip.

    Args:
        words: What is said, and when.
        waveform: The clip at `LISTEN_HZ`, shape `(S,)`.
        rng: Draws the cues' wording.
    """
    whole = measure(waveform, LISTEN_HZ, " ".join(word.text for word in words))
    pieces, last_end_s, current = [], None, "neutral"
    for phrase in phrases(words):
        gap_s = phrase[0].start_s - last_end_s if last_end_s is not None else 0.0
        if gap_s >= PAUSE_S:
            pieces.append(f"({cue('long pause' if gap_s >= LONG_PAUSE_S else 'pause', rng)})")
        style = _style_of(phrase, waveform, whole)
        if style != current:
            pieces.append(f"({cue(style, rng)})")
            current = style
        pieces += [word.text for word in phrase]
        last_end_s = phrase[-1].end_s
    return " ".join(pieces)


def phrases(words: Sequence[Word]) -> list[list[Word]]:
    """Part words after punctuation and at gaps."""
    parts: list[list[Word]] = []
    for word in words:
        last = parts[-1][-1] if parts else None
        if last is None or last.text[-1] in ",.;:!?-" or word.start_s - last.end_s >= PHRASE_GAP_S:
            parts.append([])
        parts[-1].append(word)
    return parts


def _style_of(phrase: Sequence[Word], waveform: Tensor, whole: Prosody) -> str:
    """Name the style in which a phrase differs most from its clip."""
    start, end = round(phrase[0].start_s * LISTEN_HZ), round(phrase[-1].end_s * LISTEN_HZ)
    sound = waveform[start:end]
    if len(phrase) < MIN_PHRASE_WORDS or len(sound) < MIN_DURATION_S * LISTEN_HZ or not bool(sound.any()):
        return "neutral"
    own = measure(sound, LISTEN_HZ, " ".join(word.text for word in phrase))
    excess = {
        ("slow", "fast"): np.log2(own.letters_per_s / whole.letters_per_s) / THRESHOLDS["letters_per_s"],
        ("low", "high"): np.log2(own.pitch_hz / whole.pitch_hz) / THRESHOLDS["pitch_hz"],
        ("quiet", "loud"): (own.level_db - whole.level_db) / THRESHOLDS["level_db"],
    }
    pair = max(excess, key=lambda styles: abs(np.nan_to_num(excess[styles])))
    if not abs(excess[pair]) >= 1:
        return "neutral"
    return pair[0] if excess[pair] < 0 else pair[1]


def by_model(row: Mapping[str, Any], client: Any, model: str) -> Annotation:
    """Ask a chat model to annotate a measured clip.

    Args:
        row: Its manifest row, with `prosody_bins`, and `context` where there is one.
        client: An `openai.OpenAI` client of any endpoint that speaks chat completions.
        model: The model's name at that endpoint.

    Raises:
        ValueError: If the answer is not what was asked for, or changes the transcript.
    """
    asked = {"transcript": row["text"], "context": row.get("context", ""), "prosody": row["prosody_bins"]}
    try:
        answer = _Answer.model_validate_json(ask(client, model, PROMPT, asked))
    except ValidationError as error:
        raise ValueError(f"{model} did not answer with an instruction and a text: {error}") from error
    return checked(Annotation(answer.instruction, answer.text), row["text"])


def with_history(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give each turn of a conversation the turns before it as its context."""
    turns = {(row["conversation"], row["turn"]): row for row in rows if "conversation" in row}
    described = []
    for row in rows:
        place = (row.get("conversation"), row.get("turn", 0))
        before = [turns.get((place[0], place[1] - back)) for back in range(MAX_HISTORY, 0, -1)]
        history = "\n".join(f"{turn['role']}: {turn['text']}" for turn in before if turn)
        described.append({**row, "context": history} if history else row)
    return described


def annotate(
    rows: Iterable[dict[str, Any]], folder: Path, seed: int, client: Any = None, model: str = ""
) -> Iterator[dict[str, Any]]:
    """Yield rows with `instruction`, `cued_text` and `annotated_by`; the rules do what the model is refused for."""
    for index, row in enumerate(rows):
        by = model
        try:
            annotation = by_model(row, client, model) if client else None
        except ValueError:
            annotation = None
        if annotation is None:
            waveform = read_audio(folder / row["audio"], LISTEN_HZ) if row.get("words") else None
            annotation, by = by_rules(row, np.random.default_rng([seed, index]), waveform), "rules"
        yield {**row, "instruction": annotation.instruction, "cued_text": annotation.text, "annotated_by": by}


def main() -> None:
    """Annotate a manifest that `tristep.corpus.prosody` measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=existing)
    parser.add_argument("--out", type=Path, required=True, help="manifest.jsonl with `instruction` and `cued_text`")
    parser.add_argument(
        "--endpoint", help="base URL of a chat endpoint, its key in OPENAI_API_KEY; without one, by rules"
    )
    parser.add_argument("--model", default="", help="the model's name at the endpoint")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    client = None
    if options.endpoint:
        from openai import OpenAI

        client = OpenAI(base_url=options.endpoint)
    rows = with_history([json.loads(line) for line in options.manifest.read_text(encoding="utf-8").splitlines()])
    folder = options.manifest.parent.resolve()
    annotated = annotate(track(rows, description="annotating"), folder, options.seed, client, options.model)
    with options.out.open("w", encoding="utf-8") as out:
        for row in annotated:
            out.write(json.dumps({**row, "audio": str(folder / row["audio"])}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
