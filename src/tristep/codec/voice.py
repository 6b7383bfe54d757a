"""A voice: what a few seconds of somebody's speech say about how they sound, and a folder of named ones.

A voice is made once from a clip of 3 to 10 s and its text, and is one file from then on. Whoever asks for
speech gives a voice's name and never a path: names are lower-case letters, digits, `-` and `_`, so that none
leads out of the folder.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import soxr
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tristep.audio import LISTEN_HZ, SPEAK_HZ, SPEECH_HOP, speech_mel
from tristep.codec.speaker import SpeakerEncoder

FORMAT = "tristep voice 1"
SUFFIX = ".safetensors"
NAME = re.compile(r"[a-z0-9_-]{1,64}")
MIN_CLIP_S, MAX_CLIP_S = 3.0, 10.0
MAX_REFERENCE_S = 5.0
"""Longest stretch of a clip that is kept as `reference_mel`, seconds."""
MIN_SPEECH_S = 2.0
"""Least time for which a clip must be more than silence, seconds."""
MIN_VOICED_SHARE = 0.15
"""Least share of the speech that must have a pitch: below it the clip is noise, music or a whisper."""
MIN_LEVEL_DB, MAX_CLIPPED_SHARE = -45.0, 0.01
SILENCE_DB = 40.0
"""How far below the loudest 10 ms sound counts as silence, dB."""
SILENT_DB = -100.0
LEVEL_WINDOW = SPEAK_HZ // 100
"""Samples over which one level is taken: 10 ms."""
CLIPPED = 0.999


@dataclass(frozen=True, eq=False)
class Voice:
    """How somebody sounds."""

    name: str
    """Under which it is asked for."""
    embedding: Tensor
    """CAM++ of the clip, shape `(192,)`, not scaled to unit length."""
    reference_mel: Tensor
    """Speaking mel of a stretch of the clip, shape `(80, R)`."""
    reference_codes: Tensor
    """The clip's audio codes, shape `(T,)`."""
    reference_text: str
    """What is said in the clip."""
    median_f0_hz: float
    """Median pitch where there is one."""
    energy_db: float
    """Mean power of the speech (`level_db`), dB below full scale."""
    licence: str
    """On what terms the voice may be used, and whose it is."""

    def __post_init__(self) -> None:
        check_name(self.name)
        shapes = self.embedding.dim(), self.reference_mel.dim(), self.reference_codes.dim()
        if shapes != (1, 2, 1):
            raise ValueError(
                f"the voice {self.name!r} has an embedding, mel and codes of {shapes} dimensions: "
                "expected (D,), (M, R) and (T,)"
            )


def voice_from_clip(
    waveform: Tensor,
    text: str,
    *,
    name: str,
    speaker: SpeakerEncoder,
    encode: Callable[[Tensor], Tensor],
    pitch: Callable[[Tensor], Tensor],
    licence: str = "",
) -> Voice:
    """Make a voice from a clip of somebody's speech.

    Args:
        waveform: Samples at 24 kHz, shape `(S,)`.
        text: What is said in it, word for word.
        name: What to call the voice.
        speaker: CAM++.
        encode: Turns a waveform at 24 kHz `(S,)` into audio codes `(T,)`.
        pitch: Turns a waveform at 24 kHz `(S,)` into F0 in Hz `(F,)`, 0 where there is none.
        licence: On what terms the voice may be used.

    Raises:
        ValueError: If the clip is too short, too long, too quiet, clipped, mostly silent or not speech.
    """
    check_name(name)
    if not text.strip():
        raise ValueError(f"the clip of the voice {name!r} has no text: expected the words that are said in it")
    check_clip(waveform)
    speech = without_edges(waveform)
    f0 = pitch(speech)
    f0 = f0[f0 > 0]
    if len(f0) < MIN_VOICED_SHARE * len(speech) / SPEECH_HOP:
        raise ValueError(
            f"only {len(f0) * SPEECH_HOP / SPEAK_HZ:.1f} s of the clip have a pitch: expected somebody speaking "
            "aloud; give a clip without music, noise or whispering"
        )
    return Voice(
        name=name,
        embedding=speaker.embed(to_listening_rate(speech)),
        reference_mel=speech_mel(speech[None, : round(MAX_REFERENCE_S * SPEAK_HZ)])[0],
        reference_codes=encode(speech),
        reference_text=" ".join(text.split()),
        median_f0_hz=float(f0.median()),
        energy_db=level_db(speech),
        licence=licence,
    )


