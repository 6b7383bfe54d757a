"""The session object of OpenAI's realtime protocol: what a client may set, how an update is merged, what it means.

A client sends what it wants changed. That is laid over what is in force, and the whole is checked: an update is taken
whole or not at all. Fields that nobody knows are ignored, because clients learn new ones every month.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, field_validator, model_validator

from tristep.engine.dialogue import SemanticVad, ServerVad, SessionError, Tool, Transcribing, TurnDetection
from tristep.engine.quieting import Distance
from tristep.server.errors import from_pydantic
from tristep.server.realtime_sound import WireFormat

Kind = Literal["realtime", "transcription"]

MAX_TEXT = 100_000
"""Characters of instructions."""
MAX_TOOLS = 128
MIN_TEMPERATURE = 0.01
"""Below it the best token is all but certain, and scores divided by it are no numbers any more."""
MAX_SESSION = 120 * 1024
"""Bytes of a session object, which is told whole, and to who may know either names in both."""
REPLACED = frozenset({"turn_detection", "transcription", "noise_reduction", "tool_choice", "tracing", "truncation",
                      "prompt", "reasoning", "format"})  # fmt: skip
"""Objects that an update replaces; it adds to all others."""
NULLABLE = frozenset({"turn_detection", "transcription", "noise_reduction"})
"""Fields that null turns off; it takes all others back to their defaults."""


def name_of(value: Any) -> Any:
    """Take a name, or an object with an id."""
    return value.get("id") if isinstance(value, dict) else value


class Format(BaseModel):
    """How sound is written."""

    type: Literal["audio/pcm", "audio/pcmu", "audio/pcma"] = "audio/pcm"
    rate: Literal[8000, 16000, 24000, 48000] | None = None

    @property
    def wire(self) -> WireFormat:
        """The same, for those who read and write sound."""
        return WireFormat(self.type, self.rate or 24_000) if self.type == "audio/pcm" else WireFormat(self.type, 8000)


class ServerVadObject(BaseModel):
    """A turn ends after so much silence."""

    type: Literal["server_vad"]
    threshold: float = Field(default=0.5, ge=0, le=1)
    prefix_padding_ms: int = Field(default=300, ge=0, le=10_000)
    silence_duration_ms: int = Field(default=500, ge=0, le=10_000)
    idle_timeout_ms: int | None = Field(default=None, ge=1000, le=600_000)
    create_response: bool = True
    interrupt_response: bool = True

    @property
    def value(self) -> TurnDetection:
        """The same, for the engine."""
        return ServerVad(**self.model_dump(exclude={"type"}))


class SemanticVadObject(BaseModel):
    """A turn ends when what was said sounds finished."""

    type: Literal["semantic_vad"]
    eagerness: Literal["low", "medium", "high", "auto"] = "auto"
    create_response: bool = True
    interrupt_response: bool = True

    @property
    def value(self) -> TurnDetection:
        """The same, for the engine."""
        return SemanticVad(**self.model_dump(exclude={"type"}))


VadObject = Annotated[ServerVadObject | SemanticVadObject, Field(discriminator="type")]


class TranscriptionObject(BaseModel):
    """What the client is told of what was heard; which model it names makes no difference."""

    model: str = ""
    language: str | None = Field(default=None, max_length=35)
    prompt: str | None = None
    keywords: list[str] | None = Field(default=None, max_length=1000)

    @field_validator("prompt")
    @classmethod
    def is_empty(cls, prompt: str | None) -> str | None:
        """Refuse what has no effect."""
        if prompt:
            raise ValueError("prompt can't be heeded: give names and words to expect as keywords")
        return prompt

    @property
    def value(self) -> Transcribing:
        """The same, for the engine."""
        language = (self.language or "").partition("-")[0]  # of a locale such as en-US
        return Transcribing(language or None, tuple(self.keywords or ()))

    @property
    def live_value(self) -> Transcribing:
        """The same, told while the user speaks."""
        return replace(self.value, live=True)


class NoiseReduction(BaseModel):
    """A noise that goes on is held down; how much depends on how far the microphone is."""

    type: Distance


class Input(BaseModel):
    """What comes in."""

    format: Format = Format()
    transcription: TranscriptionObject | None = None
    noise_reduction: NoiseReduction | None = None
    turn_detection: VadObject | None = ServerVadObject(type="server_vad")


class Output(BaseModel):
    """What goes out."""

    format: Format = Format()
    voice: Annotated[str, BeforeValidator(name_of), Field(max_length=256)] = "alloy"
    speed: float = Field(default=1.0, ge=0.25, le=1.5)


class Sound(BaseModel):
    """What comes in and goes out."""

    input: Input = Input()
    output: Output = Output()


class FunctionTool(BaseModel):
    """A function that the client runs."""

    type: Literal["function"] = "function"
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    description: str = Field(default="", max_length=MAX_TEXT)
    parameters: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def flatten(cls, given: Any) -> Any:
        """Take StepFun's form too, where all but the type lies under `function`."""
        nested = given.get("function") if isinstance(given, dict) else None
        fields = {**given, **nested} if isinstance(nested, dict) else given
        return without_nulls(fields) if isinstance(fields, dict) else fields

    @property
    def value(self) -> Tool:
        """The same, for the engine."""
        return Tool(self.name, self.description, self.parameters)


