from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tristep.corpus.dialogues import read_dialogues, trigrams, without_near_duplicates

HEADER = ("user 1 personas", "user 2 personas", "Best Generated Conversation")
GOOD = "User 1: Hi!\nUser 2: Hello.\nUser 1: Do you bake?\nUser 2: I do."


def write_csv(path: Path, *conversations: str) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        for conversation in conversations:
            writer.writerow(["I knit.\nI knit.\nI ski.", "I bake.", conversation])
    return path


def test_the_published_layout_is_read_and_what_does_not_alternate_is_passed_over(tmp_path: Path) -> None:
    spoilt = ("User 1: Hi!\nUser 1: Hm?", "User 2: Hello.", "User 1: Hi!\n* * *\nUser 2: Hello.")
    dialogues = read_dialogues(write_csv(tmp_path / "spc.csv", *spoilt, GOOD))
    assert [dialogue.id for dialogue in dialogues] == ["spc0003"]  # a dialogue is named after its place in the file
    assert dialogues[0].facts == (("I knit.", "I ski."), ("I bake.",))
    assert dialogues[0].turns == ("Hi!", "Hello.", "Do you bake?", "I do.")


def test_json_lines_hold_two_personas_and_turns(tmp_path: Path) -> None:
    row = {"personas": [["I knit."], ["I bake."]], "turns": ["Hi!", "Hello."]}
    (tmp_path / "own.jsonl").write_text(json.dumps(row) + "\n")
    (dialogue,) = read_dialogues(tmp_path / "own.jsonl", prefix="own")
    assert (dialogue.id, dialogue.turns, dialogue.facts[1]) == ("own0000", ("Hi!", "Hello."), ("I bake.",))


def test_files_without_dialogues_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give a CSV or JSON lines"):
        read_dialogues(tmp_path / "nothing.csv")
    with pytest.raises(ValueError, match="no dialogue whose turns alternate"):
        read_dialogues(write_csv(tmp_path / "spc.csv", "User 2: Hello."))
    (tmp_path / "own.jsonl").write_text('{"turns": []}\n')
    with pytest.raises(ValueError, match="can't be read as dialogues"):
        read_dialogues(tmp_path / "own.jsonl")


def test_nearly_equal_texts_are_kept_once() -> None:
    texts = ["I love to bake cookies with my two dogs.", "I love to bake cookies with my two dogs!", "I ski.", "i ski"]
    assert without_near_duplicates(texts) == [0, 2]


@given(st.lists(st.text("ab ", max_size=12), max_size=8))
def test_what_is_left_out_is_like_something_kept_and_nothing_kept_is(texts: list[str]) -> None:
    def alike(first: str, second: str) -> float:
        return len(trigrams(first) & trigrams(second)) / len(trigrams(first) | trigrams(second))

    kept = without_near_duplicates(texts)
    for place, text in enumerate(texts):
        before = [texts[other] for other in kept if other < place]
        assert (place in kept) is not any(alike(text, other) > 0.7 for other in before)
