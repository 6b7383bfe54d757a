from __future__ import annotations

import io
import signal

import torch
from engine.toy_dialogue import ANSWER, HEARD, session, silence, speech
from rich.console import Console
from terminal.simulated import Simulated

from tristep.audio import SPEAK_HZ
from tristep.engine.dialogue import (
    Item,
    Part,
    Response,
    ResponseDone,
    TextDelta,
    Transcribing,
    TranscriptCompleted,
    Truncated,
)
from tristep.terminal.loop import FirstSound, VoiceLoop
from tristep.terminal.talk import Transcript, both_sides, talk

TURN = torch.cat([silence(300), speech(900)])


def plain_console() -> Console:
    return Console(file=io.StringIO(), width=60)


def written(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def ending(device: Simulated, num_blocks: int) -> None:
    """Press ctrl-C after some blocks."""
    device.at_each_block = lambda: len(device.sounded) == num_blocks and signal.raise_signal(signal.SIGINT)


def test_a_talk_is_written_down_until_ctrl_c_and_ends_with_a_summary() -> None:
    usual = signal.getsignal(signal.SIGINT)
    device, console = Simulated(TURN), plain_console()
    ending(device, 400)
    summary = talk(VoiceLoop(session(transcription=Transcribing()), device), console)
    user, answer = written(console)
    assert user == f"user: {HEARD}"
    assert answer.startswith(f"answer: {ANSWER}  (")
    late_s = float(answer.split("(")[1].removesuffix(" s)"))
    assert summary == f"1 turn, first sound {late_s:.2f} s after the end of speech (median)"
    assert signal.getsignal(signal.SIGINT) is usual


def test_ctrl_c_in_the_middle_of_an_answer_leaves_what_was_heard_of_it() -> None:
    talking, device, console = (
        session("One is here. Two is here.", transcription=Transcribing()),
        Simulated(TURN),
        plain_console(),
    )
    device.at_each_block = lambda: device.num_played > SPEAK_HZ // 2 and signal.raise_signal(signal.SIGINT)
    talk(VoiceLoop(talking, device), console)
    heard = talking.items[-1].text
    assert heard != "One is here. Two is here."
    assert written(console)[-1].startswith(f"answer: {heard} …  (")


def test_a_talk_in_which_nobody_spoke_has_no_turns() -> None:
    device, console = Simulated(silence(100)), plain_console()
    ending(device, 20)
    assert talk(VoiceLoop(session(), device), console) == "0 turns"
    assert written(console) == []


def test_words_show_while_they_are_said() -> None:
    console = Console(file=io.StringIO(), width=60, force_terminal=True, color_system=None)
    with Transcript(console) as transcript:
        assert "[listening]" in written(console)[-1]
        transcript.show(TranscriptCompleted("a", "are you there", "en", 1.0))
        for word in ("Yes, ", "I ", "am."):
            transcript.show(TextDelta("r", "b", 0, 0, "audio", word))
            assert word.strip() in written(console)[-2]
        transcript.show(FirstSound(0.25))
        assert written(console)[-2].endswith("answer: Yes, I am.  (0.25 s)")
        assert written(console)[-1].endswith("[answering]")
        transcript.show(Truncated("b", 0, 400, "Yes,", by_client=False))
        assert "answer: Yes, …" in written(console)[-2]


def test_words_are_not_read_as_markup_and_a_failure_is_told() -> None:
    console = plain_console()
    with Transcript(console) as transcript:
        transcript.show(TranscriptCompleted("a", "say [bold]it[/bold] \x1b[2J now", "en", 1.0))
        transcript.show(ResponseDone(Response("r", "failed", "audio", None, error="it is too long")))  # type: ignore[arg-type]
    assert written(console) == ["user: say [bold]it[/bold] [2J now", "no answer: it is too long"]


def test_a_recording_holds_both_sides_in_turn() -> None:
    said, answered = torch.sin(torch.arange(16_000) / 20), torch.full((600,), 0.5)
    items = [
        Item(parts=(Part("audio", "hello", said),)),
        Item(role="assistant", parts=(Part("audio", "yes", answered, SPEAK_HZ),)),
        Item(role="assistant", parts=(Part("text", "unheard"),)),
    ]
    sound = both_sides(items)
    assert len(sound) == SPEAK_HZ + 600
    assert torch.equal(sound[-600:], answered)
    assert len(both_sides([])) == 0
