from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tristep.chat import Chat
from tristep.codec.code_listener import Verdict, Verify
from tristep.config import VocabConfig
from tristep.modes.tts.data import Manner, Utterance, Word, render, turns
from tristep.modes.tts.decoding import Recital, allowed_mask, word_budget
from tristep.modes.tts.pauses import Pauses
from tristep.vocab import Vocab, byte_tokenizer

OPENING = ("pace_3", "pitch_3", "volume_3", "pauses_3", "tts_start")
WORDS = st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=5)


@cache
def vocab() -> Vocab:
    return Vocab(VocabConfig(num_text=256, num_codes=20))


def recital(
    words: list[str], pauses: Pauses | None = None, verify: Verify | None = None, max_attempts: int = 1, **asked: int
) -> Recital:
    return Recital.of(
        words, vocab(), byte_tokenizer(), 12.5, silences=pauses, verify=verify, max_attempts=max_attempts, **asked
    )


def speak(spoken: Recital, seed: int) -> list[int]:
    """Choose at random among what is allowed, to the end; return all tokens of the answer."""
    rng, read = random.Random(seed), []
    while not spoken.is_done:
        if not spoken.given:
            spoken.write(rng.choice([token for span in spoken.allowed() for token in span]))
            del read[len(read) - spoken.num_taken_back :]
            spoken.num_taken_back = 0
        read += spoken.take_given(len(spoken.given))
    return [*read, vocab().control("tts_end")]


def is_even(codes: Sequence[int], own: range, phones: str) -> Verdict:
    """Understand words whose codes add up to an even number."""
    said = [codes[place] for place in own]
    return -10.0 * (sum(said) % 2), said


def is_even_or_made_so(codes: Sequence[int], own: range, phones: str) -> Verdict:
    """Mend words that are longer than one code."""
    score, said = is_even(codes, own, phones)
    if score == 0 or len(said) < 2:
        return score, said
    return 0.0, [*said[:-1], said[-1] ^ 1]


@given(WORDS, st.integers(0, 1000), st.booleans())
def test_what_is_spoken_is_written_as_training_writes_it(words: list[str], seed: int, pauses: bool) -> None:
    chat = Chat(vocab(), byte_tokenizer())
    spoken = recital(words, Pauses.of(" (pause) ".join(words), 7, 12.5) if pauses else None)
    tokens = speak(spoken, seed)
    said = Utterance(tuple(map(Word, words, spoken.starts)), tuple(spoken.codes), spoken.settled)
    prompt = chat.prompt(turns("anything"))
    assert render(chat, turns("anything"), said).tokens == prompt + tokens
    assert len(tokens) <= spoken.max_tokens


@given(WORDS, st.integers(0, 1000), st.booleans(), st.integers(2, 5), st.sampled_from([is_even, is_even_or_made_so]))
def test_words_that_are_taken_back_leave_no_trace(
    words: list[str], seed: int, pauses: bool, attempts: int, verify: Verify
) -> None:
    chat = Chat(vocab(), byte_tokenizer())
    spoken = recital(words, Pauses.of(" (pause) ".join(words), 7, 12.5) if pauses else None, verify, attempts)
    tokens = speak(spoken, seed)
    said = Utterance(tuple(map(Word, words, spoken.starts)), tuple(spoken.codes), spoken.settled)
    assert render(chat, turns("anything"), said).tokens == chat.prompt(turns("anything")) + tokens
    assert len(spoken.starts) == len(spoken.sizes) == len(words)
    assert spoken.num_settled == len(spoken.codes)
    assert spoken.num_again <= (attempts - 1) * len(words)


def test_a_word_is_said_again_until_it_is_understood() -> None:
    spoken = recital(["on"] * 12, verify=is_even, max_attempts=100)
    speak(spoken, seed=1)
    ends = [start + size for start, size in zip(spoken.starts, spoken.sizes, strict=True)]
    assert all(sum(spoken.codes[slice(*own)]) % 2 == 0 for own in zip(spoken.starts, ends, strict=True))
    assert spoken.num_again > 0


