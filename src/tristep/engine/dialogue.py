"""What a session is told and what it tells: settings, items of the conversation, and events.

The names are those of OpenAI's realtime protocol without a dialect: putting an event on a wire is renaming.
Times in ms count sound: `audio_start_ms` and `audio_end_ms` of the user all that was appended to the session,
`audio_end_ms` of an answer the sound of its item.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from tristep.codec.voice import Voice

Modality = Literal["audio", "text"]
"""What is answered in: sound with its transcript, or text."""
ItemKind = Literal["message", "function_call", "function_call_output"]
ItemStatus = Literal["in_progress", "completed", "incomplete"]
ItemRole = Literal["system", "user", "assistant"]
PartKind = Literal["text", "audio"]
ResponseStatus = Literal["in_progress", "completed", "cancelled", "incomplete", "failed"]
Reason = Literal["turn_detected", "client_cancelled", "max_output_tokens", "content_filter"]
Eagerness = Literal["low", "medium", "high", "auto"]


class SessionError(ValueError):
    """A command that a session refuses; `code` is what a client is told beside the sentence."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(code, message, param)
        self.code, self.message, self.param = code, message, param

    def __str__(self) -> str:
        return self.message


# Settings


@dataclass(frozen=True)
class ServerVad:
    """A turn ends after so much silence."""

    threshold: float = 0.5
    """How likely it must be that somebody speaks."""
    prefix_padding_ms: int = 300
    """Sound kept from before the speech."""
    silence_duration_ms: int = 500
    idle_timeout_ms: int | None = None
    """Answer without a turn of the user, when nobody has said anything for so long since the last answer was heard."""
    create_response: bool = True
    interrupt_response: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise SessionError("invalid_value", f"threshold is {self.threshold}: expected 0 to 1", "threshold")
        for name in ("prefix_padding_ms", "silence_duration_ms"):
            if not 0 <= getattr(self, name) <= 10_000:
                raise SessionError("invalid_value", f"{name} is {getattr(self, name)}: expected 0 to 10000", name)


@dataclass(frozen=True)
class SemanticVad:
    """A turn ends when what was said sounds finished; without a model of that, after a silence by eagerness."""

    eagerness: Eagerness = "auto"
    create_response: bool = True
    interrupt_response: bool = True

    def __post_init__(self) -> None:
        if self.eagerness not in ("low", "medium", "high", "auto"):
            raise SessionError(
                "invalid_value", f"eagerness is {self.eagerness!r}: expected low, medium, high or auto", "eagerness"
            )


TurnDetection = ServerVad | SemanticVad


@dataclass(frozen=True)
class Transcribing:
    """What the client is told of what was heard; the model hears it either way."""

    language: str | None = None
    """What is spoken, recognised if not given."""
    hotwords: tuple[str, ...] = ()
    """Names and words to expect."""
    live: bool = False
    """Tell it while the user speaks, at the cost of hearing everything several times."""


@dataclass(frozen=True)
class Tool:
    """A function that the model may call; the client runs it."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    """JSON schema of its arguments."""


@dataclass(frozen=True)
class SessionSettings:
    """How a session listens and answers; changed by `Session.update`, all or nothing."""

    instructions: str = ""
    """The persona: who answers, and how."""
    modality: Modality = "audio"
    voice: str | Voice | None = None
    """The name of a voice, or one made from a clip; the first there is if not given."""
    speech_instructions: str = ""
    """How everything is said, in words."""
    speed: float = 1.0
    """How much faster than comes naturally."""
    turn_detection: TurnDetection | None = field(default_factory=ServerVad)
    """None: the client commits, and asks for responses (push-to-talk)."""
    transcription: Transcribing | None = None
    """None: no events about what was heard."""
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"
    """`auto`, `none`, `required`, or the name of a tool."""
    max_output_tokens: int | None = None
    """Most text tokens of a response; what the model's context allows if not given."""
    retention: float | None = 1.0
    """When the conversation outgrows the context, the oldest items are dropped until it fills this share of it;
    None refuses to answer instead."""
    most_tokens: int | None = None
    """What the conversation may take, beside persona and tools; all that fits if not given."""
    parallel_tool_calls: bool = True
    """Whether a response may call several functions."""
    temperature: float = 0.7
    seed: int = 0

    def __post_init__(self) -> None:
        if self.modality not in ("audio", "text"):
            raise SessionError("invalid_value", f"modality is {self.modality!r}: expected audio or text", "modality")
        if self.max_output_tokens is not None and self.max_output_tokens < 1:
            raise SessionError(
                "invalid_value",
                f"max_output_tokens is {self.max_output_tokens}: expected at least 1, or none",
                "max_output_tokens",
            )
        if self.retention is not None and not 0 < self.retention <= 1:
            raise SessionError("invalid_value", f"retention is {self.retention}: expected above 0, at most 1")
        if not 0 <= self.temperature <= 2:
            raise SessionError("invalid_value", f"temperature is {self.temperature}: expected 0 to 2", "temperature")


