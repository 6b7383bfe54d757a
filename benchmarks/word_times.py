r"""Word times: how far they lie from those of a teacher voice, whose phonemes have known durations.

    python benchmarks/word_times.py --teacher en_US-joe-medium.onnx --sentences harvard.txt --lines 601-640

A Piper voice reads the sentences, and its network says how long it holds each phoneme. The words of the true text and
those of the model's own transcript, as far as they are right, are compared with that. Sentences whose phonemes espeak
writes as more or fewer words than the text has are passed over. Needs `pip install onnx onnxruntime phonemizer-fork
espeakng-loader`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import groupby
from pathlib import Path

import numpy as np
import soxr
import torch

import tristep
from tristep.audio import LISTEN_HZ
from tristep.corpus.synthesize import Piper
from tristep.engine.engine import Engine, spelt_letters
from tristep.engine.words import Word, words_said
from tristep.text import spoken_words


def timed(teacher: Piper, text: str, speed: float) -> tuple[np.ndarray, list[Word]]:
    """Say a sentence: samples at 16 kHz, and its words by their sound."""
    reading = teacher.say(text, teacher.voice, speed)
    assert reading is not None
    words: list[Word] = []
    said = zip(reading.symbols, reading.starts_s, reading.ends_s, strict=True)
    for is_gap, symbols in groupby(said, lambda symbol: symbol[0] == " "):
        held = [symbol for symbol in symbols if symbol[0] not in ("", *".,;:!?")]
        if held and not is_gap:
            words.append(Word("".join(symbol for symbol, _, _ in held), held[0][1], held[-1][2], 1.0))
    return soxr.resample(reading.waveform, reading.sample_rate, LISTEN_HZ), words


def pairs(words: Sequence[Word], truth: Sequence[Word]) -> list[tuple[Word, Word]]:
    """Match the words of two transcripts in order, those that are the same."""
    plain = [[" ".join(spoken_words(word.text) or []) for word in row] for row in (words, truth)]
    blocks = SequenceMatcher(None, *plain, autojunk=False).get_matching_blocks()
    return [(words[a + k], truth[b + k]) for a, b, size in blocks for k in range(size)]


def aligned(engine: Engine, waveform: torch.Tensor, text: str) -> list[Word]:
    """Say when the words of a known text are said."""
    with torch.inference_mode():
        (words,) = words_said([text], *spelt_letters(engine.hear([waveform])), [len(waveform) / LISTEN_HZ])
    return words


def report(name: str, matched: Sequence[tuple[Word, Word]], num_words: int) -> None:
    """Print how far the edges lie from the truth."""
    for edge in ("start_s", "end_s"):
        late_ms = 1000 * np.array([getattr(word, edge) - getattr(true, edge) for word, true in matched])
        error_ms = np.abs(late_ms)
        print(
            f"{name:12s} {edge[:-2]:6s} {len(matched):5d} of {num_words}  median {np.median(error_ms):5.0f} ms  "
            f"90th percentile {np.percentile(error_ms, 90):5.0f} ms  median lateness {np.median(late_ms):+5.0f} ms"
        )


def main() -> None:
    """Print the errors of starts and ends, of the true text and of the model's own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True, help="Piper's .onnx file")
    parser.add_argument("--sentences", type=Path, required=True, help="text file, one sentence a line")
    parser.add_argument("--lines", default="1-40", help="which of them")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    first, last = map(int, options.lines.split("-"))
    sentences = [line.strip() for line in options.sentences.read_text().splitlines()[first - 1 : last]]
    engine, teacher, rng = tristep.load(options.model), Piper(options.teacher, timed=True), np.random.default_rng(0)
    known, heard, num_words = [], [], 0
    for text in sentences:
        samples, truth = timed(teacher, text, float(rng.uniform(0.8, 1.2)))
        if len(truth) != len(text.split()):
            continue
        truth = [Word(word, true.start_s, true.end_s, 1.0) for word, true in zip(text.split(), truth, strict=True)]
        waveform = torch.from_numpy(np.asarray(samples / max(np.abs(samples).max(), 1e-4) * 0.7, np.float32))
        num_words += len(truth)
        known += pairs(aligned(engine, waveform, text), truth)
        segments = engine.transcribe(waveform, words=True).segments
        heard += pairs([word for segment in segments for word in segment.words or ()], truth)
    print(f"{options.model}, {options.threads} threads, torch {torch.__version__}, seed 0")
    report("true text", known, num_words)
    report("transcript", heard, num_words)


if __name__ == "__main__":
    main()
