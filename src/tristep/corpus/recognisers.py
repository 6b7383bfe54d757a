"""Recognisers that label data: this project's engine, and faster-whisper where it is installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

PEER = "faster-whisper:"
"""What the name of a faster-whisper model begins with."""
MIN_LOGPROB = -0.5
"""Mean log-probability per token under which faster-whisper is not sure."""
MAX_COMPRESSION = 2.0
"""Compression ratio above which a transcript is taken for a loop."""


@dataclass(frozen=True)
class Heard:
    """What one recogniser heard in one piece."""

    text: str
    language: str | None
    is_sure: bool
    """Whether it ended as it should and believes its words."""


Recognise = Callable[[Sequence[Tensor], str | None], list[Heard]]
"""Hears waveforms `(S,)` at 16 kHz, of at most 30 s, in a language or in whichever it finds."""


def load_recognisers(names: Sequence[str]) -> dict[str, Recognise]:
    """Open recognisers: `nano` or a folder of our weights, or `faster-whisper:` and a model's name or folder.

    Returns:
        The recognisers by name, folders by their last part, in the order given.

    Raises:
        ValueError: If there are none, one is named twice, or its weights are not there.
    """
    short = [PEER * name.startswith(PEER) + Path(name.removeprefix(PEER)).name for name in names]
    if not names or len(set(short)) < len(short):
        raise ValueError(f"the recognisers are {short}: give at least one, each of another name")
    return {label: open_recogniser(name) for label, name in zip(short, names, strict=True)}


def open_recogniser(name: str) -> Recognise:
    """Open one recogniser by its name."""
    if name.startswith(PEER):
        return faster_whisper(name.removeprefix(PEER))
    from tristep.engine.engine import Engine

    return from_engine(Engine.load(name))


def from_engine(engine: Any) -> Recognise:
    """Turn an engine into a recogniser."""

    def recognise(waveforms: Sequence[Tensor], language: str | None) -> list[Heard]:
        results = engine.transcribe(list(waveforms), language=language)
        sure = ("stop", "silence")
        return [Heard(result.text, result.language, result.finish_reason in sure) for result in results]

    return recognise


def faster_whisper(model: str, beam_size: int = 5) -> Recognise:
    """Turn a faster-whisper model into a recogniser without a past, so that no clip drags another along."""
    whisper = open_whisper(model)

    def recognise(waveforms: Sequence[Tensor], language: str | None) -> list[Heard]:
        return [_heard(whisper, waveform, language, beam_size) for waveform in waveforms]

    return recognise


def open_whisper(model: str) -> Any:
    """Open a faster-whisper model on one thread.

    Raises:
        ValueError: If the package or the model is not there.
    """
    try:
        from faster_whisper import WhisperModel
    except ModuleNotFoundError as error:
        raise ValueError("faster-whisper is not installed: run pip install faster-whisper") from error
    try:
        return WhisperModel(model, device="cpu", compute_type="int8", cpu_threads=1)
    except (RuntimeError, OSError, ValueError) as error:  # a hub that can't be reached, a file that is missing
        raise ValueError(
            f"faster-whisper can't open {model!r} ({error}): give a name that it knows, or a folder with its "
            "model.bin, config.json, tokenizer.json and vocabulary.json"
        ) from error


def _heard(recogniser: Any, waveform: Tensor, language: str | None, beam_size: int) -> Heard:
    found, info = recogniser.transcribe(
        waveform.numpy(), language=language, beam_size=beam_size, condition_on_previous_text=False
    )
    segments = list(found)
    text = " ".join(segment.text.strip() for segment in segments)
    return Heard(text, info.language, all(map(is_sure, segments)))


def is_sure(segment: Any) -> bool:
    """Say whether faster-whisper believes a segment, and did not loop in it."""
    return segment.avg_logprob > MIN_LOGPROB and segment.compression_ratio < MAX_COMPRESSION