# Items


@dataclass(frozen=True)
class Part:
    """One part of a message."""

    kind: PartKind
    text: str | None = None
    """What is written, or said; None while a sound of the user has not been heard."""
    waveform: Tensor | None = None
    """Sound, shape `(S,)`, where it is kept."""
    sample_rate: int = 16_000
    """Of the waveform, Hz: 16 000 what was heard, 24 000 what was said."""


@dataclass(frozen=True)
class Item:
    """One thing in the conversation, as it is now; a change is a new value with the same id."""

    id: str = ""
    """Given by the session if empty."""
    kind: ItemKind = "message"
    role: ItemRole = "user"
    status: ItemStatus = "completed"
    parts: tuple[Part, ...] = ()
    """Of a message."""
    call_id: str = ""
    name: str = ""
    arguments: str = ""
    """Of a `function_call`: JSON text."""
    output: str = ""
    """Of a `function_call_output`."""

    @property
    def text(self) -> str:
        """What is written or said in it, as far as it is known."""
        return " ".join(part.text for part in self.parts if part.text)


# Responses


@dataclass(frozen=True)
class ResponseOptions:
    """What a response does in another way than the session; None: as the session."""

    modality: Modality | None = None
    instructions: str | None = None
    voice: str | Voice | None = None
    tools: tuple[Tool, ...] | None = None
    tool_choice: str | None = None
    max_output_tokens: int | None = None
    in_conversation: bool = True
    """False: it may run beside others, and writes nothing into the conversation (`conversation: "none"`)."""
    input: tuple[Item | str, ...] | None = None
    """Items, or ids of items, to answer instead of the conversation."""
    metadata: dict[str, str] | None = None
    """Returned as it is."""


@dataclass(frozen=True)
class Usage:
    """Tokens of a response: of sound, one for each 80 ms heard and each code spoken."""

    input_text_tokens: int = 0
    input_audio_tokens: int = 0
    cached_tokens: int = 0
    """Of the input, those read before this response began."""
    output_text_tokens: int = 0
    output_audio_tokens: int = 0


@dataclass(frozen=True)
class Response:
    """A response as it is now."""

    id: str
    status: ResponseStatus
    modality: Modality
    options: ResponseOptions
    max_output_tokens: int | None = None
    output: tuple[Item, ...] = ()
    reason: Reason | None = None
    """Why it is cancelled or incomplete."""
    error: str | None = None
    """Why it failed, a sentence."""
    usage: Usage = Usage()


# Events


@dataclass(frozen=True)
class SpeechStarted:
    """The user begins to speak; the answer that is being given stops before this."""

    item_id: str
    """Of the item that the turn will be."""
    audio_start_ms: int


@dataclass(frozen=True)
class SpeechStopped:
    """The user's turn is over."""

    item_id: str
    audio_end_ms: int


@dataclass(frozen=True)
class Ducked:
    """Somebody may be speaking into an answer: lower it (`is_ducked`) until that is settled.

    Either `SpeechStarted` follows, or the same event with `is_ducked` false: it was a cough. No sound of the answer
    comes out in between.
    """

    is_ducked: bool


@dataclass(frozen=True)
class IdleTimeout:
    """Nobody has said anything for long: an empty turn is committed, and answered."""

    item_id: str
    audio_start_ms: int
    audio_end_ms: int


