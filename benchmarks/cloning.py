r"""Cloning: does a voice made of a few seconds of somebody nobody has trained on sound like them?

    python benchmarks/cloning.py librispeech_mini_en/manifest.jsonl:dev librispeech_mini_en/manifest.jsonl:test \
        --sentences harvard.txt --lines 601-720 --speaker weights/nano/codec/speaker.safetensors

Every recording is cut: its first seconds make the voice, the rest is what the clone is compared with as well. The table
also compares the two parts of each recording, and the readers with one another: what the same and another speaker look
like on this scale. Judges: CAM++, faster-whisper and DistillMOS (`pip install faster-whisper distillmos`).
"""

from __future__ import annotations

import argparse
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import soundfile
import torch
from machine import machine
from rich.console import Console
from rich.progress import track
from torch import Tensor

from tristep.audio import SPEAK_HZ
from tristep.codec.voice import MAX_CLIP_S, Voice
from tristep.engine.talking import Talker
from tristep.evaluation import speech, tts
from tristep.evaluation.cloning import Cloning, Reader, evaluate_cloning, likeness_table, read_reader
from tristep.evaluation.suites import read_clip, read_suite

PACKAGES = ("tristep", "torch", "faster-whisper", "distillmos")


def readers_of(manifest: str, clip_s: float) -> list[Reader]:
    """Cut the recordings of `PATH[:SPLIT]` that are long enough."""
    path, _, split = manifest.partition(":")
    clips = read_suite(Path(path), None, split or "test")
    found = (read_reader(clip.id, clip.text, read_clip(clip, SPEAK_HZ), clip_s) for clip in clips)
    return [reader for reader in found if reader is not None]


def as_wav(waveform: Tensor) -> bytes:
    """Write a waveform `(S,)` at 24 kHz as a file in memory."""
    file = io.BytesIO()
    soundfile.write(file, waveform.numpy(), SPEAK_HZ, format="WAV")
    return file.getvalue()


def cloned(talker: Talker, readers: list[Reader]) -> tts.Synthesise:
    """Clone every reader, and speak in the voice that is asked for."""
    voices: dict[str, Voice] = {}
    for reader in track(readers, "cloning", console=Console(stderr=True)):
        voices[reader.name] = talker.clone(as_wav(reader.clip), reader.text)
    say: Any = tts.from_model(talker)
    return lambda text, voice, instructions, seed: say(text, voices[str(voice)], instructions, seed)


def summary(cloning: Cloning) -> dict[str, Any]:
    """Sum up what the clones said."""
    said = cloning.measured.report.sentences
    errors = tts.ratio([each.num_errors for each in said], [each.num_units for each in said])
    mos = tts.mean([each.mos for each in said])
    return {
        "sentences": len(said),
        "failed": sum(each.failed for each in said),
        "word errors": errors.model_dump(),
        "DistillMOS": mos and mos.model_dump(),
        "real-time factor": sum(each.compute_s for each in said) / sum(each.duration_s for each in said),
    }


def main() -> None:
    """Clone, speak, compare, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifests", nargs="+", help="recordings of readers nobody has trained on: PATH[:SPLIT]")
    parser.add_argument("--sentences", type=Path, required=True, help="text file, one sentence a line")
    parser.add_argument("--lines", help="which sentences, from 1, such as 601-720")
    parser.add_argument("--each", type=int, default=2, help="sentences that each clone says")
    parser.add_argument("--clip-s", type=float, default=5.0, help=f"seconds to clone from, at most {MAX_CLIP_S:g}")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--speaker", type=Path, required=True, help="weights of CAM++")
    parser.add_argument("--recogniser", default="base", help="faster-whisper's model: a name or a CTranslate2 folder")
    parser.add_argument("--distillmos", type=Path, help="folder of that package, if not installed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write the numbers here (.json)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    judges = speech.load_judges(options.recogniser, options.speaker, options.distillmos, threads=options.threads)
    readers = [reader for manifest in options.manifests for reader in readers_of(manifest, options.clip_s)]
    sentences = tts.read_sentences(options.sentences, options.lines)
    synthesise = cloned(Talker.load(options.model), readers)
    cloning = evaluate_cloning(synthesise, readers, sentences, judges, num_each=options.each, model=options.model)
    Console(width=100).print(likeness_table(cloning))
    print(json.dumps(summary(cloning)))
    print(f"{len(readers)} readers, {options.clip_s:g} s each; judges: {', '.join(judges.names)}; {machine(PACKAGES)}")
    if options.out:
        likenesses = [asdict(row) | {"similarity": row.similarity.model_dump(), "rectified": row.rectified.model_dump()}
                      for row in cloning.likenesses]  # fmt: skip
        document = {"likenesses": likenesses, "report": cloning.measured.report.model_dump(mode="json")}
        options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
