from __future__ import annotations

import math

import pytest
import torch

from tristep.backbone.model import Backbone
from tristep.chat import Chat
from tristep.config import load_backbone_config
from tristep.engine.answers import MOST_NOTED, MOST_TOKENS, Words, answers, mean_logprob, notes, trace_of
from tristep.modes.realtime.data import Trace, turns
from tristep.vocab import byte_tokenizer


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(0)
    return Backbone(load_backbone_config("toy")).eval()


@pytest.fixture(scope="module")
def chat(backbone: Backbone) -> Chat:
    return Chat(backbone.vocab, byte_tokenizer())


def test_conversations_are_answered_together_as_alone(backbone: Backbone, chat: Chat) -> None:
    asked = [turns("a", [], "Hi."), turns("a longer persona", [], "How are you?")]
    together = [each.text for each in answers(backbone, chat, asked)]
    assert together == [answers(backbone, chat, [each])[0].text for each in asked]


def test_sound_is_noted_before_it_is_answered(backbone: Backbone, chat: Chat) -> None:
    embeddings = torch.randn(3, backbone.config.decoder.dim, generator=torch.Generator().manual_seed(0))
    (answered,) = answers(backbone, chat, [turns("a", [], 3)], embeddings)
    assert answered.trace is not None
    with pytest.raises(ValueError, match="some conversations end in sound"):
        answers(backbone, chat, [turns("a", [], 3), turns("a", [], "Hi.")], embeddings)


def test_a_trace_is_read_from_between_its_marks(chat: Chat) -> None:
    start, end = chat.vocab.control("think_start"), chat.vocab.control("think_end")
    tokens = [start, *chat.tokenizer.encode("hi there (fast)"), end]
    assert trace_of(tokens, chat) == Trace("hi there", ("fast",))
    assert trace_of([], chat) is None


def test_a_trace_is_written_between_its_marks_and_ends(backbone: Backbone, chat: Chat) -> None:
    embeddings = torch.randn(3, backbone.config.decoder.dim, generator=torch.Generator().manual_seed(0))
    (noted,) = notes(backbone, chat, [chat.prompt(turns("a", [], 3))], embeddings)
    assert (noted[0], noted[-1]) == (chat.vocab.control("think_start"), chat.vocab.control("think_end"))
    assert all(chat.vocab.region(token) == "text" for token in noted[1:-1])
    assert len(noted) <= MOST_NOTED + 2


def test_only_a_trace_may_be_closed(chat: Chat) -> None:
    think_end, code = chat.vocab.control("think_end"), chat.vocab.control("tts_start")
    for traced in (False, True):
        allowed = Words(chat.vocab, traced).opening(chat.vocab.size)
        assert bool(allowed[think_end]) is traced
        assert allowed[chat.vocab.control("turn_end")]
        assert not allowed[code]


def test_times_are_known_of_a_conversation_answered_alone(backbone: Backbone, chat: Chat) -> None:
    asked = turns("a", [], "Hi.")
    (alone,) = answers(backbone, chat, [asked])
    assert 0 < len(alone.times_s) <= MOST_TOKENS
    assert list(alone.times_s) == sorted(alone.times_s)
    assert [each.times_s for each in answers(backbone, chat, [asked, asked])] == [(), ()]


def test_a_completions_likelihood_is_the_mean_over_its_tokens(backbone: Backbone) -> None:
    prompt, completion = [1, 2, 3], [4, 5]
    logprobs = backbone.logits(backbone(torch.tensor([[1, 2, 3, 4, 5]]))).log_softmax(dim=-1)[0].detach()
    expected = float((logprobs[2, 4] + logprobs[3, 5]) / 2)
    assert math.isclose(mean_logprob(backbone, prompt, completion), expected, abs_tol=1e-5)
