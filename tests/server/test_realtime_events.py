"""What is written for clients, checked against the official client's own types, in both dialects."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import pytest
import torch
from openai.types.beta.realtime.realtime_server_event import RealtimeServerEvent as OldEvent
from openai.types.realtime.realtime_server_event import RealtimeServerEvent
from pydantic import TypeAdapter

from tristep.engine import dialogue
from tristep.engine.dialogue import Item, Part, Response, ResponseOptions, Usage
from tristep.server.realtime_beta import to_beta
from tristep.server.realtime_events import Message, Writer
from tristep.server.realtime_items import MAX_FRAME
from tristep.server.realtime_session import Format, Output

NEW, OLD = TypeAdapter[Any](RealtimeServerEvent), TypeAdapter[Any](OldEvent)

PLACE: dict[str, Any] = {"response_id": "resp_1", "item_id": "item_2", "output_index": 0, "content_index": 0}
HEARD = Item("item_1", parts=(Part("audio", None, torch.zeros(1600)),))
SAID = Item("item_2", role="assistant", parts=(Part("audio", "Good morning."),))
BEGUN = Item("item_2", role="assistant", status="in_progress")
CALL = Item("item_3", "function_call", call_id="call_1", name="weather", arguments='{"city": "Bonn"}')
ANSWER = Response("resp_1", "in_progress", "audio", ResponseOptions(metadata={"client_event_id": "1"}))
USED = Usage(100, 20, 60, 12, 40)

EVENTS: list[dialogue.Event] = [
    dialogue.SpeechStarted("item_1", 120),
    dialogue.SpeechStopped("item_1", 2120),
    dialogue.Committed("item_1", None),
    dialogue.ItemAdded(HEARD, None),
    dialogue.ItemDone(HEARD, None),
    dialogue.TranscriptDelta("item_1", "good "),
    dialogue.TranscriptCompleted("item_1", "good morning", "en", 2.0),
    dialogue.TranscriptFailed("item_1", "it is too quiet"),
    dialogue.ResponseCreated(ANSWER),
    dialogue.ItemAdded(BEGUN, "item_1", "resp_1"),
    dialogue.PartAdded(**PLACE, kind="audio"),
    dialogue.TextDelta(**PLACE, kind="audio", delta="Good morning."),
    dialogue.AudioDelta(**PLACE, waveform=torch.zeros(2400)),
    dialogue.AudioDone(**PLACE),
    dialogue.TextDone(**PLACE, kind="audio", text="Good morning."),
    dialogue.PartDone(**PLACE, part=SAID.parts[0]),
    dialogue.ItemDone(SAID, "item_1", "resp_1"),
    dialogue.ItemAdded(CALL, "item_2", "resp_1", 1),
    dialogue.ArgumentsDelta("resp_1", "item_3", 1, "call_1", '{"city"'),
    dialogue.ArgumentsDone("resp_1", "item_3", 1, "call_1", "weather", '{"city": "Bonn"}'),
    dialogue.ItemDone(CALL, "item_2", "resp_1", 1),
    dialogue.ResponseDone(Response("resp_1", "completed", "audio", ANSWER.options, output=(SAID, CALL), usage=USED)),
    dialogue.ResponseCreated(replace(ANSWER, id="resp_2")),
    dialogue.ResponseDone(Response("resp_2", "cancelled", "text", ResponseOptions(), reason="turn_detected")),
    dialogue.ResponseCreated(replace(ANSWER, id="resp_3")),
    dialogue.ResponseDone(Response("resp_3", "failed", "text", ResponseOptions(), error="there is no voice")),
    dialogue.PartAdded(**PLACE, kind="text"),
    dialogue.TextDelta(**PLACE, kind="text", delta="Good"),
    dialogue.TextDone(**PLACE, kind="text", text="Good morning."),
    dialogue.PartDone(**PLACE, part=Part("text", "Good morning.")),
    dialogue.Truncated("item_2", 0, 700, "Good", by_client=True),
    dialogue.ItemRetrieved(HEARD),
    dialogue.ItemDeleted("item_1"),
    dialogue.IdleTimeout("item_4", 100, 900),
    dialogue.Cleared(),
]


@pytest.fixture
def writer() -> Writer:
    return Writer(Output(voice="anna"))


def told(writer: Writer, events: list[dialogue.Event]) -> list[Message]:
    return list(writer.written(events))


def nulls(value: Any, path: str = "") -> list[str]:
    """Name every field that is null."""
    if isinstance(value, dict):
        return [found for name, part in value.items() for found in nulls(part, f"{path}.{name}")]
    if isinstance(value, list):
        return [found for part in value for found in nulls(part, path)]
    return [path] if value is None else []


def test_the_official_client_knows_every_message(writer: Writer) -> None:
    for message in told(writer, EVENTS):
        event = NEW.validate_python(message)
        assert event.type == message["type"]
        assert event.to_dict() == message


def test_the_older_client_knows_every_message_under_its_older_name(writer: Writer) -> None:
    unknown = {"input_audio_buffer.timeout_triggered"}
    for message in told(writer, EVENTS):
        for renamed in to_beta(message):
            if renamed["type"] not in unknown:
                assert OLD.validate_python(renamed).type == renamed["type"]
            assert "output_" not in renamed["type"] or "output_item" in renamed["type"]


def test_nothing_is_null_but_what_clients_expect_to_be(writer: Writer) -> None:
    found = {path for message in told(writer, EVENTS) for path in nulls(message)}
    response = {".response.status_details", ".response.metadata", ".response.usage"}
    assert found == {".previous_item_id", ".item.content.transcript"} | response


def test_a_spoken_answer_comes_in_the_order_that_clients_rely_on(writer: Writer) -> None:
    types = [message["type"] for message in told(writer, EVENTS[8:17])]
    assert types == [
        "response.created", "response.output_item.added", "conversation.item.added", "response.content_part.added",
        "response.output_audio_transcript.delta", "response.output_audio.delta", "response.output_audio.done",
        "response.output_audio_transcript.done", "response.content_part.done", "conversation.item.done",
        "response.output_item.done",
    ]  # fmt: skip


def test_an_answer_beside_the_conversation_leaves_no_trace_in_it(writer: Writer) -> None:
    aside = ResponseOptions(in_conversation=False)
    created = dialogue.ResponseCreated(Response("resp_1", "in_progress", "text", aside))
    added = dialogue.ItemAdded(BEGUN, None, "resp_1", in_conversation=False)
    messages = told(writer, [created, added])
    assert [message["type"] for message in messages] == ["response.created", "response.output_item.added"]
    assert messages[0]["response"]["conversation_id"] is None


@pytest.mark.parametrize("kind", ["audio/pcm", "audio/pcmu", "audio/pcma"])
def test_sound_leaves_whole_in_its_format_and_no_message_is_too_large(kind: Any) -> None:
    writer = Writer(Output(format=Format(type=kind)))
    waveform = torch.sin(torch.arange(24_000 * 9) / 10) / 2
    pieces = [dialogue.AudioDelta(**PLACE, waveform=piece) for piece in waveform.split(100_000)]
    events = [dialogue.ResponseCreated(ANSWER), *pieces, dialogue.AudioDone(**PLACE)]
    messages = told(writer, events)
    deltas = [message["delta"] for message in messages if message["type"] == "response.output_audio.delta"]
    assert max(map(len, deltas)) < MAX_FRAME
    sizes = [len(base64.b64decode(delta)) for delta in deltas]
    wire = Format(type=kind).wire
    assert all(size % wire.sample_bytes == 0 for size in sizes)
    assert wire.duration_s(sum(sizes)) == pytest.approx(9, abs=0.001)
    assert messages[-1]["type"] == "response.output_audio.done"


def test_only_who_asks_is_told_what_the_protocol_does_not_know() -> None:
    events: list[dialogue.Event] = [dialogue.Ducked(True), dialogue.ContextTrimmed("resp_1", ("item_1",))]
    assert told(Writer(Output()), events) == []
    types = [message["type"] for message in told(Writer(Output(), extended=True), events)]
    assert types == ["tristep.ducked", "tristep.context_trimmed"]


def test_a_long_sound_is_left_out_of_an_item_and_a_short_one_is_in_it(writer: Writer) -> None:
    short, long = HEARD, Item("item_9", parts=(Part("audio", "on and on", torch.zeros(16_000 * 60)),))
    bodies = [message["item"]["content"][0] for message in told(writer, [dialogue.ItemRetrieved(short),
                                                                         dialogue.ItemRetrieved(long)])]  # fmt: skip
    assert len(base64.b64decode(bodies[0]["audio"])) == 4800
    assert "audio" not in bodies[1]


def test_every_event_of_the_engine_has_a_message(writer: Writer) -> None:
    known = {type(event) for event in EVENTS} | {dialogue.Ducked, dialogue.ContextTrimmed}
    assert known == set(dialogue.Event.__args__)
