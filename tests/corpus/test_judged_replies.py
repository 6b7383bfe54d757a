from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tristep.corpus.judged_replies import (
    COMFORT_CUES,
    COMFORTS,
    DELIGHT_CUES,
    DELIGHTS,
    DISCLAIMERS,
    FEELINGS,
    NUM_HELD_OUT_TEMPLATES,
    Dialogue,
    Replies,
    denied,
    dialogue_pairs,
    read_dialogues,
    split_by_persona,
    told,
)
from tristep.modes.judge.data import RUBRICS, Known

ANN = Dialogue(
    ("I love to bake cookies.", "I have two dogs.", "My favorite color is green."),
    (
        ("user", "Hi! How are you today?"), ("assistant", "I am fine, thanks for asking."),
        ("user", "I work at a small hospital. What do you do?"),
        ("assistant", "I bake cookies for a shop around the corner."), ("user", "That must smell wonderful."),
    ),
)  # fmt: skip
BOB = Dialogue(
    ("I don't like cats.", "I am a pilot.", "I live in Norway."),
    (
        ("user", "Hello there, nice to meet you."), ("assistant", "Nice to meet you too."),
        ("user", "I have a garden with many roses."), ("assistant", "I see gardens from far above when I fly."),
    ),
)  # fmt: skip


@pytest.mark.parametrize(
    ("said", "opposite"),
    [("I love to bake.", "I don't love to bake."), ("I don't like cats.", "I like cats."),
     ("I am a pilot.", "I am not a pilot."), ("I am not old.", "I am old."),
     ("My favorite color is green.", "My favorite color is not green."), ("Cookies!", None)],
)  # fmt: skip
def test_facts_are_denied_by_rules_where_there_is_one(said: str, opposite: str | None) -> None:
    assert denied(said) == opposite


def test_what_was_said_is_told_back_in_the_second_person() -> None:
    assert told("I love my two dogs.") == "You told me that you love your two dogs."


def by_kind(seed: int = 0) -> dict[str, Known]:
    pairs = dialogue_pairs([ANN, BOB], held_out_share=0.0, seed=seed)
    return {known.kind: known for known in pairs if "bake" in known.case.prompt.splitlines()[0]}


def test_every_kind_of_difference_is_made_with_the_better_reply_first() -> None:
    made = by_kind()
    assert {"coherence", "disclaimer", "facts", "memory", "feeling", "alike"} <= made.keys()
    assert made["coherence"].case.first.text == ANN.turns[3][1]
    assert made["coherence"].case.second.text == BOB.turns[3][1]
    assert made["disclaimer"].case.second.text in DISCLAIMERS
    assert any(fact in made["facts"].case.first.text for fact in ANN.persona)
    assert any(fact in made["facts"].case.second.text for fact in BOB.persona)
    assert made["memory"].case.first.text == "You told me that you work at a small hospital."
    assert made["memory"].case.second.text == "You told me that you have a garden with many roses."


def test_reasons_name_the_aspect_and_the_line_that_decides() -> None:
    made = by_kind()
    aspects = {"coherence": "coherence", "disclaimer": "persona", "facts": "persona", "memory": "memory",
               "feeling": "feeling"}  # fmt: skip
    for kind, aspect in aspects.items():
        clauses = made[kind].verdict.clauses
        assert clauses.keys() == RUBRICS["dialogue"].keys()
        assert {name for name, clause in clauses.items() if clause.side == "first"} == {aspect}
    assert made["memory"].verdict.clauses["memory"].wanted == '"I work at a small hospital."'
    assert made["alike"].verdict.level == 3


def test_a_denial_is_the_better_reply_where_it_denies_somebody_elses_fact() -> None:
    rng = np.random.default_rng(0)
    replies = Replies([ANN, BOB], rng, slice(None))
    drafts = [draft for draft in (replies.denial(ANN) for _ in range(60)) if draft]
    own = [draft for draft in drafts if "no such" not in draft.clauses["persona"].wanted]
    strange = [draft for draft in drafts if draft not in own]
    assert own
    assert strange
    assert all(any(draft.good.endswith(fact) for fact in ANN.persona) for draft in own)
    assert all(any(draft.bad.endswith(fact) for fact in BOB.persona) for draft in strange)
    assert any("don't" in draft.good or "not" in draft.good for draft in drafts)


def test_personas_and_templates_are_held_out_whole() -> None:
    many = [
        Dialogue((f"I have {number} dogs.", "I am here."), (*ANN.turns, ("user", f"{number}"))) for number in range(40)
    ]
    pairs = list(dialogue_pairs(many, held_out_share=0.3))
    card = {
        split: {k.case.prompt.splitlines()[0] for k in pairs if k.split == split} for split in ("train", "held_out")
    }
    assert card["held_out"]
    assert not card["train"] & card["held_out"]
    bad = {k.split: set() for k in pairs}  # type: ignore[var-annotated]
    for known in pairs:
        if known.kind in ("disclaimer", "feeling"):
            bad[known.split].add(known.case.second.text)
    assert not bad["train"] & bad["held_out"]
    assert len(bad["held_out"]) <= 2 * NUM_HELD_OUT_TEMPLATES < len(DISCLAIMERS) + len(FEELINGS)


def test_some_replies_to_feelings_have_a_cue_that_fits_them() -> None:
    replies = Replies([ANN, BOB], np.random.default_rng(0), is_held_out=False)
    for is_sad, cues, texts in ((True, COMFORT_CUES, COMFORTS), (False, DELIGHT_CUES, DELIGHTS)):
        drawn = [replies.felt(is_sad) for _ in range(40)]
        cued = [text for text in drawn if text.startswith(cues)]
        assert 0 < len(cued) < len(drawn)
        assert all(text.split(") ")[-1] in texts for text in drawn)


def test_a_held_out_conversation_is_not_met_from_its_other_side() -> None:
    sides = [Dialogue((f"I am number {number}.",), (("user", f"Hello {number // 2}."),)) for number in range(60)]
    train, held_out = split_by_persona(sides, 0.3, seed=0)
    assert train
    assert held_out
    assert not {dialogue.words for dialogue in train} & {dialogue.words for dialogue in held_out}


def test_persona_chat_is_read_from_both_sides(tmp_path: Path) -> None:
    path = tmp_path / "chat.csv"
    conversation = "User 1: Hi!\nUser 2: Hello!\nUser 1: I bake."
    path.write_text(
        "user 1 personas,user 2 personas,Best Generated Conversation\n"
        f'"i love to bake.\ni am ann","I fly.","{conversation}"\n'
    )
    first, second = read_dialogues(path)
    assert first == Dialogue(
        ("I love to bake.", "I am ann."), (("assistant", "Hi!"), ("user", "Hello!"), ("assistant", "I bake."))
    )
    assert second.persona == ("I fly.",)
    assert [role for role, _ in second.turns] == ["user", "assistant", "user"]


def test_dialogues_are_read_from_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "dialogues.jsonl"
    path.write_text(json.dumps({"persona": ["I fly."], "turns": [["user", "Hi!"]]}) + "\n")
    assert read_dialogues(path) == [Dialogue(("I fly.",), (("user", "Hi!"),))]
