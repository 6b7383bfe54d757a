"""Chat completions by the official client: words and sounds in, words out."""

from __future__ import annotations

import base64
from typing import Any

import httpx2
import openai
import pytest
from server.toys import CLIP, KEY, SAID, Server, assert_is_envelope

from tristep.server import chat

MODEL = "stepaudio-2.5-chat"
HELLO: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello."}]


def sound(prefix: str = "") -> dict[str, Any]:
    data = prefix + base64.b64encode(CLIP.read_bytes()).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def test_a_conversation_is_answered(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HELLO)
    assert answer.choices[0].message.content == SAID
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(SAID)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + len(SAID)


def test_metrics_tell_how_soon_an_answer_begins(client: openai.OpenAI, server: Server) -> None:
    client.chat.completions.create(model="stepaudio-2.5-chat", messages=[{"role": "user", "content": "Hello."}])
    metrics = server.service.metrics.registry
    assert (metrics.get_sample_value("tristep_time_to_first_token_seconds_count", {"mode": "chat"}) or 0) >= 1


def test_a_stream_is_the_same_answer(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    said = [choice.delta.content for chunk in chunks for choice in chunk.choices if choice.delta.content]
    assert "".join(said) == SAID
    assert len(said) > 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(SAID)


@pytest.mark.parametrize("prefix", ["", "data:audio/flac;base64,"])
def test_a_sound_is_heard(client: openai.OpenAI, prefix: str) -> None:
    content: Any = [{"type": "text", "text": "What is this?"}, sound(prefix)]
    answer = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": content}])
    assert answer.choices[0].message.content == SAID
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.audio_tokens == pytest.approx(11 * 12.5, abs=3)


def test_a_conversation_with_calls_in_it_is_taken(client: openai.OpenAI) -> None:
    call: Any = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bonn"}'}}
    messages: list[Any] = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]
    tool: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    answer = client.chat.completions.create(model=MODEL, messages=messages, tools=[tool])
    assert answer.choices[0].message.content == SAID


def test_an_answer_is_as_long_as_it_may_be(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, max_completion_tokens=4)
    assert answer.choices[0].message.content == SAID[:4]
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "invalid_value", None),
        ({"messages": [{"role": "assistant", "content": [sound()]}]}, "invalid_value", "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "invalid_value", "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "%"}}]}]},
         "invalid_value", "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "\u00e9"}}]}]},
         "invalid_value", "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AAAA"}}]}]},
         "unsupported_file", "file"),
        ({"modalities": ["text", "audio"]}, "unsupported_value", "modalities"),
        ({"n": 2}, "unsupported_value", "n"),
        ({"response_format": {"type": "json_object"}}, "unsupported_value", "response_format"),
        ({"temperature": 3}, "invalid_value", "temperature"),
        ({"tool_choice": "sometimes"}, "invalid_value", None),
        ({"tool_choice": {"type": "function", "function": {"name": "nobody"}}}, "invalid_value", None),
    ],
)  # fmt: skip
def test_what_can_not_be_answered_is_refused(
    server: Server, change: dict[str, Any], code: str, param: str | None
) -> None:
    body = {"model": MODEL, "messages": HELLO, **change}
    response = httpx2.post(
        f"{server.address}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=60
    )
    assert_is_envelope(response, 400, code)
    assert param is None or response.json()["error"]["param"] == param


def test_another_model_is_not_there(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="gpt-9", messages=HELLO)
    assert refused.value.code == "model_not_found"


def test_sounds_that_are_too_long_together_are_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "MAX_SOUND_S", 20.0)
    body = {"model": MODEL, "messages": [{"role": "user", "content": [sound(), sound()]}]}
    response = httpx2.post(f"{server.address}/v1/chat/completions", json=body, headers={"api-key": KEY}, timeout=60)
    assert_is_envelope(response, 400, "audio_too_long")


def test_a_temperature_that_nothing_can_be_divided_by_takes_the_best(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, temperature=1e-45)
    assert answer.choices[0].message.content == SAID
