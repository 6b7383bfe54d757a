"""Write `campplus.json`: what the published CAM++ and Kaldi's own filter bank make of fixed numbers.

    python tests/golden/campplus.py path/to/camplusplus.py

The module is the one that the package senko 0.2.2 (Apache-2.0) carries; it needs `pip install kaldi-native-fbank`.
Its network ends in a rectifier that the authors' own does not have, and which is taken out here.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

GOLDEN = Path(__file__).with_suffix(".json")
NUM_MELS, DIM, WIDTH, GROWTH = 16, 6, 8, 4
FRAMES = (0, 1, 50, 97)
"""Frames of the filter bank that are kept."""


def fill(network: nn.Module) -> None:
    """Give every weight of a network a value that depends only on its name's place in the alphabet."""
    random = np.random.RandomState(0)
    for name, tensor in sorted(network.state_dict().items()):
        if not tensor.is_floating_point():
            continue
        values = torch.from_numpy(random.standard_normal(tensor.shape)).float()
        if tensor.dim() > 1:
            values /= tensor[0].numel() ** 0.5
        tensor.copy_(values.abs() + 0.5 if name.endswith("running_var") else values)


def features() -> Tensor:
    """Return filter banks to embed, shape `(2, 530, M)`, that wander so that their stretches differ."""
    steps = np.random.RandomState(1).standard_normal((2, 530, NUM_MELS))
    return torch.from_numpy(0.5 * steps.cumsum(axis=1) + steps).float()


def waveform() -> Tensor:
    """Return a second of noise under a slow swell at 16 kHz, shape `(16000,)`."""
    swell = 0.05 + np.linspace(-1, 1, 16_000) ** 2
    return torch.from_numpy(0.1 * swell * np.random.RandomState(2).standard_normal(16_000)).float()


def published_embeddings(path: Path) -> Tensor:
    spec = importlib.util.spec_from_file_location("camplusplus", path)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.CAMPPlus(NUM_MELS, DIM, GROWTH, init_channels=WIDTH).eval()
    fill(network)
    network.xvector.dense.nonlinear.relu = nn.Identity()
    with torch.no_grad():
        return network(features())


def kaldi_filter_bank() -> Tensor:
    from kaldi_native_fbank import FbankOptions, OnlineFbank

    options = FbankOptions()
    options.frame_opts.dither, options.mel_opts.num_bins = 0.0, 80
    bank = OnlineFbank(options)
    bank.accept_waveform(16_000, waveform().tolist())
    bank.input_finished()
    return torch.stack([torch.from_numpy(bank.get_frame(index)) for index in FRAMES])


def main() -> None:
    document = {
        "embeddings": published_embeddings(Path(sys.argv[1])).tolist(),
        "filter_bank": kaldi_filter_bank().tolist(),
    }
    rounded = json.loads(json.dumps(document), parse_float=lambda number: round(float(number), 6))
    GOLDEN.write_text(json.dumps(rounded) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
