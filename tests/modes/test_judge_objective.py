from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tristep.backbone.model import Backbone
from tristep.chat import Chat
from tristep.config import load_backbone_config
from tristep.modes.judge.data import Answer, Case, Clause, Verdict, render
from tristep.modes.judge.objective import judge_losses
from tristep.vocab import byte_tokenizer

VERDICT = Verdict({"coherence": Clause("first")}, 4)


@dataclass
class Batch:
    tokens: Tensor
    loss_mask: Tensor
    segments: Tensor
    audio_embeddings: Tensor | None = None


def backbone() -> Backbone:
    torch.manual_seed(0)
    return Backbone(load_backbone_config("toy")).eval()


def batch(model: Backbone, num_slots: int = 0) -> Batch:
    case = Case("dialogue", "Hi.", Answer("yes", num_slots), Answer("no"))
    rendered = render(Chat(model.vocab, byte_tokenizer()), case, VERDICT)
    tokens = torch.tensor([rendered.tokens])
    return Batch(tokens, torch.tensor([rendered.loss_mask]), torch.zeros_like(tokens))


def test_the_level_is_one_target_and_the_reasons_are_all_others() -> None:
    model = backbone()
    losses = judge_losses(model, batch(model))
    assert losses["level_targets"] == 1
    assert losses["level_targets"] + losses["reason_targets"] == losses["num_targets"] == len(VERDICT.reasons) + 4
    assert torch.isclose(losses["loss"], losses["level"] + losses["reason"])


def test_the_level_weighs_what_it_is_told_to() -> None:
    model = backbone()
    plain, heavy = (judge_losses(model, batch(model), level_weight=weight) for weight in (1.0, 5.0))
    assert torch.isclose(heavy["loss"] - plain["loss"], 4 * plain["level"], rtol=1e-4)


def test_the_level_is_what_follows_the_end_of_the_reasons() -> None:
    model = backbone()
    losses = judge_losses(model, batch(model))
    rows = batch(model)
    place = int((rows.tokens[0] == model.vocab.control("think_end")).nonzero())
    logits = model.logits(model(rows.tokens, segments=rows.segments))[0, place]
    expected = -logits.log_softmax(dim=-1)[rows.tokens[0, place + 1]]
    assert torch.isclose(losses["level"], expected, rtol=1e-4)


def test_what_a_judge_hears_changes_what_it_says() -> None:
    model = backbone()
    rows = batch(model, num_slots=3)
    losses = []
    for seed in (1, 2):
        rows.audio_embeddings = torch.randn(3, 64, generator=torch.Generator().manual_seed(seed))
        losses.append(judge_losses(model, rows)["loss"].item())
    assert losses[0] != losses[1]
