"""A verdict is what the backbone writes token by token without a cache, and its level what it thinks of the digits."""

from __future__ import annotations

import pytest
import torch

from tristep.backbone.foreign import start_backbone
from tristep.backbone.model import Backbone
from tristep.config import load_backbone_config
from tristep.engine.judging import deliberate
from tristep.engine.reciting import Sampling
from tristep.modes.judge.decoding import Constraint, level_tokens
from tristep.vocab import byte_tokenizer


@torch.no_grad()
def slow_verdict(
    backbone: Backbone, prompt: list[int], constraint: Constraint, budget: int
) -> tuple[list[int], list[float]]:
    """Read everything again for every token."""
    end = backbone.vocab.control("think_end")
    reasons: list[int] = []
    while len(reasons) < budget:
        logits = backbone.logits(backbone(torch.tensor([[*prompt, *reasons]]))[0, -1])
        token = int(logits.masked_fill(~constraint.reasons(), -torch.inf).argmax())
        if token == end:
            break
        reasons.append(token)
    logits = backbone.logits(backbone(torch.tensor([[*prompt, *reasons, end]]))[0, -1])
    return reasons, logits[list(constraint.levels)].softmax(dim=-1).tolist()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_verdicts_of_a_batch_are_those_written_without_a_cache(seed: int) -> None:
    backbone, _ = start_backbone(load_backbone_config("toy"), None, None, seed)
    constraint = Constraint(backbone.eval().vocab, level_tokens(byte_tokenizer()))
    # The end of the reasons is made likely, so that rows end at different times.
    backbone.embedding.grown.data[backbone.vocab.control("think_end") - len(backbone.embedding.weight)] *= 4
    generator = torch.Generator().manual_seed(seed)
    prompts = [torch.randint(256, (length,), generator=generator).tolist() for length in (5, 70, 19)]
    written = deliberate(backbone, prompts, None, constraint, [0, 0, 0], Sampling(temperature=0.0), budget=24)
    for row, prompt in zip(written, prompts, strict=True):
        reasons, level = slow_verdict(backbone, prompt, constraint, 24)
        assert row.tokens == reasons
        assert row.level_probs == pytest.approx(level, abs=1e-5)