@dataclass(frozen=True)
class Committed:
    """A turn of the user becomes an item."""

    item_id: str
    previous_item_id: str | None


@dataclass(frozen=True)
class Cleared:
    """What was appended and not committed is forgotten."""


@dataclass(frozen=True)
class ItemAdded:
    """An item is in the conversation, or in a response beside it."""

    item: Item
    previous_item_id: str | None
    response_id: str | None = None
    """The response whose output it is."""
    output_index: int = 0
    in_conversation: bool = True


@dataclass(frozen=True)
class ItemDone:
    """An item is complete, or will never be."""

    item: Item
    previous_item_id: str | None
    response_id: str | None = None
    output_index: int = 0
    in_conversation: bool = True


@dataclass(frozen=True)
class ItemRetrieved:
    """An item that was asked for, with its sound where that is kept."""

    item: Item


@dataclass(frozen=True)
class ItemDeleted:
    """An item is no longer in the conversation."""

    item_id: str


@dataclass(frozen=True)
class Truncated:
    """An answer is cut to what was heard of it."""

    item_id: str
    content_index: int
    audio_end_ms: int
    text: str
    """What is left of it."""
    by_client: bool
    """Whether a command asked for it; else the session did, when the user spoke into it."""


@dataclass(frozen=True)
class ContextTrimmed:
    """The oldest items no longer fit: the model does not see them in this response, and no later one."""

    response_id: str
    item_ids: tuple[str, ...]


@dataclass(frozen=True)
class TranscriptDelta:
    """More of what the user said is known; all deltas joined are the transcript."""

    item_id: str
    delta: str
    content_index: int = 0


@dataclass(frozen=True)
class TranscriptCompleted:
    """What the user said."""

    item_id: str
    text: str
    language: str | None
    duration_s: float
    content_index: int = 0


@dataclass(frozen=True)
class TranscriptFailed:
    """What the user said can't be known."""

    item_id: str
    message: str
    content_index: int = 0


@dataclass(frozen=True)
class ResponseCreated:
    """A response begins."""

    response: Response


@dataclass(frozen=True)
class PartAdded:
    """A part of an answer begins, empty."""

    response_id: str
    item_id: str
    output_index: int
    content_index: int
    kind: PartKind


@dataclass(frozen=True)
class TextDelta:
    """More of the text of an answer: what is written (`kind` text), or what is being said (`kind` audio)."""

    response_id: str
    item_id: str
    output_index: int
    content_index: int
    kind: PartKind
    delta: str


@dataclass(frozen=True)
class AudioDelta:
    """More of the sound of an answer."""

    response_id: str
    item_id: str
    output_index: int
    content_index: int
    waveform: Tensor
    """24 kHz, shape `(S,)`."""


@dataclass(frozen=True)
class AudioDone:
    """No more sound comes."""

    response_id: str
    item_id: str
    output_index: int
    content_index: int


@dataclass(frozen=True)
class TextDone:
    """No more text comes; `text` is all that came."""

    response_id: str
    item_id: str
    output_index: int
    content_index: int
    kind: PartKind
    text: str


@dataclass(frozen=True)
class PartDone:
    """A part of an answer is over."""

    response_id: str
    item_id: str
    output_index: int
    content_index: int
    part: Part


@dataclass(frozen=True)
class ArgumentsDelta:
    """More of the arguments of a function call."""

    response_id: str
    item_id: str
    output_index: int
    call_id: str
    delta: str


@dataclass(frozen=True)
class ArgumentsDone:
    """The whole arguments of a function call, valid JSON."""

    response_id: str
    item_id: str
    output_index: int
    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class ResponseDone:
    """A response is over, for the reason that it holds."""

    response: Response


Event = (
    SpeechStarted | SpeechStopped | Ducked | IdleTimeout | Committed | Cleared
    | ItemAdded | ItemDone | ItemRetrieved | ItemDeleted | Truncated | ContextTrimmed
    | TranscriptDelta | TranscriptCompleted | TranscriptFailed
    | ResponseCreated | PartAdded | TextDelta | AudioDelta | AudioDone | TextDone | PartDone
    | ArgumentsDelta | ArgumentsDone | ResponseDone
)  # fmt: skip
