"""How sounds are transcribed: what can be asked for, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from tristep.engine.itn import check_itn
from tristep.modes.asr.data import INSTRUCTIONS, Style
from tristep.vocab import LANGUAGES


class Options(TypedDict, total=False):
    """The fields of `Settings`, as keyword arguments."""

    language: str | None
    style: Style
    words: bool
    hotwords: Sequence[str]
    itn: bool
    tokens: bool


@dataclass(frozen=True)
class Settings:
    """How sounds are transcribed; what does not exist is refused."""

    language: str | None = None
    """The language that is spoken, such as `en`; recognised if not given."""
    style: Style = "spoken"
    """`spoken` in lower case without punctuation, which nano does best; `written` with both."""
    words: bool = False
    """Say when each word is said."""
    hotwords: Sequence[str] = ()
    """Names and words to expect: they are written where the sound agrees with their spelling."""
    itn: bool = False
    """Write numbers, dates and amounts in digits where the language is English, Chinese or Japanese."""
    tokens: bool = False
    """Tell the tokens of the text, as they were written, and how likely each was."""

    def __post_init__(self) -> None:
        if self.language is not None and self.language not in LANGUAGES:
            raise ValueError(
                f"there is no language {self.language!r}: give a code such as en or zh, or none to have it recognised"
            )
        if self.style not in INSTRUCTIONS:
            raise ValueError(f"there is no style {self.style!r}: give one of {', '.join(INSTRUCTIONS)}")
        if isinstance(self.hotwords, str):
            raise ValueError(f"hotwords is the text {self.hotwords!r}: give a list of words or phrases")
        if self.itn:
            check_itn(self.language, self.style)