def test_of_words_that_nobody_understands_the_best_attempt_stays() -> None:
    scores = iter([-9.0, -5.0, -7.0])
    spoken, heard = (
        recital(["on"], verify=lambda codes, own, phones: (next(scores), [codes[n] for n in own]), max_attempts=3),
        [],
    )
    for name in OPENING:
        spoken.write(vocab().control(name))
    for code in (4, 5, 6):
        spoken.take_given(99)
        spoken.write(vocab().code_token(code))
        heard.append(list(spoken.codes))
        spoken.take_given(99)
        spoken.write(vocab().control("tts_end"))
    assert heard == [[4], [5], [6]]
    assert spoken.codes == [5]
    assert spoken.is_done


def test_a_word_that_can_be_mended_is_not_said_again() -> None:
    spoken = recital(["on"] * 12, verify=is_even_or_made_so, max_attempts=100)
    speak(spoken, seed=1)
    ends = [start + size for start, size in zip(spoken.starts, spoken.sizes, strict=True)]
    assert all(sum(spoken.codes[slice(*own)]) % 2 == 0 for own in zip(spoken.starts, ends, strict=True))
    assert spoken.num_again == 0


def test_what_is_settled_is_not_taken_back() -> None:
    spoken = recital(["on", "on"], verify=lambda codes, own, phones: (-9.0, [codes[n] for n in own]), max_attempts=9)
    for name in OPENING:
        spoken.write(vocab().control(name))
    spoken.write(vocab().code_token(4))
    assert spoken.num_settled == 0
    spoken.settle_all()
    assert spoken.num_settled == 1
    spoken.write(vocab().control("tts_pad"))
    for code in (1, 2, 3):
        spoken.write(vocab().code_token(code))
    assert (spoken.num_again, spoken.num_settled) == (0, 1)


@given(WORDS, st.integers(0, 1000))
def test_every_word_is_begun_once_and_none_outgrows_its_budget(words: list[str], seed: int) -> None:
    spoken = recital(words)
    speak(spoken, seed)
    lengths = [b - a for a, b in zip(spoken.starts, [*spoken.starts[1:], len(spoken.codes)], strict=True)]
    assert len(spoken.starts) == len(words)
    assert all(length <= word_budget(word, 12.5) for length, word in zip(lengths, words, strict=True))


def test_a_word_without_an_end_is_cut_and_the_failure_is_said() -> None:
    spoken = recital(["on", "on"])
    while not spoken.is_done:
        spoken.take_given(99)
        spoken.write(spoken.allowed()[0].start)  # a code wherever one is allowed
    assert spoken.finish_reason == "length"
    assert spoken.num_cut == 2
    assert len(spoken.codes) == 2 * word_budget("on", 12.5)


def test_an_end_of_its_own_is_a_stop() -> None:
    spoken = recital(["on"])
    assert spoken.finish_reason is None
    for name in OPENING:
        spoken.write(vocab().control(name))
    spoken.write(vocab().code_token(4))
    spoken.write(vocab().control("tts_end"))
    assert spoken.finish_reason == "stop"
    assert spoken.codes == [4]


def test_a_degree_that_is_asked_for_is_the_only_one_allowed() -> None:
    spoken = recital(["on"], pitch=5)
    assert [len(span) for span in spoken.allowed()] == [1] * 5
    spoken.write(vocab().control("pace_2"))
    assert spoken.allowed() == [range(vocab().control("pitch_5"), vocab().control("pitch_5") + 1)]
    spoken.write(vocab().control("pitch_5"))
    spoken.write(vocab().control("volume_1"))
    assert [token for span in spoken.allowed() for token in span] == [vocab().control(f"pauses_{n}") for n in (3, 4)]
    spoken.write(vocab().control("pauses_4"))
    assert spoken.settled == Manner(pace=2, pitch=5, volume=1, pauses=4)


def test_the_next_word_is_allowed_until_the_last_and_then_the_end() -> None:
    spoken = recital(["a", "b"])
    for name in OPENING:
        spoken.write(vocab().control(name))
    mask = allowed_mask([spoken], 256, vocab().size)[0]
    controls = {name for name, token in vocab().controls.items() if token >= 256 and mask[token - 256]}
    assert controls == {"tts_pad"}
    assert int(mask.sum()) == 21
    spoken.write(vocab().control("tts_pad"))
    assert allowed_mask([spoken], 256, vocab().size)[0, vocab().control("tts_end") - 256]


def test_nothing_to_speak_is_refused() -> None:
    with pytest.raises(ValueError, match="there are no words to speak"):
        recital([])
