"""Law: rows that are read as a tree, what they share once, are the rows read one by one."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tristep.backbone.branches import grow
from tristep.backbone.model import Backbone
from tristep.config import load_backbone_config
from tristep.engine.answers import mean_logprob, mean_logprobs

TOKENS = st.lists(st.integers(0, 99), min_size=1, max_size=6)


@cache
def toy() -> Backbone:
    torch.manual_seed(0)
    return Backbone(load_backbone_config("toy")).eval()


@given(groups=st.lists(st.tuples(TOKENS, st.lists(TOKENS, min_size=1, max_size=3)), min_size=1, max_size=3))
@settings(max_examples=20, deadline=None)
def test_a_tree_is_its_rows_apart(groups: list[tuple[list[int], list[list[int]]]]) -> None:
    rows = [prompt + answer for prompt, answers in groups for answer in answers]
    shared = [len(prompt) if place else 0 for prompt, answers in groups for place in range(len(answers))]
    tree = grow(rows, shared)
    hidden = toy()(tree.tokens, positions=tree.positions, segments=tree.segments, trunk=tree.trunk).flatten(0, 1)
    for row, places in zip(rows, tree.places, strict=True):
        torch.testing.assert_close(hidden[places[: len(row)]], toy()(torch.tensor([row]))[0], atol=1e-5, rtol=1e-4)


@given(pairs=st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=4))
@settings(max_examples=20, deadline=None)
def test_completions_scored_together_are_scored_alone(pairs: list[tuple[list[int], list[int]]]) -> None:
    prompts = [prompt for prompt, _ in pairs for _ in range(2)]
    completions = [answer for _, own in pairs for answer in (own, own[::-1])]
    assert any(before == prompt for before, prompt in pairwise(prompts))
    alone = [mean_logprob(toy(), *pair) for pair in zip(prompts, completions, strict=True)]
    torch.testing.assert_close(mean_logprobs(toy(), prompts, completions), alone, atol=1e-5, rtol=1e-4)
