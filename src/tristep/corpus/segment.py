"""Segments: recordings of any length become pieces that a recogniser can hear at once, graded by how they sound.

A recording that fits is one piece; a longer one is cut by voice activity, through short pauses and at long ones, so
pieces are at most 28 s and begin and end in silence. Grades are estimates from the sound alone, made to sort a corpus
and not to compare systems. The report's pipeline (section 3.1) also looks for synthetic voices and counts speakers;
neither is done here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from tristep.audio import LISTEN_HZ, stream_audio
from tristep.engine.segments import MAX_SEGMENT_S, SPEECH_FROM, SPEECH_UNTIL, Stretch, speech_segments
from tristep.engine.voice_activity import FRAME_SIZE, VoiceActivity

CHUNK_S = 10.0
SNR_DB = (-20.0, 60.0)
"""Where estimates end: nobody speaks, and digital silence between words."""
MIN_QUIET_FRAMES = 3
"""With fewer frames in which nobody speaks, the quietest tenth of all stands for the noise."""
FLAT, NEAR_PEAK = 1e-4, 0.98
"""Neighbours that differ by less than this share of the peak, this near to it, are a clipped top."""
HEARD_DB = 60.0
"""A frequency belongs to the band if it is at most this far below the loudest one."""


@dataclass(frozen=True)
class Quality:
    """How a piece sounds."""

    snr_db: float
    """Power of the speech over that of what is between it."""
    clipped_share: float
    """Share of samples on flat tops: hard clipping, which lossy coding afterwards hides."""
    bandwidth_hz: float
    """Highest frequency that is heard; near 4000 is a telephone, 8000 is all that is listened to."""
    speech_share: float
    """Share of the time in which somebody speaks."""


def pieces(path: str | Path) -> Iterator[tuple[Stretch, bool]]:
    """Yield a recording if it is short enough to be heard at once, or else its stretches of speech.

    Yields:
        A stretch, and whether it is the whole recording.

    Raises:
        AudioError: If the recording can't be read.
    """
    chunks = stream_audio(path, CHUNK_S)
    head: list[Tensor] = []
    for chunk in chunks:
        head.append(chunk)
        if sum(map(len, head)) > MAX_SEGMENT_S * LISTEN_HZ:
            yield from ((stretch, False) for stretch in speech_segments(chain(head, chunks)))
            return
    yield Stretch(0.0, torch.cat(head)), True


def read_stretch(path: str | Path, start_s: float, end_s: float) -> Tensor:
    """Read a stretch of a recording of any length at `LISTEN_HZ`, shape `(S,)`."""
    start, end = (round(LISTEN_HZ * second) for second in (start_s, end_s))
    kept, num_read = [], 0
    for chunk in stream_audio(path, CHUNK_S):
        kept.append(chunk[max(0, start - num_read) : max(0, end - num_read)])
        num_read += len(chunk)
        if num_read >= end:
            break
    return torch.cat(kept)


def grade(waveform: Tensor) -> Quality:
    """Estimate how a waveform `(S,)` at `LISTEN_HZ` sounds."""
    num_frames = len(waveform) // FRAME_SIZE
    frames = waveform[: num_frames * FRAME_SIZE].view(num_frames, FRAME_SIZE)
    probs = torch.tensor(VoiceActivity()(frames))
    spoken = probs >= SPEECH_FROM
    return Quality(
        snr_db=round(snr_db(frames.square().mean(dim=1), spoken, probs < SPEECH_UNTIL), 1),
        clipped_share=round(clipped_share(waveform), 5),
        bandwidth_hz=round(bandwidth_hz(frames[spoken] if spoken.any() else frames)),
        speech_share=round(float(spoken.float().mean()), 3) if num_frames else 0.0,
    )


def snr_db(powers: Tensor, spoken: Tensor, quiet: Tensor) -> float:
    """`10 log10((P_speech - P_noise) / P_noise)`, with the noise measured where nobody speaks.

    Args:
        powers: Mean square of each frame, shape `(F,)`.
        spoken: True in frames of speech, shape `(F,)`.
        quiet: True in frames where certainly nobody speaks, shape `(F,)`.
    """
    if not spoken.any():
        return SNR_DB[0]
    lowest = powers.sort().values[: max(1, len(powers) // 10)]
    noise = float((powers[quiet] if quiet.sum() >= MIN_QUIET_FRAMES else lowest).mean())
    speech = float(powers[spoken].mean()) - noise
    if speech <= 0:
        return SNR_DB[0]
    estimate = 10 * float(torch.tensor(speech / max(noise, 1e-12)).log10())
    return min(max(estimate, SNR_DB[0]), SNR_DB[1])


def clipped_share(waveform: Tensor) -> float:
    """Return the share of samples `(S,)` that lie on flat tops."""
    peak = float(waveform.abs().max()) if len(waveform) else 0.0
    if not peak:
        return 0.0
    flat = (waveform[1:] - waveform[:-1]).abs() < FLAT * peak
    return float((flat & (waveform[1:].abs() > NEAR_PEAK * peak)).float().mean()) if len(waveform) > 1 else 0.0


def bandwidth_hz(frames: Tensor) -> float:
    """Return the highest frequency heard in frames `(F, N)` at `LISTEN_HZ`; 0 in silence."""
    if not frames.any():
        return 0.0
    power = torch.fft.rfft(frames * torch.hann_window(frames.shape[1])).abs().square().mean(dim=0)
    heard = (power >= power.max() * 10 ** (-HEARD_DB / 10)).nonzero()
    return float(heard.max()) * LISTEN_HZ / frames.shape[1]
