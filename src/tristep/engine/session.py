"""A spoken conversation as a state machine: sound, commands and steps in, events out.

It has no threads, no clock and no I/O. Whoever runs it appends sound as it arrives, passes on what the client asks,
and calls `step` while `has_work`: each step is one short piece of model work. The only clock is the user's sound.
Settings, items and events are in `dialogue.py`.

    session = Session(engine, SessionSettings(instructions="a patient tutor"))
    for event in session.append(waveform): ...
    while session.has_work:
        for event in session.step(): ...

The user is heard while they speak, and the conversation before that is read; a pause lets the turn be heard to its end
and read too, as if it were over, so that its end leaves little to do. Whoever speaks into an answer lowers it at once,
and stops it if it was speech: then only what was played of it is remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tristep.audio import LISTEN_HZ, SPEAK_HZ
from tristep.engine.context import ROOT, Conversation, Names, Shown, head_turns, show, sound_s
from tristep.engine.conversing import Answer, Memory, Prompt, Thought, Utterance
from tristep.engine.dialogue import (
    Cleared,
    Committed,
    ContextTrimmed,
    Ducked,
    Event,
    IdleTimeout,
    Item,
    ItemAdded,
    ItemDeleted,
    ItemDone,
    ItemRetrieved,
    Part,
    Reason,
    Response,
    ResponseCreated,
    ResponseOptions,
    ResponseStatus,
    ServerVad,
    SessionError,
    SessionSettings,
    SpeechStarted,
    SpeechStopped,
    TranscriptCompleted,
    TranscriptDelta,
    TranscriptFailed,
    Truncated,
)  # fmt: skip
from tristep.engine.replying import Playback, Reply, samples_of
from tristep.engine.session_settings import callable_tools, check_settings, with_options
from tristep.engine.talking import sentence_seed
from tristep.engine.turns import Change, Detector, EndOfTurn, TurnDetector
from tristep.engine.user_turns import OpenTurn, UserTurns, milliseconds
from tristep.engine.voice_activity import VoiceActivity
from tristep.modes.realtime.decoding import forced_opening

if TYPE_CHECKING:
    from tristep.engine.engine import Engine

CONTEXT_TOKENS = 2048
"""Of persona, conversation and answer together, where the backbone reads so many."""
ANSWER_TOKENS = 256
"""The longest answer where nobody settles that."""
OVERSHOOT_MS = 500.0
"""How far beyond its end an answer may be truncated: clients count a little differently."""
PREFIX_MS = 300
"""Sound kept from before the speech, where nobody settles that."""
AUDIO_TOKENS_HZ = 12.5
"""Tokens that a second of the user's sound counts as."""


