"""Captions: a transcript as SubRip (.srt) or WebVTT (.vtt), in lines that can be read in time.

A caption has at most two lines of 42 characters and stays for at most six seconds (the numbers of broadcasters' style
guides). It ends where the next word does not fit, after a long pause, and at the end of a segment, and never overlaps
the next one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from textwrap import wrap

from tristep.engine.transcription import Transcription
from tristep.engine.words import Word, spread

MAX_LINE = 42
"""Characters in a line."""
MAX_LINES = 2
MAX_CUE_S = 6.0
MIN_CUE_S = 1.0
"""A caption stays this long where the next one leaves it the time."""
PAUSE_S = 1.0
"""A pause that ends a caption."""


@dataclass(frozen=True)
class Cue:
    """One caption."""

    start_ms: int
    end_ms: int
    lines: tuple[str, ...]


def srt(transcription: Transcription) -> str:
    """Write a transcript as SubRip."""
    blocks = (
        f"{number}\n{clock(cue.start_ms, ',')} --> {clock(cue.end_ms, ',')}\n" + "\n".join(cue.lines) + "\n"
        for number, cue in enumerate(cues(transcription), start=1)
    )
    return "\n".join(blocks)


def vtt(transcription: Transcription) -> str:
    """Write a transcript as WebVTT."""
    blocks = (
        f"{clock(cue.start_ms, '.')} --> {clock(cue.end_ms, '.')}\n"
        + "\n".join(escape(line, quote=False) for line in cue.lines)
        + "\n"
        for cue in cues(transcription)
    )
    return "\n".join(["WEBVTT\n", *blocks])


def cues(transcription: Transcription) -> list[Cue]:
    """Cut a transcript into captions.

    Raises:
        ValueError: If a segment has text and no words.
    """
    groups: list[list[Word]] = []
    for segment in transcription.segments:
        if segment.text and not segment.words:
            raise ValueError("captions are cut at words, and this transcript has none: transcribe with words=True")
        groups += grouped(piece for word in segment.words or () for piece in short_pieces(word))
    return list(_timed(groups))


def grouped(words: Iterable[Word]) -> Iterator[list[Word]]:
    """Gather words into captions that can be read."""
    group: list[Word] = []
    for word in words:
        if group and not belongs(word, group):
            yield group
            group = []
        group.append(word)
    if group:
        yield group


def belongs(word: Word, group: Sequence[Word]) -> bool:
    """Say whether a word still fits into a caption."""
    in_time = word.start_s - group[-1].end_s < PAUSE_S and word.end_s - group[0].start_s <= MAX_CUE_S
    return in_time and len(lines([*group, word])) <= MAX_LINES


def lines(words: Sequence[Word]) -> list[str]:
    """Break words into lines."""
    return wrap(" ".join(word.text for word in words), MAX_LINE, break_long_words=False, break_on_hyphens=False)


def short_pieces(word: Word) -> list[Word]:
    """Cut a word that is longer than a line, as a sentence without spaces is, into pieces that are not."""
    texts = [word.text[start : start + MAX_LINE] for start in range(0, len(word.text), MAX_LINE)]
    return spread(texts, word.start_s, word.end_s, word.confidence)


def _timed(groups: Sequence[Sequence[Word]]) -> Iterator[Cue]:
    """Say from when to when each caption is shown."""
    free_ms = 0
    starts_ms = [round(1000 * group[0].start_s) for group in groups]
    for group, start_ms, next_ms in zip(groups, starts_ms, [*starts_ms, None][1:], strict=True):
        start_ms = max(start_ms, free_ms)
        end_ms = min(round(1000 * group[-1].end_s), start_ms + round(1000 * MAX_CUE_S))
        longer_ms = start_ms + round(1000 * MIN_CUE_S)
        end_ms = max(end_ms, longer_ms if next_ms is None else min(longer_ms, next_ms), start_ms + 1)
        yield Cue(start_ms, end_ms, tuple(lines(group)))
        free_ms = end_ms


def clock(ms: int, point: str) -> str:
    """Write a time as hours, minutes, seconds and thousandths."""
    seconds, ms = divmod(ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{point}{ms:03}"
