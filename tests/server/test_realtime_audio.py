"""StepFun's speech from a text that goes on, over a socket."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from typing import Any

import pytest
import soundfile
from server.toys import KEY, Server
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tristep.audio import SPEAK_HZ, read_audio
from tristep.server import realtime_audio

Message = dict[str, Any]


def spoken(server: Server, messages: list[tuple[str, Message]], path: str = "/v1/realtime/audio") -> list[Message]:
    """Send messages and return all that comes until the server closes."""

    async def main() -> list[Message]:
        address = server.address.replace("http", "ws")
        headers = {"Authorization": f"Bearer {KEY}"}
        async with asyncio.timeout(120), connect(address + path, additional_headers=headers) as socket:
            greeting = json.loads(await socket.recv())
            session_id = greeting["data"]["session_id"]
            for kind, data in messages:
                await socket.send(json.dumps({"type": kind, "data": {"session_id": session_id, **data}}))
            return [greeting, *[json.loads(text) async for text in socket]]

    return asyncio.run(main())


def create(**changes: Any) -> tuple[str, Message]:
    return "tts.create", {"voice_id": "anna", "response_format": "wav", **changes}


def text(said: str) -> tuple[str, Message]:
    return "tts.text.delta", {"text": said}


DONE = ("tts.text.done", dict[str, Any]())


def types(messages: list[Message]) -> list[str]:
    return [message["type"].removeprefix("tts.") for message in messages]


def files(messages: list[Message]) -> list[bytes]:
    deltas = [message["data"] for message in messages if message["type"] == "tts.response.audio.delta"]
    return [base64.b64decode(delta["audio"]) for delta in deltas if delta["audio"]]


def test_each_sentence_is_a_file_and_is_announced(server: Server) -> None:
    sent = [
        create(mode="sentence", instruction="quietly"),
        text("Good mor"),
        text("ning. How "),
        text("are you?"),
        DONE,
    ]
    messages = spoken(server, sent, "/v1/realtime/audio?model=stepaudio-2.5-tts")
    sentence = ["response.sentence.start", "response.audio.delta", "response.sentence.end"]
    assert types(messages) == [
        "connection.done", "response.created", *sentence, *sentence, "response.audio.delta", "response.audio.done",
    ]  # fmt: skip
    texts = [message["data"]["text"] for message in messages if message["type"].endswith("sentence.start")]
    assert texts == ["Good morning.", "How are you?"]
    first, second = (soundfile.info(io.BytesIO(file)) for file in files(messages))
    assert (first.samplerate, first.channels, second.samplerate) == (24_000, 1, 24_000)
    deltas = [message["data"] for message in messages if message["type"] == "tts.response.audio.delta"]
    assert [delta["status"] for delta in deltas] == ["unfinished", "unfinished", "finished"]
    assert deltas[0]["duration"] == pytest.approx(first.duration, abs=0.01)


def test_a_stream_is_one_file(server: Server) -> None:
    messages = spoken(server, [create(response_format="flac_stream"), text("One. Two. "), text("Three."), DONE])
    waveform = read_audio(b"".join(files(messages)), SPEAK_HZ)
    durations = [m["data"]["duration"] for m in messages if m["type"] == "tts.response.audio.delta"]
    assert len(waveform) / SPEAK_HZ == pytest.approx(sum(durations), abs=0.05)


def test_a_speed_is_heeded_and_the_durations_told_are_those_of_the_sound(server: Server) -> None:
    durations = []
    for speed in (1.0, 2.0):
        sent = [create(response_format="flac_stream", speed_ratio=speed), text("One two three."), DONE]
        messages = spoken(server, sent)
        durations.append(sum(m["data"]["duration"] for m in messages if m["type"] == "tts.response.audio.delta"))
        waveform = read_audio(b"".join(files(messages)), SPEAK_HZ)
        assert len(waveform) / SPEAK_HZ == pytest.approx(durations[-1], abs=0.05)
    assert 2 * durations[1] == pytest.approx(durations[0], rel=0.03)


def test_a_text_is_read_as_the_client_says(server: Server) -> None:
    wanted = create(response_format="pcm", markdown_filter=True, pronunciation_map={"tone": ["gif/jiff"]})
    plain = create(response_format="pcm")
    sounds = [
        b"".join(files(spoken(server, [first, text(sentence), DONE])))
        for first, sentence in ((wanted, "The **GIF**."), (plain, "The jiff."))
    ]
    assert sounds[0] == sounds[1]


def test_what_is_flushed_is_said_at_once(server: Server) -> None:
    flush = ("tts.text.flush", dict[str, Any]())
    messages = spoken(server, [create(response_format="pcm"), text("Well"), flush, text("..."), DONE])
    assert types(messages).index("response.audio.delta") < types(messages).index("text.flushed")
    assert len(b"".join(files(messages))) > 4800


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ([text("Hello.")], "invalid_value"), ([create(voice_id="../anna")], "voice_not_found"),
        ([create(speed_ratio=3)], "invalid_value"), ([("tts.dance", {})], "invalid_value"),
        ([create(response_format="opus", sample_rate=22050)], "invalid_value"),
        ([create(), text("x" * 1001)], "invalid_value"), ([create(), ("tts.text.delta", {"text": 7})], "invalid_value"),
        ([create(instruction="x" * 201)], "string_above_max_length"),
    ],
)  # fmt: skip
def test_what_can_not_be_said_ends_the_session_with_a_reason(
    server: Server, sent: list[tuple[str, Message]], code: str
) -> None:
    last = spoken(server, sent)[-1]
    assert last["type"] == "tts.response.error"
    assert last["data"]["code"] == code
    assert server.service.is_ready


@pytest.mark.parametrize("given", ["[" * 5000, '{"type": ' + "[" * 200 + "]" * 200 + "}", '{"type": NaN}', "7"])
def test_what_is_no_json_object_ends_the_session_with_a_reason(server: Server, given: str) -> None:
    async def main() -> Message:
        address = server.address.replace("http", "ws") + "/v1/realtime/audio"
        async with connect(address, additional_headers={"Authorization": f"Bearer {KEY}"}) as socket:
            await socket.send(given)
            *_, last = [json.loads(text) async for text in socket]
            assert socket.close_code == 1000
            return dict(last)

    assert asyncio.run(main())["data"]["code"] == "invalid_json"


def test_who_says_nothing_is_left(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(realtime_audio, "IDLE_S", 0.2)
    last = spoken(server, [create()])[-1]
    assert (last["type"], last["data"]["code"]) == ("tts.response.error", "idle_timeout")


def test_a_full_queue_ends_the_session_with_a_reason(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.service.places, "limit", 0)
    last = spoken(server, [create(), text("Hello. And then?")])[-1]
    assert (last["type"], last["data"]["code"]) == ("tts.response.error", "server_overloaded")


def test_a_full_server_opens_no_socket(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.service.sessions, "limit", 0)
    with pytest.raises(InvalidStatus) as refused:
        spoken(server, [])
    assert refused.value.response.status_code == 429
    assert int(refused.value.response.headers["retry-after"]) > 0
