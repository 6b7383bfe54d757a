from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tristep.backbone.model import Backbone
from tristep.config import load_backbone_config
from tristep.modes.tts.data import IGNORED
from tristep.modes.tts.objective import tts_losses


@dataclass(frozen=True)
class Packed:
    tokens: Tensor
    targets: Tensor
    segments: Tensor


def toy() -> Backbone:
    torch.manual_seed(0)
    backbone = Backbone(load_backbone_config("toy"))
    backbone.grow_vocabulary(32)
    return backbone


def batch(backbone: Backbone) -> Packed:
    vocab = backbone.vocab
    code, tts_end = vocab.code_token, vocab.control("tts_end")
    tokens = torch.tensor([[65, 66, code(3), code(4), tts_end, 67, code(9), 0]])
    targets = torch.tensor([[IGNORED, code(3), code(4), tts_end, IGNORED, code(9), tts_end, IGNORED]])
    return Packed(tokens, targets, torch.tensor([[0, 0, 0, 0, 0, 1, 1, -1]]))


def test_the_loss_is_the_cross_entropy_over_control_tokens_and_codes() -> None:
    backbone = toy()
    packed = batch(backbone)
    hidden = backbone(packed.tokens, segments=packed.segments)
    logits = backbone.logits(hidden)[..., len(backbone.head.weight) :]
    kept = packed.targets != IGNORED
    expected = F.cross_entropy(logits[kept], packed.targets[kept] - len(backbone.head.weight), reduction="sum")
    losses = tts_losses(backbone, packed)
    assert float(losses["loss"].detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert (int(losses["num_targets"]), int(losses["code_targets"]), int(losses["control_targets"])) == (5, 3, 2)


def test_text_rows_of_the_output_layer_get_no_gradient_from_speech() -> None:
    backbone = toy()
    tts_losses(backbone, batch(backbone))["loss"].backward()
    read = sorted({t for t in batch(backbone).tokens.flatten().tolist() if t < 256})
    assert backbone.embedding.weight.grad is not None
    touched = backbone.embedding.weight.grad.abs().sum(dim=1).nonzero().flatten().tolist()
    assert set(touched) <= set(read)
