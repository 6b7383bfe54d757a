"""The orders of messages that clients rely on, for each kind of answer that there is."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from engine.toy_dialogue import ANSWER, engine
from server.talks import MANUAL, Message, Talk, only, refusal, said, types

from tristep.modes.realtime.decoding import call_text

TOOL: Message = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
MOMENT, OSLO, BONN = "One moment. ", *(call_text("weather", f'{{"city": "{city}"}}') for city in ("Oslo", "Bonn"))

ADDED = ["response.output_item.added", "conversation.item.added"]
DONE = ["conversation.item.done", "response.output_item.done"]
WRITTEN = [
    *ADDED, "response.content_part.added", "response.output_text.delta", "response.output_text.done",
    "response.content_part.done", *DONE,
]  # fmt: skip
SPOKEN = [
    *ADDED, "response.content_part.added", "response.output_audio.delta", "response.output_audio.done",
    "response.output_audio_transcript.done", "response.content_part.done", *DONE,
]  # fmt: skip
CALLED = [*ADDED, "response.function_call_arguments.delta", "response.function_call_arguments.done", *DONE]


def answered(toy: Path, answer: str, **response: Any) -> tuple[Talk, list[Message]]:
    """Ask a session that speaks for an answer, and return all that comes of it."""
    talk = Talk(engine(answer), toy)
    talk.update(**MANUAL, tools=[TOOL])
    talk.say("Hello.")
    return talk, talk.send("response.create", response=response) + talk.work()


def order(messages: list[Message]) -> list[str]:
    """Return the types, those that repeat once; sound and its words come in turns and count as one."""
    kinds = (kind.replace("output_audio_transcript.delta", "output_audio.delta") for kind in types(messages))
    return [kind for kind, _ in groupby(kinds)]


@pytest.mark.parametrize("modality", ["audio", "text"])
@pytest.mark.parametrize(
    ("answer", "is_said", "num_calls"),
    [(ANSWER, True, 0), (MOMENT + OSLO, True, 1), (OSLO + BONN, False, 2), (MOMENT + OSLO + BONN, True, 2)],
)
def test_each_item_of_an_answer_is_opened_and_closed_before_the_next(
    toy: Path, answer: str, is_said: bool, num_calls: int, modality: str
) -> None:
    message = SPOKEN if modality == "audio" else WRITTEN
    _, messages = answered(toy, answer, output_modalities=[modality])
    items = [*([message] if is_said else []), *[CALLED] * num_calls]
    assert order(messages) == ["response.created", *(kind for item in items for kind in item), "response.done"]
    assert (messages[-1]["response"]["status"], len(messages[-1]["response"]["output"])) == ("completed", len(items))


def test_the_items_of_an_answer_are_numbered_chained_and_told_apart(toy: Path) -> None:
    talk, messages = answered(toy, MOMENT + OSLO + BONN)
    output = messages[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["message", "function_call", "function_call"]
    ids = [item["id"] for item in output]
    assert len(set(ids)) == 3
    for message in messages:
        if "output_index" in message:
            assert ids[message["output_index"]] == (message.get("item_id") or message["item"]["id"])
    added = [message for message in messages if message["type"] == "conversation.item.added"]
    assert [message["previous_item_id"] for message in added[1:]] == ids[:2]
    assert [item["call_id"] for item in output[1:]] == [message["item"]["call_id"] for message in added[1:]]
    assert output[1]["call_id"] != output[2]["call_id"]
    assert talk.say("Thank you.")[0]["previous_item_id"] == ids[-1]


def test_functions_are_called_one_by_one_where_the_client_wants_that(toy: Path) -> None:
    talk = Talk(engine(OSLO + BONN), toy)
    updated = only(talk.update(**MANUAL, tools=[TOOL], parallel_tool_calls=False), "session.updated")
    assert updated["session"]["parallel_tool_calls"] is False
    talk.say("Hello.")
    (call,) = (talk.send("response.create") + talk.work())[-1]["response"]["output"]
    assert json.loads(call["arguments"]) == {"city": "Oslo"}


def test_a_call_is_named_before_its_arguments_come(toy: Path) -> None:
    talk, messages = answered(toy, OSLO)
    item = only(messages, "conversation.item.added")["item"]
    assert (item["name"], item["arguments"], item["status"]) == ("weather", "", "in_progress")
    done = only(messages, "response.function_call_arguments.done")
    assert (done["call_id"], done["name"], json.loads(done["arguments"])) == (
        item["call_id"],
        "weather",
        {"city": "Oslo"},
    )
    assert said(messages, "response.function_call_arguments.delta") == done["arguments"]
    assert only(messages, "response.output_item.done")["item"]["status"] == "completed"
    told = {"type": "function_call_output", "call_id": item["call_id"], "output": "rain"}
    assert only(talk.send("conversation.item.create", item=told), "conversation.item.done")["item"]["output"] == "rain"
    assert types(talk.send("response.create")) == ["response.created"]


def test_one_answer_in_writing_leaves_a_session_that_speaks(toy: Path) -> None:
    talk, messages = answered(toy, ANSWER, output_modalities=["text"])
    response = messages[-1]["response"]
    assert (said(messages), response["output_modalities"], "audio" in response) == (ANSWER, ["text"], False)
    assert response["output"][0]["content"] == [{"type": "output_text", "text": ANSWER}]
    messages = talk.send("response.create") + talk.work()
    assert said(messages, "response.output_audio_transcript.delta") == ANSWER
    both = talk.send("response.create", response={"output_modalities": ["text", "audio"]})
    assert refusal(both)["param"] == "response.output_modalities"
