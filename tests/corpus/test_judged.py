from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tristep.audio import SPEAK_HZ, read_audio, write_audio
from tristep.codec.pitch import pitch
from tristep.corpus.judged import (
    NUM_ALIKE,
    NUM_DIFFERENT,
    NUM_USUAL,
    STYLES,
    Take,
    at_speed,
    by_speaker,
    choose_pairs,
    fitted,
    known_level,
    quiet_place,
    speech_pairs,
    takes,
    with_formants_moved,
    without_a_stretch,
)
from tristep.engine.fitting import Reader
from tristep.engine.witness import Witness
from tristep.modes.judge.data import Answer, Case, Clause, Known, Verdict

RNG = np.random.default_rng(0)
SAID = "we saw red birds near home"
PLAIN = Take(np.zeros(1, np.float32))


def buzz(pitch_hz: float, duration_s: float) -> np.ndarray:
    times = np.arange(round(duration_s * SPEAK_HZ)) / SPEAK_HZ
    tone = sum(np.sin(2 * np.pi * pitch_hz * n * times) / n for n in range(1, 11))
    return np.asarray(0.1 * tone, np.float32)


def median_hz(waveform: np.ndarray) -> float:
    f0 = pitch(torch.from_numpy(waveform))
    return float(f0[f0 > 0].median())


def row(name: str, speaker: str, text: str = SAID) -> dict[str, Any]:
    return {"id": name, "audio": f"{name}.wav", "speaker": speaker, "text": text, "duration": 2.0}


@pytest.mark.parametrize(
    ("take", "asked", "faults"),
    [
        ({}, "", {}),
        ({"style": "slow"}, "slow", {}),
        ({"style": "slow"}, "", {"pace": 2}),
        ({"style": "fast"}, "slow", {"pace": 2}),
        ({}, "slow", {"pace": 1}),
        ({"style": "high"}, "slow", {"pace": 1, "pitch": 2}),
        ({"drops_words": True}, "", {"words": 2}),
        ({"is_other_voice": True}, "loud", {"voice": 2, "volume": 1}),
    ],
)
def test_what_was_done_is_a_fault_unless_it_was_asked_for(
    take: dict[str, Any], asked: str, faults: dict[str, int]
) -> None:
    found = replace(PLAIN, **take).faults(asked)
    assert {name: count for name, count in found.items() if count} == faults


@pytest.mark.parametrize(
    ("first", "second", "known"),
    [((0, 0), (2, 0), ("words", 5)), ((0, 0), (0, 1), ("pace", 4)), ((1, 1), (1, 1), ("alike", 3)),
     ((2, 0), (0, 0), None), ((0, 2), (2, 0), None)],
)  # fmt: skip
def test_only_an_answer_with_no_fault_of_its_own_is_known_to_be_better(
    first: tuple[int, int], second: tuple[int, int], known: tuple[str, int] | None
) -> None:
    assert known_level(*(dict(zip(("words", "pace"), faults, strict=True)) for faults in (first, second))) == known


def test_readings_have_the_pace_and_the_pitch_that_they_are_given() -> None:
    waveform = buzz(150, 1.0)
    assert len(at_speed(waveform, 0.5)) == pytest.approx(2 * len(waveform), rel=0.02)
    assert median_hz(at_speed(waveform, 0.5)) == pytest.approx(150, rel=0.02)
    assert median_hz(with_formants_moved(waveform, 1.2)) == pytest.approx(150, rel=0.03)


def test_a_stretch_is_cut_out_at_quiet_places() -> None:
    waveform = buzz(150, 2.0)
    waveform[SPEAK_HZ - 600 : SPEAK_HZ + 600] = 0
    assert abs(quiet_place(waveform, SPEAK_HZ + 1000) - SPEAK_HZ) < 720
    shares = [1 - len(without_a_stretch(waveform, RNG)) / len(waveform) for _ in range(20)]
    assert all(0.15 < share < 0.6 for share in shares)


def test_a_clip_is_read_plainly_twice_in_opposite_styles_short_of_words_and_by_another_voice() -> None:
    made = takes(buzz(150, 1.6), np.random.default_rng(1))
    assert [take.style for take in made[:2]] == ["", ""]
    first, second = (STYLES[take.style] for take in made[2:4])
    assert first[0] == second[0]
    assert first[1] != second[1]
    assert [take.drops_words for take in made].count(True) == [take.is_other_voice for take in made].count(True) == 1


