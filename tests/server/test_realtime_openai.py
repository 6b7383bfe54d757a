"""OpenAI's protocol over a real session of a toy; `talks.py` checks every message against the official types."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from server.talks import MANUAL, TEXT, Message, Talk, only, pcm, refusal, said, silence, speech, types
from server.toys import SAID

from tristep.engine.engine import Engine


@pytest.fixture
def written(talk: Talk) -> Talk:
    """A session that answers in writing, when it is asked to."""
    talk.update(**TEXT, **MANUAL)
    return talk


def previous(messages: list[Message]) -> str | None:
    return only(messages, "conversation.item.added")["previous_item_id"]


def item_id(messages: list[Message]) -> str:
    return str(only(messages, "conversation.item.added")["item"]["id"])


# The session object


def test_a_session_is_greeted_in_both_dialects_names(talk: Talk) -> None:
    assert types(talk.greeting) == ["session.created", "conversation.created"]
    session = talk.greeting[0]["session"]
    assert session["output_modalities"] == ["audio"]
    assert session["audio"]["output"] == {"format": {"type": "audio/pcm", "rate": 24000}, "voice": "anna", "speed": 1.0}
    assert session["audio"]["input"]["turn_detection"]["type"] == "server_vad"
    assert (session["input_audio_format"], session["voice"]) == ("pcm16", "anna")


def test_an_update_changes_what_it_names_and_nothing_else(talk: Talk) -> None:
    before = talk.update()[0]["session"]
    vad = {"type": "server_vad", "silence_duration_ms": 300}
    after = talk.update(instructions="Be brief.", audio={"input": {"turn_detection": vad}})[0]["session"]
    assert after["instructions"] == "Be brief."
    detection = after["audio"]["input"]["turn_detection"]
    assert (detection["silence_duration_ms"], detection["threshold"]) == (300, 0.5)
    assert talk.conversation.protocol.session.settings.instructions == "Be brief."
    after["instructions"], after["audio"]["input"]["turn_detection"] = "", before["audio"]["input"]["turn_detection"]
    assert after == before


@pytest.mark.parametrize(
    ("change", "path", "value"),
    [
        ({"audio": {"input": {"turn_detection": None}}}, "audio.input.turn_detection", None),
        ({"audio": {"input": {"turn_detection": {"type": "semantic_vad", "eagerness": "high"}}}},
         "audio.input.turn_detection.eagerness", "high"),
        ({"audio": {"input": {"transcription": {"model": "gpt-4o-mini-transcribe", "language": "en"}}}},
         "audio.input.transcription.language", "en"),
        ({"audio": {"input": {"noise_reduction": {"type": "near_field"}}}}, "audio.input.noise_reduction.type",
         "near_field"),
        ({"audio": {"input": {"format": {"type": "audio/pcmu"}}}}, "audio.input.format", {"type": "audio/pcmu"}),
        ({"audio": {"output": {"voice": {"id": "bert"}}}}, "audio.output.voice", "bert"),
        ({"audio": {"output": {"voice": "marin"}}}, "audio.output.voice", "marin"),
        ({"audio": {"output": {"speed": 1.5}}}, "audio.output.speed", 1.5),
        ({"max_output_tokens": 12}, "max_output_tokens", 12),
        ({"tracing": "auto"}, "tracing", "auto"),
        ({"instructions": None}, "instructions", ""),
        ({"truncation": {"type": "retention_ratio", "retention_ratio": 0.5}}, "truncation",
         {"type": "retention_ratio", "retention_ratio": 0.5}),
        ({"truncation": {"type": "retention_ratio", "retention_ratio": 0.5, "token_limits": {"post_instructions": 9}}},
         "truncation.token_limits.post_instructions", 9),
        ({"something": "new", "audio": {"input": {"more": 1}}}, "tools", []),
        ({"model": "gpt-realtime-3"}, "model", "toy"),
    ],
)  # fmt: skip
def test_every_field_can_be_set(talk: Talk, change: Message, path: str, value: Any) -> None:
    found = only(talk.update(**change), "session.updated")["session"]
    for name in path.split("."):
        found = found[name]
    assert found == value


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"type": "transcription"}, "invalid_session_type", "session.type"),
        ({"audio": {"input": {"turn_detection": {"type": "server_vad", "threshold": 2}}}}, "invalid_value",
         "session.audio.input.turn_detection.server_vad.threshold"),
        ({"audio": {"output": {"voice": "../../etc/passwd"}}}, "voice_not_found", "voice"),
        ({"audio": {"output": {"speed": 1.6}}}, "invalid_value", "session.audio.output.speed"),
        ({"tools": [{"type": "mcp", "server_url": "http://10.0.0.1"}]}, "unsupported_value", "session.tools"),
        ({"tools": [{"type": "function"}]}, "missing_required_parameter", "session.tools.0.name"),
        ({"output_modalities": ["text", "audio"]}, "invalid_value", "session.output_modalities"),
        ({"audio": {"input": {"noise_reduction": {"type": "magic"}}}}, "invalid_value",
         "session.audio.input.noise_reduction.type"),
        ({"audio": {"input": {"transcription": {"prompt": "Names."}}}}, "invalid_value",
         "session.audio.input.transcription.prompt"),
        ({"prompt": {"id": "pmpt_1"}}, "unsupported_value", "session.prompt"),
        ({"reasoning": {"effort": "low"}}, "unsupported_value", "session.reasoning"),
        ({"include": ["item.input_audio_transcription.logprobs"]}, "unsupported_value", "session.include"),
        ({"max_output_tokens": 0}, "invalid_value", "session.max_output_tokens.constrained-int"),
        ({"tool_choice": {"type": "function", "name": "nobody"}}, "invalid_value", "tool_choice"),
        ({"instructions": "x" * 200_000}, "string_above_max_length", "session.instructions"),
    ],
)  # fmt: skip
def test_a_wrong_update_is_refused_whole(talk: Talk, change: Message, code: str, param: str) -> None:
    before = talk.update()[0]["session"]
    session = {"type": "realtime", "instructions": "lost", **change}
    error = refusal(talk.send("session.update", session=session, event_id="event_7"))
    assert (error["code"], error["param"], error["event_id"]) == (code, param, "event_7")
    assert talk.update()[0]["session"] == before


def test_tools_are_taken_flat_and_nested_and_given_back_flat(talk: Talk) -> None:
    function = {"name": "weather", "description": "Tells it.", "parameters": {"type": "object", "properties": {}}}
    tools = [{"type": "function", **function}, {"type": "function", "function": {**function, "name": "time"}}]
    session = only(talk.update(tools=tools), "session.updated")["session"]
    assert session["tools"] == [{"type": "function", **function}, {"type": "function", **function, "name": "time"}]
    assert only(talk.update(tools=[]), "session.updated")["session"]["tools"] == []


# Items


def test_items_that_come_at_once_are_acknowledged_in_order_each_with_the_one_before_it(written: Talk) -> None:
    acknowledged = [written.say(str(number), event_id=f"e{number}") for number in range(10)]
    ids = [item_id(messages) for messages in acknowledged]
    assert [previous(messages) for messages in acknowledged] == [None, *ids[:-1]]
    assert len(set(ids)) == 10
    assert all(types(messages) == ["conversation.item.added", "conversation.item.done"] for messages in acknowledged)


def test_an_item_goes_where_it_is_told_to(written: Talk) -> None:
    first = item_id(written.say("first"))
    assert previous(written.say("front", previous_item_id="root")) is None
    assert previous(written.say("after", previous_item_id=first)) == first
    error = refusal(written.say("nowhere", previous_item_id="item_gone", event_id="mine"))
    assert (error["code"], error["event_id"]) == ("item_create_invalid_previous_item_id", "mine")


def test_items_keep_their_clients_ids_and_no_two_have_the_same(written: Talk) -> None:
    item = {"id": "msg_1", "type": "message", "role": "system", "content": [{"type": "input_text", "text": "Hm."}]}
    assert item_id(written.send("conversation.item.create", item=item)) == "msg_1"
    assert refusal(written.send("conversation.item.create", item=item))["code"] == "item_create_duplicate_item_id"


@pytest.mark.parametrize(
    ("verb", "code"),
    [
        ("retrieve", "item_retrieve_invalid_item_id"), ("delete", "item_delete_invalid_item_id"),
        ("truncate", "item_truncate_invalid_item_id"),
    ],
)  # fmt: skip
def test_what_is_not_there_can_not_be_had(written: Talk, verb: str, code: str) -> None:
    fields = {"content_index": 0, "audio_end_ms": 100} if verb == "truncate" else {}
    error = refusal(written.send(f"conversation.item.{verb}", item_id="item_gone", event_id="e", **fields))
    assert (error["code"], error["event_id"]) == (code, "e")


def test_a_sound_that_was_written_in_comes_back(written: Talk) -> None:
    content = [{"type": "input_audio", "audio": pcm(speech())}]
    item = {"type": "message", "role": "user", "content": content}
    added = item_id(written.send("conversation.item.create", item=item))
    retrieved = only(written.send("conversation.item.retrieve", item_id=added), "conversation.item.retrieved")
    heard = base64.b64decode(retrieved["item"]["content"][0]["audio"])
    assert len(heard) == pytest.approx(2 * len(speech()), abs=100)
    deleted = written.send("conversation.item.delete", item_id=added)
    assert only(deleted, "conversation.item.deleted")["item_id"] == added


def test_a_conversation_has_an_end(engine: Engine, toy: Path) -> None:
    talk = Talk(engine, toy, max_items=2)
    talk.say("one")
    talk.say("two")
    assert "delete some" in refusal(talk.say("three"))["message"]


@pytest.mark.parametrize(
    "item",
    [
        None, [], {"type": "mcp_call"}, {"type": "message", "role": "nobody"}, {"type": "message", "id": "a b"},
        {"type": "message", "content": [{"type": "input_audio", "audio": "%%%"}]},
        {"type": "message", "content": [{"type": "input_image", "image_url": "http://10.0.0.1"}]},
        {"type": "message", "content": "text"},
    ],
)  # fmt: skip
def test_what_is_no_item_is_refused(written: Talk, item: Any) -> None:
    assert refusal(written.send("conversation.item.create", item=item))["code"] == "invalid_value"


def test_the_forms_that_clients_write_are_all_taken(written: Talk) -> None:
    for role, kind in (("assistant", "text"), ("assistant", "input_text"), ("user", "input_text")):
        item = {"type": "message", "role": role, "content": [{"type": kind, "text": "Hello."}], "id": None}
        content = only(written.send("conversation.item.create", item=item), "conversation.item.done")["item"]["content"]
        assert content == [{"type": "output_text" if role == "assistant" else "input_text", "text": "Hello."}]
    call = {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "call_unknown", "output": "rain"}
    for item in (call, result):
        body = only(written.send("conversation.item.create", item=item), "conversation.item.done")["item"]
        assert item.items() <= body.items()
        assert None not in body.values()


# Responses


def test_an_answer_in_writing(written: Talk) -> None:
    written.say("Hello.")
    begun = written.send("response.create", response={"metadata": {"client_event_id": "17"}})
    created = only(begun, "response.created")["response"]
    assert (created["status"], created["metadata"]) == ("in_progress", {"client_event_id": "17"})
    messages = written.work()
    assert types(messages)[:3] == [
        "response.output_item.added",
        "conversation.item.added",
        "response.content_part.added",
    ]
    assert types(messages)[-5:] == [
        "response.output_text.done", "response.content_part.done", "conversation.item.done",
        "response.output_item.done", "response.done",
    ]  # fmt: skip
    assert said(messages) == only(messages, "response.output_text.done")["text"] == SAID
    done = only(messages, "response.done")["response"]
    assert done["status"] == "completed"
    assert done["output"][0]["content"] == [{"type": "output_text", "text": SAID}]
    usage = done["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["input_token_details"]["text_tokens"] > 10
    assert usage["output_token_details"] == {"text_tokens": len(SAID), "audio_tokens": 0}


def test_an_answer_aloud(talk: Talk) -> None:
    talk.update(**MANUAL)
    talk.say("Hello.")
    messages = talk.send("response.create") + talk.work()
    assert said(messages, "response.output_audio_transcript.delta") == SAID
    deltas = [message["delta"] for message in messages if message["type"] == "response.output_audio.delta"]
    num_bytes = sum(len(base64.b64decode(delta)) for delta in deltas)
    assert num_bytes > 24_000
    done = only(messages, "response.done")["response"]
    assert done["output"][0]["content"] == [{"type": "output_audio", "transcript": SAID}]
    assert done["usage"]["output_token_details"]["audio_tokens"] > 10
    assert done["audio"]["output"]["voice"] == "anna"
    order = [kind for kind in types(messages) if not kind.endswith(".delta")]
    assert order == [
        "response.created", "response.output_item.added", "conversation.item.added", "response.content_part.added",
        "response.output_audio.done", "response.output_audio_transcript.done", "response.content_part.done",
        "conversation.item.done", "response.output_item.done", "response.done",
    ]  # fmt: skip
    error = refusal(talk.update(audio={"output": {"voice": "bert"}}))
    assert error["code"] == "cannot_update_voice"


def sound_of(messages: list[Message]) -> bytes:
    deltas = [message["delta"] for message in messages if message["type"] == "response.output_audio.delta"]
    return b"".join(map(base64.b64decode, deltas))


def test_an_answer_is_as_fast_as_the_session_says_when_it_begins(talk: Talk) -> None:
    talk.update(**MANUAL)
    talk.say("Hello.")
    lengths, codes = [], []
    for speed in (1.0, 1.5, 0.5):
        talk.update(audio={"output": {"speed": speed}})
        messages = talk.send("response.create", response={"conversation": "none", "input": []}) + talk.work()
        lengths.append(len(sound_of(messages)))
        codes.append(only(messages, "response.done")["response"]["usage"]["output_token_details"]["audio_tokens"])
    assert codes == pytest.approx([codes[0]] * 3, rel=0.2)  # each answer is drawn anew
    assert lengths[0] == pytest.approx(1.5 * lengths[1], rel=0.2)
    assert lengths[0] == pytest.approx(0.5 * lengths[2], rel=0.2)


def test_one_answer_may_sound_in_another_voice_and_format(talk: Talk) -> None:
    talk.update(**MANUAL)
    talk.say("Hello.")
    heard = {}
    for wanted in ({}, {"format": {"type": "audio/pcmu"}, "voice": "bert"}, {"format": None, "voice": None}):
        messages = talk.send("response.create", response={"audio": {"output": wanted}}) + talk.work()
        output = only(messages, "response.done")["response"]["audio"]["output"]
        assert output == only(messages, "response.created")["response"]["audio"]["output"]
        heard[output["voice"], output["format"]["type"]] = sound_of(messages)
    assert [*heard] == [("anna", "audio/pcm"), ("bert", "audio/pcmu")]
    assert 4 <= len(heard["anna", "audio/pcm"]) / len(heard["bert", "audio/pcmu"]) <= 8  # 6, were the answers as long


def test_a_second_answer_waits_for_the_first(written: Talk) -> None:
    written.say("Hello.")
    assert types(written.send("response.create", response={"instructions": None})) == ["response.created"]
    error = refusal(written.send("response.create", event_id="e2"))
    assert (error["code"], error["event_id"]) == ("conversation_already_has_active_response", "e2")
    assert types(written.work())[-1] == "response.done"
    assert types(written.send("response.create")) == ["response.created"]
    assert only(written.work(), "response.done")["response"]["status"] == "completed"


def test_a_cancelled_answer_is_closed_properly(talk: Talk) -> None:
    talk.update(**MANUAL)
    talk.say("Hello.")
    response = only(talk.send("response.create"), "response.created")["response"]["id"]
    while "response.output_audio.delta" not in types(talk.step()):
        pass
    assert refusal(talk.send("response.cancel", response_id="resp_other"))["code"] == "response_cancel_not_active"
    messages = talk.send("response.cancel", response_id=response)
    assert types(messages)[-1] == "response.done"
    done = messages[-1]["response"]
    assert (done["status"], done["status_details"]["reason"]) == ("cancelled", "client_cancelled")
    assert only(messages, "response.output_item.done")["item"]["status"] == "incomplete"
    opened = {"response.output_audio.done", "response.output_audio_transcript.done", "response.content_part.done"}
    assert opened <= set(types(messages))
    assert "response.output_audio.delta" not in types(talk.work())
    error = refusal(talk.send("response.cancel", event_id="late"))
    assert (error["code"], error["event_id"]) == ("response_cancel_not_active", "late")
    assert error["message"].startswith("Cancellation failed")


def test_answers_beside_the_conversation_leave_it_alone(written: Talk) -> None:
    first = item_id(written.say("Hello."))
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Aside."}]}
    aside = {
        "conversation": "none",
        "input": [item, {"type": "item_reference", "id": first}],
        "metadata": {"topic": "a"},
    }
    created = [only(written.send("response.create", response=aside), "response.created") for _ in range(2)]
    assert [message["response"]["conversation_id"] for message in created] == [None, None]
    messages = written.work()
    finished = {message["response"]["id"] for message in messages if message["type"] == "response.done"}
    assert finished == {message["response"]["id"] for message in created}
    assert not any(kind.startswith("conversation.item") for kind in types(messages))
    assert previous(written.say("Next.")) == first


def test_there_are_not_endlessly_many_answers_at_once(written: Talk) -> None:
    aside = {"conversation": "none", "input": []}
    answers = [written.send("response.create", response=aside) for _ in range(9)]
    assert refusal(answers[-1])["code"] == "rate_limit_exceeded"


def test_an_answer_that_is_cut_short_says_so(written: Talk) -> None:
    written.say("Hello.")
    written.send("response.create", response={"max_output_tokens": 3, "output_modalities": ["text"]})
    done = only(written.work(), "response.done")["response"]
    assert (done["status"], done["status_details"]["reason"]) == ("incomplete", "max_output_tokens")


# Sound


def test_a_turn_is_found_transcribed_and_answered_under_one_id(talk: Talk) -> None:
    talk.update(**TEXT, audio={"input": {"transcription": {"model": "whisper-1"}}})
    found = talk.hear(torch.cat([silence(0.5), speech(), silence()]))
    kinds = types(found)
    assert kinds == [
        "input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped", "input_audio_buffer.committed",
        "conversation.item.added", "conversation.item.done", "response.created",
    ]  # fmt: skip
    turn = found[0]["item_id"]
    assert {message.get("item_id") or message["item"]["id"] for message in found[:5]} == {turn}
    assert 0 <= found[0]["audio_start_ms"] <= 800
    assert 2300 <= found[1]["audio_end_ms"] <= 3000
    messages = talk.work()
    heard = only(messages, "conversation.item.input_audio_transcription.completed")
    assert (heard["item_id"], heard["transcript"]) == (turn, SAID)
    assert heard["usage"]["seconds"] == pytest.approx(2.5, abs=0.6)
    assert said(messages, "conversation.item.input_audio_transcription.delta") == SAID
    assert said(messages) == SAID
    assert only(messages, "response.done")["response"]["usage"]["input_token_details"]["audio_tokens"] > 10


def test_turns_do_not_depend_on_how_sound_arrives(engine: Engine, toy: Path) -> None:
    places = set()
    for chunk in (240, 1111, 24_000):
        talk = Talk(engine, toy)
        talk.update(audio={"input": {"turn_detection": {"type": "server_vad", "create_response": False}}})
        found = talk.hear(torch.cat([silence(0.5), speech(), silence()]), chunk)
        assert types(found)[:2] == ["input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped"]
        assert "response.created" not in types(found)
        places.add((found[0]["audio_start_ms"], found[1]["audio_end_ms"]))
    assert len(places) == 1


def test_who_speaks_into_an_answer_stops_it(talk: Talk) -> None:
    talk.say("Hello.")
    talk.send("response.create")
    while "response.output_audio.delta" not in types(talk.step()):
        pass
    messages = talk.hear(speech())
    kinds = types(messages)
    started = kinds.index("input_audio_buffer.speech_started")
    assert "response.output_audio.delta" not in kinds[started:]
    done = only(messages, "response.done")["response"]
    assert (done["status"], done["status_details"]["reason"]) == ("cancelled", "turn_detected")
    assert kinds.index("response.done") > started


def test_an_answer_that_may_not_be_interrupted_goes_on(talk: Talk) -> None:
    vad = {"type": "server_vad", "interrupt_response": False}
    talk.update(audio={"input": {"turn_detection": vad}})
    talk.say("Hello.")
    talk.send("response.create")
    while "response.output_audio.delta" not in types(talk.step()):
        pass
    messages = talk.hear(torch.cat([speech(), silence()]))
    assert "input_audio_buffer.committed" in types(messages)
    assert "response.created" not in types(messages)
    done = only(talk.work(), "response.done")["response"]
    assert done["status"] == "completed"


def test_a_long_silence_is_answered_once(talk: Talk) -> None:
    vad = {"type": "server_vad", "idle_timeout_ms": 1000}
    talk.update(**TEXT, audio={"input": {"turn_detection": vad}})
    talk.say("Hello.")
    talk.send("response.create")
    talk.work()
    messages = talk.hear(silence(2))
    assert types(messages) == [
        "input_audio_buffer.timeout_triggered", "input_audio_buffer.committed", "conversation.item.added",
        "conversation.item.done", "response.created",
    ]  # fmt: skip
    assert messages[0]["audio_end_ms"] - messages[0]["audio_start_ms"] >= 1000
    talk.work()
    assert "input_audio_buffer.timeout_triggered" not in types(talk.hear(silence(2)))


def test_an_answer_that_fails_says_so_and_the_next_one_works(written: Talk) -> None:
    tool = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
    forced = {"tools": [tool], "tool_choice": {"type": "function", "name": "weather"}}
    written.say("Hello.")
    written.send("response.create", response=forced)  # the toy knows no JSON
    done = only(written.work(), "response.done")["response"]
    assert done["status"] == "failed"
    assert done["status_details"]["error"]["type"] == "server_error"
    written.send("response.create")
    assert said(written.work()) == SAID


def test_an_answer_is_remembered_as_far_as_it_was_heard(talk: Talk) -> None:
    talk.update(**MANUAL)
    talk.say("Hello.")
    messages = talk.send("response.create") + talk.work()
    answer = item_id(messages)
    truncated = talk.send("conversation.item.truncate", item_id=answer, content_index=0, audio_end_ms=100)
    assert only(truncated, "conversation.item.truncated")["audio_end_ms"] == 100
    retrieved = only(talk.send("conversation.item.retrieve", item_id=answer), "conversation.item.retrieved")
    assert len(retrieved["item"]["content"][0]["transcript"]) < len(SAID)
    error = refusal(talk.send("conversation.item.truncate", item_id=answer, content_index=0, audio_end_ms=60_000))
    assert error["code"] == "invalid_value"


def test_push_to_talk(written: Talk) -> None:
    assert written.hear(speech()) == []
    committed = written.send("input_audio_buffer.commit")
    assert types(committed) == ["input_audio_buffer.committed", "conversation.item.added", "conversation.item.done"]
    written.send("response.create")
    assert said(written.work()) == SAID


def test_a_buffer_that_holds_nothing_is_not_committed(written: Talk) -> None:
    error = refusal(written.send("input_audio_buffer.commit", event_id="e"))
    assert (error["code"], error["event_id"]) == ("input_audio_buffer_commit_empty", "e")
    written.hear(speech(0.05))
    assert refusal(written.send("input_audio_buffer.commit"))["code"] == "input_audio_buffer_commit_empty"
    written.hear(speech(0.5))
    assert types(written.send("input_audio_buffer.clear")) == ["input_audio_buffer.cleared"]
    assert refusal(written.send("input_audio_buffer.commit"))["code"] == "input_audio_buffer_commit_empty"


def test_noise_is_taken_out_of_what_is_heard_and_nothing_else(written: Talk) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = 0.02 * torch.randn(72_000, generator=generator)
    powers = {}
    for kind in (None, {"type": "near_field"}, {"type": "far_field"}):
        written.update(audio={"input": {"noise_reduction": kind}})
        written.hear(torch.cat([noise, silence(0.1), speech()]))
        written.send("input_audio_buffer.commit")
        waveform = written.conversation.protocol.session.items[-1].parts[0].waveform
        assert waveform is not None
        assert len(waveform) == pytest.approx(5 * 16_000, abs=800)
        heard = waveform[32_000:47_000], waveform[51_000:]
        powers[kind and kind["type"]] = [float(10 * torch.log10(part.square().mean())) for part in heard]
    plain, near, far = (powers[kind] for kind in (None, "near_field", "far_field"))
    assert far[0] < near[0] - 2 < plain[0] - 6  # the noise
    assert near[1] == pytest.approx(plain[1], abs=1)  # the speech
    assert far[1] == pytest.approx(plain[1], abs=1)


def test_odd_bytes_and_broken_base64_harm_nothing(written: Talk) -> None:
    data = base64.b64decode(pcm(speech()))
    for start in range(0, len(data), 3333):
        piece = base64.b64encode(data[start : start + 3333]).decode()
        assert written.send("input_audio_buffer.append", audio=f"{piece[:40]}\n{piece[40:]}") == []
    for broken in ("%%%", "AAA", 7, None, "AA=A", "\u00e9\u00e9\u00e9\u00e9"):
        assert refusal(written.send("input_audio_buffer.append", audio=broken))["code"] == "invalid_value"
    written.send("input_audio_buffer.commit")
    written.send("response.create")
    assert said(written.work()) == SAID


@pytest.mark.parametrize("kind", ["audio/pcmu", "audio/pcma"])
def test_telephone_sound_in_both_directions(talk: Talk, kind: str) -> None:
    sound = {"input": {"format": {"type": kind}, "turn_detection": None}, "output": {"format": {"type": kind}}}
    session = only(talk.update(audio=sound), "session.updated")["session"]
    assert session["audio"]["output"]["format"] == {"type": kind}
    assert talk.send("input_audio_buffer.append", audio=base64.b64encode(bytes(8000)).decode()) == []
    assert types(talk.send("input_audio_buffer.commit"))[0] == "input_audio_buffer.committed"
    talk.say("Hello.")
    messages = talk.send("response.create") + talk.work()
    deltas = [message["delta"] for message in messages if message["type"] == "response.output_audio.delta"]
    assert sum(len(base64.b64decode(delta)) for delta in deltas) > 8000


# Transcription sessions


def test_a_transcription_session_only_transcribes(engine: Engine, toy: Path) -> None:
    talk = Talk(engine, toy, kind="transcription")
    (created,) = talk.greeting
    assert created["session"]["type"] == "transcription"
    assert created["session"]["audio"].keys() == {"input"}
    assert "model" not in created["session"]
    found = talk.hear(torch.cat([speech(), silence()]))
    assert "response.created" not in types(found)
    messages = talk.work()
    assert only(messages, "conversation.item.input_audio_transcription.completed")["transcript"] == SAID
    assert said(messages, "conversation.item.input_audio_transcription.delta") == SAID
    assert "realtime one" in refusal(talk.send("response.create"))["message"]
    session = {"type": "transcription", "audio": {"input": {"turn_detection": None}}}
    updated = only(talk.send("session.update", session=session), "session.updated")["session"]
    assert updated["audio"]["input"]["turn_detection"] is None
    talk.hear(speech())
    assert "input_audio_buffer.committed" in types(talk.send("input_audio_buffer.commit"))
    assert "conversation.item.input_audio_transcription.completed" in types(talk.work())


# What is no message at all


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "null", '{"a": NaN}', "[" * 100_000, '{"type": "\\ud800"}'])
def test_what_is_no_json_object_is_refused(talk: Talk, text: str) -> None:
    assert refusal(talk.write(text))["code"] == "invalid_json"
    assert types(talk.update()) == ["session.updated"]


@pytest.mark.parametrize("message", [{}, {"type": None}, {"type": "response.destroy"}, {"type": ["session.update"]}])
def test_what_is_no_known_message_is_refused(talk: Talk, message: Message) -> None:
    error = refusal(talk.write(json.dumps(message)))
    assert (error["code"], error["param"]) == ("invalid_value", "type")
