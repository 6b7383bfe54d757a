"""Whose turn it is: who answers when, who stops for whom, and what changes in the middle of a session."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from server.talks import TEXT, Message, Talk, only, said, silence, speech, types
from server.toys import SAID

from tristep.engine.turns import SILENCE_MS

TURN = torch.cat([silence(0.5), speech(), silence()])
FRAME_MS = 32


def detection(kind: str | None, **fields: Any) -> Message:
    return {"audio": {"input": {"turn_detection": {"type": kind, **fields} if kind else None}}}


@pytest.mark.parametrize("kind", ["server_vad", "semantic_vad"])
@pytest.mark.parametrize("creates", [True, False])
@pytest.mark.parametrize("interrupts", [True, False])
def test_a_turn_stops_an_answer_and_is_answered_only_where_that_is_asked_for(
    talk: Talk, kind: str, interrupts: bool, creates: bool
) -> None:
    talk.update(**detection(kind, interrupt_response=interrupts, create_response=creates))
    talk.say("Hello.")
    talk.send("response.create")
    while "response.output_audio.delta" not in types(talk.step()):
        pass
    heard = talk.hear(TURN)
    assert "input_audio_buffer.committed" in types(heard)
    assert types(heard).count("response.created") == (interrupts and creates)
    first = next(message for message in heard + talk.work() if message["type"] == "response.done")["response"]
    assert first["status"] == ("cancelled" if interrupts else "completed")
    assert types(talk.hear(TURN)).count("response.created") == creates


def test_a_turn_ends_as_the_session_says_now(talk: Talk) -> None:
    talk.update(**TEXT)
    started = only(talk.hear(torch.cat([silence(0.5), speech()])), "input_audio_buffer.speech_started")
    talk.update(**detection(None))
    assert talk.hear(silence(2)) == []
    committed = talk.send("input_audio_buffer.commit")
    assert types(committed) == ["input_audio_buffer.committed", "conversation.item.added", "conversation.item.done"]
    assert committed[0]["item_id"] == started["item_id"]
    assert said(talk.send("response.create") + talk.work()) == SAID
    for kind in ("semantic_vad", "server_vad"):
        talk.update(**detection(kind))
        assert types(talk.hear(TURN))[-1] == "response.created"
        assert said(talk.work()) == SAID


@pytest.mark.parametrize("eagerness", SILENCE_MS)
def test_who_is_eager_waits_for_less_silence(talk: Talk, eagerness: str) -> None:
    talk.update(**detection("semantic_vad", eagerness="high", create_response=False))
    turn = torch.cat([speech(), silence(1.5)])
    high = only(talk.hear(turn), "input_audio_buffer.speech_stopped")["audio_end_ms"]
    talk.update(**detection("semantic_vad", eagerness=eagerness, create_response=False))
    end = only(talk.hear(turn), "input_audio_buffer.speech_stopped")["audio_end_ms"] - len(turn) / 24
    waits_longer_ms = SILENCE_MS[eagerness] - SILENCE_MS["high"]  # type: ignore[index]
    assert end - high == pytest.approx(waits_longer_ms, abs=2 * FRAME_MS)
