"""What no client should send, and what must hold then: every session goes on, and all that was opened is closed."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import logging
import weakref
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from server.nonsense import HELLO, Dialect, Ledger, messages
from server.talks import MANUAL, TEXT, Message, Talk, only, pcm, refusal, said, silence, speech, types
from server.toys import KEY, SAID, Server
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tristep.engine.engine import Engine
from tristep.server import realtime
from tristep.server.realtime_items import MAX_FRAME
from tristep.server.realtime_jobs import parsed

DEEP = {"a": json.loads("[" * 300 + "]" * 300)}


@pytest.fixture
def written(engine: Engine, toy: Path) -> Talk:
    """A session that answers in writing, when it is asked to."""
    talk = Talk(engine, toy)
    talk.update(**TEXT, **MANUAL)
    return talk


class Recorded(Talk):
    """A client that checks what it reads by a ledger."""

    @torch.inference_mode()
    def read(self, texts: Any) -> list[Message]:
        if not hasattr(self, "ledger"):
            self.ledger = Ledger()
        return [self.ledger.read(text) for text in texts]


@pytest.mark.parametrize("dialect", ["ga", "beta"])
@pytest.mark.parametrize("seed", range(3))
def test_whatever_comes_in_whatever_order_all_that_is_opened_is_closed(
    engine: Engine, toy: Path, dialect: Dialect, seed: int
) -> None:
    talk, chance = Recorded(engine, toy, dialect=dialect), Random(seed)
    for given in messages(seed, dialect, 80):
        talk.write(given if isinstance(given, str) else given.decode(errors="replace"))
        for _ in range(chance.randrange(4)):
            talk.step()
    talk.work()
    assert not talk.ledger.responses
    assert not talk.ledger.parts
    talk.send("session.update", session={"modalities": ["text"], "output_modalities": ["text"], "turn_detection": None})
    talk.send("conversation.item.create", item=HELLO)
    talk.send("response.create")
    assert types(talk.work())[-1] == "response.done"


async def answered(server: Server, path: str, dialect: Dialect, seed: int, count: int) -> None:
    """Send nonsense and see that the connection stays, in order."""
    address, headers = server.address.replace("http", "ws") + path, {"Authorization": f"Bearer {KEY}"}
    async with connect(address, additional_headers=headers, max_size=MAX_FRAME) as socket:
        for given in messages(seed, dialect, count):
            await socket.send(given)
        await socket.send(json.dumps({"type": "no.such.message", "event_id": "the last one"}))
        ledger, message = Ledger(), Message()
        async with asyncio.timeout(60):
            while message.get("error", {}).get("event_id") != "the last one":
                message = ledger.read(await socket.recv())


@pytest.mark.parametrize(("path", "dialect"), [("/v1/realtime", "ga"), ("/step_plan/v1/realtime", "beta")])
def test_no_socket_is_closed_by_nonsense(server: Server, path: str, dialect: Dialect) -> None:
    asyncio.run(answered(server, path, dialect, 7, 200))
    assert server.service.is_ready


# What was found


@pytest.mark.parametrize(
    "text",
    [
        '{"type": "session.update", "session": {"tracing": 1e999}}', json.dumps({"type": "x", "session": DEEP}),
        json.dumps({"type": json.loads("[" * 200 + "]" * 200)}), '{"\\udc00": 1}', "\ufeff{}", '{"a": -Infinity}',
    ],
)  # fmt: skip
def test_what_could_not_be_written_again_is_not_read(written: Talk, text: str) -> None:
    with pytest.raises(ValueError, match=r"JSON|nested|surrogates|BOM"):
        parsed(text)
    assert refusal(written.write(text))["code"] == "invalid_json"


def test_names_that_are_too_long_are_given_back_shortened(written: Talk) -> None:
    error = refusal(written.send("no.such.message", event_id="e" * 300_000))
    assert error["event_id"] == "e" * 512
    metadata = {"k" * 300_000: "v"}
    error = refusal(written.send("response.create", response={"metadata": metadata}))
    assert len(json.dumps(error)) < 2000
    audio = {"input": {"turn_detection": {"type": "x" * 300_000}}}
    assert len(json.dumps(refusal(written.update(audio=audio)))) < 2000


@pytest.mark.parametrize(
    "change", [{"tracing": "x" * 300_000}, {"tools": [{"name": "a", "parameters": {"x": "\u6c34" * 90_000}}]}]
)
def test_a_session_that_no_message_could_tell_is_refused(written: Talk, change: Message) -> None:
    assert refusal(written.update(**change))["code"] == "string_above_max_length"


def test_an_item_that_no_message_could_tell_is_refused_and_sound_is_left_out(written: Talk) -> None:
    text = [{"type": "input_text", "text": "x" * 90_000}] * 3
    error = refusal(written.send("conversation.item.create", item=HELLO | {"content": text}))
    assert error["code"] == "string_above_max_length"
    sound = [{"type": "input_audio", "audio": pcm(speech())}] * 4  # each would fit alone
    added = only(written.send("conversation.item.create", item=HELLO | {"content": sound}), "conversation.item.added")
    retrieved = only(written.send("conversation.item.retrieve", item_id=added["item"]["id"]),
                     "conversation.item.retrieved")  # fmt: skip
    assert len(retrieved["item"]["content"]) == 4
    assert "audio" not in retrieved["item"]["content"][0]


def test_a_number_written_as_endless_text_is_refused(engine: Engine, toy: Path) -> None:
    talk = Talk(engine, toy, dialect="beta")
    for field in ("max_response_output_tokens", "max_output_tokens"):
        (error,) = talk.send("session.update", session={field: "9" * 5000})
        assert error["error"]["code"] == "invalid_value"


def test_a_temperature_that_nothing_can_be_divided_by_takes_the_best(written: Talk) -> None:
    for temperature in (1e-45, 1e-300, 0):
        written.update(temperature=temperature)
        written.say("Hello.")
        written.send("response.create")
        assert said(written.work()) == SAID


def test_an_item_that_is_deleted_before_it_is_answered_fails_only_its_response(written: Talk) -> None:
    written.send("conversation.item.create", item=HELLO | {"id": "msg_1"})
    written.send("response.create", response={"input": [{"type": "item_reference", "id": "msg_1"}]})
    written.send("conversation.item.delete", item_id="msg_1")
    response = only(written.work(), "response.done")["response"]
    assert response["status"] == "failed"
    assert "msg_1" in response["status_details"]["error"]["message"]
    written.say("Hello.")
    written.send("response.create")
    assert said(written.work()) == SAID


def test_the_id_of_a_turn_that_is_being_spoken_is_taken(engine: Engine, toy: Path) -> None:
    talk = Talk(engine, toy)
    talk.update(**TEXT)
    turn = only(talk.hear(speech()), "input_audio_buffer.speech_started")["item_id"]
    item = HELLO | {"id": turn}
    assert refusal(talk.send("conversation.item.create", item=item))["code"] == "item_create_duplicate_item_id"
    talk.hear(silence())
    talk.send("conversation.item.delete", item_id=turn)
    assert types(talk.work())[-1] == "response.done"


def test_sound_that_nobody_has_heard_yet_has_a_limit(written: Talk) -> None:
    written.update(audio={"input": {"format": {"type": "audio/pcmu"}, "turn_detection": None}})
    sound = base64.b64encode(b"\xff" * 8000 * 650).decode()
    item = HELLO | {"content": [{"type": "input_audio", "audio": sound}]}
    assert types(written.send("conversation.item.create", item=item))[0] == "conversation.item.added"
    assert refusal(written.send("conversation.item.create", item=item))["code"] == "audio_too_long"
    assert types(written.update()) == ["session.updated"]


def test_a_session_that_is_over_leaves_nothing_behind(engine: Engine, toy: Path) -> None:
    gc.collect()
    gc.disable()
    try:
        talk = Talk(engine, toy)
        talk.update(**TEXT)
        talk.hear(torch.cat([speech(), silence()]))
        talk.work()
        left = weakref.ref(talk.conversation.protocol.session)
        del talk
        assert left() is None
    finally:
        gc.enable()


# Who does not read


async def flood(socket: ClientConnection) -> None:
    """Ask for long messages, and read none."""
    content = [{"type": "input_audio", "audio": pcm(speech())}]
    await socket.send(
        json.dumps({"type": "conversation.item.create", "item": HELLO | {"id": "msg_1", "content": content}})
    )
    asked = json.dumps({"type": "conversation.item.retrieve", "item_id": "msg_1"})
    while True:
        await socket.send(asked)


def test_a_client_that_does_not_read_is_left_as_overloaded(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(realtime, "SEND_S", 0.3)
    monkeypatch.setattr(realtime, "MAX_WAITING", 20)
    address, headers = server.address.replace("http", "ws"), {"Authorization": f"Bearer {KEY}"}

    async def main() -> None:
        async with connect(f"{address}/v1/realtime", additional_headers=headers, max_queue=1) as socket:
            flooding = asyncio.create_task(flood(socket))
            async with asyncio.timeout(20):
                while not any("WS /v1/realtime 1013" in record.getMessage() for record in caplog.records):
                    await asyncio.sleep(0)
            assert server.service.sessions.num_taken == 0
            flooding.cancel()
            with pytest.raises((asyncio.CancelledError, ConnectionClosed)):
                await flooding
            socket.transport.abort()

    with caplog.at_level(logging.INFO, "tristep.server"):
        asyncio.run(main())
    assert server.service.engine._channels == {}
