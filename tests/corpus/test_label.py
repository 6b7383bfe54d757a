from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tristep.audio import LISTEN_HZ, read_audio, write_audio
from tristep.corpus.label import (
    Settings,
    cut_path,
    find_recordings,
    label,
    label_folder,
    neighbours,
    read_rows,
    write_rows,
    written,
)
from tristep.corpus.recognisers import Heard, Recognise
from tristep.corpus.vote import vote_texts

DATA = Path(__file__).parents[1] / "data"


@dataclass(frozen=True)
class Told:
    """What a teacher says of one stretch of sound."""

    text: str
    avg_logprob: float = -0.2
    compression_ratio: float = 1.3


class Teacher:
    """A recogniser that has made up its mind."""

    def __init__(self, *answers: list[Told]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, str]] = []

    def transcribe(self, path: str, language: str, beam_size: int) -> tuple[Any, None]:
        self.asked.append((path, language))
        return iter(self.answers.pop(0)), None


ROW = {"id": "a", "audio": "audio/a.flac", "text": "", "language": "en"}


def test_a_clip_that_the_teacher_heard_clearly_gets_its_words() -> None:
    teacher = Teacher([Told(" Hello there."), Told(" Bye.", avg_logprob=-0.4)])
    (row,) = label([ROW], Path("/data"), teacher)
    assert (row["text"], row["logprob"]) == ("Hello there. Bye.", -0.4)
    assert row["id"] == "a"
    assert teacher.asked == [("/data/audio/a.flac", "en")]


@pytest.mark.parametrize(
    "answer",
    [[], [Told("maybe", avg_logprob=-0.8)], [Told("ok"), Told("bla bla bla", compression_ratio=3.0)]],
    ids=["nobody spoke", "unsure", "a loop in one segment"],
)
def test_a_clip_is_dropped_if_the_teacher_was_not_sure(answer: list[Told]) -> None:
    assert list(label([ROW], Path(), Teacher(answer))) == []
    assert len(list(label([ROW, ROW], Path(), Teacher(answer, [Told("fine")])))) == 1


def voter(*texts: str, language: str = "en", sure: bool = True) -> Recognise:
    """A recogniser that hears these texts, one piece after the other."""
    left = list(texts)
    return lambda waveforms, _: [Heard(left.pop(0), language, sure) for _ in waveforms]


