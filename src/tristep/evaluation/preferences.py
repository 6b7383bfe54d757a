"""Preferences: a store of which of two answers was better, what it says of systems, and what it teaches.

The store is a file of JSON lines that only grows; each line is one verdict on one pair, by a listener, a judge or a
measure. Systems are rated by Bradley-Terry (1952): the probability that `i` beats `j` is `sigmoid(s_i - s_j)`, and the
strengths `s` are those that make the verdicts most probable. Intervals come from resampling prompts, because verdicts
on one prompt are not independent. A tie is half a win for either side.

What differs from maximum likelihood: a Gaussian prior, so wide that it only matters where somebody has won, or lost,
every time, whose strength would be infinite.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

Floats = NDArray[np.float64]

ELO = 400 / np.log(10)
"""Points of a strength: with 400 points more, one wins ten times in eleven."""
MEAN_ELO = 1000.0
PRIOR_STD = 10.0
"""Standard deviation of the prior on strengths; two such apart, one wins all but once in 10^8."""
NUM_RESAMPLES = 500
NUM_STEPS = 50


class Candidate(BaseModel):
    """One of two answers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    content: str
    """The text, or the path of the sound."""
    system: str = ""
    """What wrote it, such as `nano-sft`; empty where nobody is rated."""


class Preference(BaseModel):
    """A verdict on two answers to the same prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str
    chosen: Candidate
    rejected: Candidate
    margin: float = Field(default=1.0, ge=0)
    """How much better the chosen one is, on the scale of whoever judged; 0 is a tie."""
    source: Literal["human", "judge", "verifiable"]
    """Who judged: a listener, a generative judge, or a measure."""
    version: str
    """Which one: the page or rubric that listeners had, the judge's weights, the measure's settings."""
    rater: str = ""
    """Name of the listener, where there are several."""
    reason: str = ""
    """What was written to explain it."""


def append_preferences(path: str | Path, preferences: Iterable[Preference]) -> None:
    """Add verdicts to a store; it is made where there is none."""
    lines = "".join(preference.model_dump_json() + "\n" for preference in preferences)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with Path(path).open("a", encoding="utf-8") as store:
        store.write(lines)


def read_preferences(path: str | Path) -> list[Preference]:
    """Read a store.

    Raises:
        ValueError: If there is none, or a line is no verdict; it is named.
    """
    if not Path(path).exists():
        raise ValueError(f"there are no preferences at {str(path)!r}: collect some first")
    found = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        try:
            found.append(Preference.model_validate_json(line))
        except ValidationError as error:
            problem = error.errors()[0]
            field = ".".join(map(str, problem["loc"]))
            raise ValueError(f"{path}, line {number} is no preference: {field}: {problem['msg']}") from error
    return found


@dataclass(frozen=True)
class Estimate:
    """A number and where that of other prompts would fall, 95 times in 100."""

    value: float
    low: float
    high: float
    num_verdicts: int


def elo_ratings(preferences: Sequence[Preference], seed: int = 0) -> dict[str, Estimate]:
    """Rate the systems of a store, the best first; 1000 is the mean of all.

    Args:
        preferences: Verdicts between named systems.
        seed: Seed of the resampling.

    Raises:
        ValueError: If an answer's system is not named, or no two systems were compared.
    """
    names = sorted({side.system for preference in preferences for side in (preference.chosen, preference.rejected)})
    if len(names) < 2 or "" in names:
        raise ValueError(f"the systems are {names}: rating takes verdicts between at least two that are named")
    wins = _wins_by_prompt(preferences, names)
    points = _bootstrapped(wins, lambda total: MEAN_ELO + ELO * strengths(total), seed)
    counts = wins.sum(axis=0) + wins.sum(axis=0).T
    rated = {name: _estimate(points[:, place], counts[place].sum()) for place, name in enumerate(names)}
    return dict(sorted(rated.items(), key=lambda item: -item[1].value))


def win_rate(preferences: Sequence[Preference], system: str, opponent: str, seed: int = 0) -> Estimate:
    """Return how often one system wins against another, ties counting half.

    Raises:
        ValueError: If the two were never compared.
    """
    pair = {system, opponent}
    met = [verdict for verdict in preferences if {verdict.chosen.system, verdict.rejected.system} == pair]
    if not met:
        raise ValueError(f"{system!r} and {opponent!r} were never compared: check their names")
    wins = _wins_by_prompt(met, [system, opponent])
    rates = _bootstrapped(wins, lambda total: np.array([total[0, 1] / total.sum()]), seed)
    return _estimate(rates[:, 0], len(met))


def strengths(wins: Floats) -> Floats:
    """Find the strengths, of mean zero, under which these wins are most probable; Newton's method.

    `log P = sum_ij wins_ij log sigmoid(s_i - s_j) - sum_i s_i^2 / (2 PRIOR_STD^2)` is concave: there is one best.

    Args:
        wins: How often `i` has beaten `j`, shape `(N, N)`.
    """
    found = np.zeros(len(wins))
    games = wins + wins.T
    for _ in range(NUM_STEPS):
        expected = 1 / (1 + np.exp(found[None, :] - found[:, None]))  # P(i beats j)
        gradient = (wins - games * expected).sum(axis=1) - found / PRIOR_STD**2
        weights = games * expected * (1 - expected)
        curvature = np.diag(weights.sum(axis=1) + 1 / PRIOR_STD**2) - weights
        step = np.clip(np.linalg.solve(curvature, gradient), -2.0, 2.0)
        found += step
        if np.abs(step).max() < 1e-10:
            break
    return found - found.mean()


def _wins_by_prompt(preferences: Sequence[Preference], names: Sequence[str]) -> Floats:
    """Count who beat whom on each prompt, shape `(P, N, N)`."""
    prompts = {prompt: row for row, prompt in enumerate(dict.fromkeys(verdict.prompt for verdict in preferences))}
    place = {name: index for index, name in enumerate(names)}
    wins = np.zeros((len(prompts), len(names), len(names)))
    for verdict in preferences:
        won, lost = place[verdict.chosen.system], place[verdict.rejected.system]
        share = 1.0 if verdict.margin else 0.5
        wins[prompts[verdict.prompt], won, lost] += share
        wins[prompts[verdict.prompt], lost, won] += 1 - share
    return wins


def _estimate(points: Floats, num_verdicts: float) -> Estimate:
    value, low, high = points.tolist()
    return Estimate(value, low, high, round(num_verdicts))


def _bootstrapped(wins: Floats, measure: Callable[[Floats], Floats], seed: int) -> Floats:
    """Measure all prompts and resampled ones: rows value, 2.5th and 97.5th percentile, shape `(3, N)`."""
    random = np.random.default_rng(seed)
    draws = (random.integers(0, len(wins), len(wins)) for _ in range(NUM_RESAMPLES))
    measured = [measure(wins[draw].sum(axis=0)) for draw in draws]
    low, high = np.percentile(measured, [2.5, 97.5], axis=0)
    return np.stack([measure(wins.sum(axis=0)), low, high])


def training_pairs(
    preferences: Iterable[Preference],
    *,
    min_margin: float = 0.0,
    sources: Iterable[str] = ("human", "judge", "verifiable"),
) -> list[dict[str, Any]]:
    """Turn verdicts into pairs to learn from: one for each two answers, whatever the number of verdicts on them.

    Verdicts on the same two answers are averaged, with their signs; the pair is dropped if they cancel out.

    Args:
        preferences: The verdicts; margins that are to be averaged have to be of one scale.
        min_margin: Pairs whose margin is not above this are dropped (EditX keeps those above 3 of 5).
        sources: Whose verdicts count.

    Returns:
        Rows with `prompt`, `chosen`, `rejected`, `margin` and `num_verdicts`.
    """
    margins: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    wanted = set(sources)
    for verdict in preferences:
        if verdict.source in wanted:
            first, second = sorted([verdict.chosen.content, verdict.rejected.content])
            sign = 1 if first == verdict.chosen.content else -1
            margins[verdict.prompt, first, second].append(sign * verdict.margin)
    pairs = []
    for (prompt, first, second), signed in margins.items():
        margin = sum(signed) / len(signed)
        chosen, rejected = (first, second) if margin > 0 else (second, first)
        row = {"prompt": prompt, "chosen": chosen, "rejected": rejected, "margin": abs(margin)}
        if first != second and abs(margin) > min_margin:
            pairs.append({**row, "num_verdicts": len(signed)})
    return pairs
