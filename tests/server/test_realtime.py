"""Realtime sessions on loopback: who may open one, its limits, and whole conversations by the official client."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from typing import Any

import httpx2
import openai
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from server.talks import TEXT, Message, pcm, silence, speech
from server.toys import KEY, SAID, Server, assert_is_envelope
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

BEARER = {"Authorization": f"Bearer {KEY}"}


@contextmanager
def limited(server: Server, **limits: Any) -> Iterator[None]:
    """Give a server other limits for a while."""
    before = server.service.settings
    server.service.settings = replace(before, **limits)
    try:
        yield
    finally:
        server.service.settings = before


@asynccontextmanager
async def opened(
    server: Server, path: str = "/v1/realtime?model=gpt-realtime", headers: dict[str, str] = BEARER, **options: Any
) -> AsyncIterator[ClientConnection]:
    """Open a socket and read the greeting."""
    address = server.address.replace("http", "ws")
    async with connect(address + path, additional_headers=headers, **options) as socket:
        yield socket


async def refused(server: Server, path: str, headers: dict[str, str], **options: Any) -> Any:
    """Return the answer to an upgrade that is refused."""
    with pytest.raises(InvalidStatus) as caught:
        async with opened(server, path, headers, **options):
            pass
    return caught.value.response


async def read(socket: ClientConnection, until: str) -> list[Message]:
    """Read messages up to the first of a type."""
    messages: list[Message] = []
    async with asyncio.timeout(60):
        while not messages or messages[-1]["type"] != until:
            messages.append(json.loads(await socket.recv()))
    return messages


async def send(socket: ClientConnection, kind: str, **fields: Any) -> None:
    await socket.send(json.dumps({"type": kind, **fields}))


async def end_of(socket: ClientConnection) -> tuple[list[Message], int]:
    """Read until the server closes; return what was read, and the close code."""
    async with asyncio.timeout(60):
        messages = [json.loads(text) async for text in closing(socket)]
    assert socket.close_code is not None
    return messages, socket.close_code


async def closing(socket: ClientConnection) -> AsyncIterator[str | bytes]:
    """Yield what comes until the server closes, however it does."""
    while True:
        try:
            yield await socket.recv()
        except ConnectionClosed:
            return


async def until(condition: Callable[[], bool], seconds: float = 1.0) -> None:
    """Wait until something is so, and fail if that takes too long."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0)


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def within() -> None:
        await main()

    asyncio.run(within())


# The official client


def test_the_official_client_talks_and_is_answered(server: Server) -> None:
    async def main() -> None:
        client = openai.AsyncOpenAI(api_key=KEY, base_url=f"{server.address}/v1")
        async with client.realtime.connect(model="gpt-realtime") as connection:
            await connection.session.update(
                session={
                    "type": "realtime",
                    "instructions": "You are a patient tutor.",
                    "audio": {"input": {"transcription": {"model": "whisper-1"}}, "output": {"voice": "marin"}},
                }
            )
            sound = torch.cat([speech(), silence()])
            for piece in sound.split(2400):
                await connection.input_audio_buffer.append(audio=pcm(piece))
            events = [event async for event in until_done(connection)]
            kinds = [event.type for event in events]
            assert kinds[:3] == ["session.created", "conversation.created", "session.updated"]
            assert kinds.index("input_audio_buffer.speech_stopped") < kinds.index("response.created")
            answer = b"".join(base64.b64decode(e.delta) for e in events if e.type == "response.output_audio.delta")
            assert len(answer) > 24_000
            words = "".join(e.delta for e in events if e.type == "response.output_audio_transcript.delta")
            assert words == SAID
            completed = "conversation.item.input_audio_transcription.completed"
            assert [event.transcript for event in events if event.type == completed] == [SAID]
            response = events[-1].response
            assert response.status == "completed"
            assert response.usage.output_token_details.audio_tokens > 0
            await connection.conversation.item.truncate(
                item_id=response.output[0].id, content_index=0, audio_end_ms=100
            )
            async for event in connection:
                if event.type == "conversation.item.truncated":
                    break
        await client.close()

    run(main)


async def until_done(connection: Any) -> AsyncIterator[Any]:
    """Yield events up to the end of a response."""
    async with asyncio.timeout(60):
        async for event in connection:
            yield event
            if event.type == "response.done":
                return


@pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager:DeprecationWarning")  # the client's own
def test_the_official_client_without_asyncio_writes_and_reads(server: Server, client: openai.OpenAI) -> None:
    with client.realtime.connect(model="toy" if server.service.settings.model_id == "toy" else "org/toy") as connection:
        connection.session.update(session={"type": "realtime", "output_modalities": ["text"]})
        content: Any = [{"type": "input_text", "text": "Hello."}]
        connection.conversation.item.create(item={"type": "message", "role": "user", "content": content})
        connection.response.create()
        said = ""
        for event in connection:
            if event.type == "response.output_text.delta":
                said += event.delta
            if event.type == "response.done":
                break
        assert said == SAID
        connection.response.cancel(event_id="mine")
        error = connection.recv()
        assert error.type == "error"
        assert (error.error.code, error.error.event_id) == ("response_cancel_not_active", "mine")