class Session:
    """One conversation. Every command returns its events in order; `SessionError` means that nothing has changed."""

    def __init__(
        self,
        engine: Engine,
        settings: SessionSettings | None = None,
        *,
        detector: Detector | None = None,
        end_of_turn: EndOfTurn | None = None,
        name: str = "",
        context_tokens: int = CONTEXT_TOKENS,
    ) -> None:
        """Begin a conversation.

        Args:
            engine: Hears, thinks and speaks.
            settings: How; the defaults if not given.
            detector: Finds voices in the sound; Silero's if not given.
            end_of_turn: Judges for `SemanticVad` whether a turn sounds finished; the engine's if not given.
            name: Goes into the ids of items and responses, to tell sessions apart.
            context_tokens: The most tokens of persona, conversation and answer together.

        Raises:
            SessionError: If the settings can't be met, for example sound by weights that can't speak.
        """
        self.engine, self.name = engine, name
        self.context_tokens = min(context_tokens, engine.backbone.config.decoder.max_positions)
        self.settings = settings or SessionSettings()
        """What is in force."""
        check_settings(self.settings, engine, self.context_tokens)
        turns = TurnDetector(detector or VoiceActivity(), end_of_turn or engine.end_of_turn)
        self._conversation = Conversation()
        self._new_id = Names(self._conversation, name)
        self._user = UserTurns(engine, turns, self._new_id)
        self._replies: list[Reply] = []
        self._playbacks: dict[str, Playback] = {}
        self._playing: Playback | None = None  # the answer that was given last
        self._is_ducked = False
        self._forgotten: set[str] = set()  # items that no longer fit
        self._memory: Memory | None = None
        self._ahead: list[int] | None = None  # what is read while the user speaks
        self._has_answered_last = False
        self._quiet_since: int | None = None  # where the last answer has been heard; None where no timeout runs

    # What there is

    @property
    def items(self) -> tuple[Item, ...]:
        """The conversation so far, in order."""
        return self._conversation.items

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        return any(is_due for is_due, _ in self._works())

    @property
    def is_responding(self) -> bool:
        """Whether a response of the conversation is being given."""
        return self._reply is not None

    @property
    def now_ms(self) -> float:
        """The session's clock: how much sound of the user there has been."""
        return 1000 * self._user.position / LISTEN_HZ

    @property
    def _turn(self) -> OpenTurn | None:
        """The user's turn that is open."""
        return self._user.turn

    @property
    def _reply(self) -> Reply | None:
        """The conversation's response that is being given."""
        return next((reply for reply in self._replies if reply.is_inside), None)

    # Work

    def step(self) -> list[Event]:
        """Do one bounded piece of work: hear a stretch, think a few words, or speak a little."""
        for is_due, work in self._works():
            if is_due:
                return list(work())
        return []

    def _works(self) -> list[tuple[bool, Callable[[], Iterable[Event]]]]:
        """List what may be due, the most urgent first; who speaks into an answer is heard beside it."""
        answering = self._next_reply() is not None, self._answer
        hearing = self._turn is not None and self._turn.ear.has_work, self._hear_on
        both = [hearing, answering] if self._has_answered_last else [answering, hearing]
        return [(bool(self._user.unheard), self._hear_out), *both, (self._ahead is not None, self._read_ahead)]

    def _next_reply(self) -> Reply | None:
        """Return the response whose turn it is; the conversation's waits while somebody may be speaking into it."""
        return next((reply for reply in self._replies if not (self._is_ducked and reply.is_inside)), None)

    # Hearing

    def _hear_out(self) -> Iterator[Event]:
        """Hear the oldest turn that is over."""
        turn = self._user.unheard[0]
        try:
            yield from self._hear(turn)
        except ValueError as error:
            self._user.unheard.popleft()
            self._know(turn, "")
            if turn.is_told:
                yield TranscriptFailed(turn.item_id, str(error))
            return
        if turn.ear.is_finished:
            self._user.unheard.popleft()
            said = turn.ear.stream.transcription
            self._know(turn, said.text)
            if turn.is_told:
                yield TranscriptCompleted(turn.item_id, said.text, said.language, said.duration_s)

    def _hear_on(self) -> Iterator[Event]:
        """Hear the turn that is being spoken, and prepare to read what is known of it."""
        assert self._turn is not None
        self._has_answered_last = False
        known = self._turn.ear.text
        yield from self._hear(self._turn)
        if self._turn.ear.text != known:
            self._prepare(self._turn.ear.text)

    def _hear(self, turn: OpenTurn) -> Iterator[Event]:
        """Hear a stretch of a turn."""
        for event in turn.ear.step():
            if event.kind == "committed" and event.text and turn.is_told:
                yield TranscriptDelta(turn.item_id, event.text)

    def _know(self, turn: OpenTurn, text: str) -> None:
        """Remember what was said in a turn."""
        if turn.item_id in self._conversation:
            item = self._conversation[turn.item_id]
            parts = tuple(replace(part, text=text) if part.text is None else part for part in item.parts)
            self._conversation.change(replace(item, parts=parts))

    def _prepare(self, heard: str = "") -> None:
        """Plan to read the conversation while the user speaks, and what they have said if that may be all."""
        detection = self.settings.turn_detection
        will_answer = self._memory is not None or (detection is not None and detection.create_response)
        if self._reply is None and will_answer:
            said = [Item("heard", parts=(Part("audio", heard),))] if heard.strip() else []
            try:
                self._ahead = self._show(self.settings, [*self.items, *said]).tokens
            except SessionError:
                self._ahead = None  # the response itself will say so

    def _read_ahead(self) -> Iterator[Event]:
        assert self._ahead is not None
        if self._own_memory().read(self._ahead):
            self._ahead = None
        yield from ()

    def _own_memory(self) -> Memory:
        """Return what has been read of the conversation."""
        if self._memory is None:
            self._memory = Memory(self.engine.thinker)
        return self._memory

    # Answering

    def _answer(self) -> Iterator[Event]:
        """Go on with a response; several take turns."""
        reply = self._next_reply()
        assert reply is not None
        self._has_answered_last = True
        self._replies.remove(reply)
        self._replies.append(reply)
        try:
            yield from self._begin(reply) if reply.answer is None else reply.step(self.now_ms)
        except ValueError as error:
            yield from self._end(reply, "failed", error=str(error))
        if reply.is_inside and reply.playback:
            self._playing = self._playbacks[reply.playback.item_id] = reply.playback
        if reply.response.status == "completed" or reply.response.status == "incomplete":
            self._leave(reply)

    def _begin(self, reply: Reply) -> Iterator[Event]:
        """Show the model what it answers, now that all of that has been heard."""
        if reply.question and reply.question in self._conversation and not self._said(reply.question):
            yield from reply.end("completed")
            return
        settings = reply.settings
        items = self._asked(reply.response.options)
        shown = self._show(settings, items)
        if shown.dropped:
            if reply.is_inside:
                self._forgotten.update(shown.dropped)
            yield ContextTrimmed(reply.response.id, shown.dropped)
        reply.num_audio_tokens = round(AUDIO_TOKENS_HZ * sum(sound_s(item) for item in items if item.role == "user"))
        names = tuple(tool.name for tool in callable_tools(settings))
        opening = forced_opening(settings.tool_choice, names)
        seed = sentence_seed(settings.seed, self._new_id.number())
        prompt = Prompt(shown.tokens, self._budget(settings), opening, names, settings.temperature, seed)
        memory = self._own_memory() if reply.is_inside else Memory(self.engine.thinker)
        self._ahead = None
        voice = None
        if settings.modality == "audio":
            voice = Utterance(self.engine.talker, settings.voice, settings.speech_instructions, seed, settings.speed)
        reply.answer = Answer(Thought(memory, prompt), voice)

    def _said(self, item_id: str) -> str:
        """Return what was said in an item."""
        return self._conversation[item_id].text.strip()

    def _asked(self, options: ResponseOptions) -> list[Item]:
        """Return the items that a response answers."""
        if options.input is None:
            return list(self.items)
        return [self._found(item, "item_not_found") if isinstance(item, str) else item for item in options.input]

    def _show(self, settings: SessionSettings, items: Iterable[Item]) -> Shown:
        """Write out what the model is shown: of answers what was heard of them, and of all what still fits."""
        shown = [self._remembered(item) for item in items if item.id not in self._forgotten]
        room = self.context_tokens - self._budget(settings)
        head = head_turns(settings.instructions, callable_tools(settings))
        return show(self.engine.chat, head, shown, room, settings.retention, settings.most_tokens)

    def _remembered(self, item: Item) -> Item:
        """Return an item with the words of it that were heard."""
        playback = self._playbacks.get(item.id)
        if playback is None or playback.limit is None:
            return item
        return replace(item, parts=(Part("audio", playback.text(playback.limit)),))

    def _budget(self, settings: SessionSettings) -> int:
        """Return the most tokens of an answer."""
        return min(settings.max_output_tokens or ANSWER_TOKENS, self.context_tokens // 2)

    def _end(
        self, reply: Reply, status: ResponseStatus, reason: Reason | None = None, error: str | None = None
    ) -> Iterator[Event]:
        """Stop a response; what was not sounded of it was not heard."""
        yield from reply.end(status, reason, error)
        if reply.is_inside and reply.message_id and reply.response.modality == "audio":
            unheard = Playback(reply.message_id, self.now_ms)
            playback = self._playbacks.setdefault(reply.message_id, reply.playback or unheard)
            playback.limit = playback.num_sent if playback.limit is None else playback.limit
        self._leave(reply)

    def _leave(self, reply: Reply) -> None:
        """Forget a response that is over, and wait for the user once it has been heard."""
        self._replies.remove(reply)
        if reply.is_inside and not reply.answers_silence:
            playing_ms = self._playing.begun_ms + self._playing.sent_ms if self._playing else 0.0
            self._quiet_since = max(self._user.position, round(playing_ms * LISTEN_HZ / 1000))

    # Sound of the user

    def append(self, waveform: Tensor, sample_rate: int = SPEAK_HZ) -> list[Event]:
        """Take the next sound of the user, shape `(S,)` at 16 or 24 kHz, and find turns in it: no model thinks here.

        Raises:
            SessionError: `invalid_value` for what is no sound, or is of another rate than before; `audio_too_long`
                where nothing ends turns but the client, and this one has been open for `MAX_TURN_S`, or where so much
                waits to be heard.
        """
        frames = self._user.push(waveform, sample_rate, self.settings.turn_detection)
        return [event for frame in frames for event in self._frame(frame)]

    def _frame(self, frame: Tensor) -> Iterator[Event]:
        """Take the next frame, shape `(FRAME_SIZE,)`."""
        detection = self.settings.turn_detection
        for change in self._user.look_at(frame, detection, self.settings.transcription):
            yield from self._follow(change)
        if self._turn and detection and self._user.is_too_long:
            self._user.detector.reset()
            yield from self._stop(self._turn)
        yield from self._wait()
        self._user.forget(self._prefix)

    @property
    def _prefix(self) -> int:
        """Samples kept from before the speech."""
        detection = self.settings.turn_detection
        prefix_ms = detection.prefix_padding_ms if isinstance(detection, ServerVad) else PREFIX_MS
        return prefix_ms * LISTEN_HZ // 1000

    def _follow(self, change: Change) -> Iterator[Event]:
        """Do what a change in the user's sound asks for."""
        if change.kind == "paused" and self._turn:
            self._turn.ear.pause()
        if self.settings.turn_detection is None:
            return
        if change.kind == "voice" and self._is_audible():
            self._is_ducked = True
            yield Ducked(True)
        elif change.kind == "noise":
            yield from self._unduck()
        elif change.kind == "started":
            yield from self._start(change.position)
        elif change.kind == "stopped" and self._turn:
            yield from self._stop(self._turn)

    def _is_audible(self) -> bool:
        """Say whether the user can be speaking into an answer that they may interrupt."""
        detection = self.settings.turn_detection
        if detection is None or not detection.interrupt_response:
            return False
        is_speaking = self._reply is not None and self._reply.response.modality == "audio"
        return is_speaking or self._unplayed_ms() > 0

    def _unplayed_ms(self) -> float:
        """Return how much of the last answer has not been heard yet."""
        return self._playing.sent_ms - self._playing.played_ms(self.now_ms) if self._playing else 0.0

    def _unduck(self) -> Iterator[Event]:
        """Go on with the answer: nobody speaks into it."""
        if self._is_ducked:
            self._is_ducked = False
            yield Ducked(False)

    def _start(self, position: int) -> Iterator[Event]:
        """Open the user's turn, and stop what they speak into."""
        detection = self.settings.turn_detection
        assert detection is not None
        turn = self._turn or self._user.open(position - self._prefix, self.settings.transcription)
        self._quiet_since, self._is_ducked = None, False
        yield SpeechStarted(turn.item_id, milliseconds(turn.start))
        if detection.interrupt_response:
            yield from self._interrupt()
        self._prepare()

    def _interrupt(self) -> Iterator[Event]:
        """Stop the answer, and cut what is remembered of it to what was played."""
        if self._reply:
            yield from self._end(self._reply, "cancelled", "turn_detected")
        if self._playing and self._unplayed_ms() > 0 and self._playing.item_id in self._conversation:
            yield from self._cut(self._playing.item_id, self._playing.played_ms(self.now_ms), 0, by_client=False)
        self._playing = None

    def _stop(self, turn: OpenTurn) -> Iterator[Event]:
        """End the user's turn, and answer it."""
        detection = self.settings.turn_detection
        yield SpeechStopped(turn.item_id, milliseconds(self._user.position))
        yield from self._take(turn, self._user.position)
        if detection and detection.create_response and self._reply is None:
            yield from self._respond(ResponseOptions(), self.settings, turn.item_id)

    def _wait(self) -> Iterator[Event]:
        """Answer a long silence, once."""
        detection = self.settings.turn_detection
        if not isinstance(detection, ServerVad) or detection.idle_timeout_ms is None or self._quiet_since is None:
            return
        is_quiet = not (self._turn or self._user.unheard or self._replies or self._user.detector.is_speaking)
        if is_quiet and self._user.position - self._quiet_since >= detection.idle_timeout_ms * LISTEN_HZ // 1000:
            start, end = self._quiet_since, self._user.position
            turn = self._user.made(end, self.settings.transcription)
            self._quiet_since = None
            yield IdleTimeout(turn.item_id, milliseconds(start), milliseconds(end))
            yield from self._take(turn, end)
            yield from self._respond(ResponseOptions(), self.settings, None, answers_silence=True)

    def _take(self, turn: OpenTurn, end: int) -> Iterator[Event]:
        """Make a turn an item; it will be heard to its end."""
        waveform = self._user.take(turn, end)
        item = Item(turn.item_id, role="user", parts=(Part("audio", None, waveform, LISTEN_HZ),))
        before = self._conversation.add(item)
        yield from (Committed(item.id, before), ItemAdded(item, before), ItemDone(item, before))

    # Commands

    def commit(self) -> list[Event]:
        """End the user's turn here; `input_audio_buffer_commit_empty` below 100 ms. It asks for no response."""
        turn, end = self._user.committed(self.settings.transcription)
        return [*self._unduck(), *self._take(turn, end)]

    def clear(self) -> list[Event]:
        """Forget what was appended and not committed."""
        self._user.clear()
        return [*self._unduck(), Cleared()]

    def add_item(self, item: Item, after: str | None = None) -> list[Event]:
        """Put an item into the conversation, also while a response runs.

        Args:
            item: A message, a function call or its output; a sound of the user is heard before the next response.
            after: Id of the item before it, `root` for the front, None for the end.

        Raises:
            SessionError: `item_create_duplicate_item_id`, `item_create_invalid_previous_item_id`, `invalid_value`,
                `audio_too_long` where `MAX_UNHEARD_S` of sound wait to be heard.
        """
        if item.id in self._conversation or (self._turn and item.id == self._turn.item_id):
            raise SessionError("item_create_duplicate_item_id", f"there already is an item {item.id!r}", "item.id")
        if after not in (None, ROOT) and after not in self._conversation:
            raise SessionError(
                "item_create_invalid_previous_item_id",
                f"there is no item {after!r} to put this one after: give the id of one that exists, or 'root'",
                "previous_item_id",
            )
        item = replace(item, id=item.id or self._new_id("item"))
        self._user.hear_later(item.id, item.parts)
        before = self._conversation.add(item, after)
        return [ItemAdded(item, before), ItemDone(item, before)]

    def retrieve_item(self, item_id: str) -> list[Event]:
        """Return an item as it is; `item_retrieve_invalid_item_id` if there is none."""
        return [ItemRetrieved(self._found(item_id, "item_retrieve_invalid_item_id"))]

    def delete_item(self, item_id: str) -> list[Event]:
        """Take an item out; `item_delete_invalid_item_id` if there is none."""
        self._found(item_id, "item_delete_invalid_item_id")
        self._conversation.delete(item_id)
        return [ItemDeleted(item_id)]

    def truncate(self, item_id: str, played_ms: int, content_index: int = 0) -> list[Event]:
        """Cut an answer to what was played of it: one that is being given ends, for nobody will hear the rest.

        Up to 500 ms more than there is means all of it; beyond that, and for what is no spoken answer, `invalid_value`;
        `item_truncate_invalid_item_id` if there is no such item.
        """
        self._found(item_id, "item_truncate_invalid_item_id")
        reply = self._reply
        playback = reply.playback if reply and reply.message_id == item_id else self._playbacks.get(item_id)
        if playback is None or content_index:
            raise SessionError("invalid_value", f"part {content_index} of {item_id!r} is no spoken answer", "item_id")
        if not 0 <= played_ms <= playback.sent_ms + OVERSHOOT_MS:
            raise SessionError(
                "invalid_value",
                f"audio_end_ms is {played_ms}: the item has {playback.sent_ms:.0f} ms of sound",
                "audio_end_ms",
            )
        ended = self.cancel() if reply and reply.message_id == item_id else []
        return [*ended, *self._cut(item_id, played_ms, content_index, by_client=True)]

    def _cut(self, item_id: str, played_ms: float, content_index: int, *, by_client: bool) -> Iterator[Event]:
        """Remember only so much of an answer."""
        playback, item = self._playbacks[item_id], self._conversation[item_id]
        limit = playback.limit = min(samples_of(played_ms), playback.num_sent)
        text = playback.text(limit)
        parts = (replace(part, text=text, waveform=cut_to(part.waveform, limit)) for part in item.parts)
        self._conversation.change(replace(item, parts=tuple(parts)))
        yield Truncated(item_id, content_index, round(played_ms), text, by_client)

    def played(self, item_id: str, played_ms: int) -> list[Event]:
        """Acknowledge how much of an answer has been played; unknown items are ignored."""
        if item_id in self._playbacks:
            self._playbacks[item_id].acknowledge(played_ms)
        return []

    def create_response(self, options: ResponseOptions | None = None) -> list[Event]:
        """Ask for a response.

        Raises:
            SessionError: `conversation_already_has_active_response`, or an option that can't be met.
        """
        options = options or ResponseOptions()
        if options.in_conversation and self._reply:
            raise SessionError(
                "conversation_already_has_active_response",
                f"the response {self._reply.response.id} is being given: cancel it, or wait until it is done",
            )
        for item in options.input or ():
            if isinstance(item, str):
                self._found(item, "item_not_found")
            elif any(part.waveform is not None and part.text is None for part in item.parts):
                raise SessionError(
                    "unsupported_value", "the input holds sound: add it to the conversation first", "response.input"
                )
        settings = with_options(self.settings, options)
        check_settings(settings, self.engine, self.context_tokens)
        return list(self._respond(options, settings, None))

    def _respond(
        self, options: ResponseOptions, settings: SessionSettings, question: str | None, answers_silence: bool = False
    ) -> Iterator[Event]:
        """Begin a response; it goes on in steps."""
        response = Response(self._new_id("resp"), "in_progress", settings.modality, options, settings.max_output_tokens)
        conversation = self._conversation if options.in_conversation else Conversation()
        reply = Reply(response, settings, conversation, self._new_id, question, answers_silence)
        self._replies.append(reply)
        self._quiet_since = None
        yield ResponseCreated(response)

    def cancel(self, response_id: str | None = None) -> list[Event]:
        """Stop a response, the conversation's if none is named; `response_cancel_not_active` if there is none."""
        named = (reply for reply in self._replies if reply.response.id == response_id)
        reply = self._reply if response_id is None else next(named, None)
        if reply is None:
            raise SessionError(
                "response_cancel_not_active",
                f"Cancellation failed: {response_id or 'no response'} is not being given",
                "response_id",
            )
        events = list(self._end(reply, "cancelled", "client_cancelled"))
        return [*events, *self._unduck()]

    def update(self, **changes: Any) -> list[Event]:
        """Change fields of the settings, all or nothing; they are in force for what comes next.

        Raises:
            SessionError: `invalid_value`, or `cannot_update_voice` once it has been heard.
        """
        names = {field.name for field in fields(SessionSettings)}
        if unknown := sorted(set(changes) - names):
            raise SessionError("invalid_value", f"there is no setting {unknown[0]!r}", unknown[0])
        settings = replace(self.settings, **changes)
        if self._playbacks and settings.voice != self.settings.voice:
            raise SessionError("cannot_update_voice", "the voice has been heard: it stays for this session", "voice")
        check_settings(settings, self.engine, self.context_tokens)
        had_detection, self.settings = self.settings.turn_detection, settings
        if had_detection is None and settings.turn_detection and not self._user.detector.is_speaking:
            self._user.turn = None  # what was open was no speech
        return list(self._unduck())

    # Names

    def _found(self, item_id: str, code: str) -> Item:
        """Return an item of the conversation."""
        if item_id not in self._conversation:
            raise SessionError(code, f"there is no item {item_id!r} in the conversation", "item_id")
        return self._conversation[item_id]


def cut_to(waveform: Tensor | None, num_samples: int) -> Tensor | None:
    """Return the beginning of a sound, shape `(S,)`, where it is kept."""
    return None if waveform is None else waveform[:num_samples]
