"""Judged pairs: two answers of which it is known which one is better, and why, for a judge to learn from.

    python -m tristep.corpus.judged speech clips/manifest.jsonl --out judge/speech.jsonl --held-out-speakers LJ,af_sky
    python -m tristep.corpus.judged dialogue persona_chat.csv --out judge/replies.jsonl
    python -m tristep.corpus.judged fits judge/replies.jsonl --out judge/dialogue.jsonl --text-model nano --most 2000

Readings are made from clips by changes of which the size is known: pace, pitch, volume, dropped words, another voice.
An instruction then says which of two readings is the better one: a fast reading is a fault unless it was asked for.
The judge is told what a witness measures and never what was done, and learns to weigh it; its reasons follow the
measures, its level follows the truth. Replies are `judged_replies.py`'s; how well each fits what was said is measured
afterwards, of as many pairs of each split as are wanted.

What is made up: voices are changed by moving the formants, so a judge of wrong voices has met no impostor.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tristep.arguments import existing
from tristep.audio import SPEAK_HZ, read_audio, write_audio
from tristep.codec.speaker import SpeakerEncoder
from tristep.codec.voice import to_listening_rate
from tristep.corpus.annotate import instruction
from tristep.corpus.judged_replies import dialogue_pairs, read_dialogues
from tristep.corpus.prosody import num_letters
from tristep.corpus.recognisers import faster_whisper
from tristep.corpus.restyle import Delivery, Samples, deliver, restyle, trimmed
from tristep.engine.fitting import Reader, witnessed
from tristep.engine.witness import (
    DEGREES,
    USUAL,
    Evidence,
    SpeechPrompt,
    Witness,
    evidence_of,
    speech_case,
    speech_clauses,
    usual_reading,
)
from tristep.modes.judge.data import ALIKE, Known, Verdict, read_known, write_known

STYLES: dict[str, tuple[str, int]] = {
    "slow": ("pace", 2), "fast": ("pace", 4), "low": ("pitch", 2), "high": ("pitch", 4),
    "quiet": ("volume", 2), "loud": ("volume", 4),
}  # fmt: skip
"""Which degree of which feature a style asks for."""

OPPOSITES = (("slow", "fast"), ("low", "high"), ("quiet", "loud"))
CLEAR, SOMEWHAT = 5, 4
MIN_CLIP_S, MAX_CLIP_S = 1.5, 6.0
MIN_LETTERS = 12
"""Shorter texts have no words to drop."""
NUM_USUAL = 4
"""Plain clips by which a voice's usual manner is known."""
NUM_DIFFERENT, NUM_ALIKE = 8, 3
"""Pairs of each kind that are made of one clip."""
DROPPED = (0.25, 0.5)
"""Share of a clip that is cut out to drop words."""
FORMANTS = (0.82, 1.22)
"""Factors that turn a voice into another one's."""


@dataclass(frozen=True, eq=False)
class Take:
    """One reading of a text, and what was done to it."""

    waveform: Samples
    style: str = ""
    drops_words: bool = False
    is_other_voice: bool = False

    def faults(self, asked: str) -> dict[str, int]:
        """Count what is wrong with it under an instruction: 1 did not do what was asked, 2 did what was not."""
        found = {"words": 2 * self.drops_words, "voice": 2 * self.is_other_voice}
        for name in DEGREES:
            done, wanted = degree_of(self.style, name), degree_of(asked, name)
            found[name] = 0 if done == wanted else 1 if done == USUAL else 2
        return found


def degree_of(style: str, feature: str) -> int:
    """Return the degree of a feature that a style asks for, the usual one where it asks for none."""
    name, degree = STYLES.get(style, (feature, USUAL))
    return degree if name == feature else USUAL


