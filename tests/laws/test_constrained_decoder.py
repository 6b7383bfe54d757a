"""A law: a constrained decoder never writes a forbidden token, at any temperature of its logits."""

from __future__ import annotations

from functools import cache

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tristep.backbone.model import Backbone
from tristep.config import load_backbone_config
from tristep.engine.sampling import greedy
from tristep.modes.asr.decoding import Constraint
from tristep.vocab import Vocab

LANGUAGES = st.sampled_from([None, "en", "zh", "ta"])


@cache
def toy(scale: float, num_codes: int) -> Backbone:
    """A toy with audio codes, whose output layer is scaled: cold logits, or nearly equal ones."""
    torch.manual_seed(0)
    config = load_backbone_config("toy")
    vocab = config.vocab.model_copy(update={"num_codes": num_codes})
    backbone = Backbone(config.model_copy(update={"vocab": vocab})).eval()
    backbone.decoder.norm.weight.data *= scale
    return backbone.requires_grad_(False)


def is_allowed(vocab: Vocab, written: list[int], token: int, language: str | None) -> bool:
    """Say in words what `Constraint` says in masks."""
    if not written:
        tag = vocab.language_of(token)
        return token == vocab.control("nospeech") or (tag is not None and language in (None, tag))
    return vocab.region(token) == "text"


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=4),
    st.sampled_from([0.01, 1.0, 30.0]),
    st.sampled_from([0, 40]),
    LANGUAGES,
    st.integers(0, 1000),
)
def test_a_forbidden_token_is_never_written(
    lengths: list[int], scale: float, num_codes: int, language: str | None, seed: int
) -> None:
    backbone = toy(scale, num_codes)
    generator = torch.Generator().manual_seed(seed)
    prompts = [torch.randint(0, 256, (length,), generator=generator).tolist() for length in lengths]
    constraint = Constraint(backbone.vocab, language)
    for completion in greedy(backbone, prompts, None, constraint, [12] * len(prompts)):
        for place, token in enumerate(completion.tokens):
            assert is_allowed(backbone.vocab, completion.tokens[:place], token, language)


@given(st.sampled_from([0, 40]), LANGUAGES)
def test_the_masks_say_what_the_rules_say(num_codes: int, language: str | None) -> None:
    vocab = toy(1.0, num_codes).vocab
    constraint = Constraint(vocab, language)
    turn_end, tag = vocab.control("turn_end"), vocab.control("lang_en")
    opening, body = constraint.opening(vocab.size), constraint.body(vocab.size)
    for token in range(vocab.size):
        assert bool(opening[token]) == is_allowed(vocab, [], token, language)
        assert bool(body[token]) == (token == turn_end or is_allowed(vocab, [tag], token, language))
