from __future__ import annotations

import pytest
import torch
from engine.toy_reciter import toy

from tristep.chat import Chat
from tristep.engine.reciting import Sampling, draw, draw_speech, recite
from tristep.modes.tts.data import turns
from tristep.modes.tts.decoding import Recital
from tristep.vocab import byte_tokenizer

TEXTS = ["hello there", "a", "it is so"]


def spoken(texts: list[str], seeds: list[int], sampling: Sampling) -> list[list[int]]:
    chat = Chat(toy().vocab, byte_tokenizer())
    recitals = [Recital.of(text.split(), toy().vocab, byte_tokenizer(), 5.0) for text in texts]
    for _ in recite(toy(), [chat.prompt(turns(text)) for text in texts], recitals, seeds, sampling):
        pass
    assert all(recital.is_done for recital in recitals)
    return [recital.codes for recital in recitals]


def test_what_is_spoken_in_a_batch_is_what_is_spoken_alone() -> None:
    together = spoken(TEXTS, [1, 2, 3], Sampling(temperature=1.0))
    assert together == [
        spoken([text], [seed], Sampling(temperature=1.0))[0] for text, seed in zip(TEXTS, [1, 2, 3], strict=True)
    ]


def test_answers_to_one_prompt_are_what_each_says_alone() -> None:
    texts, seeds, sampling = ["it is so", "it is so", "a", "it is so"], [1, 2, 3, 4], Sampling(temperature=1.0)
    alone = [spoken([text], [seed], sampling)[0] for text, seed in zip(texts, seeds, strict=True)]
    assert spoken(texts, seeds, sampling) == alone
    assert alone[0] != alone[1]


def test_a_seed_repeats_and_another_differs() -> None:
    assert spoken(TEXTS[:1], [5], Sampling(temperature=1.0)) == spoken(TEXTS[:1], [5], Sampling(temperature=1.0))
    assert spoken(TEXTS[:1], [5], Sampling(temperature=1.0)) != spoken(TEXTS[:1], [7], Sampling(temperature=1.0))


def test_without_temperature_the_best_is_drawn() -> None:
    logits = torch.tensor([0.1, 2.0, 1.9])
    assert {draw(logits, Sampling(0.0), torch.Generator().manual_seed(s)) for s in range(20)} == {1}


def test_only_the_most_probable_are_drawn() -> None:
    logits = torch.tensor([3.0, 2.9, 0.0, -torch.inf])
    generator = torch.Generator().manual_seed(0)
    assert {draw(logits, Sampling(1.0, top_k=2, top_p=1.0), generator) for _ in range(50)} == {0, 1}
    assert {draw(logits, Sampling(1.0, top_k=4, top_p=0.3), generator) for _ in range(50)} == {0}
    assert {draw(logits, Sampling(1.0, top_k=4, top_p=1.0), generator) for _ in range(400)} == {0, 1, 2}


def how_often_a_word_ends(sampling: Sampling, num_draws: int = 2000) -> float:
    """One way to end, with a probability of 0.2, and forty codes that share the rest."""
    logits = torch.cat([torch.full((40,), 0.02), torch.tensor([0.2])]).log()
    generator = torch.Generator().manual_seed(0)
    return sum(draw_speech(logits, 40, sampling, generator) == 40 for _ in range(num_draws)) / num_draws


@pytest.mark.parametrize("temperature", [0.25, 0.5, 1.0])
def test_a_word_ends_as_often_as_the_model_means_it_to_at_any_temperature(temperature: float) -> None:
    assert how_often_a_word_ends(Sampling(temperature)) == pytest.approx(0.2, abs=0.03)


def test_a_temperature_over_ends_and_codes_alike_would_end_words_early() -> None:
    assert how_often_a_word_ends(Sampling(0.5, ends_apart=False)) > 0.6


def test_without_temperature_a_word_ends_where_that_is_the_most_probable() -> None:
    assert how_often_a_word_ends(Sampling(0.0), 5) == 1.0


@pytest.mark.parametrize("settings", [{"temperature": -1}, {"top_k": 0}, {"top_p": 0}, {"top_p": 1.5}])
def test_sampling_that_makes_no_sense_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected a temperature of at least 0"):
        Sampling(**settings)