def test_the_official_client_transcribes(server: Server) -> None:
    async def main() -> None:
        client = openai.AsyncOpenAI(api_key=KEY, base_url=f"{server.address}/v1")
        async with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
            assert (await connection.recv()).session.type == "transcription"
            for piece in torch.cat([speech(), silence()]).split(2400):
                await connection.input_audio_buffer.append(audio=pcm(piece))
            async for event in connection:
                assert not event.type.startswith("response")
                if event.type == "conversation.item.input_audio_transcription.completed":
                    assert event.transcript == SAID
                    break
        await client.close()

    run(main)


# Keys


@pytest.mark.parametrize(
    ("headers", "subprotocols"),
    [
        (BEARER, None), ({"api-key": KEY}, None), ({"Authorization": f"bearer {KEY}"}, ["realtime"]),
        ({}, ["realtime", f"openai-insecure-api-key.{KEY}", "openai-agents-sdk.0.20"]),
    ],
)  # fmt: skip
def test_each_way_to_send_a_key_opens(server: Server, headers: dict[str, str], subprotocols: Any) -> None:
    async def main() -> None:
        async with opened(server, headers=headers, subprotocols=subprotocols) as socket:
            assert (await read(socket, "conversation.created"))[0]["type"] == "session.created"
            assert socket.subprotocol == ("realtime" if subprotocols else None)
            assert socket.protocol.extensions == []  # nothing is compressed: bombs, and time

    run(main)


@pytest.mark.parametrize("path", ["/v1/realtime", "/step_plan/v1/realtime", "/v1/realtime/asr/stream",
                                  "/v1/realtime/audio", "/v1/realtime/nowhere"])  # fmt: skip
def test_no_socket_opens_without_a_right_key(server: Server, path: str) -> None:
    wrong: list[tuple[dict[str, str], list[Any] | None]] = [
        ({}, None), ({"Authorization": f"Bearer {KEY}x"}, None), ({}, ["realtime", "openai-insecure-api-key.x"]),
        ({"Authorization": "Bearer ek_0123"}, None), ({}, ["realtime", "openai-insecure-api-key.ek_0123"]),
    ]  # fmt: skip

    async def main() -> None:
        for headers, subprotocols in wrong:
            response = await refused(server, path, headers, subprotocols=subprotocols)
            assert response.status_code == 401
            assert response.headers["x-request-id"]
            assert json.loads(response.body)["error"]["code"] == "invalid_api_key"

    run(main)


def test_foreign_pages_and_foreign_names_do_not_open_a_socket(server: Server) -> None:
    async def main() -> None:
        response = await refused(server, "/v1/realtime", {**BEARER, "Origin": "https://evil.example"})
        assert response.status_code == 403
        own = {**BEARER, "Origin": server.address}
        async with opened(server, headers=own) as socket:
            await read(socket, "session.created")

    run(main)


@pytest.mark.parametrize("query", ["", "intent=transcription&"])
def test_a_name_may_bear_a_date(server: Server, query: str) -> None:
    async def main() -> None:
        async with opened(server, f"/v1/realtime?{query}model=gpt-4o-realtime-preview-2024-10-01") as socket:
            await read(socket, "session.created")

    run(main)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/realtime?model=gpt-9", 404, "model_not_found"), ("/v1/realtime?call_id=rtc_1", 400, "unsupported_value"),
        ("/v1/realtime?intent=transcription&model=tts-1", 404, "model_not_found"),
    ],
)  # fmt: skip
def test_what_is_not_served_is_refused_before_the_upgrade(server: Server, path: str, status: int, code: str) -> None:
    async def main() -> None:
        response = await refused(server, path, BEARER)
        assert response.status_code == status
        assert json.loads(response.body)["error"]["code"] == code

    run(main)


