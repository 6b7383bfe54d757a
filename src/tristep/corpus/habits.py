"""Habits: personas that say what no persona in the training data says, so that a card has to be read.

    python -m tristep.corpus.habits typed/exchanges.jsonl --out habits/exchanges.jsonl
    python -m tristep.corpus.habits script.jsonl --held-out --out script_habits.jsonl

`personas.py` gives its cards eleven verbal habits, which a small model soon knows by heart: it need not read which of
them is its own. Here a card's habit, wherever it was said, becomes another of many: `TAUGHT` ones for learning from
rewards, `HELD_OUT` ones for measuring (`tristep evaluate realtime`).
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tristep.arguments import existing
from tristep.corpus.personas import read_rows, write_rows
from tristep.modes.realtime.persona import read_prompt

TAUGHT = (
    "Good heavens!", "Bless my soul!", "Look here,", "Let me tell you,", "Truth be told,", "Well, well.", "Oh dear!",
    "My word!", "To be fair,", "Now listen,", "I must say,", "Hand on heart,", "Funny you say that.", "Aye,",
    "Gosh!", "Believe me,", "As my mother used to say,", "Between you and me,", "Ooh!", "Dear me,", "Fair enough.",
    "Wow!", "If you ask me,", "I swear,", "Oh boy!", "Sweet!", "Listen, friend,", "Mind you,", "Well I never!",
    "Indeed!", "Alright then,", "Strange as it sounds,", "Hey there,", "Let's see now,", "No doubt about it,",
    "Good question!", "In my humble opinion,", "Jolly good!", "Cross my heart,", "Mm-hm.",
)  # fmt: skip
"""What personas like to say while the mode learns from rewards."""
HELD_OUT = (
    "By Jove!", "Upon my word,", "Frankly,", "Holy moly!", "Here's the thing,", "Bless your heart,", "As they say,",
    "Golly!", "Come to think of it,", "Splendid!", "Sure enough,", "Well, blow me down!",
)  # fmt: skip
"""What they say where it is measured."""


def with_habit(row: dict[str, Any], habit: str) -> dict[str, Any]:
    """Give the persona of an exchange another habit, in its card and in all that it says; none where it has none."""
    known = read_prompt(row["persona"], row["language"]).verbal_habits
    if not known:
        return row
    persona = row["persona"].replace(" and ".join(f'"{each}"' for each in known), f'"{habit}"')
    history = [[role, said_by(text, known, habit) if role == "assistant" else text] for role, text in row["history"]]
    return {**row, "persona": persona, "history": history, "answer": said_by(row["answer"], known, habit)}


def said_by(text: str, known: Sequence[str], habit: str) -> str:
    """Let a text that begins with one of the known habits begin with another."""
    for each in known:
        if text.startswith(each):
            return f"{habit} {in_place(text.removeprefix(each).strip(), habit)}".strip()
    return text


def in_place(rest: str, habit: str) -> str:
    """Write what follows a habit: a sentence of its own, or the rest of one that the habit began."""
    if habit.endswith(",") and not re.match(r"I\b|[A-Z]{2}", rest):
        return rest[:1].lower() + rest[1:]
    return rest[:1].upper() + rest[1:]


def with_card_habit(row: dict[str, Any], habit: str) -> dict[str, Any]:
    """Give the card of a script another habit; none where it has none."""
    card = row["card"]
    return {**row, "card": {**card, "verbal_habits": [habit]}} if card.get("verbal_habits") else row


def rehabited(rows: Sequence[dict[str, Any]], habits: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """Draw a habit for every persona: the same for all exchanges of a card."""
    names = [str(row["card"] if isinstance(row["card"], str) else row["id"]) for row in rows]
    rng = np.random.default_rng(seed)
    drawn = {name: habits[int(rng.integers(len(habits)))] for name in dict.fromkeys(names)}
    give = with_habit if "persona" in rows[0] else with_card_habit
    return [give(row, drawn[name]) for row, name in zip(rows, names, strict=True)]


def main() -> None:
    """Write exchanges, or a script, with other habits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=existing, help="an exchanges.jsonl or a script.jsonl of tristep.corpus.personas")
    parser.add_argument("--held-out", action="store_true", help="draw the habits that are kept for measuring")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = rehabited(read_rows(options.rows), HELD_OUT if options.held_out else TAUGHT, options.seed)
    print(f"{write_rows(rows, options.out)} rows, written to {options.out}")


if __name__ == "__main__":
    main()
