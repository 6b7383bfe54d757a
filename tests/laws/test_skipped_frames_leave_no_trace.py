"""A law: a batch packed with a slot for every frame == sequences written with slots for the shown frames only."""

from __future__ import annotations

import pytest
import torch

from tristep.backbone.audio_encoder import Adapted, CtcAdaptor
from tristep.backbone.model import Backbone
from tristep.chat import Chat
from tristep.config import load_backbone_config
from tristep.modes.asr.data import render
from tristep.modes.asr.objective import asr_losses
from tristep.objectives.likelihood import next_token_loss, shifted_targets
from tristep.training.mixture import Sample, collate
from tristep.vocab import byte_tokenizer


@pytest.fixture
def backbone() -> Backbone:
    torch.manual_seed(0)
    backbone = Backbone(load_backbone_config("toy"))
    assert isinstance(backbone.adaptor, CtcAdaptor)
    torch.nn.init.normal_(backbone.adaptor.ctc_head.weight, std=0.5)
    return backbone


def samples(chat: Chat, backbone: Backbone) -> list[Sample]:
    made = []
    for text, num_frames in [("one", 33), ("two three", 50), ("", 21), ("four", 64)]:
        rendered = render(chat, int(backbone.adaptor.num_embeddings(torch.tensor(num_frames))), text, "en")
        frames = torch.randn(num_frames, 64, generator=torch.Generator().manual_seed(num_frames))
        made.append(Sample(rendered.tokens, rendered.loss_mask, frames, chat.tokenizer.encode(text), []))
    return made


def alone_loss(backbone: Backbone, chat: Chat, sample: Sample, text: str) -> tuple[float, int]:
    adapted = backbone.adapt(sample.frames[None], torch.tensor([len(sample.frames)]))
    shown = int(adapted.shown.sum())
    rendered = render(chat, shown, text, "en")
    tokens, loss_mask = torch.tensor([rendered.tokens]), torch.tensor([rendered.loss_mask])
    predicting, targets = shifted_targets(tokens, loss_mask, torch.zeros_like(tokens))
    hidden = backbone(tokens, adapted.flat())
    return float(next_token_loss(backbone.logits(hidden[predicting]), targets)), shown


@pytest.mark.parametrize("row_tokens", [1, 130, 1000])
@torch.no_grad()
def test_a_batch_with_skipped_frames_equals_sequences_without_them(backbone: Backbone, row_tokens: int) -> None:
    chat = Chat(backbone.vocab, byte_tokenizer())
    clips = samples(chat, backbone)
    batch = collate(clips, row_tokens)
    adapted: Adapted = backbone.adapt(batch.frames, batch.num_frames)
    assert isinstance(backbone.adaptor, CtcAdaptor)
    assert adapted.ctc_logits is not None
    blank = adapted.ctc_logits.softmax(dim=-1)[..., -1]
    backbone.adaptor.skip_blank = float(blank[adapted.shown].median())
    alone = [
        alone_loss(backbone, chat, clip, text)
        for clip, text in zip(clips, ["one", "two three", "", "four"], strict=True)
    ]
    num_frames = int(adapted.num_embeddings.sum())
    assert 0 < sum(shown for _, shown in alone) < num_frames
    losses = asr_losses(backbone, batch)
    assert float(losses["next_token"]) == pytest.approx(sum(loss for loss, _ in alone), rel=1e-4)


def test_nothing_is_skipped_by_default(backbone: Backbone) -> None:
    adapted = backbone.adapt(torch.randn(2, 40, 64), torch.tensor([40, 17]))
    assert adapted.shown.sum(dim=1).tolist() == adapted.num_embeddings.tolist()
