from __future__ import annotations

import pytest
import torch

from tristep.backbone.model import Backbone
from tristep.chat import Chat
from tristep.config import load_backbone_config
from tristep.engine.drawing import draw_completions
from tristep.engine.reciting import Sampling
from tristep.engine.sampling import greedy
from tristep.modes.asr.data import turns
from tristep.modes.asr.decoding import Constraint
from tristep.vocab import byte_tokenizer


def test_a_completion_follows_from_its_seed_and_not_from_its_neighbours() -> None:
    torch.manual_seed(0)
    backbone = Backbone(load_backbone_config("toy")).eval()
    chat = Chat(backbone.vocab, byte_tokenizer())
    prompts = [chat.prompt(turns(num, "spoken")) for num in (3, 9)]
    heard = torch.randn(12, backbone.config.decoder.dim)
    draw = Sampling(1.0, top_k=backbone.vocab.size, top_p=1.0)
    constraint = Constraint(backbone.vocab)
    together = draw_completions(backbone, prompts, heard, constraint, [6, 9], [[1, 2], [3, 4]], draw)
    alone = draw_completions(backbone, prompts[1:], heard[3:], constraint, [9], [[4]], draw)
    assert alone[0][0].tokens == together[1][1].tokens
    assert together[0][0].tokens != together[0][1].tokens
    assert all(len(row.tokens) <= budget for group, budget in zip(together, (6, 9), strict=True) for row in group)


def test_no_two_prompts_may_get_different_numbers_of_answers() -> None:
    backbone = Backbone(load_backbone_config("toy")).eval()
    with pytest.raises(ValueError, match="give every prompt as many"):
        draw_completions(backbone, [[1], [1]], None, Constraint(backbone.vocab), [4, 4], [[1], [1, 2]], Sampling())


def test_at_temperature_zero_the_most_probable_completion_is_drawn() -> None:
    torch.manual_seed(1)
    backbone = Backbone(load_backbone_config("toy")).eval()
    chat, constraint = Chat(backbone.vocab, byte_tokenizer()), Constraint(backbone.vocab)
    prompt, heard = chat.prompt(turns(4, "spoken")), torch.randn(4, backbone.config.decoder.dim)
    drawn = draw_completions(backbone, [prompt], heard, constraint, [8], [[1, 2]], Sampling(temperature=0.0))
    assert drawn[0][0].tokens == drawn[0][1].tokens == greedy(backbone, [prompt], heard, constraint, [8])[0].tokens
