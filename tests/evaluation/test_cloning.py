"""Voices are tones whose pitch is who speaks: what is reported must be how near the clones' tones are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tristep.audio import SPEAK_HZ
from tristep.evaluation.cloning import (
    RELATIONS,
    Cloning,
    Reader,
    clone_prompts,
    evaluate_cloning,
    likeness_table,
    read_reader,
)
from tristep.evaluation.speech import Judges
from tristep.evaluation.tts import Spoken

pytest.importorskip("parselmouth")

PITCHES = {"anna": 200, "bob": 100, "carl": 140}
SENTENCES = {"1": "the cat sat", "2": "a dog barked"}


def tone(hz: float, duration_s: float) -> Tensor:
    return 0.3 * torch.sin(torch.arange(round(duration_s * SPEAK_HZ)) * 2 * torch.pi * hz / SPEAK_HZ)


def embed(waveform: Tensor) -> Tensor:
    """Point into the direction of the strongest of a few frequencies."""
    power = torch.fft.rfft(waveform).abs()
    bins = [round(hz * len(waveform) / SPEAK_HZ) for hz in (100, 140, 200)]
    return torch.stack([power[first - 1 : first + 2].max() for first in bins])


def readers() -> list[Reader]:
    found = [read_reader(name, "so it is", tone(hz, 9.0), 5.0) for name, hz in PITCHES.items()]
    return [reader for reader in found if reader]


def measure(said: dict[str, float], readers_of: list[Reader] | None = None) -> Cloning:
    def synthesise(text: str, voice: str | None, instructions: str | None, seed: int) -> Spoken:
        return Spoken(tone(said[str(voice)], 1.0))

    judges = Judges(lambda waveform: "the cat sat", embed=embed)
    return evaluate_cloning(synthesise, readers_of or readers(), SENTENCES, judges, progress=False)


def test_a_perfect_clone_is_as_like_as_the_rest_of_the_recording() -> None:
    cloning = measure({name: float(hz) for name, hz in PITCHES.items()})
    means = {row.relation: row.similarity.mean for row in cloning.likenesses}
    assert tuple(means) == RELATIONS
    assert min(means["clone, clip"], means["clone, rest"], means["clip, rest"]) > 0.99
    assert max(means["clone, others"], means["clip, others"]) < 0.1


def test_a_clone_that_sounds_like_somebody_else_is_found_out() -> None:
    means = {row.relation: row.similarity.mean for row in measure(dict.fromkeys(PITCHES, 100.0)).likenesses}
    assert means["clone, clip"] == pytest.approx(1 / 3, abs=0.05)  # bob alone
    assert means["clone, others"] == pytest.approx(1 / 3, abs=0.05)


def test_the_clones_words_are_judged_too() -> None:
    said = measure({name: float(hz) for name, hz in PITCHES.items()}).measured.report.sentences
    assert len(said) == 2 * len(PITCHES)
    assert [each.num_errors for each in said[:2]] == [0, 3]


def test_sentences_are_dealt_out_in_turn() -> None:
    prompts = clone_prompts(["anna", "bob"], {"1": "one", "2": "two", "3": "three"}, 2)
    assert [(prompt.voice, prompt.text) for prompt in prompts] == [
        ("anna", "one"), ("anna", "two"), ("bob", "three"), ("bob", "one"),
    ]  # fmt: skip
    assert len({prompt.id for prompt in prompts}) == 4


def test_a_recording_without_enough_left_is_no_reader() -> None:
    assert read_reader("short", "so", tone(100, 7.9), 5.0) is None
    reader = read_reader("long", "so", tone(100, 8.0), 5.0)
    assert reader is not None
    assert (len(reader.clip), len(reader.rest)) == (5 * SPEAK_HZ, 3 * SPEAK_HZ)


def test_the_table_has_a_row_for_every_relation() -> None:
    table = likeness_table(measure({name: float(hz) for name, hz in PITCHES.items()}))
    assert list(table.columns[0].cells) == list(RELATIONS)


def test_one_reader_is_not_enough() -> None:
    with pytest.raises(ValueError, match="there are 1 readers"):
        measure({"anna": 200.0}, readers()[:1])


def test_silent_clones_are_refused() -> None:
    def mute(text: str, voice: str | None, instructions: str | None, seed: int) -> Spoken:
        raise RuntimeError("no voice")

    judges = Judges(lambda waveform: "", embed=embed)
    with pytest.raises(ValueError, match="no clone said anything: RuntimeError: no voice"):
        evaluate_cloning(mute, readers(), SENTENCES, judges, progress=False)
