from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tristep.backbone.model import Backbone
from tristep.chat import Chat
from tristep.config import load_backbone_config
from tristep.modes.tts.data import (
    DEGREES,
    IGNORED,
    NEXT,
    Manner,
    Utterance,
    Word,
    first_codes,
    render,
    render_manner,
    spelt,
    turns,
)
from tristep.vocab import byte_tokenizer


@cache
def chat() -> Chat:
    backbone = Backbone(load_backbone_config("toy"))
    backbone.grow_vocabulary(32)
    return Chat(backbone.vocab, byte_tokenizer())


UTTERANCE = Utterance((Word("Good", 0), Word("day.", 3)), (5, 6, 7, 8, 9), Manner(pace=4))
WORDS = st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=5)


def names(tokens: list[int]) -> list[str]:
    vocab = chat().vocab
    controls = {token: name for name, token in vocab.controls.items()}
    return [
        f"#{vocab.token_code(t)}" if vocab.region(t) == "code" else controls.get(t) or chat().tokenizer.decode([t])
        for t in tokens
    ]


def test_each_word_leads_its_codes() -> None:
    sample = render(chat(), turns("Good day."), UTTERANCE)
    answer = sample.tokens[len(chat().prompt(turns("Good day."))) :]
    assert names(answer) == [
        "pace_4", "pitch_3", "volume_3", "pauses_3", "tts_start",
        *" gUd", "#5", "#6", "#7", *" deI.", "#8", "#9", "tts_end",
    ]  # fmt: skip


def test_text_is_never_predicted_and_everything_else_is() -> None:
    sample = render(chat(), turns("Good day."), UTTERANCE)
    predicted = [target for target in sample.targets if target != IGNORED]
    assert names(predicted) == [
        "pace_4", "pitch_3", "volume_3", "pauses_3", "tts_start", "#5", "#6", "#7", NEXT, "#8", "#9", "tts_end"
    ]  # fmt: skip


def test_what_is_predicted_is_what_is_read_next_unless_a_word_is_over() -> None:
    sample = render(chat(), turns("Good day."), UTTERANCE)
    for target, following in zip(sample.targets, sample.tokens[1:], strict=False):
        if target not in (IGNORED, chat().vocab.control(NEXT)):
            assert target == following


@given(WORDS, st.data())
def test_all_words_and_all_codes_are_there_once_and_in_order(words: list[str], data: st.DataObject) -> None:
    codes = tuple(data.draw(st.lists(st.integers(0, 31), max_size=12)))
    firsts = sorted(data.draw(st.integers(0, len(codes))) for _ in words[1:])
    spoken = Utterance(tuple(Word(*word) for word in zip(words, [0, *firsts], strict=True)), codes)
    sample = render(chat(), turns(" ".join(words)), spoken)
    answer = sample.tokens[len(chat().prompt(turns(" ".join(words)))) :]
    vocab = chat().vocab
    assert tuple(vocab.token_code(t) for t in answer if vocab.region(t) == "code") == codes
    sounds = [token for word in words for token in spelt(word, chat().tokenizer)]
    assert [token for token in answer if vocab.region(token) == "text"] == sounds
    assert len(sample.targets) == len(sample.tokens)
    assert sum(target == vocab.control(NEXT) for target in sample.targets) == len(words) - 1


@pytest.mark.parametrize(
    ("word", "sounds"),
    [("knight,", " naIt,"), ("Through", " Tru"), ("well-known", " wElnoUn"), ("What?!", " wVt?!"), ("1984", " 1984")],
)
def test_a_word_is_spelt_as_it_sounds_and_keeps_its_marks(word: str, sounds: str) -> None:
    said = chat().tokenizer.decode(spelt(word, chat().tokenizer))
    assert said == sounds


@given(st.lists(st.floats(0, 4), min_size=1, max_size=9))
def test_words_start_in_order_before_they_sound_and_inside_the_utterance(starts: list[float]) -> None:
    starts = sorted(starts)
    firsts = first_codes(starts, 12.5, 40)
    assert firsts[0] == 0
    assert firsts == sorted(firsts)
    assert all(first <= min(start * 12.5, 40) for first, start in zip(firsts, starts, strict=True))


def test_context_lies_in_the_system_turn_and_the_text_in_the_users() -> None:
    system, user = turns("Hello (softly) there.", "Slowly, please.", UTTERANCE)
    assert (system.role, user.role) == ("system", "user")
    assert user.parts == ("Hello (softly) there.",)
    assert names(chat().render([system]).tokens)[-9:-1] == [".", "tts_start", "#5", "#6", "#7", "#8", "#9", "tts_end"]
    assert "Speak the text. Slowly, please.\nGood day." in chat().tokenizer.decode(chat().render([system]).tokens)


def test_every_degree_of_every_feature_is_a_control_token() -> None:
    manners = [Manner(**{feature: degree}) for feature, degrees in DEGREES.items() for degree in degrees]
    tokens = {chat().vocab.control(name) for manner in manners for name in manner.controls()}
    assert len(tokens) == sum(map(len, DEGREES.values()))


def test_what_nobody_has_spoken_ends_where_its_manner_is_settled() -> None:
    manner = Manner(pace=1)
    sample = render_manner(chat(), turns("Good day."), manner)
    settled = [chat().vocab.control(name) for name in (*manner.controls(), "tts_start")]
    assert sample.tokens == chat().prompt(turns("Good day.")) + settled
    assert [target for target in sample.targets if target != IGNORED] == settled
