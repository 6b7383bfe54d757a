"""The older names: a whole conversation in them, and StepFun's recognition of a sound that goes on."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from openai.types.beta.realtime.realtime_server_event import RealtimeServerEvent
from pydantic import TypeAdapter
from server.talks import Message, Talk, only, pcm, refusal, said, silence, speech, types
from server.toys import SAID

from tristep.engine.engine import Engine
from tristep.server.realtime_beta import is_beta, session_from_beta

OLD = TypeAdapter[Any](RealtimeServerEvent)

STEP_SESSION: Message = {
    "modalities": ["text", "audio"],
    "instructions": "You are a helpful assistant.",
    "voice": "linjiajiejie",
    "input_audio_format": "pcm16",
    "output_audio_format": "pcm16",
    "turn_detection": {
        "type": "server_vad", "prefix_padding_ms": 500, "silence_duration_ms": 100, "energy_awakeness_threshold": 2500,
    },
    "max_response_output_tokens": "4096",
}  # fmt: skip
"""As StepFun's documentation has it."""


@pytest.fixture
def talk(engine: Engine, toy: Path) -> Talk:
    return Talk(engine, toy, dialect="beta", model="gpt-4o-realtime-preview")


def checked(messages: list[Message]) -> list[Message]:
    """Check messages against the older client's types."""
    for message in messages:
        assert OLD.validate_python(message).type == message["type"]
    return messages


def test_an_old_session_is_described_in_old_names(talk: Talk) -> None:
    checked(talk.greeting)
    (updated,) = checked(talk.send("session.update", session=STEP_SESSION))
    session = updated["session"]
    assert "audio" not in session
    assert "type" not in session
    assert (session["modalities"], session["voice"]) == (["text", "audio"], "linjiajiejie")
    assert (session["input_audio_format"], session["max_response_output_tokens"]) == ("pcm16", 4096)
    assert session["turn_detection"]["silence_duration_ms"] == 100


def test_a_conversation_in_old_names(talk: Talk) -> None:
    talk.send("session.update", session={**STEP_SESSION, "turn_detection": None})
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello."}]}
    assert types(checked(talk.send("conversation.item.create", item=item))) == ["conversation.item.created"]
    messages = checked(talk.send("response.create") + talk.work())
    order = [kind for kind in types(messages) if not kind.endswith(".delta")]
    assert order == [
        "response.created", "response.output_item.added", "conversation.item.created", "response.content_part.added",
        "response.audio.done", "response.audio_transcript.done", "response.content_part.done",
        "response.output_item.done", "response.done",
    ]  # fmt: skip
    assert said(messages, "response.audio_transcript.delta") == SAID
    assert said(messages, "response.audio.delta")
    response = only(messages, "response.done")["response"]
    assert response["output"][0]["content"] == [{"type": "audio", "transcript": SAID}]
    assert (response["modalities"], response["voice"]) == (["text", "audio"], "linjiajiejie")


@pytest.mark.parametrize(("asked", "is_told"), [({}, True), ({"input_audio_transcription": None}, False)])
def test_what_was_heard_is_told_unless_the_client_declines(talk: Talk, asked: Message, is_told: bool) -> None:
    talk.send("session.update", session=STEP_SESSION | {"modalities": ["text"]} | asked)
    messages = checked(talk.hear(torch.cat([speech(), silence()])) + talk.work())
    assert ("conversation.item.input_audio_transcription.completed" in types(messages)) == is_told


def test_one_answer_may_be_in_writing(talk: Talk) -> None:
    wanted = {"modalities": ["text"], "max_output_tokens": "inf", "instructions": "Be brief."}
    messages = checked(talk.send("response.create", response=wanted) + talk.work())
    assert only(messages, "response.text.done")["text"] == SAID
    assert said(messages, "response.text.delta") == SAID


@pytest.mark.parametrize("kind", ["g711_ulaw", "g711_alaw"])
def test_telephone_sound_has_its_old_name(talk: Talk, kind: str) -> None:
    session = {"input_audio_format": kind, "output_audio_format": kind}
    (updated,) = checked(talk.send("session.update", session=session))
    assert updated["session"]["input_audio_format"] == updated["session"]["output_audio_format"] == kind


