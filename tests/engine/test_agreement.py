from __future__ import annotations

import pytest

from tristep.engine.agreement import agreement, calibration_error
from tristep.engine.judging import Judgement
from tristep.modes.judge.data import Answer, Case, Known, Verdict


def judged(forward: float, backward: float, prob: float = 0.9) -> Judgement:
    return Judgement((forward - backward) / 2, forward, backward, 0.1, prob, {}, "")


def known(kind: str = "pace", level: int = 5) -> Known:
    return Known("", kind, "held_out", Case("speech", "", Answer("a"), Answer("b")), Verdict({}, level))


def test_a_judge_is_right_where_it_prefers_the_first_and_pairs_that_are_alike_are_measured_apart() -> None:
    judgements = [judged(1, -1), judged(0.5, 0.4), judged(-1, 1), judged(0, 0), judged(1, -1)]
    cases = [known(), known("words"), known("words"), known("alike", 3), known("alike", 3)]
    found = agreement(judgements, cases)
    assert (found.num_pairs, found.accuracy, found.alike) == (3, pytest.approx(2 / 3), 0.5)
    assert found.by_kind == {"pace": 1.0, "words": 0.5}
    assert found.position_agreement == 0.8  # the second says "first" both times
    assert found.low <= found.accuracy <= found.high
    assert found.spread == pytest.approx(0.1)


def test_a_judge_that_cannot_decide_is_not_right() -> None:
    assert agreement([judged(0, 0)], [known()]).accuracy == 0


def test_a_judge_is_measured_where_something_is_known() -> None:
    with pytest.raises(ValueError, match="none of the pairs has a better answer"):
        agreement([judged(0, 0)], [known("alike", 3)])


def test_a_judge_as_sure_as_it_is_right_is_calibrated() -> None:
    sure = [0.75, 0.75, 0.75, 0.25]  # of the last one it thinks the wrong way, and is as sure
    assert calibration_error(sure, [True, True, True, False]) == pytest.approx(0)
    assert calibration_error([0.99] * 4, [True, True, True, True]) == pytest.approx(0.01)
    assert calibration_error([0.05, 0.95], [False, True]) == pytest.approx(0.45)
