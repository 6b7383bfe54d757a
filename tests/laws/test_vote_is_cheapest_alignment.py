"""Law: each voter joins at the cost of the best of all alignments, and an alignment keeps what everybody said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from tristep.corpus.vote import GAP, Column, aligned, cost, vote, with_voter

UNITS = st.lists(st.sampled_from(["a", "b", "c"]), max_size=4)


def alignments(columns: Sequence[Column], units: Sequence[str], num_voters: int) -> Iterator[list[tuple[Column, str]]]:
    """Enumerate every way to let a voter in: slow, and obviously all of them."""
    if not columns and not units:
        yield []
        return
    if columns and units:
        yield from ([(columns[0], units[0]), *rest] for rest in alignments(columns[1:], units[1:], num_voters))
    if columns:
        yield from ([(columns[0], GAP), *rest] for rest in alignments(columns[1:], units, num_voters))
    if units:
        opened = (GAP,) * num_voters
        yield from ([(opened, units[0]), *rest] for rest in alignments(columns, units[1:], num_voters))


def total(alignment: Sequence[tuple[Column, str]]) -> int:
    return sum(cost(column, unit) for column, unit in alignment)


@settings(deadline=None, max_examples=60)
@given(texts=st.tuples(UNITS, UNITS, UNITS))
def test_every_voter_joins_at_the_least_cost(texts: tuple[list[str], ...]) -> None:
    columns: list[Column] = []
    for num_voters, units in enumerate(texts):
        joined = with_voter(columns, units, num_voters)
        least = min(map(total, alignments(columns, units, num_voters)))
        assert total([(column[:-1], column[-1]) for column in joined]) == least
        columns = joined


@settings(deadline=None, max_examples=60)
@given(texts=st.lists(UNITS, min_size=1, max_size=4))
def test_an_alignment_keeps_what_everybody_said(texts: list[list[str]]) -> None:
    columns = aligned(texts)
    for voter, units in enumerate(texts):
        assert [column[voter] for column in columns if column[voter] != GAP] == units
    assert all(set(column) != {GAP} for column in columns)


@settings(deadline=None, max_examples=60)
@given(texts=st.lists(UNITS, min_size=3, max_size=3))
def test_what_two_of_three_say_is_taken_and_else_it_is_disputed(texts: list[list[str]]) -> None:
    result = vote(aligned(texts))
    for column, chosen, disputed in zip(result.columns, result.chosen, result.disputed, strict=True):
        counts = {unit: column.count(unit) for unit in column}
        assert disputed == (max(counts.values()) < 2)
        assert chosen == column[0] if disputed else counts[chosen] >= 2


@settings(deadline=None, max_examples=60)
@given(units=UNITS, other=UNITS, place=st.integers(0, 2))
def test_two_of_three_that_are_the_same_win(units: list[str], other: list[str], place: int) -> None:
    texts = [units, units]
    texts.insert(place, other)
    result = vote(aligned(texts))
    assert list(result.units) == units
    assert result.disagreement == 0
