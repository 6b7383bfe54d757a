from __future__ import annotations

import pytest
from pydantic import ValidationError

from tristep.server.wording import PronunciationMap, without_directions, without_markdown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A GIF, a gif and gifts.", "A jiff, a jiff and gifts."),
        ("C++ is not C.", "see plus plus is not see."),
        ("New York and York", "the Big Apple and Yawk"),
    ],
)
def test_words_are_read_as_they_are_told_to(text: str, expected: str) -> None:
    tone = ["gif/jiff", "C/see", "C++/see plus plus", "York/Yawk", "New York/the Big Apple"]
    assert PronunciationMap(tone=tone).read(text) == expected


def test_without_readings_a_text_stays() -> None:
    assert PronunciationMap().read("A GIF.") == "A GIF."


@pytest.mark.parametrize("entry", ["gif", "gif/", "/jiff", " /jiff", "gif/ ", "a/b/c"])
def test_what_is_no_reading_is_refused(entry: str) -> None:
    with pytest.raises(ValidationError):
        PronunciationMap(tone=[entry])


def test_of_markdown_only_what_is_read_is_left() -> None:
    text = (
        "# Title\n\nSome *bold* **text** with `code`\nand [a link](http://x.y) <b>!</b>\n\n- one\n- two\n\n"
        "```py\nx = 1\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n![a cat](cat.png)\n\n2 * 3 (cheerful) a_b_c"
    )
    assert without_markdown(text).split("\n") == [
        "Title", "Some bold text with code and a link !", "one", "two", "a", "b", "1", "2", "a cat",
        "2 * 3 (cheerful) a_b_c",
    ]  # fmt: skip


def test_brackets_are_opened() -> None:
    assert without_directions("Come (softly) here.") == "Come softly here."
