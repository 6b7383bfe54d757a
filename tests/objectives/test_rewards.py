from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tristep.objectives.rewards import (
    Limits,
    Scale,
    Statistics,
    alarm,
    from_level,
    intelligibility,
    legibility,
    likeness,
    mixed,
    obedience,
    opinion,
    prefix_gains,
    shaped,
    unswapped,
    variety,
    within_budget,
)


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_shaping_is_odd_keeps_the_order_and_is_bounded() -> None:
    comparison = torch.linspace(-9, 9, 181, dtype=torch.float64)
    found = shaped(comparison, scale=2.0)
    torch.testing.assert_close(found, -shaped(-comparison, scale=2.0))
    assert (found.diff() > 0).all()
    assert found.abs().max() <= 1
    assert float(shaped(tensor(2.0), scale=2.0)) == pytest.approx(0.7616, abs=1e-4)


def test_a_judge_that_likes_the_first_place_is_set_right() -> None:
    better, liking = tensor(0.4), 0.7
    assert float(unswapped(better + liking, -better + liking)) == pytest.approx(0.4)


def test_levels_are_spread_over_minus_one_to_one() -> None:
    assert from_level(tensor(1, 3, 5), 5).tolist() == [-1, 0, 1]
    assert from_level(tensor(1, 2), 2).tolist() == [-1, 1]


def test_what_was_measured_becomes_a_reward() -> None:
    assert intelligibility(tensor(0, 0.25, 1.5)).tolist() == [1, 0.75, 0]
    assert likeness(tensor(1, 0.6, 0.1), floor=0.2).tolist() == pytest.approx([1, 0.5, 0])
    assert opinion(tensor(1, 3, 5)).tolist() == [0, 0.5, 1]
    durations = within_budget(tensor(0, 1, 2, 3, 8), tensor(2), tensor(4))
    assert durations.tolist() == [0, 0.5, 1, 1, 0.5]


@pytest.mark.parametrize(
    ("change", "direction", "reward"),
    [(0.25, 1, 0.5), (0.25, -1, -0.5), (2.0, 1, 1), (-2.0, 1, -1), (0, 0, 1), (0.25, 0, 0.5), (-0.25, 0, 0.5)],
)
def test_a_cue_is_obeyed_as_far_as_its_measure_moved(change: float, direction: int, reward: float) -> None:
    assert float(obedience(tensor(change), tensor(direction), enough=0.5)) == pytest.approx(reward)


def letters(*path: int, certainty: float = 0.9) -> Tensor:
    """Log-probabilities of a recogniser that reads this path over two letters and blank, shape `(N, 3)`."""
    probs = torch.full((len(path), 3), (1 - certainty) / 2)
    probs[torch.arange(len(path)), torch.tensor(path)] = certainty
    return probs.log()


def test_text_is_legible_in_codes_that_spell_it() -> None:
    read = torch.stack([letters(0, 2, 1), letters(1, 2, 1), letters(0, 1, 2)])
    texts = [torch.tensor([0, 1]), torch.tensor([0, 1]), torch.tensor([0, 0, 1])]
    found = legibility(read, [3, 3, 3], texts)
    assert float(found[0]) == pytest.approx(0.9)  # every frame as it should be
    assert float(found[1]) == pytest.approx((0.05 * 0.9**2) ** (1 / 3))
    assert float(found[2]) == 0  # a doubled letter needs four frames


def test_legibility_counts_a_completions_own_frames() -> None:
    read = torch.stack([letters(0, 1, 1, 1)])
    text = [torch.tensor([0, 1])]
    assert float(legibility(read, [2], text)) == pytest.approx(0.9)


def test_a_held_code_lowers_variety_once_it_is_held_too_long() -> None:
    codes = torch.tensor([[1, 2, 3, 4, 5], [7, 7, 7, 7, 7], [7, 7, 7, 7, 7], [7, 7, 3, 7, 7]])
    keep = torch.ones(4, 5, dtype=torch.bool)
    keep[2, 2] = False
    assert variety(codes, keep, longest_run=2).tolist() == pytest.approx([1, 0.4, 1, 1])
    assert variety(codes, torch.zeros_like(keep), longest_run=2).tolist() == [1, 1, 1, 1]


