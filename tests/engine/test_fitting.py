from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tristep.backbone.checkpoints import save_backbone
from tristep.backbone.foreign import start_backbone
from tristep.chat import Chat, Turn
from tristep.config import load_backbone_config
from tristep.engine.answers import mean_logprob
from tristep.engine.fitting import Fit, Reader, fit_clause, read_prompt, text_model, witnessed
from tristep.engine.judging import DialoguePrompt
from tristep.modes.judge.data import Answer, Case, Clause, Known, Verdict
from tristep.modes.realtime.data import PERSONA

PROMPT = DialoguePrompt(("I have a dog.", "I bake."), (("user", "Any pets?"), ("assistant", "Yes."), ("user", "Who?")))


def by_words(conversations: Sequence[Sequence[Turn]], replies: Sequence[str]) -> list[float]:
    """Each word of a reply that was said before makes it likelier by one."""
    said = [" ".join(str(part) for turn in turns for part in turn.parts).lower() for turns in conversations]
    return [
        -3.0 + sum(word in text for word in reply.lower().split()) for text, reply in zip(said, replies, strict=True)
    ]


READER = Reader(by_words)


def known() -> Known:
    case = Case("dialogue", str(PROMPT), Answer("dog pets"), Answer("zebra"))
    return Known(
        "a", "coherence", "train", case, Verdict({"persona": Clause("alike"), "coherence": Clause("first")}, 5)
    )


def test_a_reply_fits_as_far_as_it_is_likelier_here_than_out_of_the_blue() -> None:
    fits = READER.fits("I have a dog.", [("user", "Any pets?")], ["dog pets", "zebra", "friend"])
    assert [fit.gain for fit in fits] == [2.0, 0.0, -1.0]  # the friend is in the persona that nobody has given
    assert PERSONA.count("friend") == 1


def test_nothing_said_fits_worst_and_the_same_reply_fits_the_same() -> None:
    nothing, reply, again = READER.fits("", [("user", "pets")], [" ", "pets", "pets"])
    assert nothing.gain == -9.9
    assert reply == again == Fit(1.0)
    assert READER.fits("", [], [""]) == [Fit(-9.9)]


@pytest.mark.parametrize(
    ("gain", "words"), [(-0.1, "badly -0.1"), (0.2, "badly +0.2"), (0.3, "somewhat +0.3"), (1.25, "well +1.2")]
)
def test_a_fit_is_told_in_a_degree_and_a_number(gain: float, words: str) -> None:
    assert str(Fit(gain)) == words


def test_the_better_fit_is_coherent_and_near_ones_are_alike() -> None:
    assert fit_clause(Fit(1.1), Fit(0.2)) == Clause("first", ("well +1.1", "badly +0.2"))
    assert fit_clause(Fit(0.2), Fit(0.3)) == Clause("alike", ("badly +0.2", "somewhat +0.3"))


@given(st.floats(-9, 9), st.floats(-9, 9))
def test_clauses_of_swapped_replies_are_swapped(first: float, second: float) -> None:
    assert fit_clause(Fit(first), Fit(second)).swapped() == fit_clause(Fit(second), Fit(first))


def test_a_prompt_is_read_as_it_was_written() -> None:
    assert read_prompt(str(PROMPT)) == ("I have a dog. I bake.", list(PROMPT.turns))
    assert read_prompt(str(DialoguePrompt((), (("user", "One\nand another"),)))) == ("", [("user", "One\nand another")])


def test_a_known_pair_is_told_how_well_its_replies_fit_and_its_verdict_says_so() -> None:
    told = witnessed(known(), READER)
    assert (told.case.first.fits, told.case.second.fits) == ("well +2.0", "badly +0.0")
    assert told.verdict.reasons == "persona: alike; coherence: well +2.0 and badly +0.0, first"
    assert told.verdict.level == 5
    assert told.swapped().swapped() == told


def test_what_is_told_already_stays_and_so_do_readings() -> None:
    told, reading = witnessed(known(), READER), replace(known(), case=replace(known().case, task="speech"))
    assert witnessed(told, Reader(lambda conversations, replies: [0.0] * len(replies))) == told
    assert witnessed(reading, READER) == reading
    assert witnessed(known(), None) == known()


def test_a_text_model_says_how_likely_replies_are(tmp_path: Path) -> None:
    backbone, tokenizer = start_backbone(load_backbone_config("toy"), None, None, seed=0)
    save_backbone(backbone.eval(), tokenizer, tmp_path)
    conversations = [[Turn("system", ("a",)), Turn("user", ("b",))], [Turn("system", ("c",))]]
    likely = text_model(tmp_path)(conversations, ["yes", "no"])
    chat = Chat(backbone.vocab, tokenizer)
    slow = [
        mean_logprob(backbone, chat.prompt(turns), tokenizer.encode(reply))
        for turns, reply in zip(conversations, ["yes", "no"], strict=True)
    ]
    assert likely == pytest.approx(slow, abs=0.02)  # it computes in bfloat16
