from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tristep.backbone.model import Backbone
from tristep.chat import Chat
from tristep.config import load_backbone_config
from tristep.modes.realtime.data import NOTHING, Trace, render, turns
from tristep.modes.realtime.objective import realtime_losses
from tristep.vocab import byte_tokenizer


@dataclass(frozen=True)
class Packed:
    """What the objective asks of a batch."""

    tokens: Tensor
    labels: Tensor
    segments: Tensor
    frames: Tensor
    num_frames: Tensor


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(0)
    return Backbone(load_backbone_config("toy")).eval()


def typed(backbone: Backbone) -> Packed:
    """One typed exchange."""
    sample = render(Chat(backbone.vocab, byte_tokenizer()), turns("a", [], "Hi."), "Yes.")
    tokens, labels = torch.tensor([sample.tokens]), torch.tensor([sample.labels])
    return Packed(tokens, labels, torch.zeros_like(tokens), torch.zeros(0, 0, 0), torch.zeros(0, dtype=torch.long))


def spoken(backbone: Backbone) -> Packed:
    """One exchange in sound of 20 frames."""
    num_slots = int(backbone.adaptor.num_embeddings(torch.tensor(20)))
    sample = render(Chat(backbone.vocab, byte_tokenizer()), turns("a", [], num_slots), "Yes.", Trace("hi"))
    tokens, labels = torch.tensor([sample.tokens]), torch.tensor([sample.labels])
    frames = torch.randn(1, 20, backbone.config.encoder.dim, generator=torch.Generator().manual_seed(0))
    return Packed(tokens, labels, torch.zeros_like(tokens), frames, torch.tensor([20]))


def test_the_loss_of_text_is_the_cross_entropy_of_its_answer(backbone: Backbone) -> None:
    batch = typed(backbone)
    logits = backbone.logits(backbone(batch.tokens))[0, :-1]
    counts = batch.labels[0, 1:] != NOTHING
    expected = F.cross_entropy(logits[counts], batch.tokens[0, 1:][counts], reduction="sum")
    losses = realtime_losses(backbone, batch)
    torch.testing.assert_close(losses["text"], expected)
    torch.testing.assert_close(losses["loss"], expected)
    assert int(losses["num_targets"]) == int(losses["text_targets"]) == len("Yes.") + 1


def test_every_target_is_counted_under_its_label(backbone: Backbone) -> None:
    losses = realtime_losses(backbone, spoken(backbone))
    assert int(losses["trace_targets"]) == len("hi") + 2  # with the controls around it
    assert int(losses["answer_targets"]) == len("Yes.") + 1
    assert int(losses["text_targets"]) == int(losses["transcript_targets"]) == 0
    torch.testing.assert_close(losses["loss"], losses["trace"] + losses["answer"])


def test_weights_weigh_their_label_only(backbone: Backbone) -> None:
    batch = spoken(backbone)
    plain, weighted = realtime_losses(backbone, batch), realtime_losses(backbone, batch, trace=0.0, answer=2.0)
    torch.testing.assert_close(weighted["loss"], 2 * plain["answer"])
    with pytest.raises(ValueError, match="no target 'thought' to weigh"):
        realtime_losses(backbone, batch, thought=1.0)


def test_the_sound_reaches_the_answer(backbone: Backbone) -> None:
    batch = spoken(backbone)
    other = replace(batch, frames=batch.frames.flip(2))
    assert not torch.equal(realtime_losses(backbone, batch)["answer"], realtime_losses(backbone, other)["answer"])


def test_what_is_given_leaves_no_gradient_of_its_own(backbone: Backbone) -> None:
    batch = spoken(backbone)
    nothing = replace(batch, labels=torch.zeros_like(batch.labels))
    assert float(realtime_losses(backbone, nothing)["loss"].detach()) == 0.0
