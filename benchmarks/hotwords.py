r"""Hotwords: how many of 50 rare names are written with them and without, and what they do to clips that have none.

    python benchmarks/hotwords.py --teacher en_US-joe-medium.onnx --out runs/hotwords \
        --without librispeech_mini_en/manifest.jsonl:dev+test kathleen_en/manifest.jsonl:test

A Piper voice reads one sentence for each name, every clip at a pace and pitch of its own. All 50 names are given with
every clip, also with those of the other sets, which have none of them: a name that is written there is a leak.
Making the speech needs `pip install phonemizer-fork espeakng-loader onnxruntime`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import tristep
from tristep.corpus.synthesize import Piper, in_new_voices, synthesize
from tristep.engine.engine import Engine
from tristep.text import error_rate, normalise

NAMES = (
    "Troutina", "Galahad", "Mirembe", "Oswaldo", "Zephyrine", "Quillon", "Thaddeus", "Bartholomew", "Isolde",
    "Perpetua", "Ozymandias", "Wilhelmina", "Calliope", "Evander", "Lysander", "Xanthe", "Ignatius", "Philippa",
    "Cassius", "Drusilla", "Leocadia", "Montague", "Parthenope", "Rosamund", "Tiberius", "Ulrika", "Vespasian",
    "Winifred", "Yolanda", "Zachariah", "Anselm", "Beatrix", "Cornelius", "Dorothea", "Eustace", "Ferdinand",
    "Gwendolyn", "Hortensia", "Jemima", "Katinka", "Ludovic", "Marguerite", "Nicodemus", "Octavia", "Persephone",
    "Quentin", "Rasputin", "Sigmund", "Theodora", "Valentina",
)  # fmt: skip
SENTENCES = (
    "Yesterday {} came to the house with a letter.", "I have never seen {} so happy before.",
    "Please ask {} to wait for us at the station.", "The old man gave the book to {} and went away.",
    "Nobody in the village knew where {} was born.", "It was {} who found the key under the stone.",
    "We met {} on the road to the river.", "My friend {} will sing for us tonight.",
    "When the rain stopped, {} opened the window.", "They say that {} once crossed the sea alone.",
)  # fmt: skip


@dataclass(frozen=True)
class Clip:
    """A clip and what is said in it."""

    path: Path
    text: str


def named_clips(teacher: Path, out: Path) -> list[Clip]:
    """Let a teacher read the sentences with names; what lies there already is kept."""
    sentences = [
        (f"{index:02d}_{name.lower()}", SENTENCES[index % len(SENTENCES)].format(name))
        for index, name in enumerate(NAMES)
    ]
    list(synthesize(sentences, in_new_voices(Piper(teacher)), out, seed=4))
    return [Clip(out / "audio" / f"{name}.flac", text) for name, text in sentences]


def read_clips(manifest: str, most: int) -> list[Clip]:
    """Read `MANIFEST:SPLIT+SPLIT`."""
    path, _, splits = manifest.partition(":")
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    chosen = [row for row in rows if not splits or row["split"] in splits.split("+")]
    return [Clip(Path(path).parent / row["audio"], row["text"]) for row in chosen[:most]]


def transcripts(engine: Engine, clips: Sequence[Clip], hotwords: Sequence[str], batch_size: int) -> list[str]:
    """Write down what is said in clips."""
    paths = [clip.path for clip in clips]
    return [result.text for result in engine.transcribe(paths, hotwords=hotwords, batch_size=batch_size)]


def names_in(text: str) -> set[str]:
    """Find the names in a text."""
    words = set(normalise(text, "en").split())
    return {name for name in NAMES if name.lower() in words}


def without_names(text: str) -> str:
    """Take the names out of a text, so that the rest can be compared."""
    names = {name.lower() for name in NAMES}
    return " ".join(word for word in normalise(text, "en").split() if word not in names)


def main() -> None:
    """Print one row per set, without hotwords and with them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True, help="Piper's .onnx file")
    parser.add_argument("--out", type=Path, required=True, help="folder for the teacher's speech")
    parser.add_argument("--without", nargs="*", default=[], help="sets without the names: MANIFEST:SPLIT+SPLIT")
    parser.add_argument("--most", type=int, default=100, help="clips of each of them")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    engine = tristep.load(options.model)
    table = Table(title=f"{options.model}, {len(NAMES)} hotwords, {options.threads} threads, torch {torch.__version__}")
    for column in ("set", "hotwords", "clips", "names written", "leaks", "WER", "WER of the rest", "seconds"):
        table.add_column(column)
    sets = {"named": named_clips(options.teacher, options.out)}
    sets |= {Path(manifest).parent.name: read_clips(manifest, options.most) for manifest in options.without}
    for name, clips in sets.items():
        for hotwords in ((), NAMES):
            start = time.perf_counter()
            texts = transcripts(engine, clips, hotwords, options.batch_size)
            seconds = time.perf_counter() - start
            pairs = [(names_in(clip.text), names_in(text)) for clip, text in zip(clips, texts, strict=True)]
            said, written = sum(len(a) for a, _ in pairs), sum(len(a & b) for a, b in pairs)
            wer = error_rate([clip.text for clip in clips], texts, "en").rate
            rest = error_rate([without_names(clip.text) for clip in clips], list(map(without_names, texts)), "en").rate
            table.add_row(
                name, "yes" if hotwords else "no", str(len(clips)), f"{written} of {said}",
                str(sum(len(b - a) for a, b in pairs)), f"{wer:.2%}", f"{rest:.2%}", f"{seconds:.1f}",
            )  # fmt: skip
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
