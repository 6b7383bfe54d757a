from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tristep.chat import Chat
from tristep.config import VocabConfig, load_backbone_config
from tristep.modes.realtime.data import (
    LABELS,
    NOTHING,
    PERSONA,
    Trace,
    audio_pad,
    deinterleave,
    interleave,
    read_trace,
    remembered,
    render,
    turns,
)
from tristep.vocab import Vocab, byte_tokenizer

VOCAB = Vocab(VocabConfig(num_text=256, num_codes=20))
STEP = Vocab(load_backbone_config("step-audio-2-mini").vocab)
CHAT = Chat(VOCAB, byte_tokenizer())
WORDS = st.text("abc '", max_size=12).map(lambda text: " ".join(text.split()))


def label_names(labels: list[int]) -> list[str]:
    """Name runs of equal labels, those that count."""
    runs = [label for place, label in enumerate(labels) if place == 0 or labels[place - 1] != label]
    return [LABELS[label - 1] for label in runs if label != NOTHING]


@given(WORDS, st.lists(st.sampled_from(["fast", "long pauses", "whisper"]), max_size=3))
def test_a_trace_is_read_as_it_was_written(heard: str, cues: list[str]) -> None:
    trace = Trace(heard, tuple(cues))
    assert read_trace(trace.text) == trace


def test_the_persona_comes_first_and_the_users_turn_last() -> None:
    history = [remembered("user", "Hi."), remembered("assistant", "Hello.")]
    given = turns("a baker", history, 3)
    assert [turn.role for turn in given] == ["system", "user", "assistant", "user"]
    assert given[0].parts == ("a baker",)
    assert turns("", [], "Hi.")[0].parts == (PERSONA,)


def test_what_the_assistant_says_counts_and_nothing_else() -> None:
    history = [remembered("user", "Hi."), remembered("assistant", "Hello.")]
    sample = render(CHAT, turns("a baker", history, 3), " Well, yes. ", Trace("are you", ("fast",)))
    assert label_names(sample.labels) == ["text", "trace", "answer"]
    counted = [token for token, label in zip(sample.tokens, sample.labels, strict=True) if label != NOTHING]
    end, start = VOCAB.control("turn_end"), VOCAB.control("think_start")
    noted, said = (CHAT.tokenizer.encode(text) for text in ("are you (fast)", "Well, yes."))
    assert counted == [*CHAT.tokenizer.encode("Hello."), end, start, *noted, VOCAB.control("think_end"), *said, end]
    assert sample.tokens.count(VOCAB.control("audio_slot")) == 3


def test_an_answer_to_text_or_at_once_has_no_trace() -> None:
    assert label_names(render(CHAT, turns("", [], "Hi."), "Hello.").labels) == ["text"]
    assert label_names(render(CHAT, turns("", [], 2), "Hello.").labels) == ["answer"]


@pytest.mark.parametrize("vocab", [VOCAB, STEP], ids=["plain", "step-audio-2"])
def test_text_leads_sound_one_to_four(vocab: Vocab) -> None:
    codes = list(range(vocab.first_code, vocab.first_code + 6))
    pad, silent = vocab.control("tts_pad"), audio_pad(vocab)
    assert interleave([5], codes, vocab) == [5, *codes[:4], pad, *codes[4:], silent, silent]
    assert interleave([5, 6], codes[:1], vocab) == [5, codes[0], *[silent] * 3, 6, *[silent] * 4]
    assert audio_pad(STEP) == 158257  # `<audio_6561>`, report section 8.5


def test_a_stream_that_breaks_the_pattern_is_refused_with_the_place() -> None:
    with pytest.raises(ValueError, match=r"token 7 at 1 is text, the pattern of 1 text to 4 codes has code there"):
        deinterleave([5, 7], VOCAB)


def test_another_pattern_is_a_setting_of_the_vocabulary() -> None:
    vocab = Vocab(VocabConfig(num_text=256, num_codes=20, interleave=(2, 3)))
    codes = [vocab.first_code] * 4
    written = interleave([1, 2, 3], codes, vocab)
    assert written[:5] == [1, 2, *codes[:3]]
    assert deinterleave(written, vocab) == ([1, 2, 3], codes)
