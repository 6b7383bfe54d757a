"""Silero's voice activity detector: how likely it is, every 32 ms, that somebody speaks.

The weights are those that the `silero-vad` wheel carries as safetensors. That package itself is not imported: it
computes frame by frame, and sets the number of threads of whoever imports it. What is left is this small network,
which takes all frames of a chunk at once.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

FRAME_SIZE = 512
"""Samples that are judged at once, at 16 kHz."""
CONTEXT = 64
"""Samples before a frame that are heard with it."""
N_FFT, HOP_LENGTH, NUM_BINS = 256, 128, 129
DIM = 128


class Network(nn.Module):
    """Spectrum, four convolutions, and a recurrent layer from frame to frame."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 2 * NUM_BINS, N_FFT, HOP_LENGTH, bias=False)
        self.conv1 = nn.Conv1d(NUM_BINS, DIM, 3, padding=1)
        self.conv2 = nn.Conv1d(DIM, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, DIM, 3, padding=1)
        self.lstm = nn.LSTM(DIM, DIM)
        self.final_conv = nn.Conv1d(DIM, 1, 1)

    def forward(self, frames: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Judge frames `(N, CONTEXT + FRAME_SIZE)`; return probabilities `(N,)` and the state after the last."""
        windows = F.pad(frames, (0, CONTEXT), mode="reflect").unfold(1, N_FFT, HOP_LENGTH)  # (N, 4, N_FFT)
        spectrum = F.linear(windows, self.stft_conv.weight[:, 0])  # (N, 4, 2 bins)
        hidden = torch.hypot(spectrum[..., :NUM_BINS], spectrum[..., NUM_BINS:])
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            hidden = convolved(conv, hidden).relu()
        hidden, state = self._follow(hidden[:, 0], state)  # (N, DIM)
        logits = F.linear(hidden.relu(), self.final_conv.weight[..., 0], self.final_conv.bias)
        return logits.sigmoid().flatten(), state

    def _follow(self, hidden: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Go from frame to frame, `(N, DIM)`; the single frames of a session take a fifth of the time by themselves."""
        if len(hidden) > 1:
            return self.lstm(hidden, state)
        state = torch.lstm_cell(hidden, state, *self.lstm.all_weights[0])
        return state[0], state


def convolved(conv: nn.Conv1d, hidden: Tensor) -> Tensor:
    """Convolve `(N, T, C)` along `T`, padded by one: for so few positions, one product is three times as fast."""
    taps = F.pad(hidden, (0, 0, 1, 1)).unfold(1, 3, conv.stride[0])  # (N, T', C, 3)
    return F.linear(taps.flatten(2), conv.weight.flatten(1), conv.bias)


class VoiceActivity:
    """Listens to one sound, frames in order."""

    def __init__(self, network: Network | None = None) -> None:
        self.network = network or shipped_network()
        self._context = torch.zeros(CONTEXT)
        self._state = (torch.zeros(1, DIM), torch.zeros(1, DIM))

    @torch.inference_mode()
    def __call__(self, frames: Tensor) -> list[float]:
        """Return the probability of speech in each of the next frames, shape `(N, FRAME_SIZE)`."""
        if not len(frames):
            return []
        tails = torch.cat([self._context[None], frames[:, -CONTEXT:]])  # (N + 1, CONTEXT)
        probs, self._state = self.network(torch.cat([tails[:-1], frames], dim=1), self._state)
        self._context = tails[-1]
        return probs.tolist()


@cache
def shipped_network() -> Network:
    """Load the detector once."""
    weights = load_file(weights_path())
    for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        weights[f"lstm.{part}_l0"] = weights.pop(f"lstm_cell.{part}")
    model = Network().requires_grad_(False)
    model.load_state_dict(weights)
    return model


def weights_path() -> Path:
    """Return where the wheel has put the weights."""
    spec = find_spec("silero_vad")  # finds the package without running it
    folders = (spec.submodule_search_locations if spec else None) or []
    found = [path for folder in folders if (path := Path(folder) / "data" / "silero_vad_16k.safetensors").exists()]
    if not found:
        raise ValueError("the voice activity detector is not installed: run pip install 'silero-vad>=6.2.3'")
    return found[0]
