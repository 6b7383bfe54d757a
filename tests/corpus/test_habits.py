from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tristep.corpus.habits import HELD_OUT, TAUGHT, main, rehabited, with_habit
from tristep.corpus.personas import ATTRIBUTES
from tristep.modes.realtime.persona import PersonaCard, read_prompt

CARD = PersonaCard(id="a", facts=("I have two dogs.",), verbal_habits=("Oh my!",))
ROW = {
    "card": "a.1", "language": "en", "persona": CARD.prompt(), "text": "Any pets?", "answer": "Oh my! Two dogs.",
    "history": [["user", "Oh my! Hello."], ["assistant", "Oh my! Good day."], ["assistant", "I see."]],
}  # fmt: skip


def test_a_persona_says_its_new_habit_wherever_it_said_the_old_one() -> None:
    row = with_habit(ROW, "Frankly,")
    assert read_prompt(row["persona"]) == read_prompt(CARD.prompt()).model_copy(update={"verbal_habits": ("Frankly,",)})
    assert row["answer"] == "Frankly, two dogs."
    assert row["history"] == [["user", "Oh my! Hello."], ["assistant", "Frankly, good day."], ["assistant", "I see."]]
    assert with_habit(row, "By Jove!")["answer"] == "By Jove! Two dogs."


def test_a_persona_without_a_habit_keeps_none() -> None:
    plain = {**ROW, "persona": CARD.model_copy(update={"verbal_habits": ()}).prompt()}
    assert with_habit(plain, "Frankly,") == plain
    (script,) = rehabited([{"id": "a", "card": {"id": "a"}, "turns": []}], HELD_OUT, seed=0)
    assert script["card"] == {"id": "a"}


def test_all_exchanges_of_a_card_have_the_same_habit() -> None:
    rows = rehabited([ROW] * 5 + [{**ROW, "card": f"b.{number}"} for number in range(20)], TAUGHT, seed=0)
    habits = [read_prompt(row["persona"]).verbal_habits for row in rows]
    assert len(set(habits[:5])) == 1
    assert len(set(habits)) > 5


def test_no_habit_that_is_measured_was_taught() -> None:
    known = {habit for habits in ATTRIBUTES["verbal_habits"] for habit in habits}
    assert not set(HELD_OUT) & {*TAUGHT, *known}
    assert not set(TAUGHT) & known


def test_scripts_are_written_with_held_out_habits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = {"id": "a", "card": CARD.model_dump(exclude_defaults=True), "turns": []}
    (tmp_path / "script.jsonl").write_text(json.dumps(script) + "\n")
    command = ["habits", str(tmp_path / "script.jsonl"), "--held-out", "--out", str(tmp_path / "out.jsonl")]
    monkeypatch.setattr(sys, "argv", command)
    main()
    (written,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert written["card"]["verbal_habits"][0] in HELD_OUT
