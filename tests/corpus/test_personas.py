from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from tristep.backbone.checkpoints import save_backbone
from tristep.backbone.model import Backbone
from tristep.chat import Turn
from tristep.config import load_backbone_config
from tristep.corpus.dialogues import Dialogue
from tristep.corpus.personas import (
    ATTRIBUTES,
    cues_of,
    distil,
    distinct,
    fission,
    main,
    native_cards,
    pair,
    script,
    sentences,
    split_of,
    traits,
    whole_sentences,
    with_habit,
    with_sound,
)
from tristep.modes.realtime.persona import PersonaCard, read_cards, violations
from tristep.vocab import byte_tokenizer

TURNS = (
    "Hi! What do you do all day?", "I bake bread for the whole village.", "Do you have 2 dogs?",
    "I do not have any dogs.",
    "Who eats all that bread then?", "The children from the school next door do.",
)  # fmt: skip
DIALOGUES = [
    Dialogue(f"spc{place:04d}", (("I ski.",), ("I have two dogs.", f"I am {20 + place}.")), TURNS) for place in range(5)
]


def rows(**changes: object) -> list[dict[str, object]]:
    found = list(pair(native_cards(DIALOGUES[:1], 0), DIALOGUES, per_card=9, held_out={}, seed=0))
    return [{**row, **changes} for row in found]


def test_native_cards_have_their_dialogues_facts_and_drawn_attributes() -> None:
    cards = native_cards(DIALOGUES, seed=0)
    assert [card.facts for card in cards] == [dialogue.facts[1] for dialogue in DIALOGUES]
    assert all(getattr(card, name) in choices for card in cards for name, choices in ATTRIBUTES.items())
    assert cards == native_cards(DIALOGUES, seed=0) != native_cards(DIALOGUES, seed=1)


def test_fission_makes_combinations_that_there_were_not() -> None:
    cards = native_cards(DIALOGUES, seed=0)
    new = fission(cards, number=40, seed=1)
    assert len(new) == 40
    combinations = {(card.facts, traits(card)) for card in [*cards, *new]}
    assert len(combinations) == 45
    assert len({card.id for card in new}) == 40
    facts = {card.id: card.facts for card in cards}
    assert all(card.facts == facts[card.id.split(".")[0]] for card in new)
    assert new == fission(cards, number=40, seed=1)


def test_fission_ends_when_nothing_new_is_left() -> None:
    assert fission([PersonaCard(id="only")], number=3, seed=0) == []


def test_a_habit_opens_an_answer_that_shows_none() -> None:
    card = PersonaCard(id="a", verbal_habits=("Well now,",))
    written = {with_habit("That is nice.", card, np.random.default_rng(seed)) for seed in range(20)}
    assert written == {"That is nice.", "Well now, that is nice."}
    assert with_habit("Well now, yes.", card, np.random.default_rng(0)) == "Well now, yes."
    assert "Well now, I do." in {with_habit("I do.", card, np.random.default_rng(seed)) for seed in range(20)}


def test_a_persona_answers_as_in_its_dialogue_and_never_out_of_character() -> None:
    card = native_cards(DIALOGUES[:1], 0)[0]
    found = rows()
    assert [row["text"] for row in found] == [TURNS[0], TURNS[4]]  # it has two dogs, and said that it has none
    assert all(not violations(card, str(row["answer"])) for row in found)
    assert [row["sound"] for row in found] == ["spc0000_00", "spc0000_04"]
    assert len(found[1]["history"]) == 4  # type: ignore[arg-type]
    assert found[1]["history"][0] == ["user", TURNS[0]]  # type: ignore[index]


def test_a_dialogue_is_held_out_whole() -> None:
    held_out = split_of(DIALOGUES, num_dev=1, num_test=2)
    assert held_out == {"spc0002": "dev", "spc0003": "test", "spc0004": "test"}
    found = pair(fission(native_cards(DIALOGUES, 0), 10, 0), DIALOGUES, 4, held_out, 0)
    for row in found:
        assert row["split"] == held_out.get(str(row["sound"])[:7], "train")


def test_what_was_said_before_nearly_word_for_word_is_left_out() -> None:
    assert len(distinct([*rows(), *rows(id="again")])) == 2
    assert len(distinct([*rows(), *rows(split="dev")])) == 4


