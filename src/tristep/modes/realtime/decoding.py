"""Realtime, decoding constraint: text only, read as it comes: what can be said already, and what is a call of a tool.

Text leads sound: a clause goes to the voice as soon as it is complete, the first one as early as at a comma. Calls are
written in the manner that open chat models share: JSON with a name and arguments between `<tool_call>` marks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from tristep.vocab import Vocab

FinishReason = Literal["stop", "length"]

OPEN, CLOSE = "<tool_call>", "</tool_call>"
FIRST_CLAUSE = 16
"""Characters from which on the first clause may end at a comma: enough for the voice to find its tone."""
LONG_CLAUSE = 160
"""Characters after which a clause is cut at a comma, or at a space if there is none."""
_QUOTES = r"[\"')\u201d\u2019]*"
_SENTENCE_END = re.compile(
    rf"(?<!\bM[rs])(?<!\bMrs)(?<!\b[DS][rt])(?<!\b[A-Z0-9])\.+{_QUOTES}(?=\s)"
    rf"|[!?\u2026]+{_QUOTES}(?=\s)|[\u3002\uff01\uff1f]+|\n+"
)
"""Not after a title, an initial or the number of a line."""
_COMMA = re.compile(r"[,;:](?=\s)|[\uff0c\uff1b\uff1a\u3001]")
_SPACE = re.compile(r"(?=\s)")


def allowed(vocab: Vocab) -> Tensor:
    """Mark what an answer may be written in, shape `(V,)`: text, and the end of the turn."""
    mask = torch.zeros(vocab.size, dtype=torch.bool)
    mask[: vocab.config.num_text] = True
    mask[list(vocab.control_ids)] = False
    mask[vocab.control("turn_end")] = True
    return mask


class Clauses:
    """Cuts a text, while it is being written, into what can be said in one go; the clauses joined are the text."""

    def __init__(self) -> None:
        self._rest = ""
        self._is_first = True

    def push(self, delta: str) -> list[str]:
        """Take more text and return the clauses that are complete."""
        self._rest += delta
        clauses = []
        while (end := self._end()) is not None:
            clauses.append(self._rest[:end])
            self._rest, self._is_first = self._rest[end:], False
        return clauses

    def finish(self) -> list[str]:
        """Return what is left."""
        rest, self._rest = self._rest, ""
        return [rest] if rest else []

    def _end(self) -> int | None:
        """Find where the first complete clause ends."""
        ends = [match.end() for match in _SENTENCE_END.finditer(self._rest)]
        if self._is_first:
            ends += [match.end() for match in _COMMA.finditer(self._rest) if match.end() >= FIRST_CLAUSE]
        ends = [end for end in ends if self._rest[:end].strip()]
        if not ends and len(self._rest) > LONG_CLAUSE:
            ends = [match.end() for match in _COMMA.finditer(self._rest, 0, LONG_CLAUSE)][-1:]
            ends = ends or [match.end() for match in _SPACE.finditer(self._rest, 1)][:1]
        return min(ends, default=None)


@dataclass(frozen=True)
class Call:
    """A tool that the model calls."""

    name: str
    arguments: str
    """JSON text of an object."""


@dataclass
class Reader:
    """Tells apart what is answered and what is called, while it is being written."""

    names: Sequence[str]
    """The tools there are; without any, everything is text."""
    _held: str = field(default="", init=False)
    _is_call: bool = field(default=False, init=False)

    def push(self, delta: str) -> list[str | Call]:
        """Take more text; return the text and the calls that are settled.

        Raises:
            ValueError: If a call can't be read, or names no tool.
        """
        if not self.names:
            return [delta] if delta else []
        self._held += delta
        read: list[str | Call] = []
        while (cut := self._cut()) is not None:
            before, self._held = self._held[: cut[0]], self._held[cut[1] :]
            if self._is_call:
                read.append(read_call(before, self.names))
            elif before:
                read.append(before)
            self._is_call = not self._is_call
        if not self._is_call and (settled := len(self._held) - held_back(self._held)):
            read.append(self._held[:settled])
            self._held = self._held[settled:]
        return read

    def finish(self) -> list[str | Call]:
        """Return what is left; a last call may lack its closing mark."""
        rest, self._held = self._held, ""
        if self._is_call:
            return [read_call(rest, self.names)]
        return [rest] if rest else []

    def _cut(self) -> tuple[int, int] | None:
        """Find the next mark."""
        mark = CLOSE if self._is_call else OPEN
        start = self._held.find(mark)
        return None if start < 0 else (start, start + len(mark))


def held_back(text: str) -> int:
    """Return how many characters at the end may be the beginning of a call."""
    return next((num for num in range(len(OPEN) - 1, 0, -1) if text.endswith(OPEN[:num])), 0)


def read_call(text: str, names: Sequence[str]) -> Call:
    """Read one call.

    Raises:
        ValueError: If it is no JSON object with a name of `names`.
    """
    try:
        call: Any = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"the model called a tool by {text.strip()[:120]!r}, which is no JSON ({error})") from None
    if not isinstance(call, dict) or call.get("name") not in names:
        raise ValueError(f"the model called {text.strip()[:120]!r}: expected one of {', '.join(names)}")
    arguments = call.get("arguments", {})
    return Call(call["name"], arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False))


def call_text(name: str, arguments: str) -> str:
    """Write a call the way `read_call` reads it."""
    return f'{OPEN}\n{{"name": {json.dumps(name)}, "arguments": {arguments or "{}"}}}\n{CLOSE}'


def forced_opening(tool_choice: str, names: Sequence[str]) -> str:
    """Return how an answer has to begin for a tool to be called; nothing where none has to be."""
    if tool_choice in ("auto", "none") or not names:
        return ""
    chosen = names[0] if tool_choice == "required" and len(names) == 1 else tool_choice
    if chosen == "required":
        return f'{OPEN}\n{{"name": "'
    return f'{OPEN}\n{{"name": {json.dumps(chosen)}, "arguments": '


def tools_text(tools: Sequence[tuple[str, str, dict[str, Any]]]) -> str:
    """List tools, each by its name, description and the JSON schema of its arguments, one a line."""
    listed = ({"name": name, "description": about, "parameters": schema} for name, about, schema in tools)
    lines = [json.dumps({"type": "function", "function": tool}, ensure_ascii=False) for tool in listed]
    return "\n".join([*lines, f'To call one, write {OPEN}{{"name": ..., "arguments": {{...}}}}{CLOSE}.'])
