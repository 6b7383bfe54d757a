from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tristep.backbone.model import Backbone
from tristep.chat import Chat
from tristep.config import load_backbone_config
from tristep.modes.asr.data import render
from tristep.modes.asr.objective import asr_losses, draft_weights, expert_load
from tristep.text import spell_letters
from tristep.training.mixture import Batch, Sample, collate
from tristep.vocab import byte_tokenizer


def toy(**decoder: int) -> Backbone:
    config = load_backbone_config("toy")
    torch.manual_seed(0)
    return Backbone(config.model_copy(update={"decoder": config.decoder.model_copy(update=decoder)}))


def samples(backbone: Backbone, texts: list[str]) -> list[Sample]:
    chat = Chat(backbone.vocab, byte_tokenizer())
    built = []
    for number, text in enumerate(texts):
        frames = torch.randn(20 + 8 * number, 64, generator=torch.Generator().manual_seed(number))
        num_slots = int(backbone.adaptor.num_embeddings(torch.tensor(len(frames))))
        rendered = render(chat, num_slots, text, "en")
        built.append(
            Sample(rendered.tokens, rendered.loss_mask, frames, chat.tokenizer.encode(text), spell_letters(text) or [])
        )
    return built


def two_rows(backbone: Backbone) -> Batch:
    """Two sequences of different lengths, each in a row of its own: the second row is padded."""
    return collate(samples(backbone, ["hi", "hello"]), row_tokens=1)


def loss_and_gradients(backbone: Backbone, batch: Batch, **weights: float) -> tuple[Tensor, dict[str, Tensor]]:
    backbone.zero_grad()
    loss = asr_losses(backbone, batch, **weights)["loss"]
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in backbone.named_parameters() if p.grad is not None}


def test_the_loss_is_the_weighted_sum_of_its_parts() -> None:
    backbone = toy()
    losses = asr_losses(backbone, two_rows(backbone), next_token=2.0, ctc=0.5, letters=0.25)
    assert float(losses["loss"].detach()) == pytest.approx(
        2 * float(losses["next_token"].detach())
        + 0.5 * float(losses["ctc"].detach())
        + 0.25 * float(losses["letters"].detach())
    )
    assert int(losses["letters_targets"]) == len("hi") + len("hello")
    assert int(losses["num_targets"]) == int(losses["next_token_targets"]) == len("hi") + len("hello") + 2 * 2
    assert int(losses["ctc_targets"]) == len("hi") + len("hello")


def test_padding_tokens_and_padding_frames_change_no_loss_and_no_gradient() -> None:
    backbone = toy()
    batch = two_rows(backbone)
    padding = batch.segments < 0
    beyond = torch.arange(batch.frames.shape[1]) >= batch.num_frames[:, None]
    assert padding.any()
    assert beyond.any()
    changed = replace(
        batch,
        tokens=batch.tokens.masked_fill(padding, 77),
        frames=batch.frames.masked_fill(beyond[:, :, None], 3.0),
    )
    loss, gradients = loss_and_gradients(backbone, batch, ctc=1.0)
    other, others = loss_and_gradients(backbone, changed, ctc=1.0)
    torch.testing.assert_close(loss, other)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name], atol=1e-5, rtol=1e-4, msg=name)


def test_what_the_user_is_asked_is_heard_but_not_a_target() -> None:
    backbone = toy()
    batch = two_rows(backbone)
    first = int(batch.loss_mask[0].int().argmax())
    changed = batch.tokens.clone()
    changed[0, 2] += 1
    before = asr_losses(backbone, batch)
    after = asr_losses(backbone, replace(batch, tokens=changed))
    assert first > 2
    assert int(before["num_targets"]) == int(after["num_targets"])
    assert float(before["loss"].detach()) != float(after["loss"].detach())


def test_without_next_token_weight_the_decoder_never_runs() -> None:
    backbone = toy()
    calls: list[str] = []
    backbone.decoder.register_forward_hook(lambda *_: calls.append("decoder"))
    batch = two_rows(backbone)
    losses = asr_losses(backbone, batch, next_token=0.0, ctc=1.0)
    assert calls == []
    assert losses["num_targets"] == losses["ctc_targets"]
    assert "next_token" not in losses
    asr_losses(backbone, batch)
    assert calls == ["decoder"]


def test_ctc_without_a_ctc_head_is_refused() -> None:
    config = load_backbone_config("toy")
    adaptor = config.adaptor.model_copy(update={"kind": "linear"})
    backbone = Backbone(config.model_copy(update={"adaptor": adaptor}))
    with pytest.raises(ValueError, match="has no CTC head: set ctc = 0"):
        asr_losses(backbone, two_rows(backbone), ctc=1.0)
    with pytest.raises(ValueError, match="the adaptor spells none: set letters = 0"):
        asr_losses(backbone, two_rows(backbone), letters=1.0)
    assert asr_losses(backbone, two_rows(backbone))["loss"].isfinite()