def takes(waveform: Samples, rng: np.random.Generator) -> list[Take]:
    """Make readings of one clip at 24 kHz: two as it is, two of opposite styles, one short of words, one by another."""
    plain = Delivery()
    made = [Take(read_as(waveform, delivery, rng)) for delivery in (plain, nearly(plain, rng))]
    for style in OPPOSITES[rng.integers(len(OPPOSITES))]:
        made.append(Take(read_as(waveform, deliver(style, rng), rng), style))
    made.append(Take(read_as(without_a_stretch(waveform, rng), plain, rng), drops_words=True))
    other = with_formants_moved(waveform, float(rng.choice(FORMANTS)))
    made.append(Take(read_as(other, plain, rng), is_other_voice=True))
    return made


def nearly(delivery: Delivery, rng: np.random.Generator) -> Delivery:
    """Change a delivery by less than anybody minds."""
    speed, semitones, gain_db = rng.uniform(0.97, 1.03), rng.uniform(-0.4, 0.4), rng.uniform(-1, 1)
    return replace(delivery, speed=float(speed), semitones=float(semitones), gain_db=float(gain_db))


def read_as(waveform: Samples, delivery: Delivery, rng: np.random.Generator) -> Samples:
    """Give a clip at 24 kHz a delivery, its speed included."""
    if delivery.speed != 1:
        waveform = at_speed(waveform, delivery.speed)
    return restyle(waveform, SPEAK_HZ, delivery, rng)


def at_speed(waveform: Samples, speed: float) -> Samples:
    """Change the pace and leave pitch and formants, by Praat's overlap-add."""
    import parselmouth
    from parselmouth.praat import call

    sound = parselmouth.Sound(waveform.astype(np.float64), sampling_frequency=SPEAK_HZ)
    return np.asarray(call(sound, "Lengthen (overlap-add)", 75, 600, 1 / speed).values[0], np.float32)


def with_formants_moved(waveform: Samples, ratio: float) -> Samples:
    """Make a vocal tract shorter (above 1) or longer, and leave pitch and pace."""
    import parselmouth
    from parselmouth.praat import call

    sound = parselmouth.Sound(waveform.astype(np.float64), sampling_frequency=SPEAK_HZ)
    return np.asarray(call(sound, "Change gender", 75, 600, ratio, 0, 1, 1).values[0], np.float32)


def without_a_stretch(waveform: Samples, rng: np.random.Generator) -> Samples:
    """Cut a stretch out of a clip, between its quietest places near random ones."""
    share = rng.uniform(*DROPPED)
    start = rng.uniform(0.1, 0.9 - share)
    first, last = (quiet_place(waveform, round(place * len(waveform))) for place in (start, start + share))
    return np.concatenate([waveform[:first], waveform[last:]])


def quiet_place(waveform: Samples, near: int, reach_s: float = 0.08) -> int:
    """Find the quietest 10 ms around a sample."""
    hop, reach = SPEAK_HZ // 100, round(reach_s * SPEAK_HZ)
    starts = np.arange(max(near - reach, 0), min(near + reach, len(waveform) - hop), hop)
    powers = [float(np.square(waveform[start : start + hop]).mean()) for start in starts]
    return int(starts[int(np.argmin(powers))]) + hop // 2 if len(starts) else near


def known_level(first: Mapping[str, int], second: Mapping[str, int]) -> tuple[str, int] | None:
    """Compare the faults of two takes.

    Returns:
        The aspect in which they differ most (`alike` if in none) and the level, at least 3; None where the first is
        not the better one, or where each is better in something.
    """
    gaps = {aspect: second[aspect] - first[aspect] for aspect in first}
    if min(gaps.values()) < 0:
        return None
    aspect = max(gaps, key=lambda name: gaps[name])
    if gaps[aspect] == 0:
        return "alike", ALIKE
    return aspect, CLEAR if gaps[aspect] > 1 else SOMEWHAT