def speech(duration_s: float) -> Tensor:
    return read_audio(DATA / "jfk.flac")[: round(duration_s * LISTEN_HZ)]


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Four short recordings: two that are clear, one of silence, one that is broken."""
    folder = tmp_path / "clips"
    folder.mkdir()
    write_audio(folder / "a.flac", speech(3.0), LISTEN_HZ)
    write_audio(folder / "b.flac", speech(2.0), LISTEN_HZ)
    write_audio(folder / "quiet.flac", torch.zeros(LISTEN_HZ), LISTEN_HZ)
    (folder / "broken.wav").write_bytes(b"RIFF")
    return folder


def outcomes(out: Path) -> dict[str, str]:
    return {row["id"]: row["outcome"] for row in read_rows(out / "pieces.jsonl")}


def test_what_is_agreed_upon_is_kept_and_the_rest_is_dropped_with_its_reason(clips: Path, tmp_path: Path) -> None:
    voters = {
        "first": voter("And so, my fellow.", "my felo"),
        "second": voter("and so my fellow", "my fellas"),
        "third": voter("and so my yellow", "my mellow"),
    }
    counts = label_folder(clips, tmp_path / "out", voters)
    assert counts == {"kept": 1, "disagreement": 1, "no speech": 1, "unreadable": 1}
    assert outcomes(tmp_path / "out")["quiet"] == "no speech"
    assert outcomes(tmp_path / "out")["broken"] == "unreadable"
    (row,) = read_rows(tmp_path / "out" / "manifest.jsonl")
    assert (row["id"], row["text"], row["language"]) == ("a", "And so, my fellow.", "en")
    assert row["heard"] == {"first": "And so, my fellow.", "second": "and so my fellow", "third": "and so my yellow"}
    assert row["agreement"] == {"first": 1.0, "second": 1.0, "third": 0.75}
    assert row["disagreement"] == 0
    assert row["audio"] == str(clips / "a.flac")
    assert row["speech_share"] > 0.3
    page = (tmp_path / "out" / "summary.html").read_text()
    assert "my fellow/my" not in page
    assert "felo/fellas/mellow" in page
    assert "http" not in page


def test_a_piece_that_is_known_is_not_heard_again(clips: Path, tmp_path: Path) -> None:
    first = label_folder(clips, tmp_path / "out", {"v": voter("one", "two")})
    assert label_folder(clips, tmp_path / "out", {"v": voter()}) == first
    assert len(read_rows(tmp_path / "out" / "pieces.jsonl")) == 4


def test_a_line_that_a_killed_run_left_unfinished_is_forgotten(clips: Path, tmp_path: Path) -> None:
    log = tmp_path / "out" / "pieces.jsonl"
    first = label_folder(clips, tmp_path / "out", {"v": voter("one", "two")})
    rows = read_rows(log)
    log.write_text(log.read_text()[:-10])
    assert label_folder(clips, tmp_path / "out", {"v": voter()}) == first
    assert read_rows(log) == rows


@pytest.mark.parametrize(("name", "settings"), [("w", Settings()), ("v", Settings(max_disagreement=0.5))])
def test_labels_are_not_mixed_with_those_of_others(name: str, settings: Settings, clips: Path, tmp_path: Path) -> None:
    label_folder(clips, tmp_path / "out", {"v": voter("one", "two")})
    with pytest.raises(ValueError, match=r"labelled as .*settings\.json says"):
        label_folder(clips, tmp_path / "out", {name: voter()}, settings)


def test_recordings_of_the_same_name_are_refused(clips: Path) -> None:
    write_audio(clips / "a.wav", speech(1.0), LISTEN_HZ)
    with pytest.raises(ValueError, match=r"2 recordings .* are named 'a'"):
        find_recordings(clips)


def test_a_cut_is_written_in_its_folder_whatever_it_is_called() -> None:
    assert cut_path(Path("/out"), "../a/b c-0001") == Path("/out/___a_b_c-0001.flac")


def test_a_recogniser_alone_has_to_be_sure(clips: Path, tmp_path: Path) -> None:
    counts = label_folder(clips, tmp_path / "out", {"v": voter("one", "two", sure=False)})
    assert counts["unsure"] == 2
    assert (tmp_path / "out" / "manifest.jsonl").read_text() == ""


def test_the_rows_of_a_manifest_keep_what_they_say(clips: Path, tmp_path: Path) -> None:
    rows = [{"id": "x", "audio": "a.flac", "speaker": "jfk", "text": ""}]
    write_rows(rows, clips / "manifest.jsonl")
    label_folder(clips, tmp_path / "out", {"v": voter("hello", language="en")}, Settings(language="en"))
    (row,) = read_rows(tmp_path / "out" / "manifest.jsonl")
    assert (row["id"], row["speaker"], row["text"]) == ("x", "jfk", "hello")


@pytest.fixture
def long(tmp_path: Path) -> Path:
    """A recording in three stretches."""
    folder = tmp_path / "long"
    folder.mkdir()
    pause = torch.zeros(3 * LISTEN_HZ)
    write_audio(folder / "talk.flac", torch.cat([speech(9.0), pause, speech(9.0), pause, speech(9.0)]), LISTEN_HZ)
    return folder


def test_a_long_recording_becomes_pieces_and_neighbours_become_one_sample(long: Path, tmp_path: Path) -> None:
    texts = ("one fine day", "at two", "we left")
    label_folder(long, tmp_path / "cut", {"v": voter(*texts)})
    apart = read_rows(tmp_path / "cut" / "manifest.jsonl")
    assert [row["text"] for row in apart] == list(texts)
    for row in apart:
        assert len(read_audio(row["audio"])) / LISTEN_HZ == pytest.approx(row["duration"], abs=1e-3)
    asked: list[tuple[list[str], str]] = []

    def repair(parts: Sequence[str], language: str) -> list[str]:
        asked.append((list(parts), language))
        return [part.capitalize() + "." for part in parts]

    label_folder(long, tmp_path / "whole", {"v": voter(*texts)}, Settings(max_joined_s=60), repair)
    (whole,) = read_rows(tmp_path / "whole" / "manifest.jsonl")
    assert whole["text"] == "One fine day. At two. We left."
    assert asked == [(list(texts), "en")]
    assert whole["duration"] == pytest.approx(apart[-1]["start_s"] + apart[-1]["duration"] - apart[0]["start_s"])
    assert len(read_audio(whole["audio"])) / LISTEN_HZ == pytest.approx(whole["duration"], abs=1e-3)


def kept(start_s: float, outcome: str = "kept", recording: str = "r") -> dict[str, Any]:
    return {"start_s": start_s, "duration": 8.0, "outcome": outcome, "recording": recording, "language": "en"}


def test_only_neighbours_that_are_kept_are_joined_up_to_a_length() -> None:
    rows = [
        kept(0),
        kept(10),
        kept(20),
        kept(30, "disagreement"),
        kept(40),
        kept(50, recording="s"),
        kept(60, recording="s"),
    ]
    groups = [[row["start_s"] for row in group] for group in neighbours(rows, max_joined_s=20)]
    assert groups == [[0, 10], [20], [40], [50, 60]]
    assert [len(group) for group in neighbours(rows, max_joined_s=0)] == [1] * 6


def test_a_vote_is_written_as_somebody_wrote_it_or_else_in_plain_words() -> None:
    texts = ["A 12 oz mocha.", "a twelve ounce mocha, please", "a twelve ounce mocha please"]
    assert written(vote_texts(texts, "en"), texts, "en") == texts[1]
    texts = ["a 12 oz maca please", "a 12 oz mocha", "big 12 oz mocha please"]
    assert written(vote_texts(texts, "en"), texts, "en") == "a twelve ounces mocha please"
    assert written(vote_texts(["今天好", "今天好", "天好"], "zh"), ["", "今天好", ""], "zh") == "今天好"


@pytest.mark.parametrize("recognisers", [{}, {"v": voter()}])
def test_nothing_to_label_and_nobody_to_do_it_are_refused(recognisers: dict[str, Recognise], tmp_path: Path) -> None:
    if not recognisers:
        write_audio(tmp_path / "a.flac", speech(1.0), LISTEN_HZ)
    with pytest.raises(ValueError, match="nobody is there" if not recognisers else "nothing to label"):
        label_folder(tmp_path, tmp_path / "out", recognisers)
