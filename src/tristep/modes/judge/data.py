"""The judge, data construction: what was asked and two answers in; short reasons, then one of five levels, out.

The report's reward model writes its verdict (section 5.3; R1.5: a textual judgement, mapped to levels of preference),
and leaves the layout open. Here the task and its rubric stand in the system turn; the user turn holds the prompt and
both answers, each as sound to be heard, as evidence in words, or both; the assistant reasons between `think_start` and
`think_end`, one clause for each aspect of the rubric, and ends with a digit. The level compares the first answer with
the second, so a judge that is asked both ways round has to agree with itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from tristep.chat import Chat, Control, Part, Rendered, Sound, Turn

Task = Literal["speech", "dialogue"]
Side = Literal["first", "second", "alike"]

RUBRICS: dict[Task, dict[str, str]] = {
    "speech": {
        "words": "all of the text and nothing else",
        "voice": "the voice that was asked for",
        "pace": "as slow or fast as asked",
        "pitch": "as low or high as asked",
        "volume": "as quiet or loud as asked",
    },
    "dialogue": {
        "persona": "true to the persona",
        "coherence": "an answer to what was said last",
        "memory": "faithful to what the user said before",
        "feeling": "fitting how the user feels",
    },
}
"""What each task is judged by."""
ANSWERS: dict[Task, str] = {"speech": "readings", "dialogue": "replies"}
NUM_LEVELS = 5
"""1: the second is clearly better, 2: somewhat, 3: alike, 4: the first is somewhat better, 5: clearly."""
ALIKE = 3
OTHER_SIDE: dict[Side, Side] = {"first": "second", "second": "first", "alike": "alike"}
CLAUSE = re.compile(r"(\w+): (?:[^;]*, )?(first|second|alike)(?=;|$)")


@dataclass(frozen=True)
class Answer:
    """One of two answers, as the judge is given it."""

    text: str
    """The reply, or what was measured of a sound and heard in it."""
    num_slots: int = 0
    """Audio embeddings of the sound, where the judge hears it."""
    fits: str = ""
    """How well a reply fits what was said, where a witness has measured it."""

    def parts(self, name: str) -> tuple[Part, ...]:
        """Write it under its name."""
        sound = (Sound(self.num_slots),) if self.num_slots else ()
        return (f"\n{name}: ", *sound, self.text + (f"\nFits: {self.fits}" if self.fits else ""))


@dataclass(frozen=True)
class Case:
    """What the judge is asked."""

    task: Task
    prompt: str
    """What the answers answer, in lines."""
    first: Answer
    second: Answer

    def swapped(self) -> Case:
        """Put the second answer first."""
        return replace(self, first=self.second, second=self.first)


@dataclass(frozen=True)
class Clause:
    """What the reasons say about one aspect."""

    side: Side
    """Who is better in it."""
    findings: tuple[str, str] | None = None
    """What was found of the first and of the second, where there is something to say."""
    wanted: str = ""
    """What was asked for, or the line that the answers are held against."""

    def swapped(self) -> Clause:
        """Say the same of the answers the other way round."""
        findings = self.findings and (self.findings[1], self.findings[0])
        return replace(self, side=OTHER_SIDE[self.side], findings=findings)

    def __str__(self) -> str:
        found = f"{self.findings[0]} and {self.findings[1]}" if self.findings else ""
        return ", ".join(filter(None, [self.wanted, found, self.side]))


@dataclass(frozen=True)
class Verdict:
    """What the judge writes."""

    clauses: Mapping[str, Clause]
    """By aspect of the rubric."""
    level: int

    def __post_init__(self) -> None:
        if not 1 <= self.level <= NUM_LEVELS:
            raise ValueError(f"the level of a verdict is {self.level}: expected 1 to {NUM_LEVELS}, {ALIKE} for alike")

    @property
    def reasons(self) -> str:
        """The clauses in a row."""
        return "; ".join(f"{aspect}: {clause}" for aspect, clause in self.clauses.items())

    def swapped(self) -> Verdict:
        """Say the same of the answers the other way round."""
        clauses = {aspect: clause.swapped() for aspect, clause in self.clauses.items()}
        return Verdict(clauses, NUM_LEVELS + 1 - self.level)


def turns(case: Case) -> list[Turn]:
    """Build what the judge is given."""
    rubric = "; ".join(f"{aspect}, {meaning}" for aspect, meaning in RUBRICS[case.task].items())
    task = f"Say which of two {ANSWERS[case.task]} is better. Rubric: {rubric}."
    asked = (case.prompt, *case.first.parts("First"), *case.second.parts("Second"))
    return [Turn("system", (task,)), Turn("user", asked)]


def verdict_turn(verdict: Verdict) -> Turn:
    """Build what the judge has to write."""
    reasons = (Control("think_start"), verdict.reasons, Control("think_end"))
    return Turn("assistant", (*reasons, str(verdict.level)))


def render(chat: Chat, case: Case, verdict: Verdict) -> Rendered:
    """Write one training sample: tokens, and the mask of those that the assistant writes."""
    return chat.render([*turns(case), verdict_turn(verdict)])


def prompt(chat: Chat, case: Case) -> list[int]:
    """Write a case up to where the reasons begin."""
    return [*chat.prompt(turns(case)), chat.vocab.control("think_start")]


def read_sides(reasons: str) -> dict[str, Side]:
    """Read who is better in each aspect that the reasons name; a clause that says nothing readable is left out."""
    named: dict[str, Side] = {}
    for clause in reasons.split("; "):
        if found := CLAUSE.fullmatch(clause.strip().rstrip(".")):
            side: Side = found[2]  # type: ignore[assignment]  # the pattern has no other
            named[found[1]] = side
    return named


@dataclass(frozen=True)
class Known:
    """A case of which the answer is known: the first answer is the better one, or both are alike."""

    id: str
    kind: str
    """In what the answers differ, such as `pace`."""
    split: str
    """`train` or `held_out`."""
    case: Case
    verdict: Verdict
    sounds: tuple[str, ...] = ()
    """Paths of both sounds, relative to the file that holds this; none for texts."""

    def swapped(self) -> Known:
        """Put the second answer first."""
        return replace(
            self, case=self.case.swapped(), verdict=self.verdict.swapped(), sounds=tuple(reversed(self.sounds))
        )


KNOWN: TypeAdapter[Known] = TypeAdapter(Known)


def write_known(path: Path, cases: Iterable[Known]) -> int:
    """Add cases to a file of JSON lines, one by one, and return how many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with path.open("ab") as out:
        for case in cases:
            out.write(KNOWN.dump_json(case) + b"\n")
            out.flush()
            count += 1
    return count


def read_known(path: Path, split: str | None = None) -> list[Known]:
    """Read what `write_known` wrote, of one split or of all.

    Raises:
        ValueError: If there is no such file, a line of it is no case, or the split is empty.
    """
    if not path.exists():
        raise ValueError(f"there are no judged pairs at {str(path)!r}: make them with python -m tristep.corpus.judged")
    cases = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            cases.append(KNOWN.validate_json(line))
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"]))
            raise ValueError(f"{path}, line {number} is no judged pair: {where}: {problem['msg']}") from error
    kept = [case for case in cases if split in (None, case.split)]
    if not kept:
        raise ValueError(f"{str(path)!r} has no pair of split {split!r}: it has {sorted({c.split for c in cases})}")
    return kept
