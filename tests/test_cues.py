from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tristep.text import Cue, Text, join_parts, speakable, split_cues, spoken_words, without_cues


def test_cues_are_kept_apart_from_what_is_spoken() -> None:
    assert split_cues("Hello (softly) there, (pause) friend.") == [
        Text("Hello"), Cue("softly"), Text("there,"), Cue("pause"), Text("friend."),
    ]  # fmt: skip
    assert split_cues("\uff08轻声\uff09你好") == [Cue("轻声"), Text("你好")]
    assert split_cues("No brackets.") == [Text("No brackets.")]
    assert split_cues(" ") == []


@pytest.mark.parametrize("text", ["in (2019) again", "the Bureau (FBI) said", "your word(s) here", "a face (:-) here",
                                  "an open (bracket", "and () nothing"])  # fmt: skip
def test_a_bracket_that_can_not_be_a_cue_is_text(text: str) -> None:
    assert split_cues(text) == [Text(text)]


def test_a_cue_may_stand_against_a_word_without_a_space() -> None:
    assert split_cues("Wait(whispering)now") == [Text("Wait"), Cue("whispering"), Text("now")]


def test_what_is_spoken_has_no_cues_and_its_punctuation_in_place() -> None:
    assert without_cues("Hello (softly), there (smiling).") == "Hello, there."


@given(
    parts=st.lists(
        st.one_of(
            st.builds(Text, st.sampled_from(["Hello", "so,", "it is 5 pm.", "yes!"])),
            st.builds(Cue, st.sampled_from(["softly", "long pause", "slowly, sadly"])),
        ),
        max_size=6,
    )
)
def test_joined_parts_split_into_the_same_parts(parts: list[Text | Cue]) -> None:
    words = [part.text for part in split_cues(join_parts(parts)) if isinstance(part, Cue)]
    assert words == [part.text for part in parts if isinstance(part, Cue)]
    assert without_cues(join_parts(parts)) == " ".join(part.text for part in parts if isinstance(part, Text))


def test_what_is_speakable_is_in_words_and_keeps_its_cues() -> None:
    spoken = without_cues(speakable("(slowly) 3 + 4 (long pause) = 7"))
    assert spoken_words(spoken) == ["three", "plus", "four", "equals", "seven"]


def test_other_languages_have_their_numbers_named() -> None:
    assert speakable("Um 7 Uhr (leise)", "de-DE") == "Um sieben Uhr (leise)"
    assert speakable("kein Problem", "de") == "kein Problem"
    with pytest.raises(ValueError, match="'7' can't be read aloud in 'xx'"):
        speakable("7", "xx")
