"""What the tokenizer and the flow decoder are trained on, as pure functions: sums over frames.

The tokenizer's codes have to carry phones and the speaker-independent part of prosody.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tristep.codec.ear import Hearing
from tristep.phones import UNLABELLED


def relative_melody(f0: Tensor, num_frames: Tensor) -> Tensor:
    """Return F0 in octaves from each clip's own median, 0 where unvoiced: what one voice can take from another.

    Args:
        f0: Hz, 0 where unvoiced, shape `(B, F)`.
        num_frames: Valid frames per clip, shape `(B,)`.
    """
    voiced = (f0 > 0) & _inside(num_frames, f0.shape[1])
    octaves = f0.clamp(min=1).log2()
    median = torch.where(voiced, octaves, torch.nan).nanmedian(dim=1, keepdim=True).values
    return torch.where(voiced, octaves - median, octaves.new_zeros(()))


def relative_energy(mel: Tensor, num_frames: Tensor) -> Tensor:
    """Return each frame's mean log-mel against its clip's mean, shape `(B, F)`.

    Args:
        mel: Natural log-mel, shape `(B, M, F)`.
        num_frames: Valid frames per clip, shape `(B,)`.
    """
    known = _inside(num_frames, mel.shape[2])
    energy = mel.mean(dim=1) * known
    return (energy - energy.sum(dim=1, keepdim=True) / num_frames[:, None].clamp(min=1)) * known


def prosody_losses(prosody: Tensor, f0: Tensor, mel: Tensor, num_frames: Tensor) -> dict[str, Tensor]:
    """Compare what was read from codes with the clip's own melody, voicing and energy.

    Args:
        prosody: Melody, logit of voiced, energy, shape `(B, F, 3)`.
        f0: Hz, 0 where unvoiced, shape `(B, F)`.
        mel: Natural log-mel, shape `(B, M, F)`.
        num_frames: Valid frames per clip, shape `(B,)`.

    Returns:
        Sums of absolute errors `melody` (octaves, over voiced frames) and `energy`, and of the cross-entropy `voiced`.
    """
    known = _inside(num_frames, f0.shape[1])
    voiced = (f0 > 0) & known
    melody, logit, energy = prosody.float().unbind(dim=-1)
    return {
        "melody": (melody - relative_melody(f0, num_frames))[voiced].abs().sum(),
        "melody_targets": voiced.sum(),
        "voiced": F.binary_cross_entropy_with_logits(logit[known], voiced[known].float(), reduction="sum"),
        "energy": (energy - relative_energy(mel, num_frames))[known].abs().sum(),
    }


def phone_loss(logits: Tensor, phones: Tensor) -> Tensor:
    """Sum the cross-entropy of frames' phones; what lies beyond them, and what is not known, counts nothing.

    Args:
        logits: Shape `(B, N + any, P)`.
        phones: Indices into `PHONES`, or `UNLABELLED`, shape `(B, N)`.
    """
    return F.cross_entropy(
        logits[:, : phones.shape[1]].float().transpose(1, 2), phones, ignore_index=UNLABELLED, reduction="sum"
    )


def hearing_losses(
    heard: Hearing, frames: Tensor, voices: Tensor, phones: Tensor, num_frames: Tensor, lent: Tensor
) -> dict[str, Tensor]:
    """Compare what is heard in a mel with what is heard in the true one, with who should speak, and with what was said.

    Args:
        heard: In the mel that learns.
        frames: The encoder's of the true one, shape `(B, N, De)`.
        voices: CAM++ embeddings of those who should speak, shape `(B, D)`.
        phones: Indices into `PHONES`, or `UNLABELLED`, shape `(B, N)`.
        num_frames: Valid frames at 50 Hz per row, shape `(B,)`.
        lent: Rows that are to sound like somebody else than the true mel, shape `(B,)`; their frames count nothing.

    Returns:
        Sums over frames: `frames`, the mean absolute error of the encoder's, `voice`, what the cosine of the voices
        lacks of 1, and `phones`, the cross-entropy, and how many phones are heard `right`; with the `_targets` of all.
    """
    labels = F.pad(phones, (0, heard.phones.shape[1] - phones.shape[1]), value=UNLABELLED)
    num_labelled = (labels != UNLABELLED).sum()
    own = num_frames * ~lent
    return {
        "frames": frame_errors(heard.frames, frames, own, power=1),
        "frames_targets": own.sum(),
        "voice": ((1 - F.cosine_similarity(heard.voice, voices, dim=1)) * num_frames).sum(),
        "phones": phone_loss(heard.phones, labels),
        "phones_targets": num_labelled,
        "right": (heard.phones.argmax(dim=-1) == labels).sum(),
        "right_targets": num_labelled,
    }


def crowding(points: Tensor, num_codes: Tensor) -> Tensor:
    """Measure how much of the lattice a batch leaves empty: dimensions that say the same, or hardly move.

    Args:
        points: In [-1, 1], shape `(B, T, D)`.
        num_codes: Valid codes per clip, shape `(B,)`.

    Returns:
        The mean squared correlation of two dimensions, and what the spread of each lacks of an even use of its
        levels; 0 where all is in use.
    """
    used = points[_inside(num_codes, points.shape[1])]  # (n, D)
    centred = used - used.mean(dim=0)
    spread = centred.square().mean(dim=0).clamp(min=1e-6).sqrt()  # (D,)
    scaled = centred / spread
    correlation = scaled.T @ scaled / len(scaled)
    num_dims = points.shape[2]
    others = (correlation.square().sum() - num_dims) / max(1, num_dims * (num_dims - 1))
    return others.clamp(min=0) + (0.7 - spread).clamp(min=0).square().mean()


def mel_loss(predicted: Tensor, mel: Tensor, num_frames: Tensor) -> Tensor:
    """Sum over frames the mean absolute error of the bands of `(B, M, F)`."""
    known = _inside(num_frames, mel.shape[2])
    return ((predicted.float() - mel).abs().mean(dim=1) * known).sum()


def flow_path(noise: Tensor, mel: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the straight path from noise to mel is at a time, and its velocity (Lipman et al. 2023).

    Args:
        noise: Shape `(B, N, W)`.
        mel: Shape `(B, N, W)`.
        time: From 0 to 1, shape `(B,)`.
    """
    share = time[:, None, None]
    return (1 - share) * noise + share * mel, mel - noise


def frame_errors(predicted: Tensor, wanted: Tensor, num_frames: Tensor, power: float) -> Tensor:
    """Sum over valid frames the mean error `|.| ** power` of `(B, N, W)`; `num_frames` is `(B,)`."""
    known = _inside(num_frames, wanted.shape[1])
    return ((predicted.float() - wanted).abs().pow(power).mean(dim=2) * known).sum()


def _inside(num: Tensor, length: int) -> Tensor:
    return torch.arange(length, device=num.device) < num[:, None]
