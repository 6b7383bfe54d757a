from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tristep.backbone.model import Backbone
from tristep.chat import Chat
from tristep.config import load_backbone_config
from tristep.engine.context import KEPT_SOUND_S, ROOT, Conversation, head_turns, show, turn_of
from tristep.engine.dialogue import Item, Part, SessionError, Tool
from tristep.vocab import byte_tokenizer

CHAT = Chat(Backbone(load_backbone_config("toy")).vocab, byte_tokenizer())
HEAD = head_turns("Ada, a sailor.", ())


def said(number: int, text: str) -> Item:
    return Item(f"item_{number}", role="assistant" if number % 2 else "user", parts=(Part("text", text),))


def shown_text(tokens: list[int]) -> str:
    return CHAT.tokenizer.decode(token for token in tokens if CHAT.vocab.region(token) == "text")


def test_items_stand_where_they_are_put() -> None:
    conversation = Conversation()
    assert conversation.add(said(1, "a")) is None
    assert conversation.add(said(2, "b")) == "item_1"
    assert conversation.add(said(3, "c"), after="item_1") == "item_1"
    assert conversation.add(said(4, "d"), after=ROOT) is None
    assert [item.id for item in conversation.items] == ["item_4", "item_1", "item_3", "item_2"]
    assert conversation.last_id == "item_2"
    conversation.delete("item_1")
    conversation.change(said(1, "again"))
    assert "item_1" not in conversation


def test_only_the_latest_sound_is_kept() -> None:
    conversation = Conversation()
    for number in range(4):
        sound = torch.zeros(round(KEPT_SOUND_S / 2 * 16_000))
        conversation.add(Item(f"item_{number}", parts=(Part("audio", "text", sound),)))
    assert [item.parts[0].waveform is not None for item in conversation.items] == [False, False, True, True]
    assert all(item.text == "text" for item in conversation.items)


def test_the_model_is_shown_persona_tools_and_conversation() -> None:
    tool = Tool("weather", "Tells the weather.", {"type": "object"})
    call = Item("call", "function_call", name="weather", arguments='{"city": "Oslo"}', call_id="call_1")
    output = Item("output", "function_call_output", output="12 degrees", call_id="call_1")
    shown = show(CHAT, head_turns("Ada, a sailor.", [tool]), [said(0, "Is it warm?"), call, output], 2000)
    text = shown_text(shown.tokens)
    places = [text.index(part) for part in ("Ada", "weather", "Is it warm?", '{"city": "Oslo"}', "12 degrees")]
    assert places == sorted(places)
    assert shown.tokens[-len(CHAT.header("assistant")) :] == CHAT.header("assistant")


def test_what_was_not_said_is_not_shown() -> None:
    assert turn_of(Item("silent", parts=(Part("audio", None),))) is None
    assert turn_of(said(0, "  ")) is None


@given(st.lists(st.text("ab ", max_size=60), max_size=12), st.integers(60, 400), st.sampled_from([0.3, 0.7, 1.0]))
def test_what_is_shown_always_fits(texts: list[str], room: int, retention: float) -> None:
    items = [said(number, text) for number, text in enumerate(texts)]
    shown = show(CHAT, HEAD, items, room, retention)
    assert len(shown.tokens) <= room
    spoken = [item.id for item in items if item.text.strip()]
    assert list(shown.dropped) == spoken[: len(shown.dropped)]  # the oldest go first
    assert len(shown.dropped) < max(len(spoken), 1)  # the newest stays
    assert show(CHAT, HEAD, [item for item in items if item.id not in shown.dropped], room).tokens == shown.tokens


def test_a_share_is_kept_so_that_several_turns_fit_again() -> None:
    items = [said(number, "x" * 30) for number in range(20)]
    all_of_it, half = show(CHAT, HEAD, items, 400), show(CHAT, HEAD, items, 400, retention=0.5)
    assert len(half.tokens) <= 200 < len(all_of_it.tokens)
    assert len(half.dropped) > len(all_of_it.dropped) > 0


def test_the_conversation_takes_no_more_than_it_may_however_long_the_head() -> None:
    items = [said(number, "x" * 30) for number in range(20)]
    for head in (HEAD, head_turns("A persona that takes longer to tell." * 3, ())):
        shown = show(CHAT, head, items, 900, most_tokens=200)
        around = len(CHAT.render(head).tokens) + len(CHAT.header("assistant"))
        assert 150 < len(shown.tokens) - around <= 200
        assert shown.dropped


def test_a_turn_that_is_too_long_loses_its_beginning() -> None:
    shown = show(CHAT, HEAD, [said(0, "begin" + "x" * 500 + "end")], 200)
    assert len(shown.tokens) == 200
    assert "begin" not in shown_text(shown.tokens)
    assert "xend" in shown_text(shown.tokens)


def test_what_must_not_be_dropped_is_refused() -> None:
    with pytest.raises(SessionError, match="delete items, shorten the instructions, or allow truncation") as refused:
        show(CHAT, HEAD, [said(0, "x" * 500)], 200, retention=None)
    assert refused.value.code == "context_length_exceeded"
