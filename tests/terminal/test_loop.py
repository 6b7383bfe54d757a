from __future__ import annotations

import pytest
import torch
from engine.toy_dialogue import ANSWER, HEARD, cough, of, session, silence, speech
from terminal.simulated import Simulated

from tristep.audio import SPEAK_HZ
from tristep.engine.dialogue import Event, ResponseDone, SemanticVad, SpeechStarted, Truncated
from tristep.engine.session import Session
from tristep.terminal.loop import FirstSound, VoiceLoop

TURN = torch.cat([silence(300), speech(900)])
LONG = "One is here. Two is here. Three is here. Four is here."


def talked(
    talking: Session, device: Simulated, *, half_duplex: bool = False, most_s: float = 20.0
) -> tuple[VoiceLoop, list[Event | FirstSound]]:
    """Talk until the user has nothing more to say and the loudspeaker is quiet."""
    loop = VoiceLoop(talking, device, half_duplex=half_duplex)

    def is_over() -> bool:
        assert device.now_s < most_s, "nobody stops talking"
        return device.num_quiet > 50 and not talking.has_work

    return loop, list(loop.events(is_over))


def interrupting(device: Simulated, waveform: torch.Tensor, after_s: float = 0.4) -> list[float]:
    """Let the user say something into the answer, once; return the list that will hold when."""
    times: list[float] = []

    def react() -> None:
        if not times and device.num_played >= after_s * SPEAK_HZ:
            times.append(device.now_s)
            device.say(waveform)

    device.at_each_block = react
    return times


def test_who_speaks_is_answered_and_all_of_the_answer_is_played() -> None:
    talking, device = session(), Simulated(TURN)
    talked(talking, device)
    question, answer = talking.items
    assert (question.text, answer.text) == (HEARD, ANSWER)
    assert torch.equal(device.played, answer.parts[0].waveform)  # type: ignore[arg-type]


def test_the_latency_is_from_the_end_of_speech_to_the_first_sound() -> None:
    device = Simulated(TURN)
    _, events = talked(session(), device)
    (first,) = of(FirstSound, events)  # type: ignore[arg-type]
    assert first.late_s == pytest.approx(device.starts_s()[0] - len(TURN) / SPEAK_HZ, abs=0.15)
    assert first.late_s > 0.5  # the silence that ends a turn is part of it


def test_an_answer_that_is_spoken_into_falls_silent_and_only_what_was_played_is_remembered() -> None:
    talking, device = session(LONG), Simulated(TURN)
    times = interrupting(device, speech(900))
    _, events = talked(talking, device)
    (at_s,) = times
    block = round(at_s * 50)
    assert any(map(len, device.sounded[block : block + 3]))
    assert not any(map(len, device.sounded[block + 13 : block + 40]))  # 260 ms later
    first, second = (item for item in talking.items if item.role == "assistant")
    cut = of(Truncated, events)[0]  # type: ignore[arg-type]
    assert first.text == cut.text != LONG
    assert LONG.startswith(cut.text)
    num_first = device.num_played - len(second.parts[0].waveform)  # type: ignore[arg-type]
    assert cut.audio_end_ms == pytest.approx(1000 * num_first / SPEAK_HZ, abs=21)
    assert torch.equal(device.played[num_first:], second.parts[0].waveform)  # type: ignore[arg-type]
    assert len(of(FirstSound, events)) == 2  # type: ignore[arg-type]


def test_a_short_noise_only_lowers_the_answer() -> None:
    talking, device = session(LONG), Simulated(TURN)
    interrupting(device, torch.cat([speech(90), silence(100), cough()]))
    talked(talking, device)
    assert device.ducks[-2:] == [True, False]
    assert talking.items[-1].text == LONG
    assert torch.equal(device.played, talking.items[-1].parts[0].waveform)  # type: ignore[arg-type]


def test_half_duplex_does_not_hear_what_is_said_into_an_answer_and_hears_what_is_said_after() -> None:
    talking, device = session(LONG), Simulated(TURN)
    times = interrupting(device, torch.cat([speech(900), silence(4000), speech(900)]))
    _, events = talked(talking, device, half_duplex=True)
    assert times
    assert [item.text for item in talking.items] == [HEARD, LONG, HEARD, LONG]
    assert not of(Truncated, events)  # type: ignore[arg-type]
    assert len(of(SpeechStarted, events)) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize("after_s", [0.1, 0.8])
def test_who_leaves_during_an_answer_has_heard_only_what_was_played(after_s: float) -> None:
    talking, device = session(LONG), Simulated(TURN)
    loop = VoiceLoop(talking, device)
    list(loop.events(lambda: device.num_played >= after_s * SPEAK_HZ))
    events = loop.leave()
    assert of(Truncated, events)[0].audio_end_ms == pytest.approx(1000 * device.num_played / SPEAK_HZ, abs=1)
    assert len(talking.items[-1].parts[0].waveform) == pytest.approx(device.num_played, abs=24)  # type: ignore[arg-type]
    assert not talking.has_work
    num_played = device.num_played
    device.read(wait=False)
    assert device.num_played == num_played


def test_who_leaves_in_silence_changes_nothing() -> None:
    talking, device = session(), Simulated(TURN)
    loop, events = talked(talking, device)
    assert of(ResponseDone, events)  # type: ignore[arg-type]
    assert loop.leave() == []
    assert talking.items[-1].text == ANSWER


@pytest.mark.parametrize(
    "settings", [{"modality": "text"}, {"turn_detection": SemanticVad()}, {"turn_detection": None}]
)
def test_a_session_that_can_not_be_talked_with_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="give a session with ServerVad and audio"):
        VoiceLoop(session(**settings), Simulated(TURN))
