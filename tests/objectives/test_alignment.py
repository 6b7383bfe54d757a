from __future__ import annotations

from itertools import groupby, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tristep.objectives.alignment import BLANK, Spans, Word, ctc_align, ctc_align_batch, word_times
from tristep.text import LETTERS, spoken_words, written_words


def collapse(path: tuple[int, ...], blank: int) -> list[int]:
    return [label for label, _ in groupby(path) if label != blank]


def spans_by_enumeration(logprobs: Tensor, targets: list[int]) -> tuple[list[tuple[int, int]], float] | None:
    """Try every labelling of every frame: slow, and obviously the definition."""
    num_frames, blank = logprobs.shape[0], logprobs.shape[1] - 1
    paths = [p for p in product(range(blank + 1), repeat=num_frames) if collapse(p, blank) == targets]
    if not paths:
        return None
    score, best = max((float(sum(logprobs[t, label] for t, label in enumerate(path))), path) for path in paths)
    runs, start = [], 0
    for label, run in groupby(best):
        length = len(list(run))
        if label != blank:
            runs.append((start, start + length - 1))
        start += length
    return runs, score


def pairs(spans: Spans) -> list[tuple[int, int]]:
    return list(zip(spans.first.tolist(), spans.last.tolist(), strict=True))


def random_logprobs(*shape: int, seed: int) -> Tensor:
    noise = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (3 * noise).log_softmax(dim=-1)


@settings(deadline=None, max_examples=100)
@given(
    seed=st.integers(0, 10_000),
    num_frames=st.integers(1, 6),
    targets=st.lists(st.integers(0, 1), max_size=5),
)
def test_the_spans_are_those_of_the_best_of_all_paths(seed: int, num_frames: int, targets: list[int]) -> None:
    logprobs = random_logprobs(num_frames, 3, seed=seed)
    expected = spans_by_enumeration(logprobs, targets)
    if expected is None:
        with pytest.raises(ValueError, match="frames, the clip has"):
            ctc_align(logprobs, torch.tensor(targets, dtype=torch.long))
        return
    spans = ctc_align(logprobs, torch.tensor(targets, dtype=torch.long))
    assert pairs(spans) == expected[0]
    assert spans.logprob == pytest.approx(expected[1] / num_frames, rel=1e-4)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), sizes=st.lists(st.tuples(st.integers(9, 20), st.integers(0, 5)), min_size=1))
def test_clips_are_aligned_together_as_alone(seed: int, sizes: list[tuple[int, int]]) -> None:
    num_frames = [frames for frames, _ in sizes]
    targets = [torch.arange(length) % 3 for _, length in sizes]
    logprobs = random_logprobs(len(sizes), max(num_frames), 4, seed=seed)
    together = ctc_align_batch(logprobs, num_frames, targets)
    for row, (frames, target) in enumerate(zip(num_frames, targets, strict=True)):
        alone = ctc_align(logprobs[row, :frames], target)
        assert pairs(together[row]) == pairs(alone)
        assert together[row].logprob == pytest.approx(alone.logprob, rel=1e-5)


def test_a_double_letter_needs_a_frame_between() -> None:
    logprobs = random_logprobs(2, 4, seed=0)
    assert pairs(ctc_align(logprobs, torch.tensor([0, 1]))) == [(0, 0), (1, 1)]
    with pytest.raises(ValueError, match="2 targets need at least 3 frames, the clip has 2"):
        ctc_align(logprobs, torch.tensor([0, 0]))


def test_a_text_of_no_probability_is_refused() -> None:
    logprobs = torch.tensor([[0.0, -torch.inf, -torch.inf]] * 3)
    with pytest.raises(ValueError, match="no path has a probability above zero"):
        ctc_align(logprobs, torch.tensor([1]))


def clip_that_says(frames: str) -> Tensor:
    """Log-probabilities that are sure of one letter a frame; `_` is blank."""
    labels = torch.tensor([BLANK if letter == "_" else LETTERS.index(letter) for letter in frames])
    return (10 * torch.nn.functional.one_hot(labels, len(LETTERS) + 1).float()).log_softmax(dim=-1)


def test_words_begin_and_end_where_their_letters_do() -> None:
    words = word_times(clip_that_says("__o_hh  ___n_o__"), "Oh -- no!", frame_rate=10)
    assert words == [Word("Oh --", 0.2, 0.6), Word("no!", 1.1, 1.4)]


def test_a_hyphen_does_not_part_a_word() -> None:
    (word,) = word_times(clip_that_says("a_ h_a_"), "A-ha!", frame_rate=25)
    assert word == Word("A-ha!", 0.0, 6 / 25)


def test_digits_can_not_be_spelt_in_letters() -> None:
    with pytest.raises(ValueError, match="speakable"):
        word_times(clip_that_says("t_wo"), "2")


@given(text=st.text("ab' -.,!\n", max_size=20))
def test_the_written_words_are_the_text_and_spell_what_it_spells(text: str) -> None:
    words = written_words(text)
    if words:
        assert " ".join(words) == " ".join(text.split())
    assert [spoken for word in words for spoken in spoken_words(word) or []] == spoken_words(text)