def speech_pairs(
    rows: Sequence[dict[str, Any]], folder: Path, witness: Witness, out: Path, *,
    held_out_speakers: Sequence[str] = (), clips_per_speaker: int = 40, seed: int = 0,
) -> Iterator[Known]:  # fmt: skip
    """Make pairs of readings from the clips of a manifest, split by speaker and by text.

    Args:
        rows: The manifest.
        folder: Folder that its sounds lie in.
        witness: Measures the readings.
        out: Folder for the readings, `audio/ID_N.opus`.
        held_out_speakers: Whose clips are held out; a text that they say is in no training pair.
        clips_per_speaker: The most clips of a speaker, beside the plain ones by which its manner is known.
        seed: Seed of everything that is drawn.
    """
    for speaker, clips in by_speaker(rows, held_out_speakers, seed).items():
        rng = np.random.default_rng([seed, zlib.crc32(speaker.encode())])
        plain = [read_as(clip_samples(folder / row["audio"]), Delivery(), rng) for row in clips[:NUM_USUAL]]
        usual = usual_reading([witness.hear(torch.from_numpy(waveform)) for waveform in plain])
        split = "held_out" if speaker in held_out_speakers else "train"
        for row in clips[NUM_USUAL : NUM_USUAL + clips_per_speaker]:
            made = takes(clip_samples(folder / row["audio"]), rng)
            prompt = SpeechPrompt(row["text"], usual)
            said = [evidence_of(prompt, witness.hear(torch.from_numpy(take.waveform))) for take in made]
            sounds = write_takes(made, out, row["id"])
            yield from pairs_of_takes(row["id"], split, prompt, made, said, rng, sounds)


def by_speaker(
    rows: Sequence[dict[str, Any]], held_out_speakers: Sequence[str], seed: int
) -> dict[str, list[dict[str, Any]]]:
    """Gather the clips of each speaker that can be used, in random order; nobody is trained on held-out texts."""
    usable = [
        row for row in rows if MIN_CLIP_S <= row["duration"] <= MAX_CLIP_S and num_letters(row["text"]) >= MIN_LETTERS
    ]
    held_texts = {row["text"] for row in usable if row["speaker"] in held_out_speakers}
    clips: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in sorted(usable, key=lambda row: zlib.crc32(f"{seed} {row['id']}".encode())):
        if row["speaker"] in held_out_speakers or row["text"] not in held_texts:
            clips[row["speaker"]].append(row)
    return {speaker: found for speaker, found in sorted(clips.items()) if len(found) > NUM_USUAL}


def write_takes(made: Sequence[Take], out: Path, name: str) -> tuple[str, ...]:
    """Write the takes of one clip, and return their paths from `out` on."""
    (out / "audio").mkdir(parents=True, exist_ok=True)
    paths = tuple(f"audio/{name}_{number}.opus" for number in range(len(made)))
    for take, path in zip(made, paths, strict=True):
        write_audio(out / path, torch.from_numpy(take.waveform), SPEAK_HZ)
    return paths


def clip_samples(path: Path) -> Samples:
    """Read a clip at 24 kHz without the silence at its ends."""
    return trimmed(read_audio(path, SPEAK_HZ).numpy(), SPEAK_HZ)


def pairs_of_takes(
    name: str, split: str, prompt: SpeechPrompt, made: Sequence[Take], said: Sequence[Evidence],
    rng: np.random.Generator, sounds: Sequence[str] = (),
) -> Iterator[Known]:  # fmt: skip
    """Pair the takes of one clip under instructions, a few pairs of each kind of difference.

    Args:
        name: Of the clip.
        split: Which the pairs belong to.
        prompt: What was to be said.
        made: What was done in each take.
        said: What the witness says of each.
        rng: Draws pairs and instructions.
        sounds: Paths of the takes, where there are any.
    """
    for number, pair in enumerate(choose_pairs(made, rng)):
        wanted = dict([STYLES[pair.asked]]) if pair.asked else {}
        asking = replace(prompt, instructions=instruction([pair.asked], rng) if pair.asked else "")
        first, second = said[pair.first], said[pair.second]
        verdict = Verdict(speech_clauses(first, second, wanted), pair.level)
        paths = (sounds[pair.first], sounds[pair.second]) if sounds else ()
        yield Known(f"{name}-{number}", pair.kind, split, speech_case(asking, first, second), verdict, paths)


