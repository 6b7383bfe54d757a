"""Realtime messages that no client should send, the same ones for each seed, and what must hold whatever is sent.

`benchmarks/fuzz.py` sends thousands of them; the tests send a few.
"""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, Literal

Message = dict[str, Any]
Dialect = Literal["ga", "beta"]

MAX_FRAME = 256 * 1024
IDS = ("item_1", "item_2", "msg_1", "msg_2", "msg_3", "resp_1", "root", "")
HELLO: Message = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello."}]}
WEATHER: Message = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}}
NOISE = base64.b64encode(Random(0).randbytes(9600)).decode()
SILENCE = base64.b64encode(bytes(4800)).decode()

VALID: list[Message] = [
    {"type": "input_audio_buffer.append", "audio": NOISE},
    {"type": "input_audio_buffer.append", "audio": SILENCE},
    {"type": "input_audio_buffer.commit"},
    {"type": "input_audio_buffer.clear"},
    {"type": "conversation.item.create", "item": HELLO},
    {"type": "conversation.item.create", "item": HELLO | {"id": "msg_1"}, "previous_item_id": "root"},
    {"type": "conversation.item.create", "item": HELLO | {"id": "msg_2"}, "previous_item_id": "msg_1"},
    {"type": "conversation.item.create",
     "item": {"id": "msg_3", "type": "message", "role": "user", "content": [{"type": "input_audio", "audio": NOISE}]}},
    {"type": "conversation.item.create",
     "item": {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": "{}"}},
    {"type": "conversation.item.create", "item": {"type": "function_call_output", "call_id": "call_1", "output": "7"}},
    {"type": "conversation.item.retrieve", "item_id": "msg_1"},
    {"type": "conversation.item.retrieve", "item_id": "msg_3"},
    {"type": "conversation.item.delete", "item_id": "msg_1"},
    {"type": "conversation.item.delete", "item_id": "msg_2"},
    {"type": "conversation.item.delete", "item_id": "msg_3"},
    {"type": "conversation.item.truncate", "item_id": "msg_2", "content_index": 0, "audio_end_ms": 100},
    {"type": "response.cancel"},
    {"type": "response.cancel", "response_id": "resp_1"},
    {"type": "tristep.played", "item_id": "msg_1", "played_ms": 100},
    {"type": "output_audio_buffer.clear"},
]  # fmt: skip
"""Messages of both dialects."""
OF_DIALECT: dict[Dialect, list[Message]] = {
    "ga": [
        {"type": "session.update", "session": {"type": "realtime", "instructions": "Be brief.", "tools": [WEATHER]}},
        {"type": "session.update", "session": {"type": "realtime", "tool_choice": "auto", "temperature": 0.5,
         "truncation": {"type": "retention_ratio", "retention_ratio": 0.5}, "tracing": "auto", "prompt": None}},
        {"type": "session.update", "session": {"type": "realtime", "audio": {
            "input": {"format": {"type": "audio/pcmu"}, "transcription": {"language": "en", "keywords": ["Anna"]},
                      "turn_detection": {"type": "server_vad", "threshold": 0.5, "silence_duration_ms": 100}},
            "output": {"format": {"type": "audio/pcm", "rate": 24000}, "voice": "alloy", "speed": 1}}}},
        {"type": "session.update", "session": {"type": "realtime", "audio": {"input": {
            "turn_detection": {"type": "semantic_vad", "eagerness": "high"}, "noise_reduction": {"type": "near_field"},
            "format": {"type": "audio/pcm"}}}}},
        {"type": "session.update", "session": {"type": "realtime", "audio": {"input": {"turn_detection": None}}}},
        {"type": "response.create"},
        {"type": "response.create", "response": {"output_modalities": ["text"], "max_output_tokens": 4}},
        {"type": "response.create", "response": {"conversation": "none", "output_modalities": ["text"],
         "input": [HELLO, {"type": "item_reference", "id": "msg_1"}], "metadata": {"topic": "fuzz"},
         "max_output_tokens": 4, "tools": [], "tool_choice": "none", "instructions": "Be brief."}},
        {"type": "response.create", "response": {"audio": {"output": {"voice": {"id": "marin"}}}}},
    ],
    "beta": [
        {"type": "session.update", "session": {"modalities": ["text"], "instructions": "Be brief.",
         "tools": [{"type": "function", "function": WEATHER}]}},
        {"type": "session.update", "session": {"input_audio_format": "g711_ulaw", "output_audio_format": "pcm16",
         "voice": "alloy", "turn_detection": {"type": "server_vad", "silence_duration_ms": 100},
         "input_audio_transcription": {"model": "whisper-1"}, "max_response_output_tokens": "4096"}},
        {"type": "session.update", "session": {"turn_detection": None, "modalities": ["text", "audio"],
         "input_audio_format": "pcm16", "temperature": 0.8}},
        {"type": "transcription_session.update", "session": {"input_audio_format": "pcm16"}},
        {"type": "response.create"},
        {"type": "response.create", "response": {"modalities": ["text"], "max_response_output_tokens": 4}},
        {"type": "response.create", "response": {"conversation": "none", "modalities": ["text"], "input": [HELLO],
         "max_output_tokens": "4", "voice": "alloy", "output_audio_format": "g711_alaw"}},
    ],
}  # fmt: skip

ODD: list[Any] = [
    None, True, False, 0, -1, 1, 255, 2**31, -(2**63), 10**400, 0.5, -0.0, 1e-300, 1e308, float("nan"), float("inf"),
    "", " ", "\0", "a\0b", "\n", "inf", "null", "NaN", "4096", "9" * 5000, "\u0663", "\u00e9", "\ud800", "\udc00\ud800",
    "\u202e\u2066x", "\ufeff", "\U0001f4a5" * 9, "e\u0301" * 50, "../../etc/passwd", "%2e%2e/anna", "/dev/zero",
    "<|im_start|>system", "{{7*7}}", "realtime", "audio", "text", "none", "function", "root", "__class__",
    [], {}, [[]], [{}], [None], {"": ""}, {"type": None}, {"id": []}, {"__proto__": {"admin": True}}, ["text", "audio"],
    {"type": "server_vad"}, {"type": "item_reference"}, {"type": "mcp", "server_url": "http://10.0.0.1"},
]  # fmt: skip
SOUNDS = (
    "", "A", "AA", "AAA", "AA=A", "AAAA====", "%%%%", "AAAA\nAAAA", " A A A A ", "data:audio/wav;base64,AAAA", "----",
    "____", "\u00e9\u00e9\u00e9\u00e9", "UklGRiQAAABXQVZF", "////" * 999, "AAAA" * 9,
)  # fmt: skip


def messages(seed: int, dialect: Dialect, count: int) -> Iterator[str | bytes]:
    """Write so many messages; a seed always gives the same ones."""
    chance = Random(f"{dialect} {seed}")
    for _ in range(count):
        yield chance.choice(WAYS)(chance, dialect)


def valid(chance: Random, dialect: Dialect) -> Message:
    """Choose a message that is right in itself; whether it is right now is another question."""
    return copy.deepcopy(chance.choice(VALID + 2 * OF_DIALECT[dialect]))


def in_any_order(chance: Random, dialect: Dialect) -> str:
    """Send what is right, whenever."""
    return json.dumps(valid(chance, dialect) | {"event_id": f"event_{chance.randrange(9)}"})


def of_another_dialect(chance: Random, dialect: Dialect) -> str:
    """Send what is right elsewhere."""
    return in_any_order(chance, "beta" if dialect == "ga" else "ga")


def of_wrong_type(chance: Random, dialect: Dialect) -> str:
    """Put something odd in the place of a value."""
    given = valid(chance, dialect) | {"event_id": "event_1"}
    for _ in range(chance.choice((1, 1, 2, 5))):
        holder, key = chance.choice(list(places(given)))
        holder[key] = copy.deepcopy(chance.choice(ODD))
    return json.dumps(given)


def without_a_field(chance: Random, dialect: Dialect) -> str:
    """Leave something out."""
    given = valid(chance, dialect)
    holder, key = chance.choice(list(places(given)))
    del holder[key]
    return json.dumps(given)


def with_more(chance: Random, dialect: Dialect) -> str:
    """Add a field that nobody knows, or that belongs elsewhere."""
    given = valid(chance, dialect)
    other, key = chance.choice(list(places(valid(chance, dialect))))
    given[key if isinstance(key, str) else "x"] = other[key]
    return json.dumps(given)


def of_great_length(chance: Random, dialect: Dialect) -> str:
    """Put a huge text, or very many of something, in the place of a value."""
    given = valid(chance, dialect) | {"event_id": "event_1"}
    holder, key = chance.choice(list(places(given)))
    size = chance.choice((300, 5000, 99_000, 300_000))
    holder[key] = chance.choice(
        ("x" * size, "\u6c34" * size, "\\" * size, ["x"] * size, {str(n): n for n in range(99)})
    )
    return json.dumps(given, ensure_ascii=False)


def with_odd_sound(chance: Random, dialect: Dialect) -> str:
    """Send what is no base64, or no whole sample."""
    sound = chance.choice(SOUNDS) or base64.b64encode(chance.randbytes(chance.randrange(400))).decode()
    if chance.random() < 0.5:
        return json.dumps({"type": "input_audio_buffer.append", "audio": sound})
    content = [{"type": "input_audio", "audio": sound}]
    return json.dumps({"type": "conversation.item.create", "item": HELLO | {"content": content}})


def nested(chance: Random, dialect: Dialect) -> str:
    """Put lists in lists in the place of a value."""
    given = valid(chance, dialect)
    holder, key = chance.choice(list(places(given)))
    holder[key] = "HERE"
    depth = chance.choice((10, 60, 70, 300, 900, 5000, 100_000))
    opening, closing = chance.choice((("[", "]"), ('{"a":', "}")))
    return json.dumps(given).replace('"HERE"', f"{opening * depth}1{closing * depth}", 1)


def broken(chance: Random, dialect: Dialect) -> str:
    """Damage the text of a message."""
    text = in_any_order(chance, dialect)
    place = chance.randrange(len(text))
    return chance.choice((
        text[:place], text[place:], text[:place] + chance.choice("{}[]\",:\\\0\u00e9") + text[place:], text + text,
        text.replace('"', "'"), f"[{text}]", f" \n{text}\r\n", f"\ufeff{text}", text.replace(":", ": 1e999,", 1), "",
    ))  # fmt: skip


def of_bytes(chance: Random, dialect: Dialect) -> bytes:
    """Send a binary message, which may hold a text or anything."""
    text = in_any_order(chance, dialect).encode()
    return chance.choice(
        (text, text[::-1], b"", chance.randbytes(300), b"\xff\xfe" + text, text.decode().encode("utf-16"))
    )


WAYS: tuple[Callable[[Random, Dialect], str | bytes], ...] = (
    in_any_order, in_any_order, of_another_dialect, of_wrong_type, of_wrong_type, of_wrong_type, without_a_field,
    with_more, of_great_length, with_odd_sound, nested, broken, of_bytes,
)  # fmt: skip


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every place of an object: what holds it, and its key there."""
    keys: Any = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places(value[key])


class Ledger:
    """Reads all that a connection says, and checks what must hold whatever was asked.

    What is opened is closed, in its order; there is one answer of the conversation at a time; nothing is called by the
    name of another; every message is JSON, and none is longer than a client can read.
    """

    def __init__(self) -> None:
        self.events: set[str] = set()
        self.items: set[str] = set()
        """Of the conversation."""
        self.answering: str | None = None
        """The conversation's response that is being given."""
        self.responses: dict[str, set[str]] = {}
        """Responses that are being given, and their items that are open."""
        self.parts: set[tuple[str, int]] = set()
        """Parts that are open."""

    def read(self, text: str | bytes) -> Message:
        """Check a message; return it."""
        assert len(text.encode() if isinstance(text, str) else text) <= MAX_FRAME, f"{len(text)} bytes: {text[:80]!r}"
        message: Message = json.loads(text, parse_constant=refuse)
        assert message["event_id"] not in self.events, message
        self.events.add(message["event_id"])
        self._follow(message["type"], message)
        return message

    def _follow(self, kind: str, message: Message) -> None:
        match kind.removeprefix("response."):
            case "created":
                self._begin(message["response"])
            case "done":
                self._end(message["response"])
            case "output_item.added":
                self.responses[message["response_id"]].add(message["item"]["id"])
            case "output_item.done":
                self.responses[message["response_id"]].remove(message["item"]["id"])
            case "content_part.added":
                self.parts.add(part_of(message))
            case "content_part.done":
                self.parts.remove(part_of(message))
            case "conversation.item.added" | "conversation.item.created":
                assert message["item"]["id"] not in self.items, message
                self.items.add(message["item"]["id"])
            case "conversation.item.deleted":
                self.items.remove(message["item_id"])
            case named if kind.startswith("response.") and named.endswith(".delta") and "arguments" not in named:
                assert part_of(message) in self.parts, message

    def _begin(self, response: Message) -> None:
        assert response["id"] not in self.responses, response
        self.responses[response["id"]] = set()
        if response["conversation_id"] is not None:
            assert self.answering is None, response
            self.answering = response["id"]

    def _end(self, response: Message) -> None:
        assert not self.responses.pop(response["id"]), response
        assert not {part for part in self.parts if part[0] in {item["id"] for item in response["output"]}}, response
        if self.answering == response["id"]:
            self.answering = None


def part_of(message: Message) -> tuple[str, int]:
    """Say which part of which item a message is about."""
    return message["item_id"], message["content_index"]


def refuse(name: str) -> Any:
    """Refuse a number that JSON doesn't have."""
    raise AssertionError(f"{name} is no number in JSON")
