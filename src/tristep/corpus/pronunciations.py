"""Pronunciations: a table of words and their phones becomes the pronouncer that the TTS mode spells by.

    python -m tristep.corpus.pronunciations texts.txt --out src/tristep/pronunciations

The words come from texts, one line each, and their phones from espeak-ng (`pip install phonemizer-fork
espeakng-loader`). Every fiftieth word is held out, to say how often the network is right about a word it has not seen.
"""

from __future__ import annotations

import argparse
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.progress import track

from tristep.arguments import existing
from tristep.corpus.phones import symbols_of
from tristep.corpus.synthesize import Phonemes
from tristep.phones import PHONES
from tristep.pronouncing import BLANK, CHANCES, Pronouncer, spelling

WORD = re.compile(r"[a-z']+")
BATCH, STEPS, PEAK_LR = 384, 1500, 3e-3
HELD_OUT = 50
"""Every so many words, one is held out."""
MAX_GUESSED = 4096


def words_and_phones(lines: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Gather how each word is said most often, from lines and their IPA whose words are as many.

    Args:
        lines: Texts and their IPA, words parted by spaces.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for text, ipa in lines:
        words, sounds = WORD.findall(text.lower()), ipa.split()
        if len(words) == len(sounds):
            for word, sound in zip(words, sounds, strict=True):
                counts[word.strip("'")][symbols_of(sound)] += 1
    table = {word: sounds.most_common(1)[0][0] for word, sounds in counts.items() if word}
    return {word: phones for word, phones in table.items() if phones and len(phones) <= CHANCES * len(word)}


def learn(pronouncer: Pronouncer, table: dict[str, str], num_steps: int, seed: int = 0) -> None:
    """Teach the network a table."""
    rng, words = random.Random(seed), list(table)
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(pronouncer.train().requires_grad_(True).parameters(), PEAK_LR, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, num_steps, pct_start=0.05)
    for _ in track(range(num_steps), description="learning to pronounce"):
        loss = spelling_loss(pronouncer, {word: table[word] for word in rng.sample(words, min(BATCH, len(words)))})
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(pronouncer.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    pronouncer.eval().requires_grad_(False)


def spelling_loss(pronouncer: Pronouncer, table: dict[str, str]) -> torch.Tensor:
    """Compute the CTC loss of some words."""
    letters, num_letters = spelling(list(table))
    phones = [torch.tensor([PHONES.index(symbol) for symbol in said]) for said in table.values()]
    logprobs = pronouncer(letters).log_softmax(dim=-1).transpose(0, 1)
    lengths = torch.tensor([len(said) for said in phones])
    return F.ctc_loss(logprobs, torch.cat(phones), CHANCES * num_letters, lengths, BLANK, zero_infinity=True)


def mistakes(pronouncer: Pronouncer, table: dict[str, str]) -> dict[str, str]:
    """Return the words that the network gets wrong, and how they are said."""
    words = list(table)
    guessed: list[str] = []
    for start in range(0, len(words), MAX_GUESSED):
        guessed += pronouncer.guess(words[start : start + MAX_GUESSED])
    return {word: table[word] for word, guess in zip(words, guessed, strict=True) if guess != table[word]}


def main() -> None:
    """Read texts, learn how their words are said and write the pronouncer."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=existing, nargs="+", help="text files, a sentence or two on each line")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pronouncer")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of learning (default: %(default)s)")
    asked = parser.parse_args()
    phonemes = Phonemes()
    lines = [line for path in asked.texts for line in path.read_text(encoding="utf-8").splitlines()]
    table = words_and_phones((line, phonemes(line)) for line in track(lines, description="phonemes"))
    held_out = dict(list(table.items())[::HELD_OUT])
    pronouncer = Pronouncer()
    learn(pronouncer, {word: table[word] for word in table if word not in held_out}, asked.steps)
    wrong = len(mistakes(pronouncer, held_out))
    pronouncer.exceptions = mistakes(pronouncer, table)
    asked.out.mkdir(parents=True, exist_ok=True)
    pronouncer.save(asked.out)
    print(f"{len(table):,} words, {len(pronouncer.exceptions):,} of them exceptions; of {len(held_out):,} unseen words")
    print(f"{1 - wrong / len(held_out):.1%} are said right: {asked.out}")


if __name__ == "__main__":
    main()
