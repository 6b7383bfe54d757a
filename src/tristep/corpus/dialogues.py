"""Dialogues: written conversations between two people who each have facts of their own.

They come in the published layout of Synthetic-Persona-Chat (a CSV with `user 1 personas`, `user 2 personas` and
`Best Generated Conversation`), or as JSON lines with `personas`, two lists of facts, and `turns`, a list of texts that
begins with the user's. The second speaker is the one who is taught.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SPEAKER = re.compile(r"User ([12]):\s*(.*)")


@dataclass(frozen=True)
class Dialogue:
    """One conversation: the user's turns are those at even places."""

    id: str
    facts: tuple[tuple[str, ...], tuple[str, ...]]
    """What the user and the one who answers say of themselves."""
    turns: tuple[str, ...]


def read_dialogues(path: str | Path, prefix: str = "spc") -> list[Dialogue]:
    """Read dialogues; what is no clean exchange of turns, the user's first, is passed over.

    Args:
        path: A `.csv` in the layout of Synthetic-Persona-Chat, or JSON lines.
        prefix: Of the dialogues' ids; their places in the file follow.

    Raises:
        ValueError: If the file can't be read, or holds no dialogue.
    """
    path = Path(path)
    read = csv_rows if path.suffix == ".csv" else json_rows
    try:
        rows = list(read(path))
    except (OSError, UnicodeDecodeError, ValueError, KeyError) as error:
        raise ValueError(f"{str(path)!r} can't be read as dialogues ({error!r}): give a CSV or JSON lines") from error
    named = [Dialogue(f"{prefix}{place:04d}", *row) for place, row in enumerate(rows) if row is not None]
    if not named:
        raise ValueError(
            f"{str(path)!r} has no dialogue whose turns alternate: see `python -m tristep.corpus.personas`"
        )
    return named


Row = tuple[tuple[tuple[str, ...], tuple[str, ...]], tuple[str, ...]]


def csv_rows(path: Path) -> Iterator[Row | None]:
    """Read the published layout of Synthetic-Persona-Chat."""
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            facts = (listed(row["user 1 personas"]), listed(row["user 2 personas"]))
            turns = alternating(row["Best Generated Conversation"])
            yield (facts, turns) if turns else None


def listed(lines: str) -> tuple[str, ...]:
    """Read facts, one a line."""
    return tuple(dict.fromkeys(line.strip() for line in lines.splitlines() if line.strip()))


def alternating(conversation: str) -> tuple[str, ...]:
    """Read `User 1: ...` and `User 2: ...` in turn; nothing if a line is anything else."""
    matches = [SPEAKER.fullmatch(line.strip()) for line in conversation.splitlines() if line.strip()]
    speakers = [match and match[1] for match in matches]
    if speakers != ["1" if place % 2 == 0 else "2" for place in range(len(matches))]:
        return ()
    return tuple(match[2].strip() for match in matches if match)


def json_rows(path: Path) -> Iterator[Row | None]:
    """Read JSON lines."""
    for line in path.read_text(encoding="utf-8").splitlines():
        row: dict[str, Any] = json.loads(line)
        first, second = row["personas"]
        yield (tuple(first), tuple(second)), tuple(row["turns"])


def without_near_duplicates(texts: Sequence[str], most_alike: float = 0.7) -> list[int]:
    """Return the places of texts that are not nearly one before them.

    Texts are compared by the share of their word trigrams that they have in common (Jaccard), and only with texts
    that share one: exact, and quick up to some hundred thousand short texts.
    """
    kept: list[int] = []
    holders: dict[tuple[str, ...], list[int]] = {}
    sizes: dict[int, int] = {}
    for place, text in enumerate(texts):
        own = trigrams(text)
        shared: dict[int, int] = {}
        for gram in own:
            for other in holders.get(gram, ()):
                shared[other] = shared.get(other, 0) + 1
        if any(count > most_alike * (len(own) + sizes[other] - count) for other, count in shared.items()):
            continue
        kept.append(place)
        sizes[place] = len(own)
        for gram in own:
            holders.setdefault(gram, []).append(place)
    return kept


def trigrams(text: str) -> set[tuple[str, ...]]:
    """Return the trigrams of a text's words; a shorter one is its own only one."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[start : start + 3]) for start in range(max(len(words) - 2, 1))}
