"""Imagined readings: what a witness would say of readings that nobody made, so that a judge can read thousands of them.

To measure a reading takes a recogniser and a second of a processor; to imagine one takes a text. The same changes are
imagined as `judged.py` makes, with the scatter that its witness shows on real ones: how a sentence differs from the
voice's usual manner, how two readings of it differ, a word misheard now and then. It is training data and never what a
judge is measured on.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tristep.arguments import existing
from tristep.corpus.judged import DROPPED, MIN_LETTERS, OPPOSITES, Take, pairs_of_takes
from tristep.corpus.prosody import num_letters
from tristep.corpus.restyle import Delivery, Samples, deliver
from tristep.engine.witness import Reading, SpeechPrompt, evidence_of
from tristep.modes.judge.data import Known, write_known

SENTENCE_SPREAD = {"pace": 0.18, "pitch": 2.3, "volume": 0.6}
"""How sentences of one voice differ (standard deviations): octaves, semitones, dB."""
READING_SPREAD = {"pace": 0.04, "pitch": 0.2, "volume": 0.2}
"""How readings of one sentence differ beyond what was done to them."""
SAME_VOICE, OTHER_VOICE = (0.87, 0.07), (0.4, 0.13)
"""Mean and standard deviation of CAM++ similarities."""
MISHEARD = "hm"
HARD, SLIP = 0.3, 0.15
"""Share of the sentences of which a word is misheard in every reading, and of the readings with one more."""
LOUDEST_DB = 5.5
"""Louder readings are limited, as `restyle` does."""
USUAL_VOICE = Reading("", 14.0, 150.0, -25.0, torch.tensor([1.0, 0.0]))
"""How a voice that is imagined speaks when nothing is asked of it; only differences to it are told."""
NO_SOUND: Samples = np.zeros(0, np.float32)


def imagined_pairs(texts: Sequence[str], seed: int = 0) -> Iterator[Known]:
    """Make training pairs of imagined readings of each text."""
    for number, text in enumerate(texts):
        rng = np.random.default_rng([seed, number])
        made, prompt = imagined_takes(rng), SpeechPrompt(text, USUAL_VOICE)
        sentence = {name: float(rng.normal(0, spread)) for name, spread in SENTENCE_SPREAD.items()}
        understood = misheard(text.split(), HARD, rng)
        said = [evidence_of(prompt, imagined_reading(take, understood, sentence, rng)) for take in made]
        yield from pairs_of_takes(f"imagined-{number}", "train", prompt, made, said, rng)


def imagined_takes(rng: np.random.Generator) -> list[Take]:
    """Make the takes that `judged.takes` makes, without their sound."""
    styles = OPPOSITES[rng.integers(len(OPPOSITES))]
    flawed = (Take(NO_SOUND, drops_words=True), Take(NO_SOUND, is_other_voice=True))
    return [Take(NO_SOUND), Take(NO_SOUND), *(Take(NO_SOUND, style) for style in styles), *flawed]


def imagined_reading(
    take: Take, understood: Sequence[str], sentence: dict[str, float], rng: np.random.Generator
) -> Reading:
    """Imagine what a witness would measure of a take.

    Args:
        take: What was done.
        understood: What a recogniser makes of the text where all of it is said.
        sentence: How this sentence differs from the voice's usual manner: octaves of pace, semitones, dB.
        rng: Draws the scatter.
    """
    done = deliver(take.style, rng) if take.style else Delivery()
    scatter = {name: sentence[name] + float(rng.normal(0, spread)) for name, spread in READING_SPREAD.items()}
    mean, spread = OTHER_VOICE if take.is_other_voice else SAME_VOICE
    return Reading(
        heard=" ".join(misheard(without_some(understood, rng) if take.drops_words else understood, SLIP, rng)),
        letters_per_s=USUAL_VOICE.letters_per_s * done.speed * 2 ** scatter["pace"],
        pitch_hz=USUAL_VOICE.pitch_hz * 2 ** ((done.semitones + scatter["pitch"]) / 12),
        level_db=USUAL_VOICE.level_db + min(done.gain_db, LOUDEST_DB) + scatter["volume"],
        embedding=at_angle(min(float(rng.normal(mean, spread)), 0.97)),
    )


def at_angle(cosine: float) -> Tensor:
    """Return an embedding that is so similar to that of the usual voice."""
    return torch.tensor([cosine, math.sqrt(1 - cosine**2)])


def without_some(words: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Drop a stretch of words that is neither all nor none of them."""
    num_dropped = max(1, round(rng.uniform(*DROPPED) * len(words)))
    start = int(rng.integers(1, max(2, len(words) - num_dropped)))
    return [*words[:start], *words[start + num_dropped :]]


def misheard(words: Sequence[str], share: float, rng: np.random.Generator) -> list[str]:
    """Mishear one of the words, in a share of all cases."""
    heard = list(words)
    if rng.random() < share:
        heard[int(rng.integers(len(heard)))] = MISHEARD
    return heard


def main() -> None:
    """Imagine readings of the sentences of text files, one a line; what comes before a tab is a name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sentences", type=existing, nargs="+")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines to add to")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for number, source in enumerate(options.sentences):
        lines = (line.split("\t")[-1].strip() for line in source.read_text(encoding="utf-8").splitlines())
        texts = [line for line in lines if num_letters(line) >= MIN_LETTERS and not line.startswith("#")]
        print(f"{source}: {write_known(options.out, imagined_pairs(texts, options.seed + number))} pairs")


if __name__ == "__main__":
    main()