def test_a_recipe_that_weighs_nothing_is_refused() -> None:
    backbone = toy()
    with pytest.raises(ValueError, match="both loss weights, next_token and ctc, are 0"):
        asr_losses(backbone, two_rows(backbone), next_token=0.0)


def test_the_load_of_experts_is_weighed_per_target_and_dense_decoders_have_none() -> None:
    backbone = toy(num_experts=3)
    batch = two_rows(backbone)
    plain, loaded = asr_losses(backbone, batch), asr_losses(backbone, batch, load=0.1)
    load = expert_load(backbone)
    assert isinstance(load, Tensor)
    extra = float((loaded["loss"] - plain["loss"]).detach()) / int(plain["num_targets"])
    assert extra == pytest.approx(0.1 * float(load.detach()), rel=1e-3)
    assert expert_load(toy()) == 0.0


def with_heads(num_heads: int) -> Backbone:
    backbone = toy()
    backbone.add_draft_heads(num_heads)
    return backbone


def test_draft_weights_are_the_reports() -> None:
    assert draft_weights(5) == pytest.approx([0.244, 0.220, 0.198, 0.178, 0.160], abs=5e-4)
    assert sum(draft_weights(7, 0.5)) == pytest.approx(1)


def test_the_draft_loss_is_added_head_by_head() -> None:
    backbone = with_heads(3)
    losses = asr_losses(backbone, two_rows(backbone), drafts=2.0)
    heads = [float(losses[f"draft_{depth}"].detach()) for depth in (1, 2, 3)]
    expected = sum(weight * loss for weight, loss in zip(draft_weights(3), heads, strict=True))
    assert float(losses["loss"].detach()) == pytest.approx(float(losses["next_token"].detach()) + 2 * expected)


def test_a_head_is_asked_for_what_it_guesses_inside_the_transcript_only() -> None:
    backbone = with_heads(2)
    losses = asr_losses(backbone, two_rows(backbone), drafts=1.0)
    # Tag, letters and end of turn: head h can guess all but the first h + 1 of them.
    written = [len("hi") + 2, len("hello") + 2]
    for depth in (1, 2):
        assert int(losses[f"draft_{depth}_targets"]) == sum(max(num - depth, 0) for num in written)


def slow_draft_losses(backbone: Backbone, texts: list[str], num_heads: int) -> list[float]:
    """Each sample alone and unpacked, position by position."""
    sums = [0.0] * num_heads
    for sample in samples(backbone, texts):
        adapted = backbone.adapt(sample.frames[None], torch.tensor([len(sample.frames)]))
        tokens = torch.tensor([sample.tokens])
        segments = torch.zeros_like(tokens)
        hidden = backbone(tokens, adapted.flat())
        branches = backbone.look_ahead(hidden, tokens, adapted.flat(), segments)
        first = sample.loss_mask.index(True)
        for depth, branch in enumerate(branches, start=1):
            logprobs = backbone.logits(branch[0]).log_softmax(dim=-1)
            for target in range(first + depth, len(sample.tokens)):
                if sample.loss_mask[target]:
                    sums[depth - 1] -= float(logprobs[target - 1 - depth, sample.tokens[target]])
    return sums


def test_packed_drafts_cost_what_each_sample_costs_alone() -> None:
    backbone = with_heads(3).eval().requires_grad_(False)
    texts = ["hi", "hello", "good day"]
    packed = asr_losses(backbone, collate(samples(backbone, texts), row_tokens=200), drafts=1.0)
    expected = slow_draft_losses(backbone, texts, 3)
    assert [float(packed[f"draft_{depth}"]) for depth in (1, 2, 3)] == pytest.approx(expected, rel=1e-4)


def test_acceptance_is_cumulative() -> None:
    backbone = with_heads(3)
    losses = asr_losses(backbone, two_rows(backbone), drafts=1.0)
    accepted = [int(losses[f"accepted_{depth}"]) for depth in (1, 2, 3)]
    assert accepted == sorted(accepted, reverse=True)
    assert all(int(losses[f"accepted_{d}"]) <= int(losses[f"accepted_{d}_targets"]) for d in (1, 2, 3))


def test_only_the_heads_learn_when_all_else_is_frozen() -> None:
    backbone = with_heads(2)
    backbone.requires_grad_(False)
    assert backbone.draft_heads is not None
    backbone.draft_heads.requires_grad_(True)
    _, gradients = loss_and_gradients(backbone, two_rows(backbone), drafts=1.0)
    assert {name.split(".")[0] for name in gradients} == {"draft_heads"}
    assert all(gradient.any() for gradient in gradients.values())


def test_drafts_without_draft_heads_are_refused() -> None:
    backbone = toy()
    with pytest.raises(ValueError, match="the model has no draft heads: set num_draft_heads"):
        asr_losses(backbone, two_rows(backbone), drafts=1.0)
