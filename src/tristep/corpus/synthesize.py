"""Teacher speech: sentences read aloud by open text-to-speech models, with every label known.

A recogniser needs hours of labelled speech; sentences are free and two small ONNX teachers read them
faster than real time on one core. Piper is a fast single voice, Kokoro a bank of voices whose style
tensors can be mixed into new ones. Each clip draws its own voice, speed and pitch, all written to the
manifest, so that the labels are exact by construction.

To learn to speak, clips in named voices are wanted instead, and with `--style-labels` also clips said slowly, fast,
low, high, quietly, loudly, with pauses or in a whisper, whole or from a cue on, each with an instruction that asks
for it (`tristep.corpus.restyle` says how).

With `--phone-times` Piper also says how long it holds each phone, from which `tristep.corpus.phones` learns to hear.

The phonemes come from espeak-ng (GPL-3): it is used to *make* data and is no dependency of the package.
Install it with `pip install phonemizer-fork espeakng-loader onnxruntime` (and `onnx` for phone times).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from rich.progress import track

from tristep.arguments import existing
from tristep.audio import LISTEN_HZ
from tristep.corpus.annotate import cue, instruction
from tristep.corpus.phones import timed_phones
from tristep.corpus.restyle import INLINE, Delivery, deliver, draw_styles, joined, pieces, restyle, trimmed

MAX_PAUSED_WORDS = 7
"""Phrases said with pauses are broken until they have no more words."""
INLINE_SHARE = 0.4
"""Share of the texts with several phrases that get a cue."""
PAUSE_SHARE = 0.35
"""Share of the cues that ask for a long pause; the rest change the style."""
PIPER_HOP = 256
"""Samples in one frame of a Piper voice."""
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
    symbols: Sequence[str] = ()
    """What was said, one symbol of IPA or punctuation at a time, if the teacher knows when."""
    starts_s: Sequence[float] = ()
    """When each symbol begins, in seconds."""
    ends_s: Sequence[float] = ()
    """When each ends; what is between it and the next one is the teacher's padding."""


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

    def __init__(self, model: Path, timed: bool = False) -> None:
        """Open a voice.

        Args:
            model: The .onnx file, its .json beside it.
            timed: Also say how long each phoneme is held; needs the package `onnx`.
        """
        self.settings = json.loads(Path(f"{model}.json").read_text())
        self.timed = timed
        self.session = timed_session(model) if timed else onnx_session(model)
        self.phonemes = Phonemes(self.settings["espeak"]["voice"])
        self.voice = f"piper_{model.name.split('.')[0]}"
        self.voices = (self.voice,)

    def read(self, text: str, rng: np.random.Generator) -> Reading | None:
        """Read one sentence at a random pace and liveliness."""
        speed = float(rng.uniform(0.75, 1.35))
        return self._said(text, speed, rng.uniform(0.5, 0.9), rng.uniform(0.6, 1.0))

    def say(self, text: str, voice: str, speed: float) -> Reading | None:
        """Say a phrase at a given pace."""
        return self._said(text, speed, 0.667, 0.8)

    def _said(self, text: str, speed: float, noise: float, phoneme_noise: float) -> Reading:
        table, sample_rate = self.settings["phoneme_id_map"], self.settings["audio"]["sample_rate"]
        # Padding follows every phoneme; the sentence begins and ends with marks of its own.
        symbols = ["", *self.phonemes(text), ""]
        said = [table["^"], *(table.get(symbol, []) for symbol in symbols[1:-1]), table["$"]]
        held = [*(numbers + table["_"] for numbers in said[:-1]), said[-1]]
        ids = [number for numbers in held for number in numbers]
        scales = np.array([noise, 1 / speed, phoneme_noise], np.float32)
        inputs = {"input": np.array([ids]), "input_lengths": np.array([len(ids)]), "scales": scales}
        waveform, *durations = self.session.run(None, inputs)
        reading = Reading(waveform.reshape(-1), sample_rate, self.voice, speed)
        if not self.timed:
            return reading
        edges_s = np.concatenate([[0.0], durations[0].reshape(-1).cumsum() * PIPER_HOP / sample_rate])
        first = np.cumsum([0, *map(len, held[:-1])])
        after = first + np.array([len(numbers) for numbers in said])
        return replace(reading, symbols=symbols, starts_s=edges_s[first].tolist(), ends_s=edges_s[after].tolist())


