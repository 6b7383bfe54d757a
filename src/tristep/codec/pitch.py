"""Pitch: the fundamental frequency of a clip on the speaking mel's frames, by Praat's autocorrelation.

What the vocoder's own predictor learns from, and what prosody is measured with. Praat comes with the
`train` extra: nothing that speaks needs it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tristep.audio import SPEAK_HZ, SPEECH_HOP

MIN_F0_HZ, MAX_F0_HZ = 60.0, 600.0
"""The range that is searched."""


def pitch(waveform: Tensor) -> Tensor:
    """Measure the fundamental frequency.

    Args:
        waveform: One clip at `SPEAK_HZ`, shape `(S,)`.

    Returns:
        Hz, 0 where the clip is unvoiced, shape `(F,)` with `F = S // SPEECH_HOP`; frame `f` is centred on
        sample `f * SPEECH_HOP`, as in `audio.speech_mel`.
    """
    import parselmouth

    num_frames = len(waveform) // SPEECH_HOP
    if len(waveform) < 3 * SPEAK_HZ / MIN_F0_HZ + 1:  # Praat needs three periods of the lowest pitch
        return torch.zeros(num_frames)
    sound = parselmouth.Sound(waveform.double().numpy(), SPEAK_HZ)
    track = sound.to_pitch_ac(time_step=SPEECH_HOP / SPEAK_HZ, pitch_floor=MIN_F0_HZ, pitch_ceiling=MAX_F0_HZ)
    f0 = track.selected_array["frequency"]
    # Praat's frames lie symmetrically in the clip: take the nearest to each of ours, none beyond its ends.
    places = (np.arange(num_frames) * SPEECH_HOP / SPEAK_HZ - track.x1) / track.dx
    nearest = np.rint(places).astype(int)
    inside = (nearest >= 0) & (nearest < len(f0))
    return torch.from_numpy(np.where(inside, f0[np.clip(nearest, 0, len(f0) - 1)], 0.0)).float()


def bridged(f0: Tensor) -> Tensor:
    """Fill the unvoiced frames of a track with what lies between their voiced neighbours, on a log scale.

    Args:
        f0: Hz, 0 where unvoiced, shape `(F,)`.

    Returns:
        The same shape without zeros; a track without a voiced frame becomes 150 Hz throughout.
    """
    voiced = np.flatnonzero(f0.numpy() > 0)
    if len(voiced) == 0:
        return torch.full_like(f0, 150.0)
    logs = np.interp(np.arange(len(f0)), voiced, np.log(f0.numpy()[voiced]))
    return torch.from_numpy(np.exp(logs)).float()