def test_turns_are_listed_for_a_teacher_to_read() -> None:
    long = rows(text="word " * 30, sound="long")
    assert sentences([*rows(), *long]) == {"spc0000_00": TURNS[0], "spc0000_04": TURNS[4]}
    (held,) = script({"spc0001": native_cards(DIALOGUES, 0)[1]}, DIALOGUES, {}, num_turns=3)
    assert list(sentences([held])) == ["spc0001_00", "spc0001_02", "spc0001_04"]


def test_an_exchange_takes_its_sound_and_how_it_was_said() -> None:
    clip = {"audio": "a.flac", "duration": 1.0, "sample_rate": 16000, "speaker": "s", "split": "train", "speed": 1.3}
    (heard,) = with_sound(rows(), {"spc0000_00": clip})
    assert (heard["audio"], heard["cues"], heard["split"]) == ("a.flac", ["fast"], "train")
    (kept_out,) = with_sound(rows(), {"spc0000_00": {**clip, "split": "dev"}})
    assert kept_out["split"] == "dev"


def test_only_what_can_be_heard_is_a_cue() -> None:
    assert cues_of({"styles": ["whisper", "low"], "speed": 0.8}) == ["whisper", "slow"]
    assert cues_of({"styles": ["slow"], "speed": 0.7}) == ["slow"]
    assert cues_of({}) == []


def test_a_script_is_the_users_side_with_its_sound() -> None:
    cards = {card.id: card for card in native_cards(DIALOGUES[:1], 0)}
    (row,) = script(cards, DIALOGUES, {"spc0000_02": {"audio": "b.flac"}}, num_turns=2)
    assert row["turns"] == [
        {"sound": "spc0000_00", "text": TURNS[0]}, {"sound": "spc0000_02", "text": TURNS[2], "audio": "b.flac"},
    ]  # fmt: skip
    assert list(script(cards, DIALOGUES, {}, num_turns=9)) == []


def test_a_teachers_answer_is_taken_where_it_is_in_character() -> None:
    given: list[Sequence[Turn]] = []

    def teacher(conversations: Sequence[Sequence[Turn]]) -> list[str]:
        given.extend(conversations)
        return ["As an AI, I eat nothing.", "I bake it for my dogs! And for"]

    first, second = distil(rows(), {}, teacher, "teacher")
    assert first["answered_by"] == "dialogue"
    assert (second["answer"], second["answered_by"]) == ("I bake it for my dogs!", "teacher")
    assert [turn.role for turn in given[1]] == ["system", "user", "assistant", "user", "assistant", "user"]


@pytest.mark.parametrize(
    ("text", "whole"), [("Yes. I do", "Yes."), ("He said \u201cno\u201d", "He said \u201cno\u201d"), ("Yes! ", "Yes!")]
)
def test_a_sentence_that_was_cut_goes(text: str, whole: str) -> None:
    assert whole_sentences(text) == whole


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["personas", *arguments])
    main()


def test_the_steps_follow_one_another_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [json.dumps({"personas": dialogue.facts, "turns": TURNS}) + "\n" for dialogue in DIALOGUES]
    (tmp_path / "dialogues.jsonl").write_text("".join(lines))
    dialogues, cards, more, typed, held, said = (
        str(tmp_path / f"{name}.jsonl") for name in ("dialogues", "cards", "more", "typed", "script", "said")
    )
    run(monkeypatch, "cards", dialogues, "--out", cards)
    run(monkeypatch, "fission", cards, "--number", "6", "--out", more)
    assert len(read_cards(more)) == 6
    run(monkeypatch, "pair", dialogues, "--cards", more, "--dev", "1", "--test", "1", "--out", typed)
    run(monkeypatch, "script", dialogues, "--cards", cards, "--test", "2", "--turns", "3", "--out", held)
    assert len(Path(held).read_text().splitlines()) == 2
    run(monkeypatch, "sentences", typed, held, "--out", str(tmp_path / "turns.tsv"))
    assert f"spc0004_00\t{TURNS[0]}" in (tmp_path / "turns.tsv").read_text().splitlines()
    torch.manual_seed(0)
    save_backbone(Backbone(load_backbone_config("toy")), byte_tokenizer(), tmp_path / "toy")
    run(monkeypatch, "distil", typed, "--cards", more, "--model", str(tmp_path / "toy"), "--number", "2", "--out", said)
    assert len(Path(said).read_text().splitlines()) == 2