def timed_session(model: Path) -> Any:
    """Open a Piper voice whose network also returns the frames that each of its inputs is held."""
    import onnx

    graph = onnx.load(str(model))
    durations = next(node.output[0] for node in graph.graph.node if node.op_type == "Ceil")
    graph.graph.output.append(onnx.helper.make_tensor_value_info(durations, onnx.TensorProto.FLOAT, None))
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(graph, str(Path(folder) / model.name))
        return onnx_session(Path(folder) / model.name)


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
        return self._said(text, voice, style, float(rng.uniform(0.8, 1.3)))

    def say(self, text: str, voice: str, speed: float) -> Reading | None:
        """Say a phrase in one voice of the bank at a given pace; None if it is too long."""
        if voice not in self.voices:
            raise ValueError(f"Kokoro has no voice {voice!r}: expected one of {', '.join(sorted(self.voices))}")
        return self._said(text, voice, self.voices[voice], speed)

    def _said(self, text: str, voice: str, style: np.ndarray, speed: float) -> Reading | None:
        tokens = [self.vocab[symbol] for symbol in self.phonemes(text) if symbol in self.vocab]
        if not 0 < len(tokens) <= MAX_KOKORO_TOKENS:
            return None
        inputs = {
            "tokens": np.array([[0, *tokens, 0]]),
            "style": style[len(tokens)][None].astype(np.float32),
            "speed": np.array([speed], np.float32),
        }
        return Reading(self.session.run(None, inputs)[0].reshape(-1), 24_000, voice, speed)


def in_new_voice(reading: Reading, pitch: float, sample_rate: int) -> np.ndarray:
    """Resample to another rate, shifting pitch and formants by the factor `pitch` (a new vocal tract)."""
    waveform = soxr.resample(reading.waveform, reading.sample_rate * pitch, sample_rate)
    peak = float(np.abs(waveform).max())
    return np.asarray(waveform / max(peak, 1e-4) * 0.7, np.float32)


@dataclass(frozen=True)
class Clip:
    """A finished clip and what its manifest row says of it beyond the usual."""

    waveform: np.ndarray
    labels: dict[str, Any]


Perform = Callable[[str, np.random.Generator], Clip | None]
"""Reads one text, drawing what is left to chance; None if it can't be read."""


def in_new_voices(teacher: Any, sample_rate: int = LISTEN_HZ) -> Perform:
    """Perform for listening: every clip in a mixed voice and at a pitch of its own."""

    def perform(text: str, rng: np.random.Generator) -> Clip | None:
        if (reading := teacher.read(text, rng)) is None:
            return None
        pitch = float(rng.uniform(0.88, 1.14))
        labels: dict[str, Any] = {"speaker": f"{reading.voice}@{pitch:.2f}", "source": f"synthetic: {reading.voice}"}
        if reading.symbols:
            ends_s = [*reading.starts_s[1:], reading.ends_s[-1]]  # padding sounds like what it follows
            phones = timed_phones(reading.symbols, [end_s / pitch for end_s in ends_s])
            labels["phones"] = [(symbol, round(end_s, 3)) for symbol, end_s in phones]
        return Clip(in_new_voice(reading, pitch, sample_rate), labels | {"speed": round(reading.speed, 3)})

    return perform


def in_named_voices(teacher: Any, voices: Sequence[str], sample_rate: int, style_labels: bool) -> Perform:
    """Perform for speaking: in the named voices as they are, with known styles if asked for."""

    def perform(text: str, rng: np.random.Generator) -> Clip | None:
        voice = str(rng.choice(voices))
        styles = draw_styles(rng) if style_labels else []
        delivery = Delivery()
        for style in styles:
            delivery = deliver(style, rng, delivery)
        parts = pieces(text, MAX_PAUSED_WORDS) if "pauses" in styles else pieces(text)
        inline, place = None, len(parts)
        if style_labels and len(parts) > 1 and rng.random() < INLINE_SHARE:
            changes = [style for style in INLINE if style not in styles]
            inline = "long pause" if rng.random() < PAUSE_SHARE else str(rng.choice(changes))
            place = int(rng.integers(1, len(parts)))
        waveform = _performed(teacher, voice, parts, delivery, inline, place, sample_rate, rng)
        if waveform is None:
            return None
        labels: dict[str, Any] = {"speaker": voice, "source": f"synthetic: {voice}", "speed": round(delivery.speed, 3)}
        if style_labels:
            cued = [*parts[:place], *([f"({cue(inline, rng)})"] if inline else []), *parts[place:]]
            numbers = {
                name: value if isinstance(value, bool) else round(value, 3) for name, value in asdict(delivery).items()
            }
            labels |= {"styles": styles, "inline": inline, "delivery": numbers}
            labels |= {"instruction": instruction(styles, rng), "cued_text": " ".join(cued)}
        return Clip(waveform, labels)

    return perform