class ToolChoice(BaseModel):
    """The one tool that must be called."""

    type: Literal["function"]
    name: str


class TokenLimits(BaseModel):
    """What a conversation may take."""

    post_instructions: int | None = Field(default=None, ge=1, le=1_000_000)


class RetentionRatio(BaseModel):
    """How much of a conversation is kept when it no longer fits."""

    type: Literal["retention_ratio"]
    retention_ratio: float = Field(gt=0, le=1)
    token_limits: TokenLimits | None = None

    @property
    def most_tokens(self) -> int | None:
        """What the conversation may take beside the instructions; None for all that fits."""
        return self.token_limits.post_instructions if self.token_limits else None


Tools = Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)]
Choice = Literal["auto", "none", "required"] | ToolChoice
MaxTokens = Annotated[int, Field(ge=1, le=100_000)] | Literal["inf"]
Modalities = Annotated[list[Literal["audio", "text"]], Field(min_length=1, max_length=1)]


class SessionObject(BaseModel):
    """A session as the protocol writes it."""

    type: Kind = "realtime"
    object: str = "realtime.session"
    id: str
    model: str
    expires_at: int
    output_modalities: Modalities = ["audio"]
    instructions: str = Field(default="", max_length=MAX_TEXT)
    tools: Tools = []
    tool_choice: Choice = "auto"
    max_output_tokens: MaxTokens = "inf"
    temperature: float | None = Field(default=None, ge=0, le=2)
    """Of older clients."""
    truncation: Literal["auto", "disabled"] | RetentionRatio = "auto"
    tracing: Any = None
    prompt: Any = None
    include: list[str] | None = None
    reasoning: Any = None
    parallel_tool_calls: bool | None = None
    audio: Sound = Sound()

    def json_object(self) -> dict[str, Any]:
        """Write it for a client: nothing but what this kind of session has."""
        if self.type == "transcription":
            wanted = {"type", "object", "id", "expires_at", "include"}
            return self.model_dump(include=wanted) | {"audio": {"input": written_input(self.audio.input)}}
        optional = {name for name in ("temperature", "reasoning", "parallel_tool_calls") if getattr(self, name) is None}
        body = self.model_dump(exclude={"audio", *optional})
        if isinstance(self.truncation, RetentionRatio):
            body["truncation"] = self.truncation.model_dump(exclude_none=True)
        output = self.audio.output
        return body | {
            "audio": {
                "input": written_input(self.audio.input),
                "output": {"format": written_format(output.format), "voice": output.voice, "speed": output.speed},
            }
        }

    def engine_settings(self) -> dict[str, Any]:
        """Return the fields of the engine's settings, all but the voice."""
        truncation = self.truncation
        ratio = truncation if isinstance(truncation, RetentionRatio) else None
        retention = ratio.retention_ratio if ratio else None
        told = self.audio.input.transcription
        is_live = self.type == "transcription"
        return {
            "instructions": self.instructions,
            "modality": self.output_modalities[0],
            "turn_detection": self.detection,
            "transcription": (told.live_value if is_live else told.value) if told else None,
            "tools": tuple(tool.value for tool in self.tools),
            "speed": self.audio.output.speed,
            "tool_choice": chosen_tool(self.tool_choice),
            "max_output_tokens": max_tokens(self.max_output_tokens),
            "retention": 1.0 if truncation == "auto" else retention,
            "most_tokens": ratio.most_tokens if ratio else None,
            "parallel_tool_calls": self.parallel_tool_calls is not False,
        } | ({"temperature": drawable(self.temperature)} if self.temperature is not None else {})

    @property
    def detection(self) -> TurnDetection | None:
        """How turns are found; one who only transcribes is never answered."""
        vad = self.audio.input.turn_detection
        if vad and self.type == "transcription":
            vad = vad.model_copy(update={"create_response": False, "interrupt_response": False})
        return vad.value if vad else None