def test_gains_sum_to_the_opinion_of_the_whole() -> None:
    opinions = torch.tensor([[0.5, 9.0, 0.2, 0.8]])
    keep = torch.tensor([[True, False, True, True]])
    gains = prefix_gains(opinions, keep)
    assert gains.tolist() == [pytest.approx([0.5, 0.0, -0.3, 0.6])]
    assert float(gains.sum()) == pytest.approx(0.8)


@settings(deadline=None, max_examples=25)
@given(batches=st.lists(st.lists(st.floats(-5, 5), max_size=4), min_size=1, max_size=5))
def test_a_scale_that_grew_batch_by_batch_is_that_of_all_at_once(batches: list[list[float]]) -> None:
    scale = Scale()
    for batch in batches:
        scale = scale.with_rewards(tensor(*batch))
    everything = tensor(*(value for batch in batches for value in batch))
    assert scale.count == len(everything)
    if len(everything):
        assert scale.mean == pytest.approx(float(everything.mean()), abs=1e-9)
        assert scale.variance == pytest.approx(float(everything.var(correction=0)), abs=1e-9)


def test_rewards_are_weighed_on_their_own_scales_and_keep_their_parts() -> None:
    parts = {"judge": tensor(10, 30), "wer": tensor(0.5, 1.0)}
    rewards = mixed(parts, {"judge": 2.0, "wer": 0.5}, {"judge": Scale().with_rewards(parts["judge"])})
    assert rewards.total.tolist() == [2.0 * -1 + 0.25, 2.0 * 1 + 0.5]
    assert rewards.parts["judge"].tolist() == [10, 30]
    assert rewards.means() == {"judge": 20.0, "wer": 0.75}


def test_a_reward_that_never_varies_says_nothing() -> None:
    same = tensor(3, 3)
    assert mixed({"mos": same}, {"mos": 1.0}, {"mos": Scale().with_rewards(same)}).total.tolist() == [0, 0]


def test_a_reward_without_a_weight_and_a_weight_without_a_reward_are_refused() -> None:
    with pytest.raises(ValueError, match=r"give every reward a weight"):
        mixed({"judge": tensor(1)}, {"judge": 1.0, "wer": 1.0}, {})
    with pytest.raises(ValueError, match=r"'wer' is not finite"):
        mixed({"wer": tensor(float("nan"))}, {"wer": 1.0}, {})


LIMITS = Limits(window=2)
HONEST = Statistics(kl=0.1, num_tokens=100, silence_share=0.1, similarity=0.7, judge=0.2, verifier=0.8)


def test_an_honest_run_rings_no_alarm() -> None:
    better = replace(HONEST, kl=0.3, num_tokens=110, similarity=0.72, judge=0.6, verifier=0.9)
    assert alarm([HONEST, HONEST, better, better], LIMITS) is None
    bare = Statistics(kl=0.1, num_tokens=100)
    assert alarm([bare] * 5, LIMITS) is None


@pytest.mark.parametrize(
    ("gamed", "reason"),
    [
        ({"kl": 0.9}, "KL to the reference is 0.900"),
        ({"num_tokens": 200}, "from 100 to 200 tokens"),
        ({"num_tokens": 40}, "from 100 to 40 tokens"),
        ({"silence_share": 0.5}, "silence went from 10% to 50%"),
        ({"similarity": 0.5}, "similarity fell from 0.700 to 0.500"),
        ({"judge": 0.6, "verifier": 0.6}, "the judge is being fooled"),
    ],
)
def test_a_gamed_reward_rings_its_alarm(gamed: dict[str, float], reason: str) -> None:
    worse = replace(HONEST, **gamed)
    history = [HONEST, HONEST, worse, worse]
    found = alarm(history, LIMITS)
    assert found is not None
    assert reason in found


def test_one_odd_update_and_the_first_ones_ring_nothing() -> None:
    odd = replace(HONEST, num_tokens=180)
    assert alarm([HONEST, HONEST, HONEST, odd], LIMITS) is None  # 140 on average
    assert alarm([replace(HONEST, kl=9.0)] * 2, LIMITS) is None


def test_a_judge_that_rises_with_the_verifier_or_alone_is_believed() -> None:
    for gained in ({"judge": 0.9}, {"judge": 0.9, "verifier": 0.9}, {"judge": 0.1, "verifier": 0.5}):
        assert alarm([HONEST, HONEST, *[replace(HONEST, **gained)] * 2], LIMITS) is None
