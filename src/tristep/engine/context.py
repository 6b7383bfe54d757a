"""The conversation as a list of items, and what the model is shown of it: persona, tools, and as much as fits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from tristep.chat import Chat, Turn
from tristep.engine.dialogue import Item, SessionError, Tool
from tristep.modes.realtime.data import PERSONA
from tristep.modes.realtime.decoding import call_text, tools_text

ROOT = "root"
"""The place before the first item."""
KEPT_SOUND_S = 300.0
"""Sound of the conversation that is kept; the oldest is forgotten first."""


class Conversation:
    """Items in order."""

    def __init__(self) -> None:
        self._items: dict[str, Item] = {}
        self._order: list[str] = []

    def __contains__(self, item_id: str) -> bool:
        return item_id in self._items

    def __getitem__(self, item_id: str) -> Item:
        return self._items[item_id]

    @property
    def items(self) -> tuple[Item, ...]:
        """All items, in order."""
        return tuple(self._items[item_id] for item_id in self._order)

    @property
    def last_id(self) -> str | None:
        """Id of the last item."""
        return self._order[-1] if self._order else None

    def add(self, item: Item, after: str | None = None) -> str | None:
        """Put an item behind another, at the end if None; return the id of the one before it."""
        place = len(self._order) if after is None else 0 if after == ROOT else self._order.index(after) + 1
        self._order.insert(place, item.id)
        self._items[item.id] = item
        self._forget_sound()
        return self.before(item.id)

    def before(self, item_id: str) -> str | None:
        """Return the id of the item before this one."""
        place = self._order.index(item_id)
        return self._order[place - 1] if place else None

    def change(self, item: Item) -> None:
        """Put an item where the one of its id is, if there still is one."""
        if item.id in self._items:
            self._items[item.id] = item
            self._forget_sound()

    def delete(self, item_id: str) -> None:
        """Take an item out."""
        self._order.remove(item_id)
        del self._items[item_id]

    def _forget_sound(self) -> None:
        """Keep the latest sound only."""
        kept_s = 0.0
        for item in reversed(self.items):
            kept_s += sound_s(item)
            if kept_s > KEPT_SOUND_S and sound_s(item):
                self._items[item.id] = without_sound(item)


class Names:
    """Makes ids that no item of a conversation has."""

    def __init__(self, conversation: Conversation, owner: str) -> None:
        """Make ids for one session; `owner` goes into them, to tell sessions apart."""
        self.conversation, self.owner = conversation, owner
        self._last = 0

    def __call__(self, kind: str) -> str:
        """Make an id that begins like this."""
        while (made := f"{kind}_{self.owner}{self.number()}") in self.conversation:
            pass
        return made

    def number(self) -> int:
        """Return the next number, which goes into no id then."""
        self._last += 1
        return self._last


def sound_s(item: Item) -> float:
    """Return how much sound an item keeps, seconds."""
    return sum(len(part.waveform) / part.sample_rate for part in item.parts if part.waveform is not None)


def without_sound(item: Item) -> Item:
    """Return an item with its text alone."""
    return replace(item, parts=tuple(replace(part, waveform=None) for part in item.parts))


@dataclass(frozen=True)
class Shown:
    """What the model reads before it answers."""

    tokens: list[int]
    dropped: tuple[str, ...] = ()
    """Ids of the items that did not fit."""


def head_turns(instructions: str, tools: Sequence[Tool]) -> list[Turn]:
    """Build what comes before the conversation: the persona and the tools."""
    persona = Turn("system", (instructions or PERSONA,))
    if not tools:
        return [persona]
    return [persona, Turn("tools", (tools_text([(tool.name, tool.description, tool.parameters) for tool in tools]),))]


def turn_of(item: Item) -> Turn | None:
    """Build what the model is shown of an item; None where nothing was said."""
    if item.kind == "function_call":
        return Turn("assistant", (call_text(item.name, item.arguments),))
    if item.kind == "function_call_output":
        return Turn("tool", (item.output,))
    return Turn(item.role, (item.text.strip(),)) if item.text.strip() else None


def show(
    chat: Chat,
    head: Sequence[Turn],
    items: Iterable[Item],
    room: int,
    retention: float | None = 1.0,
    most_tokens: int | None = None,
) -> Shown:
    """Write a conversation out, up to where the assistant's answer begins, in at most `room` tokens.

    The items take at most `most_tokens` of them. Where they are too long, the oldest are left out until what stays
    fills `retention` of the room, so that several turns fit before any has to go again. An item that is too long by
    itself loses its beginning.

    Raises:
        SessionError: If it is too long and `retention` is None, or the head alone fills the room.
    """
    before, after = chat.render(head).tokens, chat.header("assistant")
    rows = [(item.id, chat.render([turn]).tokens) for item in items if (turn := turn_of(item))]
    room -= len(before) + len(after)
    room = min(room, most_tokens or room)
    dropped: list[str] = []
    if sum(len(row) for _, row in rows) > room:
        if retention is None or room < 1:
            raise SessionError(
                "context_length_exceeded",
                f"the conversation is {sum(len(row) for _, row in rows)} tokens, {max(room, 0)} fit: "
                "delete items, shorten the instructions, or allow truncation",
            )
        goal = max(1, int(retention * (room + len(before) + len(after))) - len(before) - len(after))
        while len(rows) > 1 and sum(len(row) for _, row in rows) > goal:
            dropped.append(rows.pop(0)[0])
    body = [token for _, row in rows for token in row]
    return Shown([*before, *body[-room:], *after] if len(body) > room else [*before, *body, *after], tuple(dropped))
