"""Text that leads sound in a fixed pattern can be taken apart again, whatever the lengths and the pattern."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tristep.config import VocabConfig, load_backbone_config
from tristep.modes.realtime.data import audio_pad, deinterleave, interleave
from tristep.vocab import Vocab

VOCABS = {
    "one to four": Vocab(VocabConfig(num_text=256, num_codes=20)),
    "two to three": Vocab(VocabConfig(num_text=256, num_codes=20, interleave=(2, 3))),
    "step-audio-2": Vocab(load_backbone_config("step-audio-2-mini").vocab),
}


def text_tokens(vocab: Vocab) -> st.SearchStrategy[list[int]]:
    tokens = st.integers(0, vocab.config.num_text - 1).filter(lambda token: vocab.region(token) == "text")
    return st.lists(tokens, max_size=9)


def code_tokens(vocab: Vocab) -> st.SearchStrategy[list[int]]:
    tokens = st.integers(vocab.first_code, vocab.size - 1).filter(lambda token: token != audio_pad(vocab))
    return st.lists(tokens, max_size=20)


@given(st.data())
@pytest.mark.parametrize("vocab", VOCABS.values(), ids=list(VOCABS))
def test_deinterleaved_is_what_was_interleaved(vocab: Vocab, data: st.DataObject) -> None:
    text, codes = data.draw(text_tokens(vocab)), data.draw(code_tokens(vocab))
    assert deinterleave(interleave(text, codes, vocab), vocab) == (text, codes)


@given(st.data())
@pytest.mark.parametrize("vocab", VOCABS.values(), ids=list(VOCABS))
def test_what_a_stream_has_written_so_far_is_the_beginning(vocab: Vocab, data: st.DataObject) -> None:
    text, codes = data.draw(text_tokens(vocab)), data.draw(code_tokens(vocab))
    whole = interleave(text, codes, vocab)
    size = data.draw(st.integers(0, len(whole)))
    some_text, some_codes = deinterleave(whole[:size], vocab)
    assert text[: len(some_text)] == some_text
    assert codes[: len(some_codes)] == some_codes
