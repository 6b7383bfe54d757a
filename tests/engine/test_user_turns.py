"""The user's sound cut into turns, without anybody who answers."""

from __future__ import annotations

from itertools import count

import pytest
import torch
from engine.toy_dialogue import engine, silence, speech
from torch import Tensor

from tristep.audio import LISTEN_HZ, SPEAK_HZ
from tristep.engine.dialogue import Part, ServerVad, SessionError, TurnDetection
from tristep.engine.turns import TurnDetector
from tristep.engine.user_turns import MAX_UNHEARD_S, UserTurns
from tristep.engine.voice_activity import VoiceActivity


def listening() -> UserTurns:
    numbers = count(1)
    return UserTurns(engine(), TurnDetector(VoiceActivity()), lambda kind: f"{kind}_{next(numbers)}")


def heard(user: UserTurns, waveform: Tensor, detection: TurnDetection | None) -> list[str]:
    """Push a sound at 24 kHz; return what changed."""
    frames = user.push(waveform, SPEAK_HZ, detection)
    return [change.kind for frame in frames for change in user.look_at(frame, detection, None)]


def test_where_nothing_finds_turns_one_is_open_from_the_first_frame_on() -> None:
    user = listening()
    assert "stopped" not in heard(user, torch.cat([silence(300), speech(600), silence(900)]), None)
    assert user.turn is not None
    assert (user.turn.item_id, user.turn.start) == ("item_1", 0)
    turn, end = user.committed(None)
    waveform = user.take(turn, end)
    assert len(waveform) == end == pytest.approx(1.8 * LISTEN_HZ, abs=50)
    assert (user.turn, [waiting.item_id for waiting in user.unheard]) == (None, ["item_1"])


def test_what_was_taken_is_in_no_later_turn() -> None:
    user = listening()
    heard(user, silence(500), None)
    turn, end = user.committed(None)
    user.take(turn, end)
    assert user.open(end - 4000, None).start == end


def test_a_voice_opens_no_turn_by_itself_where_turns_are_found() -> None:
    user = listening()
    assert heard(user, torch.cat([silence(300), speech(600)]), ServerVad()) == ["voice", "started"]
    assert user.turn is None


def test_so_little_is_no_turn_and_what_is_cleared_is_gone() -> None:
    user = listening()
    heard(user, silence(900), None)
    user.clear()
    heard(user, silence(60), None)
    with pytest.raises(SessionError, match="it holds 60 ms") as refused:
        user.committed(None)
    assert refused.value.code == "input_audio_buffer_commit_empty"


def test_sounds_of_items_wait_to_be_heard_up_to_a_limit() -> None:
    user = listening()
    user.hear_later("item_1", (Part("text", "written"), Part("audio", "known", silence(500))))
    assert not user.unheard
    user.hear_later("item_2", (Part("audio", None, silence(500), SPEAK_HZ),))
    assert [turn.num_samples for turn in user.unheard] == [LISTEN_HZ // 2]
    with pytest.raises(SessionError, match="8000 Hz: expected 16000 or 24000"):
        user.hear_later("item_3", (Part("audio", None, silence(500), 8000),))
    with pytest.raises(SessionError, match="would wait to be heard"):
        user.hear_later("item_4", (Part("audio", None, torch.zeros(round(MAX_UNHEARD_S * LISTEN_HZ))),))
