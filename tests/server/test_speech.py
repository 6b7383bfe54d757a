"""Speech on loopback: the library's samples, in every form that a client can ask for."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
import soundfile
import torch
from server.toys import KEY, Server, assert_is_envelope

from tristep.audio import SPEAK_HZ, read_audio
from tristep.codec.voice import read_voice
from tristep.engine.talking import Talker

TEXT = "Hello there."
PATH = "/v1/audio/speech"


@pytest.fixture
def http(server: Server) -> Iterator[httpx2.Client]:
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx2.Client(base_url=server.address, headers=headers, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def talker(toy: Path) -> Talker:
    return Talker.load(toy)


def request(**changes: Any) -> dict[str, Any]:
    return {"model": "stepaudio-2.5-tts", "input": TEXT, "voice": "anna", "response_format": "pcm", **changes}


def samples(data: bytes) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.frombuffer(data, "<i2").astype(np.float32) / 32768


def said(talker: Talker, text: str = TEXT, voice: str = "anna", **settings: Any) -> np.ndarray[Any, Any]:
    """Return what the library says."""
    chunks = list(talker.stream_speech(text, voice, **settings))
    return torch.cat(chunks).clamp(-1, 1).numpy()


def assert_sounds_as(data: bytes, waveform: np.ndarray[Any, Any]) -> None:
    heard = samples(data)
    assert len(heard) == len(waveform)
    np.testing.assert_allclose(heard, waveform, atol=5e-3)


def test_the_client_gets_the_librarys_samples(client: openai.OpenAI, talker: Talker) -> None:
    speech = client.audio.speech.create(model="tts-1", voice="anna", input=TEXT, response_format="pcm")
    assert_sounds_as(speech.content, said(talker))


@pytest.mark.parametrize("field", ["instructions", "instruction"])
def test_instructions_reach_the_model_by_both_names(http: httpx2.Client, talker: Talker, field: str) -> None:
    response = http.post(PATH, json=request(**{field: "in a whisper"}))
    assert_sounds_as(response.content, said(talker, instructions="in a whisper"))


@pytest.mark.parametrize(
    ("name", "media_type"),
    [("wav", "audio/wav"), ("flac", "audio/flac"), ("mp3", "audio/mpeg"), ("opus", "audio/opus"), ("aac", "audio/aac")],
)
def test_a_format_is_told_and_decodes_to_the_same_duration(
    http: httpx2.Client, talker: Talker, name: str, media_type: str
) -> None:
    response = http.post(PATH, json=request(response_format=name))
    assert response.headers["content-type"] == media_type
    assert response.headers["transfer-encoding"] == "chunked"
    duration_s = len(said(talker)) / SPEAK_HZ
    assert len(read_audio(response.content, SPEAK_HZ)) / SPEAK_HZ == pytest.approx(duration_s, abs=0.08)


def test_a_speed_is_heeded(http: httpx2.Client, talker: Talker) -> None:
    fast = said(talker, speed=1.5)
    assert_sounds_as(http.post(PATH, json=request(speed=1.5)).content, fast)
    assert len(fast) * 1.5 == pytest.approx(len(said(talker)), rel=0.03)


def test_a_rate_is_heeded(http: httpx2.Client) -> None:
    data = http.post(PATH, json=request(response_format="flac", sample_rate=16_000)).content
    assert soundfile.info(io.BytesIO(data)).samplerate == 16_000


def test_events_hold_the_file_and_end_as_both_dialects_do(http: httpx2.Client, talker: Talker) -> None:
    response = http.post(PATH, json=request(stream_format="sse"))
    assert response.headers["content-type"].startswith("text/event-stream")
    *lines, last = [line for line in response.text.splitlines() if line]
    assert last == "data: [DONE]"
    *deltas, done = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert {event["type"] for event in deltas} == {"speech.audio.delta"}
    assert_sounds_as(b"".join(base64.b64decode(event["audio"]) for event in deltas), said(talker))
    assert (done["type"], done["audio"]) == ("speech.audio.done", "")
    assert done["usage"]["total_tokens"] == done["usage"]["input_tokens"] + done["usage"]["output_tokens"] > 0


def test_the_asynchronous_client_streams(server: Server, talker: Talker) -> None:
    async def main() -> bytes:
        async with openai.AsyncOpenAI(api_key=KEY, base_url=f"{server.address}/v1", max_retries=0) as client:
            speaking = client.audio.speech.with_streaming_response
            async with speaking.create(model="tts-1", voice="anna", input=TEXT, response_format="pcm") as response:
                return b"".join([piece async for piece in response.iter_bytes()])

    assert_sounds_as(asyncio.run(main()), said(talker))


def test_the_first_sound_leaves_before_the_last_is_made_and_a_client_that_leaves_stops_it(http: httpx2.Client) -> None:
    long = request(input="It goes on and on. " * 50)
    with http.stream("POST", PATH, json=long) as response:
        pieces = response.iter_bytes()
        assert next(pieces)
        assert "tristep_queue 1.0" in http.get("/metrics").text
    assert any("tristep_queue 0.0" in http.get("/metrics").text for _ in range(500))
    assert "tristep_time_to_first_audio_seconds_count" in http.get("/metrics").text


@pytest.mark.parametrize("voice", ["bert", {"id": "bert"}])
def test_a_voice_is_named_or_an_object(http: httpx2.Client, talker: Talker, voice: Any) -> None:
    assert_sounds_as(http.post(PATH, json=request(voice=voice)).content, said(talker, voice="bert"))


def test_voices_of_openai_and_stepfun_have_stand_ins(http: httpx2.Client, server: Server) -> None:
    voices = {server.service.shelf.find(name).name for name in ("alloy", "marin", "ash", "ganliannvsheng")}
    assert voices == {"anna", "bert"}
    assert http.post(PATH, json=request(voice="alloy")).status_code == 200


@pytest.mark.parametrize(
    "voice",
    [
        "nobody", "", "../anna", "/etc/passwd", "..%2fanna", "%2e%2e/anna", "anna\0", "anna.safetensors", "Anna",
        "a" * 10_000, "\u2024\u2024/anna", "anna/../bert",
    ],
)  # fmt: skip
def test_what_is_no_voice_is_never_a_path(http: httpx2.Client, voice: str) -> None:
    response = http.post(PATH, json=request(voice=voice))
    assert_is_envelope(response, 400, "voice_not_found")
    assert response.json()["error"]["message"] == (
        f"there is no voice {voice[:40]!r}: GET /v1/audio/voices lists those there are"
    )


def test_a_text_is_read_as_the_client_says(http: httpx2.Client, talker: Talker) -> None:
    changes = {"input": "# The *GIF*", "markdown_filter": True, "pronunciation_map": {"tone": ["gif/jiff"]}}
    assert_sounds_as(http.post(PATH, json=request(**changes)).content, said(talker, "The jiff"))


def test_directions_are_spoken_only_where_brackets_hold_none(http: httpx2.Client, talker: Talker) -> None:
    text, opened = "Come (softly) here.", "Come softly here."
    for changes, expected in (
        ({"model": "stepaudio-2.5-tts"}, text),
        ({"model": "tts-1"}, opened),
        ({"model": "tts-1", "inline_directions": True}, text),
        ({"model": "org/toy", "inline_directions": False}, opened),
    ):
        assert_sounds_as(http.post(PATH, json=request(input=text, **changes)).content, said(talker, expected))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"speed": 0.2}, "invalid_value"), ({"speed": 4.1}, "invalid_value"), ({"volume": 3}, "invalid_value"),
        ({"input": ""}, "invalid_value"), ({"input": "..."}, "invalid_value"),
        ({"input": "a" * 4097}, "string_above_max_length"), ({"instructions": "x" * 201}, "invalid_value"),
        ({"voice_label": {"emotion": "sad"}}, "unsupported_value"), ({"return_url": True}, "unsupported_value"),
        ({"pronunciation_map": {"tone": ["a"]}}, "invalid_value"), ({"sample_rate": 44100}, "invalid_value"),
        ({"response_format": "opus", "sample_rate": 22050}, "invalid_value"),
        ({"input": "```\ncode\n```", "markdown_filter": True}, "invalid_value"),
    ],
)  # fmt: skip
def test_what_can_not_be_heeded_is_refused(http: httpx2.Client, changes: dict[str, Any], code: str) -> None:
    assert_is_envelope(http.post(PATH, json=request(**changes)), 400, code)


def test_a_voice_file_that_is_damaged_is_refused_and_not_a_failure(server: Server, http: httpx2.Client) -> None:
    own = server.service.settings.voices
    assert own is not None
    (own / "broken.safetensors").write_bytes(b"no voice")
    with pytest.raises(ValueError, match="make the voice again"):
        read_voice(own, "broken")
    assert_is_envelope(http.post(PATH, json=request(voice="broken")), 400, "invalid_value")
    (own / "broken.safetensors").unlink()
