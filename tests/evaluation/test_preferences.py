from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tristep.evaluation.preferences import (
    Candidate,
    Preference,
    append_preferences,
    elo_ratings,
    read_preferences,
    strengths,
    training_pairs,
    win_rate,
)


def verdict(chosen: str, rejected: str, prompt: str = "p", margin: float = 1.0, source: str = "human") -> Preference:
    """One system's answer over another's; both answers are named after their systems."""
    return Preference.model_validate({
        "prompt": prompt, "margin": margin, "source": source, "version": "1",
        "chosen": {"content": chosen, "system": chosen}, "rejected": {"content": rejected, "system": rejected},
    })  # fmt: skip


def test_what_is_stored_is_read_back_and_the_store_grows(tmp_path: Path) -> None:
    path = tmp_path / "store" / "pairs.jsonl"
    first = Preference(
        prompt="Say \u201chi\u201d.\n", chosen=Candidate(content="a.wav"), rejected=Candidate(content="b.wav"),
        margin=0.5, source="judge", version="judge-3", reason="clearer",
    )  # fmt: skip
    append_preferences(path, [first])
    append_preferences(path, [verdict("x", "y")])
    assert read_preferences(path) == [first, verdict("x", "y")]
    assert len(path.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"prompt": "p"}', "chosen: Field required"),
        (verdict("a", "b").model_dump_json().replace("human", "friend"), "source: Input should be"),
        (verdict("a", "b").model_dump_json().replace('"margin":1.0', '"margin":-1.0'), "margin: "),
        (verdict("a", "b").model_dump_json().replace("reason", "raeson"), "raeson: Extra inputs"),
    ],
)
def test_a_line_that_is_no_verdict_is_named(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "pairs.jsonl"
    append_preferences(path, [verdict("a", "b")])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=f"line 2 is no preference: {reason}"):
        read_preferences(path)
    with pytest.raises(ValueError, match="no preferences at"):
        read_preferences(tmp_path / "gone.jsonl")


def test_two_strengths_differ_by_the_log_odds_of_winning() -> None:
    found = strengths(np.array([[0.0, 300.0], [100.0, 0.0]]))
    assert found[0] - found[1] == pytest.approx(math.log(3), rel=1e-3)
    assert found.sum() == pytest.approx(0)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000))
def test_no_other_strengths_make_the_wins_more_probable(seed: int) -> None:
    random = np.random.default_rng(seed)
    wins = random.integers(1, 20, (4, 4)).astype(float)
    np.fill_diagonal(wins, 0)

    def logprob(found: np.ndarray) -> float:
        return float((wins * -np.log1p(np.exp(found[None, :] - found[:, None]))).sum() - (found**2).sum() / 200)

    best = strengths(wins)
    moved = best + 0.05 * random.standard_normal(4)
    assert logprob(best) >= logprob(moved - moved.mean())


def test_systems_are_ranked_as_they_were_made(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    truth = {"weak": 0.0, "middle": 1.0, "strong": 2.0}
    verdicts = []
    for prompt in range(400):
        one, other = random.choice(list(truth), 2, replace=False)
        wins = random.random() < 1 / (1 + math.exp(truth[other] - truth[one]))
        verdicts.append(verdict(*((one, other) if wins else (other, one)), prompt=str(prompt)))
    rated = elo_ratings(verdicts)
    assert list(rated) == ["strong", "middle", "weak"]
    assert rated["strong"].value - rated["weak"].value == pytest.approx(2 * 400 / math.log(10), abs=80)
    assert sum(rating.value for rating in rated.values()) == pytest.approx(3000)
    assert rated["strong"].low > rated["weak"].high
    for rating in rated.values():
        assert rating.low < rating.value < rating.high
    assert sum(rating.num_verdicts for rating in rated.values()) == 2 * 400


def test_a_system_that_never_lost_has_a_rating_all_the_same() -> None:
    rated = elo_ratings([verdict("good", "bad", prompt=str(n)) for n in range(20)])
    assert 1000 < rated["good"].value < 5000


def test_verdicts_on_one_prompt_count_as_one_draw() -> None:
    spread = [verdict(*("ab" if n % 2 else "ba"), prompt=str(n)) for n in range(40)]
    same = [verdict(*("ab" if n % 2 else "ba"), prompt=str(n % 4)) for n in range(40)]
    assert win_rate(spread, "a", "b").value == win_rate(same, "a", "b").value == 0.5
    assert win_rate(same, "a", "b").high > win_rate(spread, "a", "b").high


def test_a_tie_is_half_a_win() -> None:
    verdicts = [verdict("a", "b"), verdict("a", "b", margin=0), verdict("a", "c")]
    found = win_rate(verdicts, "a", "b")
    assert (found.value, found.num_verdicts) == (0.75, 2)
    assert win_rate(verdicts, "b", "a").value == 0.25


def test_ratings_and_rates_need_systems_that_met() -> None:
    with pytest.raises(ValueError, match="never compared"):
        win_rate([verdict("a", "b")], "a", "c")
    with pytest.raises(ValueError, match="at least two that are named"):
        elo_ratings([verdict("a", "")])


def test_verdicts_on_the_same_answers_become_one_pair() -> None:
    verdicts = [verdict("a", "b", margin=3), verdict("b", "a", margin=1), verdict("a", "c", margin=1, source="judge")]
    pair = {"prompt": "p", "chosen": "a", "rejected": "b", "margin": 1.0, "num_verdicts": 2}
    assert training_pairs(verdicts, sources=["human"]) == [pair]
    assert len(training_pairs(verdicts)) == 2
    assert training_pairs(verdicts, min_margin=1.0) == []


def test_raters_who_cancel_out_teach_nothing() -> None:
    assert training_pairs([verdict("a", "b"), verdict("b", "a"), verdict("c", "d", margin=0)]) == []
