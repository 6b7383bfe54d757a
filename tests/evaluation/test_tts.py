"""Synthesisers with known habits are measured: what is reported must be those habits."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from zlib import crc32

import pytest
import torch
from evaluation.test_report import Page
from rich.console import Console
from torch import Tensor

from tristep.audio import SPEAK_HZ
from tristep.evaluation.speech import Delivery, Judges
from tristep.evaluation.tts import (
    CUES,
    INSTRUCTIONS,
    Directive,
    Measured,
    Spoken,
    build_prompts,
    evaluate_tts,
    from_model,
    mean,
    movement,
    read_directives,
    read_sentences,
)
from tristep.evaluation.tts_report import as_page, directive_table, read_json, voice_table, write_report

pytest.importorskip("parselmouth")

SENTENCES = {"1": "the cat sat on the mat", "2": "a dog barked", "3": "nobody came to the door"}
LOUD, SLOW = INSTRUCTIONS[5], INSTRUCTIONS[0]
SLOWLY = CUES[0]


class Parrot:
    """Says a text as a tone of half a second a word; a recogniser of its own remembers what was said."""

    def __init__(self, obeys: bool = True, reads_cues: bool = False) -> None:
        self.obeys, self.reads_cues = obeys, reads_cues
        self.said: dict[int, str] = {}

    def speak(self, text: str, voice: str | None, instructions: str | None, seed: int) -> Spoken:
        words = re.sub(r"[()]", "", text) if self.reads_cues else re.sub(r"\([^)]*\) ?", "", text)
        asked = (instructions or "") + text if self.obeys else ""
        level = 0.6 if "loud" in asked else 0.2
        num_samples = len(words.split()) * SPEAK_HZ // (1 if "slow" in asked else 2)
        waveform = level * torch.sin(torch.arange(num_samples) * 2 * torch.pi * 200 / SPEAK_HZ)
        waveform[0] = crc32(words.encode()) % 1000 / 1e6  # which of two texts of as many words it is
        self.said[hash(waveform.numpy().tobytes())] = words
        return Spoken(waveform, seconds=num_samples / SPEAK_HZ / 4, first_audio_s=0.1)

    def hear(self, waveform: Tensor) -> str:
        return self.said[hash(waveform.numpy().tobytes())]


def measure(parrot: Parrot, *directives: Directive, **settings) -> Measured:  # type: ignore[no-untyped-def]
    judges = Judges(parrot.hear, embed=lambda waveform: torch.tensor([3.0, -4.0]), rate=lambda waveform: 4.0)
    prompts = build_prompts(SENTENCES, settings.pop("voices", (None,)), directives)
    return evaluate_tts(parrot.speak, prompts, judges, model="parrot", progress=False, **settings)


def test_a_perfect_reading_has_no_errors() -> None:
    [voice] = measure(Parrot()).report.voices
    assert (voice.wer.mean, voice.wer.low, voice.wer.high) == (0, 0, 0)
    assert (voice.num_sentences, voice.num_failed) == (3, 0)
    assert voice.minutes == pytest.approx(7 / 60)
    assert voice.real_time_factor == pytest.approx(0.25)
    assert (voice.first_audio_ms, voice.mos and voice.mos.mean) == (pytest.approx(100), 4.0)
    assert voice.median_f0_hz == pytest.approx(200, rel=0.02)


def test_likeness_is_measured_where_a_voice_is_known() -> None:
    anna, bob = measure(Parrot(), voices=("anna", "bob"), targets={"anna": torch.tensor([3.0, 4.0])}).report.voices
    assert anna.similarity is not None
    assert anna.similarity.mean == pytest.approx(-7 / 25)
    assert anna.rectified_similarity is not None
    assert anna.rectified_similarity.mean == pytest.approx(0.6)
    assert bob.similarity is None


def test_directives_that_are_heeded_move_their_feature() -> None:
    loud, slow, slowly = measure(Parrot(), LOUD, SLOW, SLOWLY).report.directives
    assert loud.moved.mean == slow.moved.mean == slowly.moved.mean == 1
    assert loud.directed - loud.plain == pytest.approx(9.54, abs=0.1)
    assert slow.directed == pytest.approx(slow.plain / 2, rel=0.01)
    assert (slowly.spoken, slowly.wer) == (0, 0)


def test_directives_that_are_ignored_or_read_aloud_are_told() -> None:
    loud, slowly = measure(Parrot(obeys=False, reads_cues=True), LOUD, SLOWLY).report.directives
    assert loud.moved.mean == loud.spoken == 0
    assert slowly.spoken == 1
    assert slowly.wer == pytest.approx(3 / 14)


def test_many_wordings_of_a_style_are_one_row_and_each_has_its_own_sentences(tmp_path: Path) -> None:
    style = {"name": "loud", "feature": "level_db", "upwards": True}
    rows = [{**style, "wording": wording} for wording in ("Be loud.", "Shout.")]
    (tmp_path / "ways.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ways = read_directives(tmp_path / "ways.jsonl")
    prompts = build_prompts(SENTENCES, (None,), ways, num_directed=1)
    assert [prompt.id for prompt in prompts[3:]] == ["2 loud 1", "3 loud 2"]
    (loud,) = measure(Parrot(), *ways).report.directives
    assert (loud.num_sentences, loud.moved.mean) == (6, 0.5)  # the parrot knows "loud" and not "shout"
    assert loud.clear is not None
    assert loud.clear.mean == 0.5


@pytest.mark.parametrize(
    "line", ["loud", '{"name": "loud"}', '{"name":"a","wording":"b","feature":"c","upwards":true}']
)
def test_a_file_that_holds_no_directives_is_refused(line: str, tmp_path: Path) -> None:
    (tmp_path / "ways.jsonl").write_text(line)
    with pytest.raises(ValueError, match=r"can't be read as directives|there is no feature 'c'"):
        read_directives(tmp_path / "ways.jsonl")


@pytest.mark.parametrize(
    ("directive", "directed", "expected"),
    [
        (LOUD, {"level_db": -17.0}, 1.0),
        (SLOW, {"words_per_s": 2.0}, 0.585 / 0.15),
        (SLOW, {"words_per_s": 6.0}, -1 / 0.15),
    ],
)
def test_a_movement_is_counted_in_changes_that_nobody_misses(
    directive: Directive, directed: dict[str, float], expected: float
) -> None:
    plain = Delivery(1.0, 200.0, 1.0, 1.0, -20.0, 3.0, 0.0, 0.0)
    assert movement(directive, replace(plain, **directed), plain) == pytest.approx(expected, abs=0.01)
    assert movement(directive, None, plain) == 0.0


def test_the_plain_readings_alone_decide_the_error_rate_of_a_voice() -> None:
    report = measure(Parrot(reads_cues=True), SLOWLY).report
    assert report.voices[0].wer.mean == 0
    assert len(report.sentences) == 6


def test_a_guard_that_stepped_in_and_an_error_are_failures() -> None:
    parrot = Parrot()

    def fails(text: str, voice: str | None, instructions: str | None, seed: int) -> Spoken:
        if "dog" in text:
            raise RuntimeError("no dogs")
        spoken = parrot.speak(text, voice, instructions, seed)
        return Spoken(spoken.waveform, "repetition" if "cat" in text else "stop")

    measured = evaluate_tts(fails, build_prompts(SENTENCES), Judges(parrot.hear), progress=False)
    [voice] = measured.report.voices
    assert voice.num_failed == 2
    assert voice.wer.mean == pytest.approx(3 / 14)
    assert [sentence.error for sentence in measured.report.sentences] == [None, "RuntimeError: no dogs", None]
    assert [sentence.finish_reason for sentence in measured.report.sentences] == ["repetition", "error", "stop"]


def test_silence_is_not_shown_to_the_judges() -> None:
    def silent(text: str, voice: str | None, instructions: str | None, seed: int) -> Spoken:
        return Spoken(torch.zeros(SPEAK_HZ))

    [voice] = evaluate_tts(silent, build_prompts(SENTENCES), Judges(Parrot().hear), progress=False).report.voices
    assert (voice.wer.mean, voice.mos, voice.words_per_s) == (1, None, None)


def test_a_cue_in_the_middle_stands_between_words() -> None:
    _, prompt = build_prompts({"1": "one two three four"}, directives=CUES[-1:])
    assert (prompt.text, prompt.reference) == ("one two (long pause) three four", "one two three four")


def test_nothing_to_say_is_refused() -> None:
    with pytest.raises(ValueError, match="0 prompts"):
        evaluate_tts(Parrot().speak, [], Judges(Parrot().hear))


def test_the_interval_of_a_mean_holds_it_and_is_the_same_each_time() -> None:
    estimate = mean([1.0, 2.0, None, 6.0])
    assert estimate is not None
    assert estimate.low < estimate.mean == 3 < estimate.high
    assert estimate == mean([1.0, 2.0, 6.0])
    assert mean([None]) is None


def test_sentences_are_counted_without_comments(tmp_path: Path) -> None:
    path = tmp_path / "sentences.txt"
    path.write_text("# where from\none\n\ntwo\n # not this\nthree\n")
    assert read_sentences(path) == {"1": "one", "2": "two", "3": "three"}
    assert read_sentences(path, "2-3") == {"2": "two", "3": "three"}
    for lines in ("0-1", "3-2", "2-4", "x", "2"):
        with pytest.raises(ValueError, match=f"has 3 sentences: asked for {lines!r}"):
            read_sentences(path, lines)
    with pytest.raises(ValueError, match="give a file of sentences"):
        read_sentences(tmp_path)


def test_a_model_that_streams_is_timed_to_its_first_chunk() -> None:
    class Stream:
        finish_reason = ""

        def __iter__(self):  # type: ignore[no-untyped-def]
            yield torch.ones(5)
            yield torch.ones(3)
            self.finish_reason = "stop"

    model = SimpleNamespace(
        stream_speech=lambda text, voice, instructions, seed: Stream() if instructions == "" else None
    )
    spoken = from_model(model)("hello", None, None, 0)
    assert spoken.waveform.tolist() == [1.0] * 8
    assert spoken.finish_reason == "stop"
    assert spoken.first_audio_s is not None
    assert 0 < spoken.first_audio_s < spoken.seconds


def test_a_report_read_back_equals_the_one_written(tmp_path: Path) -> None:
    measured = measure(Parrot(), LOUD)
    data, page = write_report(measured.report, measured.waveforms, tmp_path / "new" / "report.json")
    assert read_json(data) == measured.report
    assert page.exists()
    with pytest.raises(ValueError, match=r"report\.html.*JSON"):
        write_report(measured.report, measured.waveforms, page)


def test_the_page_is_well_formed_holds_its_sounds_and_loads_nothing() -> None:
    measured = measure(Parrot(), LOUD, SLOWLY)
    text = as_page([measured.report], {"parrot": measured.waveforms})
    page = Page()
    page.feed(text.replace("<img ", "<meta "))
    assert page.open == []
    assert all(link.startswith("data:") for link in page.links)
    assert text.count('src="data:audio/mpeg;base64,') == text.count('src="data:image/png;base64,') == 9
    assert not re.search(r"<script|<link|@import|url\(", text)


def test_the_tables_name_what_was_measured() -> None:
    report = measure(Parrot(), LOUD).report
    console = Console(width=300, file=io.StringIO())
    with console.capture() as capture:
        console.print(voice_table([report]), directive_table([report]))
    for piece in ("parrot", "4.00 ± 0.00", "0.250", "loud", "level_db", "100%", "whisper-normalizer"):
        assert piece in capture.get()