def _performed(
    teacher: Any, voice: str, parts: Sequence[str], delivery: Delivery, inline: str | None, place: int,
    sample_rate: int, rng: np.random.Generator,
) -> np.ndarray | None:  # fmt: skip
    """Say phrases, those from `place` on as the cue asks; phrases of one breath are said in one go."""
    changed = deliver(inline, rng, delivery) if inline and inline != "long pause" else delivery
    breaths = [(part, delivery if index < place else changed) for index, part in enumerate(parts)]
    if not delivery.pause_s:
        halves = [(parts[:place], delivery), (parts[place:], changed)]
        breaths = [(" ".join(half), how) for half, how in halves if half]
    readings, silences_s = [], []
    for text, how in breaths:
        if (reading := teacher.say(text, voice, how.speed)) is None:
            return None
        waveform = soxr.resample(reading.waveform, reading.sample_rate, sample_rate)
        readings.append(restyle(trimmed(waveform, sample_rate), sample_rate, how, rng))
        silences_s.append(float(rng.uniform(0.1, 0.25)) / how.speed + how.pause_s)
    if inline == "long pause":
        silences_s[place - 1 if delivery.pause_s else 0] += float(rng.uniform(0.8, 1.4))
    return joined(readings, silences_s[:-1], sample_rate)


def synthesize(
    sentences: list[tuple[str, str]], perform: Perform, out: Path, seed: int, sample_rate: int = LISTEN_HZ
) -> Iterator[dict[str, Any]]:
    """Read each `(id, text)` to `out/audio/ID.flac` and yield its manifest row.

    A sentence that is already on disk is passed over, so a killed run resumes where it stopped.
    """
    (out / "audio").mkdir(parents=True, exist_ok=True)
    for index, (name, text) in enumerate(sentences):
        path = out / "audio" / f"{name}.flac"
        if path.exists() or (clip := perform(text, np.random.default_rng([seed, index]))) is None:
            continue
        partial = path.with_suffix(".partial")
        soundfile.write(partial, clip.waveform, sample_rate, format="FLAC")
        partial.rename(path)
        row = {"id": name, "audio": f"audio/{name}.flac", "text": text, "language": "en", "split": "train"}
        yield row | {"duration": round(len(clip.waveform) / sample_rate, 3), "sample_rate": sample_rate} | clip.labels


def main() -> None:
    """Read a file of `id<TAB>sentence` lines with one teacher."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sentences", type=existing, help="text file, one `id<TAB>sentence` a line")
    parser.add_argument("--teacher", choices=["piper", "kokoro"], required=True)
    parser.add_argument("--model", type=existing, required=True, help="Piper's .onnx file, or Kokoro's folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for audio/ and manifest.jsonl")
    parser.add_argument("--voices", help="named voices as they are, separated by commas, or `all`; else new ones")
    parser.add_argument("--sample-rate", type=int, default=LISTEN_HZ, help="Hz")
    parser.add_argument("--phone-times", action="store_true", help="when each phone ends; Piper in new voices only")
    parser.add_argument("--style-labels", action="store_true", help="known styles, with instructions and cues")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    lines = options.sentences.read_text().splitlines()
    sentences = [(name, text) for name, text in (line.split("\t", 1) for line in lines)]
    if options.phone_times and (options.teacher != "piper" or options.voices):
        parser.error("--phone-times is for Piper in new voices: leave --voices out, or the times")
    teacher = Piper(options.model, options.phone_times) if options.teacher == "piper" else Kokoro(options.model)
    if options.voices:
        voices = sorted(teacher.voices) if options.voices == "all" else options.voices.split(",")
        perform = in_named_voices(teacher, voices, options.sample_rate, options.style_labels)
    elif options.style_labels:
        parser.error("--style-labels are for named voices: add --voices all, or some of them")
    else:
        perform = in_new_voices(teacher, options.sample_rate)
    rows = synthesize(sentences, perform, options.out, options.seed, options.sample_rate)
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "manifest.jsonl").open("a") as manifest:
        for row in track(rows, total=len(sentences), description=f"{options.teacher} reads"):
            manifest.write(json.dumps(row, ensure_ascii=False) + "\n")
            manifest.flush()


if __name__ == "__main__":
    main()
