"""Streaming: sound comes in as it is spoken; text comes out in two parts, what is settled and what may still change.

The speech since the last cut is transcribed again about once a second. Words that two guesses in a row agree on are
committed (local agreement, Macháček et al. 2023): they are what every later pass over the same speech begins with, so
they are never rewritten. When the segment ends, its last pass commits the rest. Segments are shorter than offline, so
that a second of sound costs the same after an hour as at the beginning: at most one pass over `MAX_SEGMENT_S`.

With `commit="segment"` nothing is committed before a segment ends, and its text is the offline text of that segment.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from tristep.audio import LISTEN_HZ
from tristep.engine.listening import chunks
from tristep.engine.sampling import Completion
from tristep.engine.segments import Segmenter, Stretch
from tristep.engine.settings import Settings
from tristep.engine.transcription import UNSPACED, Segment, Transcription, joined

if TYPE_CHECKING:
    from tristep.engine.engine import Engine

Commit = Literal["agreement", "segment"]

MAX_SEGMENT_S = 12.0
"""Longest segment: what one guess costs at most."""
MAX_PAUSE_S = 1.2
"""A longer pause ends a segment."""
TICK_S = 0.25
"""Sound is dealt with in pieces of this length, however it arrives."""


@dataclass(frozen=True)
class StreamEvent:
    """What has become known; all committed texts, one after the other, are the transcript."""

    kind: Literal["committed", "provisional"]
    text: str
    """Committed: what is added, with the space before it. Provisional: all that follows what is committed, for now."""
    end_s: float
    """How much sound had been heard."""
    segment: Segment | None = None
    """The segment that this text completes."""


class TranscriptionStream:
    """One sound that is transcribed while it goes on."""

    def __init__(
        self, engine: Engine, settings: Settings, commit: Commit = "agreement", interval_s: float = 1.0
    ) -> None:
        """Begin to listen.

        Args:
            engine: Transcribes.
            settings: How; with `itn`, text is committed segment by segment.
            commit: When text is settled: as soon as two guesses `agree`, or at the end of its `segment`.
            interval_s: Sound between two guesses.

        Raises:
            ValueError: If the settings don't go together.
        """
        check_stream(settings, commit, interval_s)
        self.engine, self.settings, self.commit = engine, settings, commit
        # When a word is said has to be known to commit it.
        self._guess_settings = replace(settings, words=settings.words or commit == "agreement")
        self._hotwords = engine.read_hotwords(self._guess_settings)
        self._segmenter = Segmenter(MAX_SEGMENT_S, MAX_PAUSE_S)
        self._interval = round(interval_s * LISTEN_HZ)
        self._rest = torch.zeros(0)
        self._next_guess = self._interval
        self._begun, self._last_guess = Completion(0), Completion(0)
        self._segments: list[Segment] = []
        self._shown = 0  # characters of the open segment that are committed
        self._ahead: tuple[Stretch, Completion, Segment] | None = None  # speech, what was begun of it, what was said
        self._provisional = ""
        self._is_finished = False
        self.text = ""
        """What is committed."""

    def push(self, chunk: Tensor) -> list[StreamEvent]:
        """Take the next samples at 16 kHz, shape `(S,)`, and return what has become known."""
        if self._is_finished:
            raise ValueError("this stream is finished: begin another one for more sound")
        heard = torch.cat([self._rest, *chunks(chunk)])
        tick = round(TICK_S * LISTEN_HZ)
        whole = len(heard) // tick * tick
        self._rest = heard[whole:]
        return [event for piece in torch.split(heard[:whole], tick) for event in self._tick(piece)]

    def finish(self) -> list[StreamEvent]:
        """Say that the sound is over, and return the rest of what was said."""
        self._is_finished = True
        last = [*self._segmenter.push(self._rest), *self._segmenter.flush()]
        self._rest = torch.zeros(0)
        return [event for speech in last for event in self._close(speech)]

    def anticipate(self) -> list[StreamEvent]:
        """Transcribe the open segment as if the sound were over; where it is, `finish` has nothing left to do."""
        closed = [event for speech in self._segmenter.push(self._rest) for event in self._close(speech)]
        self._rest = torch.zeros(0)
        if (speech := self._segmenter.unfinished) is not None:
            self._ahead = speech, self._begun, self._last_pass(speech)
        return closed

    @property
    def anticipated(self) -> str:
        """What `finish` would commit beyond `text`, where that was anticipated for the open segment as it is."""
        if self._ahead is None:
            return ""
        segment = self._ahead[2]
        return self._added(segment.text, segment.language)

    @property
    def transcription(self) -> Transcription:
        """All that is committed, as an offline transcription of the finished segments."""
        duration_s = self._segmenter.num_samples / LISTEN_HZ
        return replace(joined(self._segments, duration_s, 1 - self._segmenter.max_prob), text=self.text)

    def _tick(self, piece: Tensor) -> Iterator[StreamEvent]:
        """Take a short piece of sound: close the segments that it ends, and guess where it is time to."""
        for speech in self._segmenter.push(piece):
            yield from self._close(speech)
        if self._segmenter.num_samples >= self._next_guess:
            self._next_guess = self._segmenter.num_samples + self._interval
            if (unfinished := self._segmenter.unfinished) is not None:
                yield from self._guess(unfinished)

    def _guess(self, speech: Stretch) -> Iterator[StreamEvent]:
        """Transcribe the speech so far: commit what agrees with the guess before, and show the rest."""
        ((segment, guess),) = self.engine.transcribe_stretches(
            [speech], self._guess_settings, self._hotwords, [self._begun]
        )
        if self.commit == "agreement" and guess.finish_reason == "stop":
            yield from self._settle(segment, guess)
        self._last_guess = guess
        yield from self._tail(segment.text[self._shown :])

    def _settle(self, segment: Segment, guess: Completion) -> Iterator[StreamEvent]:
        """Commit the words that the guess before has too; no cut may come before their end."""
        num = self._agreed(guess)
        if num > len(self._begun.tokens):
            self._begun = Completion(0, guess.tokens[:num], guess.probs[:num])
            text = self.engine.chat.tokenizer.decode(guess.tokens[1:num]).strip()
            said = (segment.words or ())[: len(text.split())]
            self._segmenter.settled_s = said[-1].end_s if said else 0.0
            yield from self._committed(text, segment.language)

    def _agreed(self, guess: Completion) -> int:
        """Count the tokens of a guess that the guess before also has, up to the end of a word."""
        pairs = zip(guess.tokens, self._last_guess.tokens, strict=False)
        num = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        words_end = (place for place in range(num, 1, -1) if self._begins_word(guess.tokens[place : place + 1]))
        return next(words_end, 0)

    def _begins_word(self, tokens: Sequence[int]) -> bool:
        """Say whether a token begins with a space; where no token follows, the last word may still go on."""
        return self.engine.chat.tokenizer.decode(tokens).startswith(" ")

    def _close(self, speech: Stretch) -> Iterator[StreamEvent]:
        """Transcribe a segment for the last time, and commit the rest of it."""
        segment = self._last_pass(speech)
        self._segments.append(segment)
        yield from self._committed(segment.text, segment.language, segment)
        self._begun, self._last_guess, self._shown, self._ahead = Completion(0), Completion(0), 0, None
        self._segmenter.settled_s = 0.0
        yield from self._tail("")

    def _last_pass(self, speech: Stretch) -> Segment:
        """Transcribe a segment for the last time, unless that has been anticipated."""
        if self._ahead is not None:
            heard, begun, segment = self._ahead
            same_sound = heard.start_s == speech.start_s and torch.equal(heard.waveform, speech.waveform)
            if same_sound and begun.tokens == self._begun.tokens:
                return segment
        ((segment, _),) = self.engine.transcribe_stretches([speech], self.settings, self._hotwords, [self._begun])
        return segment

    def _committed(self, text: str, language: str | None, segment: Segment | None = None) -> Iterator[StreamEvent]:
        """Commit the text of the open segment up to its end `text`."""
        added = self._added(text, language)
        self._shown = len(text)
        self.text += added
        if added or segment:
            yield StreamEvent("committed", added, self._segmenter.num_samples / LISTEN_HZ, segment)

    def _added(self, text: str, language: str | None) -> str:
        """Return what the open segment's text adds to what is committed, with the space before it."""
        added = text[self._shown :]
        is_next_segment = added and self.text and not self._shown
        return " " + added if is_next_segment and language not in UNSPACED else added

    def _tail(self, text: str) -> Iterator[StreamEvent]:
        """Show what may still change, where it has changed."""
        if text != self._provisional:
            self._provisional = text
            yield StreamEvent("provisional", text, self._segmenter.num_samples / LISTEN_HZ)


def check_stream(settings: Settings, commit: str, interval_s: float) -> None:
    """Refuse what a stream can't do."""
    if commit not in ("agreement", "segment"):
        raise ValueError(f"there is no commit {commit!r}: give agreement or segment")
    if settings.itn and commit == "agreement":
        raise ValueError("itn rewrites numbers once they are complete, agreement commits words: give commit='segment'")
    if interval_s < TICK_S:
        raise ValueError(f"interval_s is {interval_s}: expected at least {TICK_S}")
