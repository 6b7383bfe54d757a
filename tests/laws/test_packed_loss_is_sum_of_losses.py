"""A law: the losses and gradients of a packed batch == the sums over its samples, each alone."""

from __future__ import annotations

from functools import cache

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tristep.backbone.model import Backbone
from tristep.chat import Chat
from tristep.config import load_backbone_config
from tristep.modes.asr.data import render
from tristep.modes.asr.objective import asr_losses
from tristep.text import spell_letters
from tristep.training.mixture import Sample, collate
from tristep.vocab import byte_tokenizer


@cache
def toy() -> Backbone:
    torch.manual_seed(0)
    return Backbone(load_backbone_config("toy"))


def sample(text: str, num_frames: int) -> Sample:
    chat = Chat(toy().vocab, byte_tokenizer())
    frames = torch.randn(num_frames, 64, generator=torch.Generator().manual_seed(num_frames))
    rendered = render(chat, int(toy().adaptor.num_embeddings(torch.tensor(num_frames))), text, "en")
    return Sample(rendered.tokens, rendered.loss_mask, frames, chat.tokenizer.encode(text), spell_letters(text) or [])


def sums_and_gradient(samples: list[Sample], row_tokens: int) -> tuple[dict[str, float], list[Tensor]]:
    toy().zero_grad()
    losses = asr_losses(toy(), collate(samples, row_tokens), ctc=0.7, letters=0.3)
    losses["loss"].backward()
    sums = {name: float(value.detach()) for name, value in losses.items()}
    return sums, [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in toy().parameters()]


CLIPS = st.lists(st.tuples(st.text("ab c", max_size=6), st.integers(1, 40)), min_size=1, max_size=5)


@settings(max_examples=12, deadline=None)
@given(CLIPS, st.sampled_from([1, 200, 400]))
def test_a_packed_batch_is_the_sum_of_its_samples(clips: list[tuple[str, int]], row_tokens: int) -> None:
    samples = [sample(text, num_frames) for text, num_frames in clips]
    sums, gradients = sums_and_gradient(samples, row_tokens)
    alone = [sums_and_gradient([one], row_tokens) for one in samples]
    for name, value in sums.items():
        torch.testing.assert_close(value, sum(one[name] for one, _ in alone), atol=1e-3, rtol=1e-4, msg=name)
    for number, gradient in enumerate(gradients):
        together = torch.stack([grads[number] for _, grads in alone]).sum(dim=0)
        torch.testing.assert_close(gradient, together, atol=1e-3, rtol=1e-3)
