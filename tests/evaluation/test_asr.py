"""A recogniser with known mistakes is measured: what is reported must be those mistakes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from tristep.evaluation.asr import Hypothesis, evaluate_asr, from_model
from tristep.evaluation.suites import Clip, read_clip
from tristep.text import NORMALISER

SENTENCES = ("the cat sat on the mat", "a dog barked", "nobody came to the door", "it rained all night")


def clips_saying(*texts: str, language: str = "en") -> list[Clip]:
    return [
        Clip(f"{language}{index}", Path(f"{index}.wav"), text, language, duration_s=2.0)
        for index, text in enumerate(texts)
    ]


def repeat(clips: list[Clip]) -> list[Hypothesis]:
    """Write exactly what was said, in half a second a clip."""
    return [Hypothesis(clip.text, clip.language, 0.5) for clip in clips]


def replace_first_word(clips: list[Clip]) -> list[Hypothesis]:
    return [Hypothesis(" ".join(["wrong", *clip.text.split()[1:]])) for clip in clips]


def measure(transcribe, clips, **settings):  # type: ignore[no-untyped-def]
    return evaluate_asr(transcribe, clips, progress=False, **settings)


def test_a_perfect_recogniser_has_no_errors_and_an_interval_of_zero() -> None:
    [suite] = measure(repeat, clips_saying(*SENTENCES)).suites
    assert (suite.rate, suite.low, suite.high) == (0, 0, 0)
    assert suite.num_units == sum(len(sentence.split()) for sentence in SENTENCES)
    assert not suite.worst()


def test_known_edits_are_counted_by_kind() -> None:
    written = {"the cat sat on the mat": "the hat sat on mat", "a dog barked": "a big dog barked"}
    clips = clips_saying(*written)
    [suite] = measure(lambda clips: [Hypothesis(written[clip.text]) for clip in clips], clips).suites
    assert (suite.substitutions, suite.deletions, suite.insertions, suite.num_units) == (1, 1, 1, 9)
    assert suite.rate == pytest.approx(3 / 9)
    assert [(clip.substitutions, clip.deletions, clip.insertions) for clip in suite.clips] == [
        (1, 1, 0),
        (0, 0, 1),
    ]


def test_the_interval_holds_the_rate_and_narrows_with_more_clips() -> None:
    def every_third(clips: list[Clip]) -> list[Hypothesis]:
        return [Hypothesis("" if int(clip.id[2:]) % 3 == 0 else clip.text) for clip in clips]

    few = measure(every_third, clips_saying(*SENTENCES * 5)).suites[0]
    many = measure(every_third, clips_saying(*SENTENCES * 50)).suites[0]
    for suite in (few, many):
        assert 0 < suite.low < suite.rate < suite.high < 1
    assert many.high - many.low < (few.high - few.low) / 2


def test_the_same_run_gives_the_same_interval() -> None:
    first, second = (measure(replace_first_word, clips_saying(*SENTENCES)).suites[0] for _ in range(2))
    assert (first.low, first.high) == (second.low, second.high)


def test_time_and_hours_add_up_to_the_real_time_factor() -> None:
    [suite] = measure(repeat, clips_saying(*SENTENCES)).suites
    assert suite.hours == pytest.approx(8 / 3600)
    assert suite.compute_s == pytest.approx(2.0)
    assert suite.real_time_factor == pytest.approx(0.25)


def test_chinese_is_scored_by_characters_and_apart_from_english() -> None:
    clips = clips_saying("a dog barked") + clips_saying("今天天气很好", language="zh")
    english, chinese = measure(lambda clips: [Hypothesis(clip.text[:-1]) for clip in clips], clips).suites
    assert (english.language, english.metric, english.rate) == ("en", "wer", pytest.approx(1 / 3))
    assert (chinese.language, chinese.metric, chinese.rate) == ("zh", "cer", pytest.approx(1 / 6))


def test_a_given_language_scores_every_clip_in_it() -> None:
    clips = clips_saying("a dog barked") + clips_saying("two dogs", language="de")
    assert [suite.language for suite in measure(repeat, clips, language="en").suites] == ["en"]


def test_several_suites_are_several_rows() -> None:
    report = measure(repeat, {"one": clips_saying(*SENTENCES[:1]), "rest": clips_saying(*SENTENCES[1:])})
    assert [(suite.name, len(suite.clips)) for suite in report.suites] == [("one", 1), ("rest", 3)]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_clip_that_fails_is_recorded_counts_as_deleted_and_stops_nothing(batch_size: int) -> None:
    def breaks_on_dogs(clips: list[Clip]) -> list[Hypothesis]:
        if any("dog" in clip.text for clip in clips):
            raise RuntimeError("no dogs")
        return repeat(clips)

    [suite] = measure(breaks_on_dogs, clips_saying(*SENTENCES), batch_size=batch_size).suites
    assert [clip.error for clip in suite.clips] == [None, "RuntimeError: no dogs", None, None]
    assert (suite.num_failed, suite.deletions, suite.rate) == (1, 3, pytest.approx(3 / suite.num_units))


def test_a_file_that_cannot_be_read_adds_nothing_to_the_hours(tmp_path: Path) -> None:
    missing = Clip("gone", tmp_path / "gone.wav", "a dog barked", "en")
    [suite] = measure(lambda clips: [Hypothesis(str(read_clip(clip))) for clip in clips], [missing]).suites
    assert suite.hours == 0
    assert suite.real_time_factor == 0
    assert "gone.wav" in str(suite.clips[0].error)


def test_batches_hold_the_longest_clips_first_and_results_keep_the_suites_order() -> None:
    seen: list[list[str]] = []

    def spy(clips: list[Clip]) -> list[Hypothesis]:
        seen.append([clip.text for clip in clips])
        return repeat(clips)

    lengths = {"short": 1.0, "longest": 9.0, "long": 5.0}
    clips = [Clip(text, Path("a.wav"), text, "en", duration_s=length) for text, length in lengths.items()]
    [suite] = measure(spy, clips, batch_size=2).suites
    assert seen == [["longest", "long"], ["short"]]
    assert [clip.id for clip in suite.clips] == list(lengths)


def test_what_is_written_where_nothing_is_said_counts() -> None:
    clips = clips_saying("", "a dog barked")
    [suite] = measure(lambda clips: [Hypothesis(clip.text or "thank you") for clip in clips], clips).suites
    assert (suite.insertions, suite.rate) == (2, pytest.approx(2 / 3))
    assert suite.worst()[0].id == "en0"


def test_a_recogniser_that_drops_a_clip_is_refused() -> None:
    with pytest.raises(ValueError, match="returned 3 hypotheses for 4 clips"):
        measure(lambda clips: repeat(clips)[1:], clips_saying(*SENTENCES), batch_size=4)


def test_no_clips_are_refused() -> None:
    with pytest.raises(ValueError, match="no clips"):
        measure(repeat, [])


def test_the_conditions_say_what_was_measured() -> None:
    conditions = measure(repeat, clips_saying("a dog"), model="echo").conditions
    assert (conditions.model, conditions.normaliser, conditions.seed) == ("echo", NORMALISER, 0)
    assert conditions.threads == torch.get_num_threads()
    assert conditions.torch == torch.__version__


def test_a_model_gets_whole_files_as_paths_and_stretches_as_waveforms(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    soundfile.write(path, np.zeros(32_000, dtype=np.float32), 16_000)
    given: list[object] = []

    class Model:
        def transcribe(self, sounds: list[object]) -> list[SimpleNamespace]:
            given.extend(sounds)
            return [SimpleNamespace(text="a dog", language="en") for _ in sounds]

    whole = Clip("whole", path, "a dog", "en")
    part = Clip("part", path, "a dog", "en", start_s=1.0, duration_s=0.5, is_whole=False)
    [suite] = measure(from_model(Model()), [whole, part], batch_size=2).suites
    assert suite.num_failed == 0
    assert path in given
    [stretch] = [sound for sound in given if isinstance(sound, torch.Tensor)]
    assert stretch.shape == (8_000,)
    assert suite.hours == pytest.approx(2.5 / 3600)
