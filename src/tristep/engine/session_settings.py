"""What a session's settings come down to, and which can't be met."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from tristep.engine.context import head_turns
from tristep.engine.dialogue import ResponseOptions, SessionError, SessionSettings, Tool, Transcribing
from tristep.engine.settings import Settings

if TYPE_CHECKING:
    from tristep.engine.engine import Engine


def with_options(settings: SessionSettings, options: ResponseOptions) -> SessionSettings:
    """Return the settings of one response."""
    names = ("modality", "instructions", "voice", "tools", "tool_choice", "max_output_tokens")
    asked = {name: getattr(options, name) for name in names}
    return replace(settings, **{name: value for name, value in asked.items() if value is not None})


def callable_tools(settings: SessionSettings) -> tuple[Tool, ...]:
    """Return the tools that may be called."""
    return () if settings.tool_choice == "none" else settings.tools


def hearing(told: Transcribing | None) -> Settings:
    """Return how the user is transcribed.

    Raises:
        ValueError: If there is no such language.
    """
    told = told or Transcribing()
    return Settings(language=told.language, hotwords=told.hotwords)


def check_settings(settings: SessionSettings, engine: Engine, context_tokens: int) -> None:
    """Refuse settings that an engine can't meet.

    Raises:
        SessionError: `invalid_value`; `string_above_max_length` where the instructions leave no room to talk.
    """
    meet("transcription", lambda: engine.read_hotwords(hearing(settings.transcription)))
    if settings.modality == "audio":
        request = settings.voice, settings.speech_instructions, settings.seed, None, settings.speed
        meet("voice", lambda: engine.talker.request(*request))
    if settings.tool_choice not in ("auto", "none", "required", *(tool.name for tool in settings.tools)):
        raise SessionError("invalid_value", f"there is no tool {settings.tool_choice!r} to choose", "tool_choice")
    num_tokens = len(engine.chat.render(head_turns(settings.instructions, settings.tools)).tokens)
    if num_tokens > context_tokens // 2:
        raise SessionError(
            "string_above_max_length",
            f"the instructions and tools are {num_tokens} tokens: expected at most {context_tokens // 2}",
            "instructions",
        )


def meet(param: str, prepare: Callable[[], object]) -> None:
    """Prepare something that a setting asks for, and blame the setting where that fails."""
    try:
        prepare()
    except ValueError as error:
        raise SessionError("invalid_value", str(error), param) from error