def check_clip(waveform: Tensor) -> None:
    """Refuse a clip at 24 kHz, shape `(S,)`, that no voice can be made of, and say why."""
    duration_s = waveform.shape[-1] / SPEAK_HZ
    if waveform.dim() != 1 or not MIN_CLIP_S <= duration_s <= MAX_CLIP_S:
        raise ValueError(
            f"the clip has shape {tuple(waveform.shape)}, {duration_s:.1f} s: expected one channel of "
            f"{MIN_CLIP_S:g} to {MAX_CLIP_S:g} s; cut or record another"
        )
    if not torch.isfinite(waveform).all():
        raise ValueError("the clip has samples that are not numbers: expected finite ones; read it again")
    if (level := level_db(waveform)) < MIN_LEVEL_DB:
        raise ValueError(f"the clip's level is {level:.0f} dB: expected at least {MIN_LEVEL_DB:g} dB; make it louder")
    if (share := float((waveform.abs() >= CLIPPED).float().mean())) > MAX_CLIPPED_SHARE:
        raise ValueError(f"{share:.0%} of the clip is clipped: expected next to nothing; record it more quietly")
    if (speech_s := float(is_sound(waveform).sum()) * LEVEL_WINDOW / SPEAK_HZ) < MIN_SPEECH_S:
        raise ValueError(
            f"the clip holds {speech_s:.1f} s of sound, the rest is silence: expected at least {MIN_SPEECH_S:g} s; "
            "give a clip in which more is said"
        )


def levels_db(waveform: Tensor) -> Tensor:
    """Return the level of every 10 ms at 24 kHz, dB below full scale, shape `(S // 240,)`."""
    frames = waveform[: len(waveform) // LEVEL_WINDOW * LEVEL_WINDOW].view(-1, LEVEL_WINDOW)
    return 10 * frames.square().mean(-1).clamp(min=10 ** (SILENT_DB / 10)).log10()


def is_sound(waveform: Tensor) -> Tensor:
    """Say of every 10 ms whether it is near enough to the loudest to be more than silence, shape `(S // 240,)`."""
    levels = levels_db(waveform)
    return levels > levels.max() - SILENCE_DB if len(levels) else levels.bool()


def level_db(waveform: Tensor) -> float:
    """Return the mean power of what is not silence in a waveform at 24 kHz, shape `(S,)`, dB below full scale."""
    levels = levels_db(waveform)[is_sound(waveform)]
    return float(10 * (10 ** (levels / 10)).mean().log10()) if len(levels) else SILENT_DB


def without_edges(waveform: Tensor) -> Tensor:
    """Cut the silence before and after the sound; 50 ms of it stay."""
    sound = is_sound(waveform).nonzero().flatten()
    if not len(sound):
        return waveform
    first, last = max(0, int(sound[0]) - 5), int(sound[-1]) + 6
    return waveform[first * LEVEL_WINDOW : last * LEVEL_WINDOW]


def to_listening_rate(waveform: Tensor) -> Tensor:
    """Resample `(S,)` from 24 kHz to 16 kHz."""
    return torch.from_numpy(soxr.resample(waveform.cpu().float().numpy(), SPEAK_HZ, LISTEN_HZ))


def check_name(name: str) -> None:
    """Refuse a name that could be anything but the name of a voice."""
    if not NAME.fullmatch(name):
        raise ValueError(
            f"{name[:80]!r} is no name of a voice: expected 1 to 64 lower-case letters, digits, '-' and '_'; "
            "a path is never one"
        )


def write_voice(registry: str | Path, voice: Voice) -> Path:
    """Write a voice into the folder of named ones and return its file."""
    path = Path(registry) / f"{voice.name}{SUFFIX}"
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        "embedding": voice.embedding.float().contiguous(),
        "reference_mel": voice.reference_mel.float().contiguous(),
        "reference_codes": voice.reference_codes.int().contiguous(),
    }
    metadata = {
        "format": FORMAT,
        "reference_text": voice.reference_text,
        "median_f0_hz": repr(voice.median_f0_hz),
        "energy_db": repr(voice.energy_db),
        "licence": voice.licence,
    }
    partial = path.with_suffix(".partial")
    save_file(tensors, str(partial), metadata)
    partial.replace(path)
    return path


def read_voice(registry: str | Path, name: str) -> Voice:
    """Read one voice of a folder by its name.

    Raises:
        ValueError: If the name is not one, there is no such voice, or its file is damaged.
    """
    check_name(name)
    path = Path(registry) / f"{name}{SUFFIX}"
    if not path.is_file():
        known = ", ".join(list_voices(registry)) or "none"
        raise ValueError(f"there is no voice {name!r}: there are {known}")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in ("embedding", "reference_mel", "reference_codes")}
        if metadata.get("format") != FORMAT:
            raise ValueError(f"its format is {metadata.get('format')!r}, expected {FORMAT!r}")
        return Voice(
            name=name,
            embedding=tensors["embedding"].float(),
            reference_mel=tensors["reference_mel"].float(),
            reference_codes=tensors["reference_codes"].long(),
            reference_text=metadata["reference_text"],
            median_f0_hz=float(metadata["median_f0_hz"]),
            energy_db=float(metadata["energy_db"]),
            licence=metadata["licence"],
        )
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"the file of the voice {name!r} can't be read ({error}): make the voice again") from error


def list_voices(registry: str | Path) -> list[str]:
    """Return the names of the voices in a folder, none where there is no folder."""
    names = (path.stem for path in Path(registry).glob(f"*{SUFFIX}"))
    return sorted(name for name in names if NAME.fullmatch(name))
