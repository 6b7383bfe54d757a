from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tristep.config import VocabConfig, load_backbone_config
from tristep.vocab import CONTROL, LANGUAGES, NUM_CONTROL_ROWS, Vocab, byte_tokenizer

LAYOUTS = {
    "plain": Vocab(VocabConfig(num_text=256, layout="plain", num_codes=64)),
    "chatml": Vocab(VocabConfig(num_text=49152, layout="chatml", num_codes=64)),
    "step-audio-2": Vocab(load_backbone_config("step-audio-2-mini").vocab),
}
EACH_LAYOUT = pytest.mark.parametrize("vocab", LAYOUTS.values(), ids=LAYOUTS)


@EACH_LAYOUT
def test_codes_and_tokens_are_a_bijection(vocab: Vocab) -> None:
    tokens = [vocab.code_token(code) for code in range(vocab.config.num_codes)]
    assert len(set(tokens)) == len(tokens)
    assert [vocab.token_code(token) for token in tokens] == list(range(vocab.config.num_codes))


@EACH_LAYOUT
def test_every_id_is_in_exactly_one_region(vocab: Vocab) -> None:
    regions = {vocab.region(token) for token in range(vocab.size)}
    assert regions == {"text", "control", "code"}
    codes = {vocab.code_token(code) for code in range(vocab.config.num_codes)}
    controls = set(vocab.controls.values())
    assert len(controls) == len(vocab.controls)
    assert not codes & controls
    assert all(vocab.region(token) == "code" for token in codes)
    assert all(vocab.region(token) == "control" for token in controls)


@pytest.mark.parametrize("layout", ["plain", "chatml"])
def test_all_control_tokens_fit_in_the_rows_kept_for_them(layout: str) -> None:
    vocab = LAYOUTS[layout]
    assert set(vocab.controls) == set(CONTROL)
    assert max(vocab.controls.values()) < vocab.config.num_text + NUM_CONTROL_ROWS == vocab.first_code


@pytest.mark.parametrize("layout", ["plain", "chatml"])
@given(language=st.sampled_from(LANGUAGES))
def test_a_language_tag_names_its_language(layout: str, language: str) -> None:
    vocab = LAYOUTS[layout]
    assert vocab.language_of(vocab.control(f"lang_{language}")) == language
    assert vocab.language_of(vocab.control("audio_slot")) is None


def test_there_are_whispers_hundred_languages() -> None:
    assert len(LANGUAGES) == len(set(LANGUAGES)) == 100


def test_step_audio_2_has_its_tokens_where_it_was_published() -> None:
    vocab = LAYOUTS["step-audio-2"]
    anchors = {
        "turn_end": 151665, "turn_start": 151666, "audio_start": 151688, "audio_end": 151689,
        "audio_slot": 151690, "tts_start": 151693, "tts_end": 151694, "tts_pad": 151695,
    }  # fmt: skip
    assert {name: vocab.control(name) for name in anchors} == anchors
    assert vocab.code_token(0) == 151696
    assert vocab.code_token(6561) == 158257
    assert vocab.size <= load_backbone_config("step-audio-2-mini").decoder.vocab_size
    # <IMG_START> and <audio_patch_pad> have no name here, and are not text.
    assert vocab.region(151671) == vocab.region(151691) == "control"
    assert vocab.region(151664) == "text"


def test_growing_codes_moves_no_other_token() -> None:
    before = Vocab(VocabConfig(num_text=256))
    after = Vocab(VocabConfig(num_text=256, num_codes=1000))
    assert before.controls == after.controls
    assert after.size == before.size + 1000


def test_an_unknown_control_token_is_refused() -> None:
    with pytest.raises(ValueError, match="no control token 'lang_xx'"):
        LAYOUTS["plain"].control("lang_xx")


@pytest.mark.parametrize("code", [-1, 64])
def test_a_code_outside_the_codebook_is_refused(code: int) -> None:
    with pytest.raises(ValueError, match=f"code {code} is outside the codebook of 64 entries"):
        LAYOUTS["plain"].code_token(code)


def test_a_text_token_is_not_a_code() -> None:
    with pytest.raises(ValueError, match="token 5 is text, not an audio code"):
        LAYOUTS["plain"].token_code(5)


@pytest.mark.parametrize("token", [-1, 256 + 128 + 64])
def test_a_token_outside_the_vocabulary_is_refused(token: int) -> None:
    with pytest.raises(ValueError, match="outside the vocabulary"):
        LAYOUTS["plain"].region(token)


@given(st.text())
def test_bytes_write_any_text_and_read_it_back(text: str) -> None:
    tokenizer = byte_tokenizer()
    tokens = tokenizer.encode(text)
    assert len(tokens) == len(text.encode())
    assert all(0 <= token < 256 for token in tokens)
    assert tokenizer.decode(tokens) == text


def test_control_tokens_and_codes_leave_no_trace_in_decoded_text() -> None:
    vocab, tokenizer = LAYOUTS["plain"], byte_tokenizer()
    tokens = [
        vocab.control("lang_en"),
        *tokenizer.encode("hi"),
        vocab.code_token(3),
        vocab.control("turn_end"),
    ]
    assert tokenizer.decode(tokens) == "hi"
