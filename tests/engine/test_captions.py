from __future__ import annotations

from datetime import timedelta
from io import StringIO
from itertools import pairwise

import pytest
import srt as srt_parser
import webvtt
from hypothesis import given, settings
from hypothesis import strategies as st

from tristep.engine.captions import MAX_CUE_S, MAX_LINE, clock, cues, srt, vtt
from tristep.engine.transcription import Segment, Transcription, joined
from tristep.engine.words import Word


def segment(words: list[Word]) -> Segment:
    text = " ".join(word.text for word in words)
    start_s, end_s = (words[0].start_s, words[-1].end_s) if words else (0.0, 1.0)
    return Segment(start_s, end_s, text, 0.9, 0.9, "stop", "en", tuple(words))


def said(*segments: list[Word]) -> Transcription:
    return joined([segment(words) for words in segments], 100.0, 0.0)


def spoken(text: str, start_s: float = 0.0, word_s: float = 0.4) -> list[Word]:
    return [
        Word(word, start_s + place * word_s, start_s + (place + 0.9) * word_s, 0.9)
        for place, word in enumerate(text.split())
    ]


LONG = "the quick brown fox jumps over the lazy dog and then it runs away from everybody who has seen it " * 3


def test_captions_are_short_and_do_not_overlap() -> None:
    found = cues(said(spoken(LONG)))
    assert len(found) > 3
    assert all(len(cue.lines) <= 2 and max(map(len, cue.lines)) <= MAX_LINE for cue in found)
    assert all(cue.end_ms - cue.start_ms <= 1000 * MAX_CUE_S for cue in found)
    assert all(a.end_ms <= b.start_ms for a, b in pairwise(found))
    assert " ".join(line for cue in found for line in cue.lines).split() == LONG.split()


def test_a_caption_begins_with_its_first_word() -> None:
    first, second = cues(said(spoken("one two", 1.0), spoken("three", 20.0)))
    assert (first.start_ms, second.start_ms) == (1000, 20_000)


def test_a_long_pause_ends_a_caption() -> None:
    assert len(cues(said([*spoken("one"), *spoken("two", 3.0)]))) == 2


def test_a_short_word_stays_long_enough_to_be_read_where_there_is_time() -> None:
    first, second = cues(said([*spoken("oh", 0.0, 0.1), *spoken("no", 3.0, 0.1)]))
    assert (first.end_ms, second.end_ms - second.start_ms) == (1000, 1000)


def test_a_sentence_without_spaces_is_cut_into_lines() -> None:
    word = Word("字" * 100, 0.0, 10.0, 0.9)
    found = cues(said([word]))
    assert all(len(line) <= MAX_LINE for cue in found for line in cue.lines)
    assert "".join(line for cue in found for line in cue.lines) == word.text


def test_an_empty_transcript_has_no_captions() -> None:
    assert (cues(said([])), srt(said([])), vtt(said([]))) == ([], "", "WEBVTT\n")
    assert list(webvtt.from_buffer(StringIO(vtt(said([]))))) == []


def test_a_transcript_without_word_times_is_refused() -> None:
    result = joined([Segment(0.0, 1.0, "hello", 0.9, 0.9, "stop", "en")], 1.0, 0.0)
    with pytest.raises(ValueError, match="words=True"):
        srt(result)


def test_times_are_written_as_a_clock() -> None:
    assert clock(3_723_004, ",") == "01:02:03,004"
    assert clock(0, ".") == "00:00:00.000"


WORDS = st.lists(
    st.tuples(st.text("ab<>&.,é", min_size=1, max_size=60), st.floats(0.01, 8), st.floats(0, 3)),
    min_size=1,
    max_size=12,
)


def in_order(drawn: list[tuple[str, float, float]]) -> list[Word]:
    words, now_s = [], 0.0
    for text, duration_s, pause_s in drawn:
        words.append(Word(text, now_s, now_s + duration_s, 0.5))
        now_s += duration_s + pause_s
    return words


@settings(deadline=None, max_examples=80)
@given(WORDS)
def test_an_independent_parser_reads_back_what_is_written(drawn: list[tuple[str, float, float]]) -> None:
    result = said(in_order(drawn))
    expected = [(cue.start_ms, cue.end_ms, "\n".join(cue.lines)) for cue in cues(result)]
    subrip = [(ms(cue.start), ms(cue.end), cue.content) for cue in srt_parser.parse(srt(result))]
    assert subrip == expected
    web = [
        (1000 * seconds(cue.start), 1000 * seconds(cue.end), cue.text)
        for cue in webvtt.from_buffer(StringIO(vtt(result)))
    ]
    assert [(round(start), round(end)) for start, end, _ in web] == [(start, end) for start, end, _ in expected]
    assert all(start < end for start, end, _ in expected)
    assert all(a[1] <= b[0] for a, b in pairwise(expected))


def test_webvtt_escapes_what_would_be_a_tag() -> None:
    assert "a &lt;b&gt; &amp; c" in vtt(said(spoken("a <b> & c")))


def ms(time: timedelta) -> int:
    return round(time / timedelta(milliseconds=1))


def seconds(clock: str) -> float:
    hours, minutes, rest = clock.split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(rest)