def test_pairs_of_each_kind_are_chosen_and_the_first_is_never_worse() -> None:
    made = takes(buzz(150, 1.6), np.random.default_rng(2))
    pairs = choose_pairs(made, np.random.default_rng(0))
    counts = {kind: sum(pair.kind == kind for pair in pairs) for kind in {pair.kind for pair in pairs}}
    assert {"words", "voice", "alike"} < counts.keys()
    assert counts["alike"] <= NUM_ALIKE
    assert max(counts.values()) <= NUM_DIFFERENT
    for pair in pairs:
        first, second = made[pair.first].faults(pair.asked), made[pair.second].faults(pair.asked)
        assert sum(first.values()) <= sum(second.values())
        assert (pair.kind == "alike") == (first == second)


def test_nobody_is_trained_on_a_text_that_is_held_out() -> None:
    ours = [row(f"a{n}", "ann", f"sentence number {n} for you") for n in range(8)]
    theirs = [row(f"b{n}", "bob", f"sentence number {n} for you") for n in range(2)] + [
        row(f"c{n}", "bob", f"another sentence of {n}") for n in range(6)
    ]
    found = by_speaker([*ours, *theirs, row("d", "once")], ["bob"], seed=0)
    assert found.keys() == {"ann", "bob"}
    assert not {clip["text"] for clip in found["ann"]} & {clip["text"] for clip in found["bob"]}
    assert len(found["ann"]) == 6


def recognise(waveform: Tensor) -> str:
    """Hear as many words as there is time for."""
    words = SAID.split()
    return " ".join(words[: round(len(waveform) / SPEAK_HZ / 2.0 * len(words))])


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Known]]:
    folder = tmp_path_factory.mktemp("clips")
    rows = [
        row(f"{speaker}{number}", speaker, f"{SAID} {speaker}") for speaker in "ab" for number in range(NUM_USUAL + 1)
    ]
    for number, entry in enumerate(rows):
        write_audio(folder / entry["audio"], torch.from_numpy(buzz(120 + 5 * number, 2.0)), SPEAK_HZ)
    witness = Witness(recognise, lambda waveform: torch.ones(2))
    return folder / "out", list(speech_pairs(rows, folder, witness, folder / "out", held_out_speakers=["b"]))


def test_speakers_are_held_out_whole(pairs: tuple[Path, list[Known]]) -> None:
    assert {(known.id[0], known.split) for known in pairs[1]} == {("a", "train"), ("b", "held_out")}


def test_the_judge_is_told_what_was_measured_and_not_what_was_done(pairs: tuple[Path, list[Known]]) -> None:
    for known in pairs[1]:
        assert known.case.task == "speech"
        assert "Asked: " in known.case.prompt
        assert "words" in known.case.first.text
        assert not any(secret in known.case.first.text for secret in (known.id, "drops", "audio/"))


def test_every_pair_has_its_sounds_beside_it(pairs: tuple[Path, list[Known]]) -> None:
    folder, found = pairs
    for known in found:
        assert all(len(read_audio(folder / sound, SPEAK_HZ)) > SPEAK_HZ // 2 for sound in known.sounds)


def test_reasons_follow_the_evidence(pairs: tuple[Path, list[Known]]) -> None:
    plain = [known for known in pairs[1] if known.kind == "words" and known.sounds[0].endswith("_0.opus")]
    assert plain
    assert all(known.verdict.clauses["words"].side == "first" and known.verdict.level == 5 for known in plain)


def test_the_same_seed_makes_the_same_pairs(pairs: tuple[Path, list[Known]], tmp_path: Path) -> None:
    folder, found = pairs
    rows = [row(f"a{number}", "a", f"{SAID} a") for number in range(NUM_USUAL + 1)]
    witness = Witness(recognise, lambda waveform: torch.ones(2))
    again = list(speech_pairs(rows, folder.parent, witness, tmp_path))
    assert again == [known for known in found if known.split == "train"]


def test_so_many_pairs_of_each_split_are_told_how_well_their_replies_fit() -> None:
    case = Case("dialogue", "Persona: I bake.\nuser: Hi", Answer("yes"), Answer("no"))
    verdict = Verdict({"coherence": Clause("first")}, 5)
    known = [Known(str(n), "coherence", ("train", "held_out")[n > 4], case, verdict) for n in range(7)]
    told = list(fitted(known, Reader(lambda conversations, replies: [0.0] * len(replies)), most=3))
    assert [one.id for one in told] == ["0", "2", "4", "5", "6"]
    assert all(one.case.first.fits == "badly +0.0" for one in told)
