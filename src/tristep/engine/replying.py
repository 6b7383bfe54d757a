"""One response on its way: what its answer brings becomes items and events, and every part that opens is closed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tristep.audio import SPEAK_HZ
from tristep.engine.context import Conversation
from tristep.engine.conversing import Answer, Clause
from tristep.engine.dialogue import (
    ArgumentsDelta,
    ArgumentsDone,
    AudioDelta,
    AudioDone,
    Event,
    Item,
    ItemAdded,
    ItemDone,
    ItemStatus,
    Part,
    PartAdded,
    PartDone,
    PartKind,
    Reason,
    Response,
    ResponseDone,
    ResponseStatus,
    SessionSettings,
    TextDelta,
    TextDone,
    Usage,
)  # fmt: skip
from tristep.modes.realtime.decoding import Call

MS_PER_LETTER = 65.0
"""How long a clause takes that nobody has heard to its end."""
NewId = Callable[[str], str]
"""Makes an id that begins like this."""


def samples_of(duration_ms: float) -> int:
    """Count the samples of an answer in a duration."""
    return round(duration_ms * SPEAK_HZ / 1000)


class Playback:
    """The sound of one answer, and how much of it has been heard."""

    def __init__(self, item_id: str, begun_ms: float) -> None:
        self.item_id = item_id
        self.begun_ms = begun_ms
        """On the session's clock."""
        self.num_sent = 0
        """Samples at 24 kHz."""
        self.clauses: Sequence[Clause] = ()
        self.limit: int | None = None
        """Samples that are remembered as heard; None: all of it."""
        self._acknowledged_ms: float | None = None

    @property
    def sent_ms(self) -> float:
        """How much has been sent."""
        return 1000 * self.num_sent / SPEAK_HZ

    def acknowledge(self, played_ms: float) -> None:
        """Learn from the client how much has been played."""
        self._acknowledged_ms = max(self._acknowledged_ms or 0.0, min(played_ms, self.sent_ms))

    def played_ms(self, now_ms: float) -> float:
        """Return how much has been heard: what was acknowledged, else what the clock allows."""
        if self._acknowledged_ms is not None:
            return self._acknowledged_ms
        return min(self.sent_ms, max(0.0, now_ms - self.begun_ms))

    def text(self, num_samples: int) -> str:
        """Return the words that are over by then; inside a clause words take time by their letters."""
        return "".join(words_until(clause, num_samples) for clause in self.clauses).strip()


def words_until(clause: Clause, num_samples: int) -> str:
    """Return the words of a clause that are over by sample `num_samples`; how long it takes may have to be guessed."""
    end = clause.end if clause.end is not None else clause.start + samples_of(MS_PER_LETTER * len(clause.text))
    if num_samples >= end:
        return clause.text
    if num_samples <= clause.start:
        return ""
    share = (num_samples - clause.start) / (end - clause.start)
    cut = int(share * len(clause.text))
    while cut > 0 and not clause.text[cut].isspace():
        cut -= 1
    return clause.text[:cut]


