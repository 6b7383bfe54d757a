"""A toy speaker learns: random weights, 600 utterances in which each phone sounds like two codes, under a minute."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tristep.backbone.checkpoints import load_backbone
from tristep.chat import Chat
from tristep.engine.reciting import Sampling, recite
from tristep.modes.tts.data import turns
from tristep.modes.tts.decoding import Recital
from tristep.pronouncing import english
from tristep.text import error_rate
from tristep.training.stages import run

RECIPE = Path(__file__).parents[2] / "recipes" / "toy" / "speak.toml"
SYLLABLES = ("bee", "do", "fee", "me", "two", "we")
PHONES = sorted({phone for syllable in SYLLABLES for phone in english().pronounce(syllable)})
SOUNDS = {phone: (2 * number, 2 * number + 1) for number, phone in enumerate(PHONES)}
SLOW = "Slowly."


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def codes_of(word: str, slow: bool) -> list[int]:
    """Sound a word, syllables joined by hyphens: two codes a phone, the second one twice if it is slow."""
    phones = "".join(english().pronounce(syllable) for syllable in word.split("-"))
    return [code for phone in phones for code in SOUNDS[phone] + (SOUNDS[phone][1:] if slow else ())]


def utterance(number: int, split: str) -> dict[str, Any]:
    rng = random.Random(f"{split} {number}")
    words = ["-".join(rng.choices(SYLLABLES, k=rng.randint(1, 2))) for _ in range(rng.randint(1, 4))]
    slow = rng.random() < 0.5
    row: dict[str, Any] = {"id": str(number), "speaker": "s", "split": split, "words": [], "codes": []}
    for word in words:
        row["words"].append([word, len(row["codes"])])
        row["codes"] += codes_of(word, slow)
    manner = {"pace": 1 if slow else 3}
    return row | {"manner": manner, "instructions": [{"text": SLOW if slow else "As usual.", "manner": manner}]}


def write_utterances(path: Path) -> None:
    path.parent.mkdir(parents=True)
    rows = [utterance(number, "train") for number in range(600)] + [utterance(number, "dev") for number in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def spelt(codes: list[int]) -> str:
    """Write codes as words of one letter, so that an error rate counts them."""
    return " ".join(chr(ord("b") + code) for code in codes)


def say(folder: Path, texts: list[str], instructions: str) -> list[list[int]]:
    backbone, tokenizer = load_backbone(folder)
    chat = Chat(backbone.vocab, tokenizer)
    recitals = [Recital.of(text.split(), backbone.vocab, tokenizer, 12.5) for text in texts]
    prompts = [chat.prompt(turns(text, instructions)) for text in texts]
    for _ in recite(backbone.eval(), prompts, recitals, [0] * len(texts), Sampling(temperature=0.0)):
        pass
    return [recital.codes for recital in recitals]


@pytest.mark.slow
def test_a_toy_learns_to_speak_words_it_has_not_seen_and_as_slowly_as_it_is_told(tmp_path: Path) -> None:
    write_utterances(tmp_path / "letters" / "utterances.jsonl")
    measures = run(RECIPE, tmp_path / "out", data_root=tmp_path)
    assert measures["code"] < 0.2
    texts = ["bee-do fee", "me-do fee two-we", "do-fee", "fee-me we-bee do-two"]
    lengths = []
    for instructions, slow in ((SLOW, True), ("As usual.", False)):
        expected = [[code for word in text.split() for code in codes_of(word, slow)] for text in texts]
        said = say(tmp_path / "out" / "model", texts, instructions)
        assert error_rate(list(map(spelt, expected)), list(map(spelt, said)), "en").rate < 0.3
        lengths.append(sum(map(len, said)))
    assert lengths[0] > 1.3 * lengths[1]  # slow words have three codes a phone, others two
