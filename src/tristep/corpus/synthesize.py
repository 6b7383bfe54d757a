"""Teacher speech: sentences read aloud by open text-to-speech models, with every label known.

A recogniser needs hours of labelled speech; sentences are free and two small ONNX teachers read them
faster than real time on one core. Piper is a fast single voice, Kokoro a bank of voices whose style
tensors can be mixed into new ones. Each clip draws its own voice, speed and pitch, all written to the
manifest, so that the labels are exact by construction.

The phonemes come from espeak-ng (GPL-3): it is used to *make* data and is no dependency of the package.
Install it with `pip install phonemizer-fork espeakng-loader onnxruntime`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from rich.progress import track

LISTEN_HZ = 16_000
MAX_KOKORO_TOKENS = 505
"""Kokoro's style bank has one row per number of tokens, at most 510 with the two boundaries."""


@dataclass(frozen=True)
class Reading:
    """One sentence as a teacher read it."""

    waveform: np.ndarray
    """Samples in [-1, 1], shape `(S,)`."""
    sample_rate: int
    voice: str
    speed: float


class Phonemes:
    """Turns English text into IPA with espeak-ng."""

    def __init__(self, accent: str = "en-us") -> None:
        import espeakng_loader
        from phonemizer.backend import EspeakBackend
        from phonemizer.backend.espeak.wrapper import EspeakWrapper

        EspeakWrapper.set_library(espeakng_loader.get_library_path())
        EspeakWrapper.set_data_path(espeakng_loader.get_data_path())
        self._espeak = EspeakBackend(accent, preserve_punctuation=True, with_stress=True)

    def __call__(self, text: str) -> str:
        return str(self._espeak.phonemize([text], strip=True)[0])


def onnx_session(path: Path) -> Any:
    """Open an ONNX model on one thread, so that several teachers can share a machine."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Piper:
    """One Piper voice (VITS, ONNX): about twelve times real time on one core."""

    def __init__(self, model: Path) -> None:
        self.settings = json.loads(Path(f"{model}.json").read_text())
        self.session = onnx_session(model)
        self.phonemes = Phonemes(self.settings["espeak"]["voice"])
        self.voice = f"piper_{model.name.split('.')[0]}"

    def read(self, text: str, rng: np.random.Generator) -> Reading | None:
        """Read one sentence at a random pace and liveliness."""
        speed = float(rng.uniform(0.75, 1.35))
        table = self.settings["phoneme_id_map"]
        ids = list(table["^"])
        for symbol in self.phonemes(text):
            ids += table["_"] + table.get(symbol, [])
        ids += table["_"] + table["$"]
        scales = np.array([rng.uniform(0.5, 0.9), 1 / speed, rng.uniform(0.6, 1.0)], np.float32)
        inputs = {"input": np.array([ids]), "input_lengths": np.array([len(ids)]), "scales": scales}
        waveform = self.session.run(None, inputs)[0].reshape(-1)
        return Reading(waveform, self.settings["audio"]["sample_rate"], self.voice, speed)


class Kokoro:
    """Kokoro-82M (ONNX): many voices, and mixtures of two of them as new ones."""

    def __init__(self, folder: Path, prefixes: str = "af am bf bm") -> None:
        self.session = onnx_session(folder / "kokoro-int8.onnx")
        self.vocab = json.loads((folder / "vocab.json").read_text())["vocab"]
        self.phonemes = Phonemes()
        self.voices = {
            path.stem: np.fromfile(path, np.float32).reshape(-1, 256)
            for path in sorted((folder / "voices").glob("*.bin"))
            if path.stem.startswith(tuple(prefixes.split()))
        }

    def read(self, text: str, rng: np.random.Generator) -> Reading | None:
        """Read one sentence in a random mixture of two voices; None if it is too long."""
        first, second = rng.choice(sorted(self.voices), 2, replace=False)
        weight = float(rng.choice([1.0, rng.uniform(0.3, 0.9)]))
        style = weight * self.voices[first] + (1 - weight) * self.voices[second]
        voice = first if weight == 1 else f"{first}*{weight:.2f}+{second}*{1 - weight:.2f}"
        tokens = [self.vocab[symbol] for symbol in self.phonemes(text) if symbol in self.vocab]
        if not 0 < len(tokens) <= MAX_KOKORO_TOKENS:
            return None
        speed = float(rng.uniform(0.8, 1.3))
        inputs = {
            "tokens": np.array([[0, *tokens, 0]]),
            "style": style[len(tokens)][None].astype(np.float32),
            "speed": np.array([speed], np.float32),
        }
        return Reading(self.session.run(None, inputs)[0].reshape(-1), 24_000, voice, speed)


def to_listening_rate(reading: Reading, pitch: float) -> np.ndarray:
    """Resample to 16 kHz, shifting pitch and formants by the factor `pitch` (a new vocal tract)."""
    waveform = soxr.resample(reading.waveform, reading.sample_rate * pitch, LISTEN_HZ)
    peak = float(np.abs(waveform).max())
    return np.asarray(waveform / max(peak, 1e-4) * 0.7, np.float32)


def synthesize(
    sentences: list[tuple[str, str]], teacher: Piper | Kokoro, out: Path, seed: int
) -> Iterator[dict[str, Any]]:
    """Read each `(id, text)` to `out/audio/ID.flac` and yield its manifest row.

    A sentence that is already on disk is passed over, so a killed run resumes where it stopped.
    """
    (out / "audio").mkdir(parents=True, exist_ok=True)
    for index, (name, text) in enumerate(sentences):
        path = out / "audio" / f"{name}.flac"
        rng = np.random.default_rng([seed, index])
        if path.exists() or (reading := teacher.read(text, rng)) is None:
            continue
        pitch = float(rng.uniform(0.88, 1.14))
        waveform = to_listening_rate(reading, pitch)
        partial = path.with_suffix(".partial")
        soundfile.write(partial, waveform, LISTEN_HZ, format="FLAC")
        partial.rename(path)
        yield {
            "id": name,
            "audio": f"audio/{name}.flac",
            "text": text,
            "speaker": f"{reading.voice}@{pitch:.2f}",
            "language": "en",
            "duration": round(len(waveform) / LISTEN_HZ, 3),
            "sample_rate": LISTEN_HZ,
            "split": "train",
            "source": f"synthetic: {reading.voice}",
            "speed": round(reading.speed, 3),
        }


def main() -> None:
    """Read a file of `id<TAB>sentence` lines with one teacher."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sentences", type=Path, help="text file, one `id<TAB>sentence` a line")
    parser.add_argument("--teacher", choices=["piper", "kokoro"], required=True)
    parser.add_argument("--model", type=Path, required=True, help="Piper's .onnx file, or Kokoro's folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for audio/ and manifest.jsonl")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    lines = options.sentences.read_text().splitlines()
    sentences = [(name, text) for name, text in (line.split("\t", 1) for line in lines)]
    teacher = (Piper if options.teacher == "piper" else Kokoro)(options.model)
    rows = synthesize(sentences, teacher, options.out, options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "manifest.jsonl").open("a") as manifest:
        for row in track(rows, total=len(sentences), description=f"{options.teacher} reads"):
            manifest.write(json.dumps(row, ensure_ascii=False) + "\n")
            manifest.flush()


if __name__ == "__main__":
    main()
