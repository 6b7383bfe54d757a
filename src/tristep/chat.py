"""Turns become one token sequence with a loss mask: the only place that knows role tokens.

A turn is a role and its parts in order: text, sound to be heard (slots that audio embeddings fill), codes to be
spoken, or a control token. The assistant's own words and its end of turn count in the loss; nothing else does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from tristep.vocab import TextTokenizer, Vocab

Role = Literal["system", "tools", "user", "assistant", "tool"]
"""`tools` lists what may be called, `tool` brings what a call returned."""
PLAIN_ROLES: dict[Role, str] = {role: role for role in get_args(Role)}


@dataclass(frozen=True)
class Sound:
    """Sound to be heard: it takes `num_slots` positions, one per audio embedding."""

    num_slots: int


@dataclass(frozen=True)
class Codes:
    """Sound to be spoken, as codebook indices."""

    codes: tuple[int, ...]


@dataclass(frozen=True)
class Control:
    """One control token, by its name in the vocabulary."""

    name: str


Part = str | Sound | Codes | Control


@dataclass(frozen=True)
class Turn:
    """One speaker's stretch of the conversation."""

    role: Role
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class ChatLayout:
    """How a text model was taught to write turns."""

    role_names: dict[Role, str]
    after_turn: str
    """Text between one turn's end and the next one's start."""


LAYOUTS = {
    "plain": ChatLayout(PLAIN_ROLES, ""),
    "chatml": ChatLayout(PLAIN_ROLES, "\n"),
    # Report section 8.6: users are `human`, tool results arrive as `input`.
    "step-audio-2": ChatLayout(
        PLAIN_ROLES | {"user": "human", "tools": "tool_json_schemas", "tool": "input"}, after_turn=""
    ),
}


@dataclass(frozen=True)
class Rendered:
    """A conversation as the backbone reads it."""

    tokens: list[int]
    loss_mask: list[bool]
    """True where the token is one that the assistant has to write, same length as `tokens`."""


@dataclass(frozen=True)
class Chat:
    """Renders turns for one vocabulary and tokenizer."""

    vocab: Vocab
    tokenizer: TextTokenizer

    @property
    def layout(self) -> ChatLayout:
        """The way turns are written under this vocabulary."""
        return LAYOUTS[self.vocab.config.layout]

    def render(self, turns: Sequence[Turn]) -> Rendered:
        """Write whole turns; the assistant's parts and its `turn_end` are what the loss counts."""
        tokens: list[int] = []
        loss_mask: list[bool] = []
        for turn in turns:
            header = self.header(turn.role)
            body = [token for part in turn.parts for token in self.part(part)] + [self.vocab.control("turn_end")]
            after = self.tokenizer.encode(self.layout.after_turn) if self.layout.after_turn else []
            tokens += header + body + after
            loss_mask += [False] * len(header) + [turn.role == "assistant"] * len(body) + [False] * len(after)
        return Rendered(tokens, loss_mask)

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Write whole turns and open the assistant's, ready for it to speak."""
        return self.render(turns).tokens + self.header("assistant")

    def header(self, role: Role) -> list[int]:
        """Write what opens a turn of `role`."""
        return [self.vocab.control("turn_start"), *self.tokenizer.encode(self.layout.role_names[role] + "\n")]

    def part(self, part: Part) -> Iterator[int]:
        """Write one part of a turn."""
        if isinstance(part, str):
            yield from self.tokenizer.encode(part)
        elif isinstance(part, Control):
            yield self.vocab.control(part.name)
        elif isinstance(part, Codes):
            yield from (self.vocab.code_token(code) for code in part.codes)
        else:
            yield self.vocab.control("audio_start")
            yield from [self.vocab.control("audio_slot")] * part.num_slots
            yield self.vocab.control("audio_end")
