"""OpenAI's client and StepFun's requests against a server on loopback."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import av
import httpx2
import numpy as np
import openai
import pytest
import soundfile
from server.toys import CLIP, DATA, KEY, SAID, Server, assert_is_envelope

import tristep
from tristep.audio import LISTEN_HZ, read_audio
from tristep.engine.transcription import Transcription

OPUS = DATA / "kathleen_b0442.opus"
PATH = "/v1/audio/transcriptions"


@pytest.fixture
def http(server: Server) -> Any:
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx2.Client(base_url=server.address, headers=headers, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def offline(toy: Path) -> Transcription:
    """What the library says of the clip, word times included."""
    result = tristep.load(toy).transcribe(CLIP, words=True)
    assert result.text == SAID
    return result


@cache
def in_format(container: str, codec: str) -> bytes:
    """Encode a clip anew."""
    file, waveform = io.BytesIO(), read_audio(OPUS, 48_000).numpy()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=48_000, layout="mono")
        resampler = av.AudioResampler(
            stream.codec_context.format, "mono", 48_000, stream.codec_context.frame_size or 960
        )
        frame = av.AudioFrame.from_ndarray(waveform[None], "flt", "mono")
        frame.sample_rate = 48_000
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            output.mux(stream.encode(part))
        output.mux(stream.encode(None))
    return file.getvalue()


FORMATS = {
    "wav": ("wav", "pcm_s16le"), "mp3": ("mp3", "libmp3lame"), "m4a": ("ipod", "aac"), "ogg": ("ogg", "libopus"),
    "webm": ("webm", "libopus"), "flac": ("flac", "flac"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_is_known_by_its_content_and_not_by_its_name(http: httpx2.Client, kind: str) -> None:
    for name, media_type in (("audio.xyz", "application/octet-stream"), ("speech.wav", None)):
        file = (name, in_format(*FORMATS[kind]), media_type)
        response = http.post(PATH, data={"model": "whisper-1", "response_format": "verbose_json"}, files={"file": file})
        assert response.status_code == 200, response.text
        assert response.json()["duration"] == pytest.approx(2.9, abs=0.1)


def test_headerless_samples_are_taken_by_their_media_type(http: httpx2.Client) -> None:
    samples = (read_audio(CLIP).numpy() * 32767).astype("<i2").tobytes()
    response = http.post(
        PATH, data={"model": "whisper-1", "response_format": "verbose_json"},
        files={"file": ("a", samples, "audio/pcm")},
    )  # fmt: skip
    assert response.json()["duration"] == pytest.approx(11.0, abs=0.01)


@pytest.mark.parametrize(
    "content", [b"", b"no sound " * 99, b"fLaC", b"OggS" + bytes(99), b"#EXTM3U\nfile:///etc/passwd"]
)
def test_what_is_no_sound_is_refused_by_the_librarys_sentence(http: httpx2.Client, content: bytes) -> None:
    response = http.post(PATH, data={"model": "whisper-1"}, files={"file": ("speech.wav", content)})
    assert_is_envelope(response, 400, "unsupported_file")
    assert response.json()["error"]["message"].startswith("the upload ")


@pytest.mark.parametrize(
    ("container", "codec"),
    [("nut", "pcm_s16le"), ("mxf_opatom", "pcm_s16le"), ("rm", "ac3"), ("sox", "pcm_s32le"), ("wtv", "mp2")],
)
def test_a_rare_container_is_not_opened_though_it_could_be(http: httpx2.Client, container: str, codec: str) -> None:
    content = in_format(container, codec)
    with av.open(io.BytesIO(content)) as file:
        assert file.streams.audio
    response = http.post(PATH, data={"model": "whisper-1"}, files={"file": ("speech.wav", content)})
    assert_is_envelope(response, 400, "unsupported_file")


def iamf() -> bytes:
    """Write immersive sound as FFmpeg knows it: a header, a codec, an element, a mix, and frames of silence."""
    units = [
        (31, b"iamf\0\0"), (0, b"\0ipcm\x80\x08\0\0\1\x10" + (48_000).to_bytes(4, "big")),
        (1, bytes([0, 0, 0, 1, 0, 0, 32, 0, 1, 0])), (2, bytes([0, 0, 1, 1, 0, 0, 0, 0, 0, 0])), *[(6, bytes(120))] * 5,
    ]  # fmt: skip
    return b"".join(bytes([kind << 3, len(payload)]) + payload for kind, payload in units)


def test_immersive_sound_is_refused_bare_and_inside_of_mp4(http: httpx2.Client, server: Server) -> None:
    decoder = server.service.decoder._process.pid
    inside = in_format("ipod", "aac").replace(b"mp4a", b"iamf").replace(b"esds", b"iacb")
    for content in (iamf(), inside):
        response = http.post(PATH, data={"model": "whisper-1"}, files={"file": ("speech.mp4", content, "audio/mp4")})
        assert_is_envelope(response, 400, "unsupported_file")
    assert server.service.decoder._process.pid == decoder


def test_a_small_file_that_unfolds_into_hours_is_refused(http: httpx2.Client) -> None:
    bomb = io.BytesIO()
    with soundfile.SoundFile(bomb, "w", 8000, 1, format="OGG", subtype="OPUS") as file:
        for _ in range(120):
            file.write(np.zeros(8000, "i2"))
    response = http.post(PATH, data={"model": "whisper-1"}, files={"file": bomb.getvalue()})
    assert_is_envelope(response, 400, "audio_too_long")


def test_the_client_gets_the_librarys_text_in_every_form(client: openai.OpenAI, offline: Transcription) -> None:
    def ask(form: Any, **settings: Any) -> Any:
        return client.audio.transcriptions.create(model="whisper-1", file=CLIP, response_format=form, **settings)

    assert ask("json").text == offline.text
    assert ask("json").usage.seconds == 11.0
    assert ask("text").strip() == offline.text.strip()
    whole = ask("verbose_json", timestamp_granularities=["segment", "word"])
    assert [(s.start, s.end, s.text) for s in whole.segments] == [
        (s.start_s, s.end_s, s.text) for s in offline.segments
    ]
    said = [word for segment in offline.segments for word in segment.words or ()]
    assert [(word.word, word.start, word.end) for word in whole.words] == [(w.text, w.start_s, w.end_s) for w in said]
    assert whole.duration == 11.0
    assert ask("verbose_json").words is None
    assert ask("verbose_json", timestamp_granularities=["word"]).segments is None


def test_captions_are_in_order_and_within_the_sound(client: openai.OpenAI) -> None:
    for form, point, first in (("srt", ",", "1\n"), ("vtt", ".", "WEBVTT\n")):
        text = client.audio.transcriptions.create(model="whisper-1", file=CLIP, response_format=form)  # type: ignore[call-overload]
        assert text.startswith(first)
        times = [line.split(" --> ") for line in text.splitlines() if " --> " in line]
        seconds = [seconds_of(time, point) for pair in times for time in pair]
        assert seconds == sorted(seconds)
        assert 0 <= seconds[0] < seconds[-1] <= 11.1


def seconds_of(time: str, point: str) -> float:
    hours, minutes, seconds = time.replace(point, ".").split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


def test_a_stream_says_what_the_whole_says(client: openai.OpenAI, offline: Transcription) -> None:
    stream = client.audio.transcriptions.create(model="gpt-4o-transcribe", file=CLIP, stream=True)
    *deltas, done = list(stream)
    assert {event.type for event in deltas} == {"transcript.text.delta"}
    assert done.type == "transcript.text.done"
    assert "".join(event.delta for event in deltas) == done.text == offline.text  # type: ignore[union-attr]
    assert done.usage is not None
    assert done.usage.input_tokens == round(12.5 * 11)
    assert done.usage.output_tokens > len(offline.text.replace(" ", ""))
    assert done.usage.total_tokens == done.usage.input_tokens + done.usage.output_tokens


def test_how_likely_each_token_was_is_told_to_who_asks(client: openai.OpenAI, offline: Transcription) -> None:
    whole = client.audio.transcriptions.create(model="whisper-1", file=CLIP, include=["logprobs"])
    assert whole.logprobs is not None
    assert "".join(token.token or "" for token in whole.logprobs).replace(" ", "") == whole.text.replace(" ", "")
    assert all(token.logprob is not None and token.logprob <= 0 for token in whole.logprobs)
    assert bytes(int(byte) for token in whole.logprobs for byte in token.bytes or ()).decode() == "".join(
        token.token or "" for token in whole.logprobs
    )
    assert math.exp(sum(token.logprob or 0 for token in whole.logprobs) / len(whole.logprobs)) > 0.5
    stream = client.audio.transcriptions.create(model="whisper-1", file=CLIP, include=["logprobs"], stream=True)
    *deltas, done = list(stream)
    told = [token.token for event in deltas for token in event.logprobs or ()]  # type: ignore[union-attr]
    assert told == [token.token for token in done.logprobs or ()]  # type: ignore[union-attr]
    assert told == [token.token for token in whole.logprobs]
    assert client.audio.transcriptions.create(model="whisper-1", file=CLIP).logprobs is None


def test_the_asynchronous_client_streams_too(server: Server, offline: Transcription) -> None:
    async def main() -> str:
        async with openai.AsyncOpenAI(api_key=KEY, base_url=f"{server.address}/v1", max_retries=0) as client:
            stream = await client.audio.transcriptions.create(model="whisper-1", file=CLIP, stream=True)
            return [event async for event in stream][-1].text  # type: ignore[union-attr]

    assert asyncio.run(main()) == offline.text


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": "json", "timestamp_granularities[]": "word"}, None),
        ({"response_format": "srt", "stream": "true"}, None),
        ({"response_format": "diarized_json"}, "response_format"),
        ({"prompt": "Dear diary"}, "prompt"),
        ({"temperature": "0.7"}, "temperature"),
        ({"temperature": "7"}, "temperature"),
        ({"include[]": "item"}, "include.0"),
        ({"include": "logprobs", "response_format": "text"}, None),
        ({"languages[]": ["en", "de"]}, "languages"),
        ({"chunking_strategy[type]": "server_vad", "chunking_strategy[threshold]": "0.1"}, "chunking_strategy"),
        ({"known_speaker_names[]": "Anna"}, "known_speaker_names"),
        ({"language": "klingon"}, None),
        ({"hotwords[]": "123\u4f60"}, None),
    ],
)  # fmt: skip
def test_what_has_no_effect_is_refused(http: httpx2.Client, fields: dict[str, Any], param: str | None) -> None:
    response = http.post(PATH, data={"model": "whisper-1", **fields}, files={"file": OPUS.read_bytes()})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize(
    "fields",
    [
        {"chunking_strategy": "auto"}, {"chunking_strategy": '{"type": "server_vad"}'}, {"languages[]": "en"},
        {"chunking_strategy[type]": "server_vad"}, {"include[]": []},
        {"timestamp_granularities": '["word"]', "response_format": "verbose_json"},
        {"keywords[]": ["Anna", "Bert"]}, {"hotwords": '["Anna"]'}, {"temperature": "0", "unknown": "x"},
        {"style": "written"}, {"model": "org/toy"},
    ],
)  # fmt: skip
def test_fields_are_read_however_the_clients_write_them(http: httpx2.Client, fields: dict[str, Any]) -> None:
    response = http.post(PATH, data={"model": "whisper-1", **fields}, files={"file": OPUS.read_bytes()})
    assert response.status_code == 200, response.text


def test_a_file_of_the_limit_is_taken_and_one_more_byte_is_not(http: httpx2.Client, server: Server) -> None:
    limit = server.service.settings.max_file_bytes
    for excess, status in ((0, 400), (1, 413)):  # zeros are no sound, but they are not too many
        response = http.post(PATH, data={"model": "whisper-1"}, files={"file": bytes(limit + excess)})
        assert_is_envelope(response, status, "file_too_large" if excess else "unsupported_file")


@pytest.mark.parametrize("bomb", ["fields", "headers", "no boundary", "nested"])
def test_a_form_that_is_a_bomb_is_refused(http: httpx2.Client, bomb: str) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="%d"\r\n\r\n1\r\n'
    bodies = {
        "fields": b"".join(part % number for number in range(1000)) + b"--x--\r\n",
        "headers": b"--x\r\n" + b"A: b\r\n" * 10_000 + b"\r\n--x--\r\n",
        "no boundary": bytes(1000),
        "nested": b"--x\r\nContent-Type: multipart/mixed; boundary=y\r\n\r\n--y\r\n\r\n--y--\r\n--x--\r\n",
    }
    headers = {"Content-Type": "multipart/form-data; boundary=x" if bomb != "no boundary" else "multipart/form-data"}
    assert_is_envelope(http.post(PATH, content=bodies[bomb], headers=headers), 400, None)


def test_a_client_that_leaves_frees_its_place(http: httpx2.Client, server: Server) -> None:
    long = io.BytesIO()
    pause = np.zeros(3 * LISTEN_HZ, np.float32)
    soundfile.write(long, np.concatenate([read_audio(OPUS).numpy(), pause] * 9), LISTEN_HZ, format="FLAC")
    files, data = {"file": long.getvalue()}, {"model": "whisper-1", "stream": "true"}
    with http.stream("POST", PATH, data=data, files=files) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
    assert any("tristep_queue 0.0" in http.get("/metrics").text for _ in range(500))
    assert server.service.engine._channels == {}


def test_metrics_tell_how_much_was_heard(http: httpx2.Client) -> None:
    http.post(PATH, data={"model": "whisper-1"}, files={"file": OPUS.read_bytes()})
    text = http.get("/metrics").text
    assert 'tristep_audio_seconds_total{mode="asr"}' in text
    assert 'tristep_requests_total{handler="transcribe",status="200"}' in text


def measured(http: httpx2.Client, name: str) -> float:
    """Return what the server tells of a count."""
    lines = http.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def test_metrics_tell_how_soon_words_come_and_how_many_by_a_pass(http: httpx2.Client) -> None:
    counted = ['tristep_time_to_first_token_seconds_count{mode="asr"}', "tristep_acceptance_length_count"]
    before = [measured(http, name) for name in counted]
    form = {"model": "whisper-1", "stream": "true"}
    stream = http.post(PATH, data=form, files={"file": OPUS.read_bytes()}).text
    assert [measured(http, name) for name in counted] == [before[0] + 1, before[1] + stream.count("text.delta")]
    passes, tokens = (measured(http, f"tristep_acceptance_length_{part}") for part in ("count", "sum"))
    assert tokens >= passes


def step_request(data: bytes, **format_: Any) -> dict[str, Any]:
    transcription = {"model": "stepaudio-2.5-asr", "language": "en", "hotwords": ["Anna"], "enable_timestamp": True}
    return {
        "audio": {
            "data": base64.b64encode(data).decode(),
            "input": {"transcription": transcription, "format": format_, "full_rerun_on_commit": True},
        }
    }


@pytest.mark.parametrize("prefix", ["/v1", "/step_plan/v1"])
@pytest.mark.parametrize("kind", ["pcm", "wav"])
def test_stepfuns_recognition_streams(http: httpx2.Client, prefix: str, kind: str) -> None:
    samples = (read_audio(CLIP).numpy() * 32767).astype("<i2").tobytes()
    described = {"type": "pcm", "codec": "pcm_s16le", "rate": 16_000, "bits": 16, "channel": 1}
    body = step_request(samples, **described) if kind == "pcm" else step_request(CLIP.read_bytes(), type="wav")
    response = http.post(f"{prefix}/audio/asr/sse", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    *deltas, done = [json.loads(line.removeprefix("data: ")) for line in response.text.splitlines() if line]
    assert {event["type"] for event in deltas} == {"transcript.text.delta"}
    assert done["type"] == "transcript.text.done"
    assert done["meta"]["session_id"].startswith("sse_")
    assert "".join(event["delta"] for event in deltas) == done["text"]
    assert all(0 <= event["start_time"] < event["end_time"] <= 11_000 for event in deltas)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"type": "pcm", "rate": 16_000}, "pcm needs rate, bits and channel"), ({"type": "midi"}, "'pcm', 'ogg'")],
)
def test_stepfuns_recognition_refuses_what_it_can_not_read(
    http: httpx2.Client, changes: dict[str, Any], message: str
) -> None:
    response = http.post("/v1/audio/asr/sse", json=step_request(b"x", **changes))
    assert_is_envelope(response, 400, "invalid_value")
    assert message in response.json()["error"]["message"]
    for data in ("no base64!", "\u00e9\u00e9\u00e9\u00e9"):
        broken = step_request(b"x", type="wav")
        broken["audio"]["data"] = data
        assert_is_envelope(http.post("/v1/audio/asr/sse", json=broken), 400, "invalid_value")
