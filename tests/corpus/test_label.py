from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tristep.corpus.label import label


@dataclass(frozen=True)
class Heard:
    """What a teacher says of one stretch of sound."""

    text: str
    avg_logprob: float = -0.2
    compression_ratio: float = 1.3


class Teacher:
    """A recogniser that has made up its mind."""

    def __init__(self, *answers: list[Heard]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, str]] = []

    def transcribe(self, path: str, language: str, beam_size: int) -> tuple[Any, None]:
        self.asked.append((path, language))
        return iter(self.answers.pop(0)), None


ROW = {"id": "a", "audio": "audio/a.flac", "text": "", "language": "en"}


def test_a_clip_that_the_teacher_heard_clearly_gets_its_words() -> None:
    teacher = Teacher([Heard(" Hello there."), Heard(" Bye.", avg_logprob=-0.4)])
    (row,) = label([ROW], Path("/data"), teacher)
    assert (row["text"], row["logprob"]) == ("Hello there. Bye.", -0.4)
    assert row["id"] == "a"
    assert teacher.asked == [("/data/audio/a.flac", "en")]


@pytest.mark.parametrize(
    "answer",
    [[], [Heard("maybe", avg_logprob=-0.8)], [Heard("ok"), Heard("bla bla bla", compression_ratio=3.0)]],
    ids=["nobody spoke", "unsure", "a loop in one segment"],
)
def test_a_clip_is_dropped_if_the_teacher_was_not_sure(answer: list[Heard]) -> None:
    assert list(label([ROW], Path(), Teacher(answer))) == []
    assert len(list(label([ROW, ROW], Path(), Teacher(answer, [Heard("fine")])))) == 1
