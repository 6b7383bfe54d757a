"""CAM++: who speaks in a clip, as one vector of 192 numbers.

The network of Wang et al. 2023 (arXiv 2303.00332) with the names of its published weights: a small image network
over the mel bands, then densely connected time-delay layers, each of which is scaled by a mask from the mean of
the clip and of its stretch of 100 frames. As in the authors' own code the last normalisation has no rectifier
behind it; a packaged copy of the network adds one, which throws away every negative number of the embedding.
The front end is Kaldi's filter bank: 25 ms windows of Povey's shape every 10 ms, mean-subtracted over the clip.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tristep.audio import LISTEN_HZ, SPEAK_HZ, SPEECH_N_FFT
from tristep.codec.vocoder import NUM_BINS, bands_to_bins

WIN_LENGTH, HOP_LENGTH, N_FFT = 400, 160, 512
LOWEST_HZ = 20.0
PRE_EMPHASIS = 0.97
FLOOR = torch.finfo(torch.float32).eps
BLOCKS = ((12, 1), (24, 2), (16, 2))
"""Layers and dilation of each dense block."""
STRETCH = 100
"""Frames that share one local mean."""
MIN_S = 0.1
"""Shortest clip that can be embedded, seconds."""


class SpeakerEncoder(nn.Module):
    """CAM++: a clip of any length -> an embedding whose direction says who speaks."""

    def __init__(
        self, num_mels: int = 80, dim: int = 192, width: int = 128, growth: int = 32, num_planes: int = 32
    ) -> None:
        super().__init__()
        self.num_mels = num_mels
        self.head = FilterHead(num_planes)
        self.xvector = time_delay_network(num_planes * (num_mels // 8), width, growth, dim)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> SpeakerEncoder:
        """Stay as it is: its weights and statistics are frozen."""
        return super().train(False)

    def forward(self, mel: Tensor) -> Tensor:
        """Embed mean-subtracted filter banks.

        Args:
            mel: What `filter_bank` returns less its mean over the clip, shape `(B, F, M)`.

        Returns:
            Embeddings, shape `(B, D)`, not scaled to unit length.
        """
        return self.xvector(self.head(mel.mT)).squeeze(-1)

    @torch.no_grad()
    def embed(self, waveform: Tensor) -> Tensor:
        """Embed one clip.

        Args:
            waveform: Samples at 16 kHz, shape `(S,)`.

        Returns:
            The embedding in float32, shape `(D,)`; compare two by `similarity`.

        Raises:
            ValueError: If the clip is shorter than `MIN_S`.
        """
        if waveform.dim() != 1 or len(waveform) < MIN_S * LISTEN_HZ:
            raise ValueError(
                f"a clip of shape {tuple(waveform.shape)} can't be embedded: expected one channel (S,) of at least "
                f"{MIN_S:g} s at {LISTEN_HZ} Hz; give a longer clip"
            )
        weight = self.head.conv1.weight
        mel = filter_bank(waveform.to(weight.device, torch.float32), self.num_mels)  # (F, M)
        return self((mel - mel.mean(0))[None].to(weight.dtype))[0].float()

    def save(self, path: str | Path) -> None:
        """Write the weights in bf16 (safetensors)."""
        state = {name: tensor.bfloat16() for name, tensor in self.state_dict().items() if tensor.is_floating_point()}
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, str(path))

    @classmethod
    def load(cls, path: str | Path) -> SpeakerEncoder:
        """Read weights from our file (.safetensors) or the published one (.pt, .bin), computing in float32.

        Raises:
            ValueError: If the file is not there, or holds something else.
        """
        state = {name: tensor.float() for name, tensor in read_state(Path(path)).items() if tensor.is_floating_point()}
        try:
            encoder = cls(*sizes_of(state))
            encoder.load_state_dict(state)
        except (KeyError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{path} holds no CAM++ weights ({reason}): give speaker.safetensors") from error
        return encoder


class FilterHead(nn.Module):
    """Two-dimensional convolutions that look at the mel bands as at a picture and halve them three times."""

    def __init__(self, num_planes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, num_planes, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(num_planes)
        self.layer1 = nn.Sequential(Residual(num_planes, 2), Residual(num_planes, 1))
        self.layer2 = nn.Sequential(Residual(num_planes, 2), Residual(num_planes, 1))
        self.conv2 = nn.Conv2d(num_planes, num_planes, 3, stride=(2, 1), padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(num_planes)

    def forward(self, mel: Tensor) -> Tensor:
        """Turn `(B, M, F)` into channels of time, `(B, planes * M / 8, F)`."""
        hidden = F.relu(self.bn1(self.conv1(mel[:, None])))  # (B, planes, M, F)
        hidden = self.layer2(self.layer1(hidden))
        return F.relu(self.bn2(self.conv2(hidden))).flatten(1, 2)


class Residual(nn.Module):
    """Two convolutions around which the input passes; a stride acts on the mel bands only."""

    def __init__(self, num_planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_planes, num_planes, 3, stride=(stride, 1), padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(num_planes)
        self.conv2 = nn.Conv2d(num_planes, num_planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(num_planes)
        self.shortcut = nn.Sequential()
        if stride != 1:
            thin = nn.Conv2d(num_planes, num_planes, 1, stride=(stride, 1), bias=False)
            self.shortcut = nn.Sequential(thin, nn.BatchNorm2d(num_planes))

    def forward(self, hidden: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(hidden)))))
        return F.relu(inner + self.shortcut(hidden))


def time_delay_network(num_channels: int, width: int, growth: int, dim: int) -> nn.Sequential:
    """Build what follows the head: three dense blocks, each halved behind it, then one vector for the clip."""
    delay = nn.Conv1d(num_channels, width, 5, stride=2, padding=2, bias=False)
    parts: OrderedDict[str, nn.Module] = OrderedDict(tdnn=in_order(linear=delay, nonlinear=norm_relu(width)))
    for index, (num_layers, dilation) in enumerate(BLOCKS, start=1):
        parts[f"block{index}"] = DenseBlock(width, growth, num_layers, dilation)
        width += num_layers * growth
        halving = nn.Conv1d(width, width // 2, 1, bias=False)
        parts[f"transit{index}"] = in_order(nonlinear=norm_relu(width), linear=halving)
        width //= 2
    parts["out_nonlinear"] = norm_relu(width)
    parts["stats"] = MeanAndDeviation()
    norm = in_order(batchnorm=nn.BatchNorm1d(dim, affine=False))
    parts["dense"] = in_order(linear=nn.Conv1d(2 * width, dim, 1, bias=False), nonlinear=norm)
    return nn.Sequential(parts)


class DenseBlock(nn.Module):
    """Layers of which each sees the outputs of all before it."""

    def __init__(self, width: int, growth: int, num_layers: int, dilation: int) -> None:
        super().__init__()
        for index in range(num_layers):
            self.add_module(f"tdnnd{index + 1}", DenseLayer(width + index * growth, growth, dilation))

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in self.children():
            hidden = torch.cat([hidden, layer(hidden)], dim=1)
        return hidden


class DenseLayer(nn.Module):
    """A bottleneck of four times the growth, then a masked convolution over time."""

    def __init__(self, num_channels: int, growth: int, dilation: int) -> None:
        super().__init__()
        self.nonlinear1 = norm_relu(num_channels)
        self.linear1 = nn.Conv1d(num_channels, 4 * growth, 1, bias=False)
        self.nonlinear2 = norm_relu(4 * growth)
        self.cam_layer = MaskedConvolution(4 * growth, growth, dilation)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.cam_layer(self.nonlinear2(self.linear1(self.nonlinear1(hidden))))


class MaskedConvolution(nn.Module):
    """A convolution whose channels are scaled by what the clip and the stretch around a frame sound like."""

    def __init__(self, num_channels: int, growth: int, dilation: int) -> None:
        super().__init__()
        self.linear_local = nn.Conv1d(num_channels, growth, 3, padding=dilation, dilation=dilation, bias=False)
        self.linear1 = nn.Conv1d(num_channels, num_channels // 2, 1)
        self.linear2 = nn.Conv1d(num_channels // 2, growth, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        num_frames = hidden.shape[-1]
        # The mask is the same for all frames of a stretch, so it is computed once for each: (B, D, stretches).
        stretches = F.avg_pool1d(hidden, STRETCH, STRETCH, ceil_mode=True)
        context = hidden.mean(-1, keepdim=True) + stretches
        mask = torch.sigmoid(self.linear2(F.relu(self.linear1(context))))
        return self.linear_local(hidden) * mask.repeat_interleave(STRETCH, dim=-1)[..., :num_frames]


class MeanAndDeviation(nn.Module):
    """Mean and standard deviation over time, one after the other: `(B, D, F)` -> `(B, 2 D, 1)`."""

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.cat([hidden.mean(-1, keepdim=True), hidden.std(-1, keepdim=True)], dim=1)


def in_order(**modules: nn.Module) -> nn.Sequential:
    """Chain modules under the names that the published weights have."""
    return nn.Sequential(OrderedDict(modules))


def norm_relu(num_channels: int) -> nn.Sequential:
    """Normalise and rectify."""
    return in_order(batchnorm=nn.BatchNorm1d(num_channels), relu=nn.ReLU())


def similarity(embedding: Tensor, other: Tensor) -> float:
    """Return the cosine of the angle between two embeddings `(D,)`."""
    return float(F.cosine_similarity(embedding.float(), other.float(), dim=-1))


def filter_bank(waveform: Tensor, num_mels: int = 80) -> Tensor:
    """Compute Kaldi's log filter bank without dither.

    Args:
        waveform: Samples at 16 kHz in [-1, 1], shape `(S,)`, at least one window.
        num_mels: Bands.

    Returns:
        Natural logarithms of the bands' power, shape `(F, M)`, `F = 1 + (S - 400) // 160`.
    """
    frames = waveform.unfold(-1, WIN_LENGTH, HOP_LENGTH)  # (F, window)
    frames = frames - frames.mean(-1, keepdim=True)
    before = torch.cat([frames[:, :1], frames[:, :-1]], dim=-1)
    frames = (frames - PRE_EMPHASIS * before) * torch.hann_window(
        WIN_LENGTH, periodic=False, device=waveform.device
    ).pow(0.85)
    power = torch.fft.rfft(frames, N_FFT).abs().square()  # (F, bins)
    return (power @ kaldi_filters(num_mels).to(power)).clamp(min=FLOOR).log()


@lru_cache
def kaldi_filters(num_mels: int, n_fft: int = N_FFT, sample_rate: int = LISTEN_HZ) -> Tensor:
    """Build triangles that are straight on Kaldi's mel scale, shape `(bins, M)`; nothing from 8 kHz on is in any."""

    def mel(hz: Tensor) -> Tensor:
        return 1127 * torch.log1p(hz / 700)

    low, high = mel(torch.tensor([LOWEST_HZ, LISTEN_HZ / 2], dtype=torch.float64))
    edges = torch.linspace(float(low), float(high), num_mels + 2, dtype=torch.float64)
    bins = mel(torch.arange(n_fft // 2 + 1, dtype=torch.float64) * sample_rate / n_fft)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    filters = torch.minimum(rising, falling).clamp(min=0).float()
    filters[-1] = 0
    return filters


def filter_bank_of_mel(mel: Tensor, num_mels: int = 80) -> Tensor:
    """Turn a speaking mel into the filter bank that CAM++'s own windows would measure on average, but for a constant.

    Between the bands the power's logarithm is taken for straight; gradients reach the mel.

    Args:
        mel: Natural log-mel, shape `(B, 80, F)`.
        num_mels: Bands.

    Returns:
        Shape `(B, F, M)`.
    """
    angles = torch.arange(NUM_BINS) * (SPEAK_HZ / SPEECH_N_FFT / LISTEN_HZ * 2 * torch.pi)
    emphasis = 1 + PRE_EMPHASIS**2 - 2 * PRE_EMPHASIS * angles.cos()
    filters = (kaldi_filters(num_mels, SPEECH_N_FFT, SPEAK_HZ) * emphasis[:, None]).to(mel)  # (bins, M)
    power = (mel.mT @ bands_to_bins().T.to(mel)).exp()  # (B, F, bins)
    return (power @ filters).log()


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file of weights."""
    if not path.exists():
        raise ValueError(f"there are no speaker weights at {str(path)!r}: give speaker.safetensors")
    try:
        if path.suffix == ".safetensors":
            return load_file(str(path))
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(f"{path} can't be read as weights ({error}): fetch it again") from error


def sizes_of(state: dict[str, Tensor]) -> tuple[int, int, int, int, int]:
    """Tell the sizes of a network, in the constructor's order, from its weights."""
    width, num_channels, _ = state["xvector.tdnn.linear.weight"].shape
    num_planes = len(state["head.conv1.weight"])
    dim = len(state["xvector.dense.linear.weight"])
    growth = len(state["xvector.block1.tdnnd1.cam_layer.linear_local.weight"])
    return 8 * num_channels // num_planes, dim, width, growth, num_planes
