"""How well and how fast speech is made, one table: tristep beside Piper and Kokoro, the same sentences in one run.

    python benchmarks/tts.py harvard.txt --lines 601-720 --piper en_US-joe-medium.onnx --kokoro kokoro/ --speaker cam.pt

Every system reads every sentence alone, warmed up by one more sentence, on the same number of threads and in the
same process; judging is not part of the time. Piper and Kokoro (ONNX) hand over a sentence when all of it is made, so
that is their first audio. Their phonemes come from espeak-ng and are part of the time. A system that is not named by
its option is left out. The page beside the JSON plays what each of them said.

`pip install phonemizer-fork espeakng-loader onnxruntime faster-whisper` first; none is a dependency of the package.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch
from machine import machine
from rich.console import Console

from tristep.audio import SPEAK_HZ, read_audio
from tristep.codec.voice import list_voices, read_voice
from tristep.corpus.synthesize import Phonemes
from tristep.evaluation import speech, tts, tts_report

WARM_UP = "The weather was fine, and nobody had anything else to do."
PACKAGES = ("tristep", "torch", "onnxruntime", "phonemizer-fork", "faster-whisper")


def main() -> None:
    """Let every system read the sentences, and print one table."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    sentences = tts.read_sentences(arguments.sentences, arguments.lines)
    judges = speech.load_judges(
        arguments.recogniser, arguments.speaker, arguments.distillmos, mos=arguments.mos, threads=arguments.threads
    )
    measured = [run(arguments, name, synthesise, sentences, judges) for name, synthesise in systems(arguments)]
    reports = [each.report for each in measured]
    console = Console(width=None if sys.stdout.isatty() else 240)
    console.print(tts_report.voice_table(reports))
    if any(report.directives for report in reports):
        console.print(tts_report.directive_table(reports))
    print(machine(PACKAGES))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        document = [report.model_dump(mode="json") for report in reports]
        arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        sounds = {each.report.conditions.model: each.waveforms for each in measured}
        arguments.out.with_suffix(".html").write_text(tts_report.as_page(reports, sounds), encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sentences", type=Path, help="text file, one sentence a line")
    parser.add_argument("--lines", help="which sentences, from 1, such as 601-720")
    parser.add_argument("--model", help="tristep's model: a name or a folder")
    parser.add_argument("--voices", type=Path, help="folder of tristep's voices, to compare with")
    parser.add_argument("--voice", nargs="+", default=[], help="tristep's voices; all of the folder if not given")
    parser.add_argument("--directed", type=int, default=0, help="sentences for each of tristep's directives")
    parser.add_argument("--piper", type=Path, help="Piper's .onnx file, its .json beside it")
    parser.add_argument("--kokoro", type=Path, help="folder with Kokoro's .onnx file, vocab.json and voices/")
    parser.add_argument("--kokoro-voice", default="af_heart")
    parser.add_argument("--recorded", type=Path, help="folder of recordings ID.flac of the sentences, judged likewise")
    parser.add_argument("--recogniser", default="base", help="faster-whisper's model: a name or a CTranslate2 folder")
    parser.add_argument("--speaker", type=Path, help="weights of CAM++, to compare voices")
    parser.add_argument("--distillmos", type=Path, help="folder of the package distillmos, where it is not installed")
    parser.add_argument("--mos", action=argparse.BooleanOptionalAction, default=True, help="predict opinion scores")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write the numbers here (.json), and the page beside them (.html)")
    return parser.parse_args()


def systems(arguments: argparse.Namespace) -> Iterator[tuple[str, tts.Synthesise]]:
    """Load the systems that were asked for, each when its turn comes."""
    if arguments.recorded:
        yield "recorded", recorded(arguments)
    if arguments.piper:
        yield f"Piper {arguments.piper.stem}", piper(arguments.piper, arguments.threads)
    if arguments.kokoro:
        yield f"Kokoro {arguments.kokoro_voice}", kokoro(arguments.kokoro, arguments.kokoro_voice, arguments.threads)
    if arguments.model:
        import tristep

        yield f"tristep {Path(arguments.model).name}", tts.from_model(tristep.load(arguments.model))


def run(
    arguments: argparse.Namespace,
    name: str,
    synthesise: tts.Synthesise,
    sentences: dict[str, str],
    judges: speech.Judges,
) -> tts.Measured:
    """Warm a system up and measure it."""
    ours = name.startswith("tristep")
    known = list_voices(arguments.voices) if ours and arguments.voices else []
    targets = {voice: read_voice(arguments.voices, voice).embedding for voice in known}
    voices = (arguments.voice or known or [None]) if ours else [None]
    directives = (*tts.INSTRUCTIONS, *tts.CUES) if ours and arguments.directed else ()
    prompts = tts.build_prompts(sentences, voices, directives, arguments.directed)
    tts.attempt(synthesise, tts.Prompt("warm-up", WARM_UP, voices[0]), 0)
    return tts.evaluate_tts(synthesise, prompts, judges, targets=targets, model=name)


def recorded(arguments: argparse.Namespace) -> tts.Synthesise:
    """Play recordings: what the judges say of a person."""
    ids = {text: name for name, text in tts.read_sentences(arguments.sentences, arguments.lines).items()}

    def synthesise(text: str, voice: str | None, instructions: str | None, seed: int) -> tts.Spoken:
        return tts.Spoken(read_audio(arguments.recorded / f"{ids[text]}.flac", SPEAK_HZ))

    return synthesise


def whole_sentences(read: Callable[[str], tuple[np.ndarray, int]]) -> tts.Synthesise:
    """Time a system that makes a sentence at once: samples and their rate from a text."""

    def synthesise(text: str, voice: str | None, instructions: str | None, seed: int) -> tts.Spoken:
        start = time.perf_counter()
        samples, sample_rate = read(text)
        seconds = time.perf_counter() - start
        waveform = torch.from_numpy(soxr.resample(samples, sample_rate, SPEAK_HZ).astype(np.float32))
        return tts.Spoken(waveform.clamp(-1, 1), tts.STOP, seconds, seconds)

    return synthesise


def piper(model: Path, threads: int) -> tts.Synthesise:
    """Load a Piper voice; noise and pace are those of its own settings."""
    settings = json.loads(Path(f"{model}.json").read_text(encoding="utf-8"))
    session, phonemes = session_of(model, threads), Phonemes(settings["espeak"]["voice"])
    table, inference = settings["phoneme_id_map"], settings["inference"]
    scales = np.array([inference["noise_scale"], inference["length_scale"], inference["noise_w"]], np.float32)

    def read(text: str) -> tuple[np.ndarray, int]:
        ids = list(table["^"])
        for symbol in phonemes(text):
            ids += table["_"] + table.get(symbol, [])
        ids += table["_"] + table["$"]
        inputs = {"input": np.array([ids]), "input_lengths": np.array([len(ids)]), "scales": scales}
        return session.run(None, inputs)[0].reshape(-1), settings["audio"]["sample_rate"]

    return whole_sentences(read)


def kokoro(folder: Path, voice: str, threads: int) -> tts.Synthesise:
    """Load Kokoro in one of its voices, at its own pace."""
    session, phonemes = session_of(next(folder.glob("*.onnx")), threads), Phonemes()
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))["vocab"]
    styles = np.fromfile(folder / "voices" / f"{voice}.bin", np.float32).reshape(-1, 256)

    def read(text: str) -> tuple[np.ndarray, int]:
        tokens = [vocab[symbol] for symbol in phonemes(text) if symbol in vocab]
        speed = np.array([1.0], np.float32)
        inputs = {"tokens": np.array([[0, *tokens, 0]]), "style": styles[len(tokens)][None], "speed": speed}
        return session.run(None, inputs)[0].reshape(-1), SPEAK_HZ

    return whole_sentences(read)


def session_of(path: Path, threads: int) -> Any:
    """Open an ONNX model."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
