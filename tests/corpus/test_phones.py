from __future__ import annotations

from itertools import combinations_with_replacement, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tristep.backbone.audio_encoder import AudioEncoder
from tristep.config import EncoderConfig
from tristep.corpus.phones import Aligner, Clip, align, place_phones, spans_of, states_of, symbols_of, timed_phones
from tristep.phones import PHONES, UNLABELLED


def spelt(symbols: str) -> list[int]:
    return [PHONES.index(symbol) for symbol in symbols]


def test_marks_of_stress_and_length_are_left_out_and_rare_sounds_are_their_neighbours() -> None:
    assert symbols_of("ˈɹiːɐ,") == "ɹiə"  # noqa: RUF001


def test_silence_may_stand_between_words() -> None:
    states, optional = states_of("ab - d")
    assert states.tolist() == spelt(" ab d ")
    assert optional.tolist() == [True, False, False, True, False, True]


def test_spans_end_where_the_phone_changes() -> None:
    assert spans_of(spelt("aab ")) == [("a", 0.04), ("b", 0.06), (" ", 0.08)]


def best_by_trying(logprobs: np.ndarray, states: list[int], optional: list[bool]) -> float:
    """Score the best of all ways to say the states, written down one by one."""
    num_frames, best = len(logprobs), -np.inf
    for path in combinations_with_replacement(range(len(states)), num_frames):
        starts = path[0] == 0 or (path[0] == 1 and optional[0])
        ends = path[-1] == len(states) - 1 or (path[-1] == len(states) - 2 and optional[-1])
        steps = all(b - a <= 1 or (b - a == 2 and optional[a + 1]) for a, b in pairwise(path))
        if starts and ends and steps:
            best = max(best, sum(logprobs[frame, states[state]] for frame, state in enumerate(path)))
    return best / num_frames


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 7), st.text("abd ", min_size=1, max_size=3), st.integers(0, 10_000))
def test_placing_finds_the_best_of_all_ways(num_frames: int, text: str, seed: int) -> None:
    states, optional = states_of(text)
    logits = torch.randn(num_frames, len(PHONES), generator=torch.Generator().manual_seed(seed))
    logprobs = logits.log_softmax(dim=1).numpy()
    path, score = place_phones(logprobs, states, optional)
    best = best_by_trying(logprobs, states.tolist(), optional.tolist())
    assert score == pytest.approx(best)
    if np.isfinite(best):
        assert logprobs[np.arange(num_frames), path].mean() == pytest.approx(best)


def test_an_aligner_learns_from_times_and_places_what_it_is_not_told() -> None:
    torch.manual_seed(0)
    sounds = torch.randn(len(PHONES), 16)

    def clip(number: int, labelled: bool) -> Clip:
        rng = np.random.default_rng(number)
        said = "".join(rng.permutation(list("aeiou")))
        labels = torch.tensor([label for symbol in f" {said} " for label in spelt(symbol) * int(rng.integers(2, 5))])
        frames = sounds[labels] + 0.3 * torch.from_numpy(rng.standard_normal((len(labels), 16))).float()
        given = labels if labelled else torch.full_like(labels, UNLABELLED)
        return Clip({"said": said, "true": labels}, frames.half(), given)

    encoder = AudioEncoder(EncoderConfig(num_mels=8, dim=16, num_layers=1, num_heads=2))
    timed, others = [clip(n, True) for n in range(20)], [clip(n, False) for n in range(20, 30)]
    placed = align(Aligner(encoder), timed, others, [other.row["said"] for other in others], 20)
    right = torch.cat([found.labels == found.row["true"] for found in placed]).float().mean()
    assert right > 0.9


def test_a_teachers_times_become_phones_with_the_marks_in_their_neighbours() -> None:
    symbols = ["", "ˈ", "a", "ː", "b", " ", "ˌ", "d", ",", " ", "e", ""]  # noqa: RUF001
    ends_s = [0.1, 0.12, 0.2, 0.24, 0.3, 0.34, 0.36, 0.4, 0.5, 0.6, 0.7, 0.9]
    expected = [(" ", 0.1), ("a", 0.24), ("b", 0.32), ("d", 0.4), (" ", 0.6), ("e", 0.7), (" ", 0.9)]
    assert timed_phones(symbols, ends_s) == [(symbol, pytest.approx(end_s)) for symbol, end_s in expected]
