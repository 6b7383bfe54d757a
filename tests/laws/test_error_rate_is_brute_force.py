"""Law: the errors we count are those of a brute-force alignment, over words and over characters."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tristep.text import error_rate, word_errors

WORDS = st.lists(st.sampled_from(["a", "b", "c", "dd"]), max_size=7)


def edits(reference: list[str], hypothesis: list[str]) -> int:
    """Try every alignment: slow, and obviously the definition."""
    if not reference or not hypothesis:
        return len(reference) + len(hypothesis)
    return min(
        edits(reference[1:], hypothesis[1:]) + (reference[0] != hypothesis[0]),
        edits(reference[1:], hypothesis) + 1,
        edits(reference, hypothesis[1:]) + 1,
    )


@settings(deadline=None, max_examples=100)
@given(reference=WORDS, hypothesis=WORDS)
def test_the_count_is_the_fewest_edits(reference: list[str], hypothesis: list[str]) -> None:
    counted = word_errors(" ".join(reference), " ".join(hypothesis))
    assert counted.num_errors == edits(reference, hypothesis)
    assert counted.num_units == len(reference)
    assert counted.insertions - counted.deletions == len(hypothesis) - len(reference)
    assert min(counted.substitutions, counted.deletions, counted.insertions) >= 0


@settings(deadline=None, max_examples=25)
@given(pairs=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=5))
def test_the_word_error_rate_is_all_errors_over_all_words(pairs: list[tuple[list[str], list[str]]]) -> None:
    references, hypotheses = [" ".join(r) for r, _ in pairs], [" ".join(h) for _, h in pairs]
    scored = error_rate(references, hypotheses, "de")
    total = sum(edits(reference, hypothesis) for reference, hypothesis in pairs)
    num_words = sum(len(reference) for reference, _ in pairs)
    assert scored.substitutions + scored.deletions + scored.insertions == total
    assert scored.num_units == num_words
    assert scored.rate == total / max(1, num_words)


@settings(deadline=None, max_examples=25)
@given(reference=st.text("天地人大小", max_size=6), hypothesis=st.text("天地人大小", max_size=6))
def test_the_character_error_rate_counts_characters(reference: str, hypothesis: str) -> None:
    scored = error_rate([reference], [hypothesis], "zh")
    assert scored.num_units == len(reference)
    assert scored.rate == edits(list(reference), list(hypothesis)) / max(1, len(reference))