def test_an_ephemeral_key_opens_its_session_and_nothing_else(server: Server, client: openai.OpenAI) -> None:
    made = client.realtime.client_secrets.create(
        expires_after={"anchor": "created_at", "seconds": 60},
        session={"type": "realtime", "instructions": "You are a captain.", "output_modalities": ["text"]},
    )
    assert made.value.startswith("ek_")
    assert made.session.type == "realtime"
    assert 50 < made.expires_at - time.time() <= 60

    async def main() -> None:
        key = [f"openai-insecure-api-key.{made.value}", "realtime"]
        async with opened(server, headers={}, subprotocols=key) as socket:
            session = (await read(socket, "session.created"))[0]["session"]
            assert session["instructions"] == "You are a captain."
            assert made.value not in str(socket.response)
        async with httpx2.AsyncClient(base_url=server.address) as http:
            response = await http.get("/v1/models", headers={"Authorization": f"Bearer {made.value}"})
            assert_is_envelope(response, 401, "invalid_api_key")
        kept = server.service.secrets.kept
        assert made.value not in str(kept)
        digest = list(kept)[-1]
        kept[digest] = (time.time() - 1, kept[digest][1])
        assert (await refused(server, "/v1/realtime", {}, subprotocols=key)).status_code == 401

    run(main)


def test_an_ephemeral_key_for_transcription(server: Server, client: openai.OpenAI) -> None:
    made = client.realtime.client_secrets.create(session={"type": "transcription"})

    async def main() -> None:
        async with opened(server, headers={"Authorization": f"Bearer {made.value}"}) as socket:
            assert (await read(socket, "session.created"))[0]["session"]["type"] == "transcription"

    run(main)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"expires_after": {"seconds": 9}}, "expires_after.seconds"), ({"session": 7}, "session"),
        ({"session": {"audio": {"output": {"speed": 3}}}}, "session.audio.output.speed"),
        ({"session": {"audio": {"output": {"voice": "nobody"}}}}, "session.audio.output.voice"),
        ({"session": {"instructions": "\u6c34" * 90_000}}, "session"),
    ],
)  # fmt: skip
def test_a_key_for_what_can_not_be_is_not_made(server: Server, body: Message, param: str) -> None:
    response = httpx2.post(f"{server.address}/v1/realtime/client_secrets", json=body, headers=BEARER)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_old_clients_get_their_keys_too(server: Server) -> None:
    for path, body in (("sessions", {"voice": "bert", "modalities": ["text"]}), ("transcription_sessions", {})):
        made = httpx2.post(f"{server.address}/v1/realtime/{path}", json=body, headers=BEARER).json()
        assert made["client_secret"]["value"].startswith("ek_")
        assert made["input_audio_format"] == "pcm16"


# Dialects


@pytest.mark.parametrize(
    ("path", "headers", "subprotocols"),
    [
        ("/v1/realtime?model=step-audio-2", {"OpenAI-Beta": "realtime=v1"}, None),
        ("/step_plan/v1/realtime?model=stepaudio-2.5-realtime", {}, None),
        ("/v1/realtime?dialect=beta", {}, None),
        ("/v1/realtime", {}, ["realtime", "openai-beta.realtime-v1"]),
    ],
)  # fmt: skip
def test_old_clients_are_known_by_what_they_say(
    server: Server, path: str, headers: dict[str, str], subprotocols: Any
) -> None:
    async def main() -> None:
        async with opened(server, path, {**BEARER, **headers}, subprotocols=subprotocols) as socket:
            session = (await read(socket, "session.created"))[0]["session"]
            assert session["modalities"] == ["text", "audio"]
            assert "audio" not in session

    run(main)


def test_the_page_is_told_more_than_the_protocol_has(server: Server) -> None:
    async def main() -> None:
        async with opened(server, "/v1/realtime?extensions=tristep") as socket:
            await send(socket, "tristep.played", item_id="item_1", played_ms=10)
            await send(socket, "session.update", session={})
            assert [message["type"] for message in await read(socket, "session.updated")] == [
                "session.created", "conversation.created", "session.updated",
            ]  # fmt: skip

    run(main)


# Limits


def test_a_full_server_refuses_and_a_client_that_left_makes_room_at_once(server: Server) -> None:
    service = server.service

    async def main() -> None:
        sockets = []
        try:
            for _ in range(service.settings.max_sessions):
                address = server.address.replace("http", "ws")
                sockets.append(await connect(f"{address}/v1/realtime", additional_headers=BEARER))
            response = await refused(server, "/v1/realtime", BEARER)
            assert response.status_code == 429
            assert response.headers["retry-after"]
            assert "sessions are open" in json.loads(response.body)["error"]["message"]
            sockets[0].transport.abort()  # no farewell
            await until(lambda: service.sessions.num_taken < service.settings.max_sessions)
            async with opened(server) as socket:
                await read(socket, "session.created")
        finally:
            for socket in sockets:
                await socket.close()
        await until(lambda: service.sessions.num_taken == 0, 5)

    run(main)


