"""Transcribe real recordings in every way there is, one table: is each text what plain greedy decoding writes?

    python benchmarks/identity.py librispeech_mini_en/manifest.jsonl:dev+test kathleen_en/manifest.jsonl:test

Plain decoding takes one recording at a time and one token a pass. Beside it: drafts; hotwords (each recording's three
longest words and three that nobody says), with drafts and without; streams, with drafts and without; and 4, 16 and 64
recordings at once from as many threads, which share passes and come in a random order. A law in `tests/laws/` says the
same of toys; here the weights, the clips and the arithmetic are the real ones.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from pathlib import Path

import torch
from machine import machine
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from tristep.audio import LISTEN_HZ
from tristep.backbone.audio_encoder import Adapted
from tristep.engine.drafting import DraftSources
from tristep.engine.engine import Engine
from tristep.evaluation.suites import read_clip, read_suite

PACKAGES = ("tristep", "torch")
UNSAID = ("Galahad", "Xylophonia", "Quetzalcoatl")
CHUNK_S = 0.25


class Plain(Engine):
    """The same weights without drafts."""

    def draft_sources(self, heard: Adapted) -> DraftSources:
        return DraftSources()

    def hypotheses(self, heard: Adapted) -> None:
        return None


def plain(engine: Engine) -> Engine:
    """Return an engine's weights at work without drafts."""
    other = copy(engine)
    other.__class__ = Plain
    return other


def alone(engine: Engine, waveforms: Sequence[Tensor]) -> list[str]:
    """Transcribe one recording after the other."""
    return [engine.transcribe(waveform).text for waveform in waiting(waveforms, "alone")]


def expecting(engine: Engine, waveforms: Sequence[Tensor], texts: Sequence[str]) -> list[str]:
    """Transcribe with hotwords."""
    pairs = zip(waiting(waveforms, "with hotwords"), texts, strict=True)
    return [engine.transcribe(waveform, hotwords=hotwords_of(text)).text for waveform, text in pairs]


def hotwords_of(text: str) -> list[str]:
    """Return the three longest words of a text, and three of no text."""
    words = sorted({word for word in text.split() if word.isalpha()}, key=lambda word: (-len(word), word))
    return [*words[:3], *UNSAID]


def streamed(engine: Engine, waveforms: Sequence[Tensor]) -> list[str]:
    """Transcribe each recording while it comes."""
    texts = []
    for waveform in waiting(waveforms, "streamed"):
        stream = engine.stream_transcription()
        for chunk in waveform.split(round(CHUNK_S * LISTEN_HZ)):
            stream.push(chunk)
        stream.finish()
        texts.append(stream.text)
    return texts


def together(engine: Engine, waveforms: Sequence[Tensor], num_threads: int, seed: int) -> list[str]:
    """Transcribe from several threads at once, in a random order."""
    shared = engine.sharing(num_slots=num_threads, max_waiting=len(waveforms))
    order = random.Random(seed).sample(range(len(waveforms)), len(waveforms))
    with ThreadPoolExecutor(num_threads) as pool:
        texts = list(pool.map(lambda place: shared.transcribe(waveforms[place]).text, order))
    return [text for _, text in sorted(zip(order, texts, strict=True))]


def waiting(waveforms: Sequence[Tensor], what: str) -> list[Tensor]:
    """Show how far it has come."""
    return track(waveforms, what, console=Console(stderr=True), transient=True)  # type: ignore[return-value]


def main() -> None:
    """Compare every way with plain decoding and print one table; exits with 1 if a text differs."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    clips = [clip for path, split in arguments.suites for clip in read_suite(path, split=split)[: arguments.limit]]
    waveforms, texts = [read_clip(clip) for clip in clips], [clip.text for clip in clips]
    engine = Engine.load(arguments.model)
    slow = plain(engine)
    reference = alone(slow, waveforms)
    hinted, live = expecting(slow, waveforms, texts), streamed(slow, waveforms)
    ways: list[tuple[str, list[str], Callable[[], list[str]]]] = [
        ("drafts", reference, lambda: alone(engine, waveforms)),
        ("hotwords, drafts", hinted, lambda: expecting(engine, waveforms, texts)),
        ("streams, drafts", live, lambda: streamed(engine, waveforms)),
        *(
            (f"{num} at once, any order", reference, lambda num=num: together(engine, waveforms, num, arguments.seed))
            for num in arguments.at_once
        ),
    ]
    table = Table("way", "recordings", "as plain decoding", "others")
    num_other = 0
    for name, expected, run in ways:
        other = [clip.id for clip, text, want in zip(clips, run(), expected, strict=True) if text != want]
        num_other += len(other)
        table.add_row(name, str(len(clips)), f"{1 - len(other) / len(clips):.1%}", " ".join(other[:4]))
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    minutes = sum(map(len, waveforms)) / LISTEN_HZ / 60
    print(f"{arguments.model}, {minutes:.1f} minutes, {arguments.threads} thread(s); {machine(PACKAGES)}")
    sys.exit(num_other > 0)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="+", type=suite, metavar="PATH[:SPLIT]", help="test sets")
    parser.add_argument("--model", default="nano", help="a name or a folder")
    parser.add_argument("--at-once", nargs="+", type=int, default=[4, 16, 64], help="recordings at once")
    parser.add_argument("--limit", type=int, help="take only the first recordings of each set")
    parser.add_argument("--threads", type=int, default=1, help="of the arithmetic")
    parser.add_argument("--seed", type=int, default=0, help="of the order")
    return parser.parse_args()


def suite(text: str) -> tuple[Path, str]:
    """Read `PATH[:SPLIT]`."""
    path, _, split = text.partition(":")
    return Path(path), split or "test"


if __name__ == "__main__":
    main()