class Reply:
    """One response: it waits until what it answers has been heard, then its answer fills it."""

    def __init__(
        self,
        response: Response,
        settings: SessionSettings,
        conversation: Conversation,
        new_id: NewId,
        question: str | None,
        answers_silence: bool,
    ) -> None:
        """Prepare a response.

        Args:
            response: As it begins.
            settings: The session's, with the options of the response.
            conversation: Where its items go.
            new_id: Names them.
            question: The item that made the session answer; the response stays empty where nothing was said in it.
            answers_silence: Whether a long silence made it answer.
        """
        self.response, self.settings, self.conversation, self.new_id = response, settings, conversation, new_id
        self.question, self.answers_silence = question, answers_silence
        self.answer: Answer | None = None
        self.playback: Playback | None = None
        self.message_id: str | None = None
        """Id of its message, once there is one."""
        self.num_audio_tokens = 0
        """Of what it answers."""
        self._message: Item | None = None
        self._text = ""
        self._chunks: list[Tensor] = []
        self._calls: list[Call] = []
        self._output: list[Item] = []

    @property
    def kind(self) -> PartKind:
        """What its messages are made of."""
        return self.response.modality

    @property
    def is_inside(self) -> bool:
        """Whether it belongs to the conversation."""
        return self.response.options.in_conversation

    def step(self, now_ms: float) -> Iterator[Event]:
        """Do a short piece of work."""
        assert self.answer is not None
        for piece in self.answer.step():
            if isinstance(piece, Call):
                self._calls.append(piece)
            elif isinstance(piece, str):
                yield from self._say(piece)
            else:
                yield self._sound(piece, now_ms)
        if self.answer.is_done:
            is_cut = self.answer.thought.finish_reason == "length"
            yield from self.end(*(("incomplete", "max_output_tokens") if is_cut else ("completed", None)))

    def end(self, status: ResponseStatus, reason: Reason | None = None, error: str | None = None) -> Iterator[Event]:
        """Close what is open, and say how it ended."""
        yield from self._close_message("completed" if status == "completed" else "incomplete")
        calls = self._calls if self.settings.parallel_tool_calls else self._calls[:1]
        for call in calls if status in ("completed", "incomplete") else ():
            yield from self._call(call)
        self.response = replace(
            self.response, status=status, reason=reason, error=error, output=tuple(self._output), usage=self._usage()
        )
        yield ResponseDone(self.response)

    @property
    def _place(self) -> tuple[str, str, int, int]:
        """Return what says where a delta belongs."""
        assert self._message is not None
        return self.response.id, self._message.id, len(self._output), 0

    def _say(self, text: str) -> Iterator[Event]:
        """Pass text on; white space opens no message."""
        if self._message is None:
            text = text.lstrip()
            if not text:
                return
            self._message = Item(self.new_id("item"), role="assistant", status="in_progress")
            self.message_id = self._message.id
            yield from self._added(self._message)
            yield PartAdded(*self._place, self.kind)
        self._text += text
        yield TextDelta(*self._place, self.kind, text)

    def _sound(self, chunk: Tensor, now_ms: float) -> Event:
        assert self._message is not None
        assert self.answer is not None
        assert self.answer.utterance is not None
        if self.playback is None:
            self.playback = Playback(self._message.id, now_ms)
            self.playback.clauses = self.answer.utterance.clauses
        self.playback.num_sent += len(chunk)
        self._chunks.append(chunk)
        return AudioDelta(*self._place, chunk)

    def _close_message(self, status: ItemStatus) -> Iterator[Event]:
        if self._message is None:
            return
        place, kind = self._place, self.kind
        waveform = torch.cat(self._chunks) if self._chunks else None
        part = Part(kind, self._text, waveform, SPEAK_HZ)
        if kind == "audio":
            yield AudioDone(*place)
        yield TextDone(*place, kind, self._text)
        yield PartDone(*place, part)
        yield from self._done(replace(self._message, status=status, parts=(part,)))
        self._message = None

    def _call(self, call: Call) -> Iterator[Event]:
        item = Item(
            self.new_id("item"), "function_call", "assistant", "in_progress",
            call_id=self.new_id("call"), name=call.name,
        )  # fmt: skip
        yield from self._added(item)
        place = self.response.id, item.id, len(self._output), item.call_id
        yield ArgumentsDelta(*place, call.arguments)
        yield ArgumentsDone(*place, call.name, call.arguments)
        yield from self._done(replace(item, status="completed", arguments=call.arguments))

    def _added(self, item: Item) -> Iterator[Event]:
        before = self.conversation.add(item)
        yield ItemAdded(item, before, self.response.id, len(self._output), self.is_inside)

    def _done(self, item: Item) -> Iterator[Event]:
        self.conversation.change(item)
        before = self.conversation.before(item.id) if item.id in self.conversation else None
        yield ItemDone(item, before, self.response.id, len(self._output), self.is_inside)
        self._output.append(item)

    def _usage(self) -> Usage:
        """Count what was read and written."""
        if self.answer is None:
            return Usage()
        thought, voice = self.answer.thought, self.answer.utterance
        return Usage(
            input_text_tokens=len(thought.prompt.tokens),
            input_audio_tokens=self.num_audio_tokens,
            cached_tokens=thought.num_cached,
            output_text_tokens=len(thought.written),
            output_audio_tokens=voice.num_codes if voice else 0,
        )