def test_who_leaves_at_any_moment_leaves_nothing_behind(server: Server) -> None:
    async def leave(moment: int) -> None:
        async with opened(server) as socket:
            await send(socket, "session.update", session=TEXT)
            content = [{"type": "input_text", "text": "Hello."}]
            item = {"type": "message", "role": "user", "content": content}
            await send(socket, "conversation.item.create", item=item)
            await send(socket, "response.create")
            for _ in range(moment):
                await socket.recv()
            socket.transport.abort()

    async def main() -> None:
        for moment in range(12):
            await leave(moment)
        await until(lambda: server.service.sessions.num_taken == 0, 5)
        async with opened(server) as socket:
            await read(socket, "session.created")

    run(main)


def test_a_session_ends_when_its_time_is_over(server: Server) -> None:
    async def main() -> None:
        with limited(server, max_session_s=0.5):
            async with opened(server) as socket:
                messages, code = await end_of(socket)
        assert (messages[-1]["error"]["code"], code) == ("session_expired", 1001)
        with limited(server, max_idle_s=0.3):
            async with opened(server) as socket:
                messages, code = await end_of(socket)
        assert (messages[-1]["type"], code) == ("error", 1001)

    run(main)


def test_a_message_that_is_too_large_ends_the_session(server: Server) -> None:
    async def main() -> None:
        async with opened(server, max_size=None) as socket:
            await read(socket, "session.created")
            with suppress(ConnectionClosed):  # it may notice while it still writes
                await socket.send("x" * (server.service.settings.max_message_bytes + 1))
            assert (await end_of(socket))[1] == 1009

    run(main)


def test_messages_may_come_as_bytes(server: Server) -> None:
    async def main() -> None:
        async with opened(server) as socket:
            await socket.send(json.dumps({"type": "session.update", "session": {}}).encode())
            await read(socket, "session.updated")
            await socket.send(b"\xff\xfe")
            assert (await read(socket, "error"))[-1]["error"]["code"] == "invalid_json"

    run(main)


def test_pings_are_answered_while_the_engine_works(server: Server) -> None:
    async def main() -> None:
        async with opened(server) as socket:
            await send(socket, "session.update", session=TEXT)
            await read(socket, "session.updated")
            sound = torch.cat([speech(), silence()]).repeat(10)
            await send(socket, "input_audio_buffer.append", audio=pcm(sound))
            for _ in range(5):
                async with asyncio.timeout(1):
                    await (await socket.ping())

    run(main)


def test_what_is_open_is_counted(server: Server) -> None:
    async def main() -> None:
        async with opened(server) as socket, httpx2.AsyncClient(base_url=server.address, headers=BEARER) as http:
            await read(socket, "session.created")
            assert "tristep_sessions 1.0" in (await http.get("/metrics")).text

    run(main)


# Nonsense

ids = st.sampled_from(["item_1", "", "root", "x" * 90, "resp_1"]) | st.text(max_size=5)
sounds = st.binary(max_size=400).map(lambda data: base64.b64encode(data).decode()) | st.text(max_size=9)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(
    ["type", "role", "content", "id", "audio", "input", "output", "voice", "format", "rate", "turn_detection", "tools",
     "instructions", "output_modalities", "transcription", "metadata", "conversation", "max_output_tokens"]
)  # fmt: skip
values = st.sampled_from(
    ["message", "user", "none", "audio/pcm", "server_vad", "input_text", "input_audio", "inf", ["text"], "anna", 16000]
)
objects = st.recursive(
    st.dictionaries(names, values | anything, max_size=4),
    lambda inner: st.dictionaries(names, inner | st.lists(inner, max_size=2), max_size=4),
    max_leaves=6,
)
verbs = st.sampled_from(
    ["session.update", "input_audio_buffer.append", "input_audio_buffer.commit", "input_audio_buffer.clear",
     "conversation.item.create", "conversation.item.retrieve", "conversation.item.delete",
     "conversation.item.truncate", "response.create", "response.cancel", "tristep.played",
     "transcription_session.update", "output_audio_buffer.clear"]
)  # fmt: skip
messages = st.fixed_dictionaries(
    {"type": verbs | st.text(max_size=8)},
    optional={
        "session": objects | anything, "item": objects | anything, "response": objects | anything, "audio": sounds,
        "item_id": ids, "previous_item_id": ids, "event_id": ids | anything, "audio_end_ms": anything,
        "content_index": anything, "played_ms": st.integers(), "response_id": ids | anything,
    },
)  # fmt: skip


@given(st.lists(messages.map(json.dumps) | st.text(max_size=20) | anything.map(json.dumps), min_size=10, max_size=10))
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_message_harms_the_server(server: Server, texts: list[str]) -> None:
    async def main() -> None:
        async with opened(server) as socket:
            for text in texts:
                await socket.send(text)
            await send(socket, "no.such.message", event_id="the last one")
            told: list[Message] = [{}]
            while told[-1].get("error", {}).get("event_id") != "the last one":
                told = await read(socket, "error")

    run(main)
