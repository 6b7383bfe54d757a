"""The ear that the codec's speech has to please: the frozen encoder, the phones that it hears, and whose voice it is.

A mel that is near the true one on average can still lose what tells words apart, because consonants are short and
quiet. So the flow decoder is also taught by what is heard in its mel: the speaking mel becomes a listening mel, which
differs from it by the lengths of two windows alone, the frozen encoder hears it, and gradients go back through both.
Its frames should be those of the true mel, and the phones in them those that were said. Nor does the average tell who
speaks: CAM++ listens too, to its own filter bank as the mel implies it, and should find whose voice was asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tristep.audio import MEL_TAIL_S, N_FFT, SPEECH_N_FFT, normalise
from tristep.codec.speaker import SpeakerEncoder, filter_bank_of_mel
from tristep.codec.tokenizer import MEL_HZ, SILENT_MEL, AudioEncoder, inside
from tristep.phones import PHONES

WIDTH, DROPOUT = 256, 0.15


def listening_mel(mel: Tensor) -> Tensor:
    """Turn a speaking mel, natural logarithms, into the log10 that the ear's own windows would measure on average."""
    return mel / math.log(10) + 2 * math.log10(N_FFT / SPEECH_N_FFT)


class PhoneReader(nn.Module):
    """Encoder frames -> the phone that is said in each, by a few local layers."""

    def __init__(self, encoder_dim: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout(DROPOUT)
        self.stack = nn.Linear(encoder_dim, WIDTH)
        self.convs = nn.ModuleList(nn.Conv1d(WIDTH, WIDTH, 5, padding=2) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, len(PHONES))

    def forward(self, frames: Tensor) -> Tensor:
        """Return logits `(B, N, P)` of frames `(B, N, De)`."""
        hidden = self.norms[0](F.gelu(self.stack(self.dropout(frames))))
        for conv, norm in zip(self.convs, self.norms[1:], strict=True):
            hidden = norm(hidden + F.gelu(conv(hidden.transpose(1, 2)).transpose(1, 2)))
        logits: Tensor = self.head(hidden)
        return logits

    def save(self, path: Path) -> None:
        """Write the weights."""
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, path)

    @classmethod
    def load(cls, path: str | Path) -> PhoneReader:
        """Read what `save` wrote."""
        weights = load_file(path)
        reader = cls(weights["stack.weight"].shape[1])
        reader.load_state_dict(weights)
        return reader.eval().requires_grad_(False)


@dataclass(frozen=True)
class Hearing:
    """What was heard in a mel."""

    frames: Tensor
    """The encoder's, at 50 Hz, shape `(B, N, De)`."""
    phones: Tensor
    """Logits over `PHONES`, shape `(B, N, P)`."""
    voice: Tensor
    """CAM++ embeddings, shape `(B, 192)`."""


@dataclass(frozen=True)
class Ear:
    """Listens to speaking mels."""

    encoder: AudioEncoder
    reader: PhoneReader
    speaker: SpeakerEncoder

    def hear(self, mel: Tensor, num_frames: Tensor) -> Hearing:
        """Listen to a padded batch; gradients reach the mel.

        Args:
            mel: Speaking mel, shape `(B, M, 2 N)`.
            num_frames: Valid mel frames per row, shape `(B,)`.
        """
        frames = self.frames(mel, num_frames)
        return Hearing(frames, self.reader(frames), self.voice(mel, num_frames))

    def frames(self, mel: Tensor, num_frames: Tensor) -> Tensor:
        """Return the encoder's frames `(B, N, De)` of what `hear` takes."""
        num_tail = round(MEL_TAIL_S * MEL_HZ)
        known = inside(num_frames, mel.shape[2]).transpose(1, 2)
        heard = torch.where(known, listening_mel(mel), SILENT_MEL)
        heard = normalise(F.pad(heard, (0, num_tail), value=SILENT_MEL))
        frames, _ = self.encoder(heard, num_frames + num_tail)
        return frames[:, : mel.shape[2] // 2].float()

    def voice(self, mel: Tensor, num_frames: Tensor) -> Tensor:
        """Embed who speaks in a padded batch, shape `(B, 192)`; a shorter row is heard over and over."""
        places = torch.arange(mel.shape[2], device=mel.device) % num_frames[:, None]  # (B, F)
        bank = filter_bank_of_mel(mel.gather(2, places[:, None].expand_as(mel)), self.speaker.num_mels)
        embedding: Tensor = self.speaker(bank - bank.mean(dim=1, keepdim=True))
        return embedding.float()