@dataclass(frozen=True)
class Pair:
    """Two takes, the first of which is the better one, or as good."""

    first: int
    second: int
    asked: str
    """The style that was asked for, empty for none."""
    kind: str
    level: int


def choose_pairs(made: Sequence[Take], rng: np.random.Generator) -> list[Pair]:
    """Choose some pairs of each kind of difference, under every instruction that a take follows, and under none."""
    found: dict[str, list[Pair]] = defaultdict(list)
    for asked in ("", *(take.style for take in made if take.style)):
        faults = [take.faults(asked) for take in made]
        for first, second in permutations(range(len(made)), 2):
            known = known_level(faults[first], faults[second])
            if known and (known[0] != "alike" or made[first].style == made[second].style):
                found[known[0]].append(Pair(first, second, asked, *known))
    limits = {kind: NUM_ALIKE if kind == "alike" else NUM_DIFFERENT for kind in found}
    return [pairs[index] for kind, pairs in found.items() for index in rng.permutation(len(pairs))[: limits[kind]]]


def fitted(known: Sequence[Known], reader: Reader, most: int | None = None) -> Iterator[Known]:
    """Tell how well the replies of pairs fit, of at most so many pairs of each split, evenly spread over them."""
    for split in dict.fromkeys(case.split for case in known):
        members = [case for case in known if case.split == split]
        places = np.linspace(0, len(members) - 1, min(most or len(members), len(members))).round().astype(int)
        yield from (witnessed(members[place], reader) for place in places)


def load_witness(recogniser: str, speaker: Path | None) -> Witness:
    """Open faster-whisper and, if its weights are given, CAM++."""
    hear = faster_whisper(recogniser, beam_size=1)
    encoder = SpeakerEncoder.load(speaker) if speaker else None
    return Witness(
        lambda waveform: hear([to_listening_rate(waveform)], "en")[0].text,
        (lambda waveform: encoder.embed(to_listening_rate(waveform))) if encoder else None,
    )


def main() -> None:
    """Make pairs from manifests of clips or from persona dialogues, or measure how well replies fit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["speech", "dialogue", "fits"])
    parser.add_argument(
        "sources", type=existing, nargs="+", help="manifest.jsonl files, dialogues (.csv, .jsonl) or pairs"
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON lines to add to; readings go to audio/ beside it")
    parser.add_argument("--held-out-speakers", default="", help="names, separated by commas")
    parser.add_argument("--clips", type=int, default=40, help="the most clips of a speaker")
    parser.add_argument("--recogniser", default="base", help="faster-whisper's model: a name or a folder")
    parser.add_argument("--speaker", type=existing, help="CAM++ weights; voices are not compared without")
    parser.add_argument("--text-model", default="nano", help="weights of what measures how well replies fit")
    parser.add_argument("--most", type=int, help="the most pairs of each split whose replies are measured")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for source in options.sources:
        if options.task == "dialogue":
            pairs: Iterable[Known] = dialogue_pairs(read_dialogues(source), seed=options.seed)
        elif options.task == "fits":
            pairs = fitted(read_known(source), Reader.load(options.text_model), options.most)
        else:
            rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
            pairs = speech_pairs(
                rows, source.parent, load_witness(options.recogniser, options.speaker), options.out.parent,
                held_out_speakers=options.held_out_speakers.split(","), clips_per_speaker=options.clips,
                seed=options.seed,
            )  # fmt: skip
        print(f"{source}: {write_known(options.out, pairs)} pairs")


if __name__ == "__main__":
    main()