def written_input(heard: Input) -> dict[str, Any]:
    """Write what comes in."""
    transcription = heard.transcription.model_dump(exclude_none=True) if heard.transcription else None
    body = heard.model_dump(include={"turn_detection", "noise_reduction"})
    return {"format": written_format(heard.format), "transcription": transcription, **body}


def written_format(given: Format) -> dict[str, Any]:
    """Write a format; only samples have a rate that could be another one."""
    return {"type": given.type, "rate": given.wire.rate} if given.type == "audio/pcm" else {"type": given.type}


def drawable(temperature: float) -> float:
    """Return a temperature that scores can be divided by; 0, at which the best token is taken, is one too."""
    return temperature if temperature >= MIN_TEMPERATURE else 0.0


def chosen_tool(choice: Choice) -> str:
    """Return `auto`, `none`, `required`, or the name of a tool."""
    return choice.name if isinstance(choice, ToolChoice) else choice


def max_tokens(given: int | Literal["inf"]) -> int | None:
    """Return the most tokens of a response, None for as many as it takes."""
    return None if given == "inf" else given


def updated(current: SessionObject, changes: Any, param: str = "session") -> SessionObject:
    """Lay an update over what is in force.

    Raises:
        SessionError: If it is not what it should be; then nothing changes.
    """
    if not isinstance(changes, dict):
        raise SessionError("invalid_value", f"{param} is {type(changes).__name__}: expected an object", param)
    if changes.get("type", current.type) != current.type:
        raise SessionError(
            "invalid_session_type", f"this is a {current.type} session: its type can't be changed", f"{param}.type"
        )
    fixed = {"id", "object", "model", "expires_at", "type"}
    wanted = {name: value for name, value in changes.items() if name not in fixed}
    refuse_foreign_tools(wanted.get("tools"), param)
    refuse_what_has_no_effect(wanted, param)
    return fitting(checked(SessionObject, merged(current.model_dump(), wanted), param), param)


def size_of(body: dict[str, Any]) -> int:
    """Return how many bytes an object takes in a message."""
    return len(json.dumps(body, ensure_ascii=False).encode())


def fitting(body: SessionObject, param: str) -> SessionObject:
    """Refuse a session object that no message to a client could carry."""
    num_bytes = size_of(body.json_object())
    if num_bytes > MAX_SESSION:
        raise SessionError(
            "string_above_max_length",
            f"{param} takes {num_bytes} bytes: expected at most {MAX_SESSION}; shorten the instructions or the tools",
            param,
        )
    return body


def refuse_foreign_tools(tools: Any, param: str) -> None:
    """Refuse tools that the server would have to run: it calls nobody."""
    kinds = (
        [tool.get("type", "function") for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    )
    for kind in kinds:
        if kind != "function":
            raise SessionError(
                "unsupported_value", f"tools of type {str(kind)[:40]!r} are not run here: give functions",
                f"{param}.tools",
            )  # fmt: skip


NO_EFFECT = {
    "prompt": "no prompts are kept here: send the text as instructions",
    "reasoning": "how long to think can't be chosen here: leave it out",
    "include": "log-probabilities are not told: leave it out",
}
"""Fields that are known and can't be heeded, and why."""


def refuse_what_has_no_effect(given: Mapping[str, Any], param: str) -> None:
    """Refuse settings that would be ignored: a setting that is taken does something."""
    for name, reason in NO_EFFECT.items():
        if given.get(name):
            raise SessionError("unsupported_value", f"{param}.{name} can't be heeded: {reason}", f"{param}.{name}")


def merged(current: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Lay changes over an object: null takes a field back to its default, objects within are merged."""
    result = dict(current)
    for name, value in changes.items():
        if value is None and name not in NULLABLE:
            result.pop(name, None)
        elif isinstance(value, dict) and isinstance(result.get(name), dict) and name not in REPLACED:
            result[name] = merged(result[name], value)
        else:
            result[name] = value
    return result


def without_nulls(given: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is null: clients write it for what they have no opinion on."""
    return {name: value for name, value in given.items() if value is not None}


def checked(kind: type[Any], given: Any, param: str) -> Any:
    """Read a value of a kind.

    Raises:
        SessionError: If it isn't one.
    """
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        refusal = from_pydantic(error)
        place = ".".join(part for part in (param, refusal.param) if part)
        raise SessionError(refusal.code or "invalid_value", f"{param}: {refusal.detail}", place) from error
