"""Voting: what several recognisers heard becomes one transcript, and how far they disagree about it.

The report's pipeline (section 4.2): texts are brought into one surface form, so that only what was heard can differ;
they are aligned (ROVER, Fiscus 1997) unit by unit, words or, where there are no spaces, characters; at each place what
two of three heard is taken, and a place without a majority is a disagreement. The share of such places tells a clip
that can teach from one that can't.

Texts join the alignment one after the other, each at the least cost against all before it; the report does not say
more. The first text is the one that is most trusted: where nobody has a majority, it is believed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache
from operator import eq

from tristep.text import normalise, scored_by_character, speakable

MAX_DISAGREEMENT = 0.05
"""Share of disputed places above which the report drops a clip."""
GAP = ""
"""What a voter says at a place where others heard something and it heard nothing."""
SUBSTITUTION, OMISSION = 400, 300
"""Costs of two units that differ, and of a unit against a gap, in the proportion that NIST's sclite has."""
LIKENESS = 100
"""What two words that share almost all letters cost less: where costs are equal, what sounds alike goes together."""

Column = tuple[str, ...]
"""What each voter says at one place."""


@dataclass(frozen=True)
class Vote:
    """What was agreed upon."""

    columns: tuple[Column, ...]
    """What each voter says at each place."""
    chosen: Column
    """What is taken at each place."""
    disputed: tuple[bool, ...]
    """At which places there is no majority."""

    @property
    def units(self) -> tuple[str, ...]:
        """The transcript, words or characters."""
        return tuple(unit for unit in self.chosen if unit != GAP)

    @property
    def disagreement(self) -> float:
        """Disputed places over units of the transcript."""
        return sum(self.disputed) / max(1, len(self.units))

    def agreement(self) -> list[float]:
        """Return each voter's share of places at which it said what was taken; nothing where nobody said anything."""
        voters = zip(*self.columns, strict=True)
        return [sum(map(eq, said, self.chosen)) / len(self.chosen) for said in voters]


def surface(text: str, language: str) -> str:
    """Bring a transcript into the form in which transcripts are compared: its units separated by single spaces.

    Numbers are put into words before they are normalised, since one recogniser writes `$5` and another five dollars.
    """
    return normalise(text if scored_by_character(language) else speakable(text, language), language)


def vote_texts(texts: Sequence[str], language: str) -> Vote:
    """Vote about what was said, given what each recogniser wrote, the most trusted one first."""
    return vote(aligned([surface(text, language).split() for text in texts]))


def vote(columns: Sequence[Column]) -> Vote:
    """Take what more than half of the voters say at each place, and what the first says where there is no majority."""
    chosen, disputed = [], []
    for column in columns:
        unit, count = Counter(column).most_common(1)[0]
        disputed.append(2 * count <= len(column))
        chosen.append(column[0] if disputed[-1] else unit)
    return Vote(tuple(columns), tuple(chosen), tuple(disputed))


def aligned(texts: Sequence[Sequence[str]]) -> list[Column]:
    """Align texts, each a sequence of units, into places where every voter has its say."""
    columns: list[Column] = []
    for num_voters, units in enumerate(texts):
        columns = with_voter(columns, units, num_voters)
    return columns


def with_voter(columns: Sequence[Column], units: Sequence[str], num_voters: int) -> list[Column]:
    """Let one more voter into an alignment, at the least cost: what it says against what each before it says.

    Dynamic programming over how many columns and how many units are dealt with; a step takes a column and a unit, a
    column and a gap, or opens a column for a unit that nobody before had.

    Args:
        columns: The alignment so far.
        units: What the voter says.
        num_voters: How many have their say in a column already.
    """
    C, U = len(columns), len(units)
    opened: Column = (GAP,) * num_voters
    skips = [cost(column, GAP) for column in columns]
    costs = [[0] * (U + 1) for _ in range(C + 1)]
    for c in range(C + 1):
        for u in range(U + 1):
            choices = []
            if c and u:
                choices.append(costs[c - 1][u - 1] + cost(columns[c - 1], units[u - 1]))
            if c:
                choices.append(costs[c - 1][u] + skips[c - 1])
            if u:
                choices.append(costs[c][u - 1] + cost(opened, units[u - 1]))
            costs[c][u] = min(choices, default=0)
    return _traced(columns, units, costs, opened)


def _traced(columns: Sequence[Column], units: Sequence[str], costs: list[list[int]], opened: Column) -> list[Column]:
    """Walk back along the cheapest path; of equal ones, that which puts units into columns as late as it can."""
    c, u = len(columns), len(units)
    found: list[Column] = []
    while c or u:
        here = costs[c][u]
        if c and u and here == costs[c - 1][u - 1] + cost(columns[c - 1], units[u - 1]):
            c, u = c - 1, u - 1
            found.append((*columns[c], units[u]))
        elif c and here == costs[c - 1][u] + cost(columns[c - 1], GAP):
            c -= 1
            found.append((*columns[c], GAP))
        else:
            u -= 1
            found.append((*opened, units[u]))
    return found[::-1]


def cost(column: Column, unit: str) -> int:
    """Add up what a unit, or a gap, costs in a column: against each voter there, nothing where the two are the same."""
    return sum(_pair_cost(unit, other) for other in column if other != unit)


@lru_cache(maxsize=100_000)
def _pair_cost(unit: str, other: str) -> int:
    if GAP in (unit, other):
        return OMISSION
    return SUBSTITUTION - round(LIKENESS * SequenceMatcher(None, unit, other).ratio())
