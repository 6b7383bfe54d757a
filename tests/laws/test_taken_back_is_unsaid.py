"""Law: a word that is taken back and said again leaves the model where it would be had it never been said.

At temperature 0 every attempt is the same, so taking all words back, and restoring the first attempt at the end, has to
give the codes that are drawn when nothing is ever taken back; in a batch, and through a scheduler's slots.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from engine.toy_reciter import toy
from hypothesis import given, settings
from hypothesis import strategies as st

from tristep.chat import Chat
from tristep.codec.code_listener import Verdict
from tristep.engine.reciting import Sampling, recite
from tristep.engine.scheduler import Request, Scheduler
from tristep.engine.writers import CodeWriter
from tristep.modes.tts.data import turns
from tristep.modes.tts.decoding import Recital
from tristep.vocab import byte_tokenizer

BEST = Sampling(temperature=0.0)


def never(codes: Sequence[int], own: range, phones: str) -> Verdict:
    return -9.0, [codes[place] for place in own]


def recitals(texts: Sequence[str], max_attempts: int) -> list[Recital]:
    return [
        Recital.of(text.split(), toy().vocab, byte_tokenizer(), 5.0, verify=never, max_attempts=max_attempts)
        for text in texts
    ]


def prompts(texts: Sequence[str]) -> list[list[int]]:
    return [Chat(toy().vocab, byte_tokenizer()).prompt(turns(text)) for text in texts]


def recited(texts: Sequence[str], max_attempts: int) -> list[list[int]]:
    spoken = recitals(texts, max_attempts)
    for _ in recite(toy(), prompts(texts), spoken, [0] * len(texts), BEST):
        pass
    assert all(each.num_again == (max_attempts - 1) * len(each.words) for each in spoken)
    return [each.codes for each in spoken]


def scheduled(texts: Sequence[str], max_attempts: int) -> list[list[int]]:
    spoken, scheduler = recitals(texts, max_attempts), Scheduler(toy(), num_slots=2)
    requests = [
        Request(prompt, CodeWriter(recital, BEST, torch.Generator()))
        for prompt, recital in zip(prompts(texts), spoken, strict=True)
    ]
    scheduler.submit(*requests)
    scheduler.finish(*requests)
    return [each.codes for each in spoken]


@settings(max_examples=8, deadline=None)
@given(st.lists(st.text("ab ", min_size=1, max_size=9).filter(str.strip), min_size=1, max_size=3), st.integers(2, 4))
def test_what_is_taken_back_was_never_said(texts: list[str], max_attempts: int) -> None:
    once = recited(texts, 1)
    assert recited(texts, max_attempts) == once
    assert scheduled(texts, max_attempts) == once
