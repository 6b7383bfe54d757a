"""Judges of speech: what was said, by whom, how well it sounds, and how it was said.

None of them is ours, so none is pleased by our own mistakes: faster-whisper writes down what it hears, CAM++ compares
voices, DistillMOS predicts what listeners would answer, PESQ and STOI compare with a reference, Praat measures pitch.
All are optional; a judge whose package is missing says what to install. Waveforms are 24 kHz, shape `(S,)`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from tristep.audio import LISTEN_HZ, SPEAK_HZ
from tristep.codec.pitch import pitch
from tristep.codec.speaker import SpeakerEncoder, similarity
from tristep.codec.voice import LEVEL_WINDOW, is_sound, level_db, to_listening_rate, without_edges

Recognise = Callable[[Tensor], str]
"""Writes down what a waveform says."""
Embed = Callable[[Tensor], Tensor]
"""Turns a waveform into the embedding of its voice."""
Rate = Callable[[Tensor], float]
"""Gives a waveform a mean opinion score, 1 to 5."""

MIN_PAUSE_S = 0.12
"""Shortest silence that counts as a pause; plosives are shorter."""


@dataclass(frozen=True)
class Judges:
    """Who listens."""

    recognise: Recognise
    """An independent recogniser."""
    embed: Embed | None = None
    """CAM++."""
    rate: Rate | None = None
    """DistillMOS."""
    names: tuple[str, ...] = ()
    """What they are, for the report."""


@dataclass(frozen=True)
class Delivery:
    """How something was said."""

    duration_s: float
    """From the first sound to the last."""
    median_f0_hz: float
    """Median pitch of the voiced frames, 0 where there are none."""
    f0_spread: float
    """Standard deviation of the pitch in semitones: a monotone is near 1, lively reading near 4."""
    voiced_share: float
    """Voiced frames over frames with sound: a whisper has few."""
    level_db: float
    """Mean power of what is not silence, dB below full scale."""
    words_per_s: float
    """Words of the text over the duration, pauses included."""
    pause_s: float
    """Silences of at least `MIN_PAUSE_S` together."""
    longest_pause_s: float
    """The longest of them."""


def delivery(waveform: Tensor, text: str) -> Delivery:
    """Measure how a text was said; silence before and after it does not count."""
    speech = without_edges(waveform)
    sound = is_sound(speech)
    f0 = pitch(speech)[: len(sound)]
    voiced = f0[(f0 > 0) & sound[: len(f0)]]
    pauses = [length for length in silences_s(sound) if length >= MIN_PAUSE_S]
    duration_s = len(speech) / SPEAK_HZ
    return Delivery(
        duration_s=duration_s,
        median_f0_hz=float(voiced.median()) if len(voiced) else 0.0,
        f0_spread=float((12 * voiced.log2()).std()) if len(voiced) > 1 else 0.0,
        voiced_share=len(voiced) / max(1, int(sound.sum())),
        level_db=level_db(speech),
        words_per_s=len(text.split()) / max(duration_s, 1e-3),
        pause_s=sum(pauses),
        longest_pause_s=max(pauses, default=0.0),
    )


def silences_s(sound: Tensor) -> Iterator[float]:
    """Yield the lengths of the silences between sounds, in seconds; `sound` has a bool for every 10 ms."""
    places = sound.nonzero().flatten()
    for gap in (places.diff() - 1).tolist():
        if gap > 0:
            yield gap * LEVEL_WINDOW / SPEAK_HZ


def load_judges(
    recogniser: str = "base",
    speaker: str | Path | None = None,
    distillmos: str | Path | None = None,
    *,
    mos: bool = True,
    language: str = "en",
    threads: int = 1,
) -> Judges:
    """Load the judges of an evaluation.

    Args:
        recogniser: faster-whisper's model, by its name or folder.
        speaker: Weights of CAM++; voices are not compared if not given.
        distillmos: Folder of DistillMOS' package, where it is not installed.
        mos: Whether to predict opinion scores.
        language: The language that is spoken.
        threads: Processor threads of the recogniser.

    Raises:
        ValueError: If a judge is not there, in one sentence that says what to do about it.
    """
    names = [f"faster-whisper {Path(recogniser).name}", "CAM++" if speaker else "", "DistillMOS" if mos else ""]
    return Judges(
        recognise=load_recogniser(recogniser, language, threads),
        embed=load_embed(speaker) if speaker else None,
        rate=load_distillmos(distillmos) if mos else None,
        names=tuple(filter(None, names)),
    )


def load_recogniser(model: str = "base", language: str = "en", threads: int = 1) -> Recognise:
    """Load faster-whisper (int8, greedy).

    Args:
        model: Name of a model, or the folder of one in CTranslate2's format.
        language: The language that is spoken.
        threads: Processor threads.
    """
    with needs("faster-whisper"):
        from faster_whisper import WhisperModel
    try:
        whisper = WhisperModel(model, device="cpu", compute_type="int8", cpu_threads=threads)
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(
            f"faster-whisper can't load {model!r} ({error}): give the name of a model, or a CTranslate2 folder"
        ) from error

    def recognise(waveform: Tensor) -> str:
        samples = to_listening_rate(waveform).numpy()
        segments, _ = whisper.transcribe(samples, language=language, beam_size=1, temperature=0.0)
        return " ".join(segment.text.strip() for segment in segments)

    return recognise


def load_embed(weights: str | Path) -> Embed:
    """Load CAM++ from our file or the published one."""
    encoder = SpeakerEncoder.load(weights)
    return lambda waveform: encoder.embed(to_listening_rate(waveform))


def rectified_similarity(embedding: Tensor, other: Tensor) -> float:
    """Compare two embeddings without their negative numbers, as copies of CAM++ with a last rectifier do.

    On that scale two clips of LibriSpeech by one speaker have 0.89 and those of two speakers 0.37; on the
    scale of the authors' network, `speaker.similarity`, 0.87 and 0.08.
    """
    return similarity(embedding.relu(), other.relu())


def load_distillmos(site: str | Path | None = None) -> Rate:
    """Load DistillMOS.

    Args:
        site: Folder that its package lies in, where it is not installed.
    """
    if site is not None and not (Path(site) / "distillmos").is_dir():
        raise ValueError(f"there is no package distillmos in {str(site)!r}: give the folder that it was unpacked in")
    with needs("distillmos"), on_path(site), without_torchaudio(), contextlib.redirect_stdout(sys.stderr):
        import distillmos

        network = distillmos.ConvTransformerSQAModel().eval()

    @torch.no_grad()
    def rate(waveform: Tensor) -> float:
        return float(network(to_listening_rate(waveform)[None]))

    return rate


@contextlib.contextmanager
def on_path(site: str | Path | None) -> Iterator[None]:
    """Look for packages in one folder more."""
    folders = [] if site is None else [str(site)]
    sys.path[:0] = folders
    try:
        yield
    finally:
        for folder in folders:
            sys.path.remove(folder)


@contextlib.contextmanager
def without_torchaudio() -> Iterator[None]:
    """Let a module be imported that imports torchaudio only to read the files of its own command line."""
    missing = "torchaudio" not in sys.modules and importlib.util.find_spec("torchaudio") is None
    if missing:
        sys.modules["torchaudio"] = ModuleType("torchaudio")
    try:
        yield
    finally:
        if missing:
            del sys.modules["torchaudio"]


def pesq_wb(reference: Tensor, waveform: Tensor) -> float:
    """Compare with a reference of about the same length by wide-band PESQ, 1 to 4.64."""
    with needs("pesq"):
        from pesq import pesq
    return float(pesq(LISTEN_HZ, *both_at_16k(reference, waveform), "wb"))


def stoi(reference: Tensor, waveform: Tensor) -> float:
    """Compare with a reference of about the same length by STOI, 0 to 1."""
    with needs("pystoi"):
        from pystoi import stoi
    return float(stoi(*both_at_16k(reference, waveform), LISTEN_HZ))


def both_at_16k(reference: Tensor, waveform: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Resample two waveforms to 16 kHz and cut both to the shorter one."""
    length = min(len(reference), len(waveform))
    return to_listening_rate(reference[:length]).numpy(), to_listening_rate(waveform[:length]).numpy()


@contextlib.contextmanager
def needs(package: str) -> Iterator[None]:
    """Say which package a judge needs, where it is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ValueError(f"this judge needs {error.name}, which is not installed: pip install {package}") from error
