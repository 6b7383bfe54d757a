"""Agreement: how often a judge is right where that is known, agrees with itself, and is as sure as it should be."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tristep.engine.judging import Judgement
from tristep.modes.judge.data import ALIKE, Known
from tristep.text import bootstrap_interval

NUM_BINS = 10


@dataclass(frozen=True)
class Agreement:
    """What a judge is worth, over pairs of which the better answer is known."""

    num_pairs: int
    """Pairs with a better answer; those that are alike are measured apart."""
    accuracy: float
    """Share of them in which the judge prefers it."""
    low: float
    """Lower end of the 95 % interval of the accuracy, over pairs drawn again."""
    high: float
    by_kind: dict[str, float]
    """The accuracy for each kind of difference."""
    position_agreement: float
    """Share of all pairs about which both orders say the same."""
    spread: float
    """Mean standard deviation of a score over readings, 0 with one reading."""
    calibration_error: float
    """Mean distance between how probable the judge thinks its choice and how often it is right (Naeini et al. 2015)."""
    alike: float | None
    """Share of the pairs that are alike in which it says so; None where there are none."""


def agreement(judgements: Sequence[Judgement], known: Sequence[Known]) -> Agreement:
    """Compare judgements with what is known: in each case the first answer, the candidate, is the better one.

    Raises:
        ValueError: If there is no pair with a better answer.
    """
    pairs = [(judged, case) for judged, case in zip(judgements, known, strict=True) if case.verdict.level != ALIKE]
    ties = [judged for judged, case in zip(judgements, known, strict=True) if case.verdict.level == ALIKE]
    if not pairs:
        raise ValueError("none of the pairs has a better answer: a judge is measured where one is known")
    right = np.array([judged.score > 0 for judged, _ in pairs])
    low, high = bootstrap_interval(right.astype(np.int64), np.ones(len(right), np.int64))
    kinds: dict[str, list[bool]] = defaultdict(list)
    for is_right, (_, case) in zip(right.tolist(), pairs, strict=True):
        kinds[case.kind].append(is_right)
    return Agreement(
        num_pairs=len(pairs),
        accuracy=float(right.mean()),
        low=low,
        high=high,
        by_kind={kind: sum(found) / len(found) for kind, found in sorted(kinds.items())},
        position_agreement=float(np.mean([judged.agrees for judged in judgements])),
        spread=float(np.mean([judged.spread for judged in judgements])),
        calibration_error=calibration_error([judged.prob_better for judged, _ in pairs], right.tolist()),
        alike=float(np.mean([judged.preferred == 0 for judged in ties])) if ties else None,
    )


def calibration_error(prob_better: Sequence[float], right: Sequence[bool]) -> float:
    """Compare how sure a judge is of its choices with how often they are right, in bins of how sure it is.

    Args:
        prob_better: How probable it is that the candidate is better, one number a pair.
        right: Whether the candidate was preferred, which is right.
    """
    sure = np.array([prob if is_right else 1 - prob for prob, is_right in zip(prob_better, right, strict=True)])
    places = np.minimum((sure * NUM_BINS).astype(int), NUM_BINS - 1)
    gaps = [
        abs(sure[places == place].mean() - np.array(right)[places == place].mean()) * (places == place).mean()
        for place in np.unique(places)
    ]
    return float(sum(gaps))
