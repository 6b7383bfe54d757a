from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from engine.toy_dialogue import session, silence, speech

from tristep.audio import SPEAK_HZ, read_audio, write_audio
from tristep.engine.dialogue import AudioDelta, Event, ServerVad, TextDelta
from tristep.evaluation.duplex_bench import Sample, Task, behaviour, evaluate_bench, read_bench, stretches
from tristep.evaluation.turn_driver import Clock, Course, Talk

LABELS = {
    "candor_pause_handling": ("pause.json", [{"text": "[PAUSE]", "timestamp": [0.9, 1.8]}]),
    "candor_turn_taking": ("turn_taking.json", [{"text": "[TURN-TAKING]", "timestamp": [0.9, 1.2]}]),
    "synthetic_user_interruption": (
        "interrupt.json",
        [{"context": "How are you?", "interrupt": "Wait!", "timestamp": [2.5, 3.4]}],
    ),
    "icc_backchannel": ("", None),
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The benchmark in miniature: two samples of each part, in which somebody speaks, is silent and speaks again."""
    root = tmp_path_factory.mktemp("v1_0")
    waveform = torch.cat([speech(900), silence(1600), speech(900), silence(1600)])
    for part, (name, labels) in LABELS.items():
        for number in ("2", "10"):
            folder = root / part / number
            folder.mkdir(parents=True)
            write_audio(folder / "input.wav", waveform, SPEAK_HZ)
            if name:
                (folder / name).write_text(json.dumps(labels))
    (root / "README.md").write_text("read me")
    return root


def sample(task: Task, *marks: tuple[float, float]) -> Sample:
    return Sample("1", task, task, Path(), marks)


def course(*sounds: tuple[float, float], words: str = "well") -> Course:
    """Make sounds, each from a time on and so long."""
    events: list[tuple[float, Event]] = []
    for at_s, duration_s in sounds:
        tone = 0.3 * torch.sin(torch.arange(round(duration_s * SPEAK_HZ)) * 0.05)
        events += [(at_s, TextDelta("r", "a", 0, 0, "audio", words)), (at_s, AudioDelta("r", "a", 0, 0, tone))]
    return Course(events)


def judged(case: Sample, found: Course):  # type: ignore[no-untyped-def]
    return behaviour(case, found, found.track(10.0))


def test_samples_are_read_part_by_part_in_the_order_of_their_ids(bench: Path) -> None:
    samples = read_bench(bench)
    assert [each.id for each in samples] == 4 * ["2", "10"]
    assert {each.folder: each.task for each in samples} == {
        "candor_pause_handling": "pause_handling", "candor_turn_taking": "turn_taking",
        "icc_backchannel": "backchannel", "synthetic_user_interruption": "user_interruption",
    }  # fmt: skip
    assert {each.task: each.marks for each in samples}["user_interruption"] == ((2.5, 3.4),)
    assert [each.id for each in read_bench(bench / "candor_turn_taking", most=1)] == ["2"]


def test_what_is_no_part_of_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no part of Full-Duplex-Bench"):
        read_bench(tmp_path)
    folder = tmp_path / "candor_pause_handling" / "1"
    folder.mkdir(parents=True)
    write_audio(folder / "input.wav", silence(100), SPEAK_HZ)
    with pytest.raises(ValueError, match=r"pause\.json can't be read as labels"):
        read_bench(tmp_path)


@pytest.mark.parametrize(
    ("found", "took_turn"),
    [
        (course(), False),
        (course((2.0, 0.6)), False),
        (course((2.0, 0.6), words="one two three four"), True),
        (course((2.0, 1.2)), True),
        (course((2.0, 0.3), (5.0, 0.3)), True),  # from the first word to the last
    ],
)
def test_a_turn_is_taken_by_a_second_or_by_four_words(found: Course, took_turn: bool) -> None:
    assert judged(sample("pause_handling", (1.0, 2.0)), found).took_turn is took_turn


def test_latency_counts_from_where_the_turn_may_be_taken() -> None:
    assert judged(sample("turn_taking", (1.5, 2.0)), course((2.0, 1.5))).latency_s == pytest.approx(0.5, abs=0.02)
    assert judged(sample("turn_taking", (2.5, 3.0)), course((2.0, 1.5))).latency_s == 0
    assert judged(sample("turn_taking", (1.5, 2.0)), course((2.0, 0.3))).latency_s is None


def test_of_an_interruption_what_is_said_after_it_counts() -> None:
    interruption = sample("user_interruption", (3.0, 4.0))
    assert not judged(interruption, course((1.0, 1.9), words="one two three four")).took_turn
    found = judged(interruption, course((1.0, 1.9), (4.6, 2.0)))
    assert found.took_turn
    assert found.latency_s == pytest.approx(0.6, abs=0.02)


def test_backchannels_are_short_sounds() -> None:
    short = judged(sample("backchannel"), course((2.0, 0.4), (5.0, 0.4)))
    assert not short.took_turn
    assert short.backchannels_per_s == pytest.approx(0.2)
    assert judged(sample("backchannel"), course((2.0, 4.0))).took_turn
    assert judged(sample("backchannel"), course()).backchannels_per_s == 0


def test_stretches_are_parted_by_silence() -> None:
    found = course((1.0, 0.5), (1.54, 0.5), (3.0, 1.0)).track(5.0)
    assert stretches(found) == [pytest.approx(stretch, abs=0.05) for stretch in ((1.0, 2.04), (3.0, 4.0))]
    assert stretches(torch.zeros(SPEAK_HZ)) == []


def test_a_session_hears_the_benchmark_and_its_output_lies_as_the_input(bench: Path, tmp_path: Path) -> None:
    def talk() -> Talk:
        return Talk(session(turn_detection=ServerVad(silence_duration_ms=300)), Clock(lambda: 0.0, None))

    samples = [each for each in read_bench(bench, most=1) if each.task != "backchannel"]
    results = {each.task: each for each in evaluate_bench("toy", talk, samples, tmp_path, progress=False)}
    taken = results["candor_turn_taking"]
    assert taken.take_over_rate.mean == results["candor_pause_handling"].take_over_rate.mean == 1
    assert taken.mean_latency_ms is not None
    assert 300 < taken.mean_latency_ms < 900
    interrupted = results["synthetic_user_interruption"].mean_latency_ms
    assert interrupted is not None
    assert 300 < interrupted < 900
    sound = read_audio(tmp_path / "toy" / "candor_turn_taking" / "2" / "output.wav", SPEAK_HZ)
    assert len(sound) == 5 * SPEAK_HZ
    assert sound[:SPEAK_HZ].abs().max() == 0