def test_an_old_transcription_session(engine: Engine, toy: Path) -> None:
    talk = Talk(engine, toy, dialect="beta", kind="transcription", model="whisper-1")
    assert types(talk.greeting) == ["transcription_session.created"]
    session = {"input_audio_format": "pcm16", "input_audio_transcription": {"model": "whisper-1", "language": "en"}}
    (updated,) = talk.send("transcription_session.update", session=session)
    assert updated["type"] == "transcription_session.updated"
    assert updated["session"]["input_audio_transcription"]["language"] == "en"


def test_the_first_update_shows_which_names_a_client_knows(engine: Engine, toy: Path) -> None:
    old = Talk(engine, toy)
    (updated,) = old.send("session.update", session={"modalities": ["text"], "voice": "anna"})
    assert updated["session"]["modalities"] == ["text"]
    assert old.conversation.dialect == "beta"
    new = Talk(engine, toy)
    new.update(output_modalities=["text"])
    new.send("session.update", session={"voice": "bert"})  # only the first one counts
    assert new.conversation.dialect == "ga"


@pytest.mark.parametrize(
    ("session", "is_old"),
    [
        ({"voice": "anna"}, True), ({"modalities": ["text"]}, True), ({"instructions": "x"}, False),
        ({"type": "realtime", "voice": "anna"}, False), ({"audio": {}}, False), (None, False),
    ],
)  # fmt: skip
def test_old_sessions_are_told_from_new_ones(session: Any, is_old: bool) -> None:
    assert is_beta({"type": "session.update", "session": session}) == is_old


@pytest.mark.parametrize("session", [None, 7, [], {"modalities": 7}, {"input_audio_format": {"type": 1}}])
def test_nonsense_is_renamed_without_harm_and_refused_later(talk: Talk, session: Any) -> None:
    session_from_beta(session)
    messages = talk.send("session.update", session=session)
    assert types(messages) in (["error"], ["session.updated"])


# StepFun's recognition


@pytest.fixture
def dictated(engine: Engine, toy: Path) -> Talk:
    return Talk(engine, toy, dialect="step-asr", kind="transcription")


def test_stepfuns_stream_tells_the_whole_text_of_a_turn_each_time(dictated: Talk) -> None:
    wire = {"type": "pcm", "codec": "pcm_s16le", "rate": 16000, "bits": 16, "channel": 1}
    transcription = {"model": "stepaudio-2.5-asr-stream", "language": "en", "enable_itn": True, "hotwords": ["quick"]}
    vad = {"type": "server_vad", "silence_duration_ms": 400, "threshold": 0.5}
    wanted = {"audio": {"input": {"format": wire, "transcription": transcription, "turn_detection": vad}}}
    (updated,) = dictated.send("session.update", session=wanted)
    assert updated["meta"]["session_id"].startswith("sess_")
    heard = updated["session"]["audio"]["input"]
    assert (heard["format"], heard["transcription"]["keywords"]) == ({"type": "audio/pcm", "rate": 16000}, ["quick"])
    sound = torch.cat([speech(), silence()])[::3].repeat_interleave(2)  # 24 kHz to 16 kHz, roughly
    messages = dictated.send("input_audio_buffer.append", audio=pcm(sound)) + dictated.work()
    assert all(message["meta"]["timestamp"] > 10**12 for message in messages)
    deltas = [message for message in messages if message["type"].endswith("transcription.delta")]
    texts = [message["text"] for message in deltas]
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    completed = only(messages, "conversation.item.input_audio_transcription.completed")
    assert completed["transcript"] == texts[-1] == SAID
    assert completed["start_time"] < completed["end_time"]


def test_stepfuns_stream_survives_nonsense(dictated: Talk) -> None:
    for session in (None, {"audio": None}, {"audio": {"input": 1}}, {"audio": {"input": {"format": {"rate": "x"}}}}):
        messages = dictated.write(json.dumps({"type": "session.update", "session": session}))
        assert types(messages) in (["error"], ["session.updated"])
    assert refusal(dictated.send("response.create"))["code"] == "invalid_value"
