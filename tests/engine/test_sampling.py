from __future__ import annotations

import pytest
import torch

from tristep.backbone.model import Backbone
from tristep.config import load_backbone_config
from tristep.engine.sampling import Completion, greedy
from tristep.modes.asr.decoding import Constraint, repetition_start


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(0)
    return Backbone(load_backbone_config("toy")).eval()


def written(backbone: Backbone, texts: list[str], **kwargs: object) -> Completion:
    """Let a row take tokens by name or by character, as a model would write them."""
    completion = Completion(budget=12)
    for text in texts:
        token = backbone.vocab.controls.get(text, ord(text[0]))
        completion.write(token, -0.5, backbone.vocab, repetition_start)
    return completion


def test_the_end_of_the_turn_ends_a_completion_and_counts_in_its_confidence(backbone: Backbone) -> None:
    completion = written(backbone, ["lang_en", "a", "turn_end"])
    assert completion.tokens == [backbone.vocab.control("lang_en"), ord("a")]
    assert completion.finish_reason == "stop"
    assert len(completion.probs) == 3


def test_nothing_is_written_after_nospeech(backbone: Backbone) -> None:
    assert written(backbone, ["nospeech"]).finish_reason == "stop"


def test_a_completion_that_uses_up_its_budget_says_so(backbone: Backbone) -> None:
    completion = written(backbone, ["lang_en", *"abcdefghijk"])
    assert completion.finish_reason == "length"
    assert len(completion.tokens) == 12


def test_a_loop_is_cut_to_its_first_round(backbone: Backbone) -> None:
    completion = Completion(budget=100)
    for character in "so" + " on and" * 4:
        assert completion.finish_reason is None
        completion.write(ord(character), -0.1, backbone.vocab, repetition_start)
    assert completion.finish_reason == "repetition"
    assert bytes(completion.tokens).decode() == "so on and"
    assert len(completion.probs) == len(completion.tokens)


def test_an_untrained_model_stops_at_its_budget_or_in_a_loop(backbone: Backbone) -> None:
    (completion,) = greedy(backbone, [[1, 2, 3]], None, Constraint(backbone.vocab, "en"), [40], repetition_start)
    assert completion.finish_reason in ("length", "repetition", "stop")
    assert 1 <= len(completion.tokens) <= 40
    assert completion.tokens[0] in (backbone.vocab.control("lang_en"), backbone.vocab.control("nospeech"))


def test_no_prompts_give_no_completions(backbone: Backbone) -> None:
    assert greedy(backbone, [], None, Constraint(backbone.vocab), []) == []


@pytest.mark.parametrize(("prompt", "budget"), [([], 4), ([1], 0), ([1], 4096)])
def test_a_row_that_cannot_be_written_is_refused(backbone: Backbone, prompt: list[int], budget: int) -> None:
    with pytest.raises(ValueError, match="prompt"):
        greedy(backbone, [prompt], None, Constraint(backbone.vocab), [budget])
