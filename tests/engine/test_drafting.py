from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tristep.backbone.model import Backbone
from tristep.backbone.transformer import KVCache
from tristep.config import load_backbone_config
from tristep.engine.drafting import HeadDrafts, Hypothesis, PassCosts, Tally, agreement, best_depth, shortlist
from tristep.vocab import Vocab, byte_tokenizer

TOKENIZER = byte_tokenizer()
VOCAB = Vocab(load_backbone_config("toy").vocab)
END = VOCAB.control("turn_end")
TEXT_ONLY = torch.zeros(VOCAB.size).masked_fill(torch.arange(VOCAB.size) >= VOCAB.config.num_text, -torch.inf)
CPU = PassCosts(token=0.1)


def hypothesis(text: str) -> Hypothesis:
    return Hypothesis(text, VOCAB, TOKENIZER)


def after(guess: Hypothesis, written: str) -> str:
    """Say what is guessed once this is written, letter by letter."""
    for token in TOKENIZER.encode(written):
        guess.read([token])
    return TOKENIZER.decode(guess.guess(99)[:-1])


def test_the_guess_is_the_rest_and_the_end_of_the_turn() -> None:
    guess = hypothesis("good morning")
    guess.read([VOCAB.control("lang_en"), *TOKENIZER.encode("good")])
    assert guess.guess(99) == [*TOKENIZER.encode(" morning"), END]
    assert guess.guess(3) == TOKENIZER.encode(" mo")
    guess.read(TOKENIZER.encode(" morning"))
    assert guess.guess(5) == [END]


@pytest.mark.parametrize(
    ("heard", "written", "rest"),
    [
        ("the cat sad on the mat", "the cat sat", " on the mat"),
        ("the the cat sat on it", "the cat sat", " on it"),
        ("the cat on the mat", "the black cat", " on the mat"),
        ("gray skol ar ly men", "gray scholarly", " men"),
        ("the cat sat on the mat", "The Cat", " sat on the mat"),
        ("the cat sadly left", "the cat sat", " left"),
    ],
    ids=["another word", "one too many", "one left out", "other pieces", "capitals", "half a word"],
)
def test_the_place_moves_with_what_is_written(heard: str, written: str, rest: str) -> None:
    assert after(hypothesis(heard), written) == rest


def slow_edits(written: str, heard: str) -> list[int]:
    """The textbook table, row by row: edits between what is written and each beginning of what was heard."""
    row = list(range(len(heard) + 1))
    for letter in written:
        above, row = row, [row[0] + 1]
        for place, other in enumerate(heard):
            row.append(min(above[place] + (letter != other), above[place + 1] + 1, row[place] + 1))
    return row


@given(st.text("abc ", max_size=12), st.text("abc ", max_size=12))
@settings(deadline=None)
def test_edits_are_those_of_the_textbook(written: str, heard: str) -> None:
    guess = hypothesis(heard)
    guess.read(TOKENIZER.encode(written))
    assert guess.num_edits.tolist() == slow_edits(written, heard)


def test_a_tally_asks_no_further_than_the_first_error() -> None:
    tally = Tally(0, 0)
    assert tally.count([1, 2, 3, 4], [1, 2, 9]) == 2
    assert (tally.num_right, tally.num_asked) == (2, 3)
    assert tally.count([1, 2], [1, 2, 3]) == 2
    assert tally.count([1, 2, 3], [1]) == 1
    assert tally.count([], [1]) == 0
    assert (tally.num_right, tally.num_asked) == (5, 6)


def test_what_two_begin_with_is_what_they_agree_on() -> None:
    assert agreement([1, 2, 3], [1, 2, 4]) == 2
    assert agreement([1], [1, 2]) == agreement([1, 2], [1]) == 1
    assert agreement([], [1]) == 0


def test_more_is_drafted_where_more_is_right_and_fewer_rows_share_a_pass() -> None:
    depths = [best_depth(rate, 1, 12, CPU)[0] for rate in (0.05, 0.4, 0.7, 0.9, 1.0)]
    assert depths == sorted(depths)
    assert (depths[0], depths[-1]) == (0, 12)
    by_rows = [best_depth(0.8, num_rows, 12, CPU)[0] for num_rows in (1, 4, 16, 256)]
    assert by_rows == sorted(by_rows, reverse=True)
    assert by_rows[0] > by_rows[-1]


def test_a_draft_fills_what_the_kernel_multiplies_at_once() -> None:
    blocks = PassCosts(token=0.02, block=0.5)
    assert blocks.of(4) == pytest.approx(1.06)
    assert blocks.of(5) == pytest.approx(1.58)
    assert {best_depth(rate, 1, 12, blocks)[0] for rate in (0.5, 0.6, 0.7)} == {3}


@given(st.floats(0, 1), st.integers(1, 64), st.integers(0, 12), st.floats(0, 1))
def test_the_chosen_depth_is_never_slower_than_none(rate: float, num_rows: int, most: int, guess: float) -> None:
    depth, speed = best_depth(rate, num_rows, most, CPU, guess)
    assert 0 <= depth <= most
    assert speed >= 1 / CPU.of(num_rows)


def test_only_what_may_be_written_is_a_candidate() -> None:
    forbidden = torch.zeros(VOCAB.size).masked_fill(torch.arange(VOCAB.size) % 2 == 0, -torch.inf)
    assert shortlist(forbidden, VOCAB).tolist() == [token for token in range(VOCAB.size) if token % 2]


STEPS = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=5)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=3), STEPS, st.integers(0, 1000))
def test_heads_guess_in_steps_what_they_guess_over_the_whole(
    lengths: list[int], steps: list[tuple[int, int, int]], seed: int
) -> None:
    """Rows grow unevenly, heads are asked for more or fewer tokens, or not at all: the cache holds no trace of it."""
    backbone = toy_with_heads()
    B, total = len(lengths), max(lengths) + 3 * len(steps) + 1
    tokens = torch.randint(0, 256, (B, total), generator=torch.Generator().manual_seed(seed))
    heads = HeadDrafts(backbone, 4, B, total + 8, TEXT_ONLY)
    whole = backbone(tokens)
    heads.see(torch.zeros(B, dtype=torch.long), whole, backbone.embedding(tokens))
    reached = torch.tensor(lengths)
    for num_tokens, *growth in steps:
        pending = tokens[torch.arange(B), reached]
        guesses = heads.guess(reached, pending, num_tokens)
        for row in range(B):
            expected = slow_guess(backbone, tokens[row, : int(reached[row]) + 1], num_tokens)
            assert guesses[row].tolist() == expected
        # The places of the guesses are written over by what follows.
        heads.see(torch.zeros(B, dtype=torch.long), whole, backbone.embedding(tokens))
        reached = reached + torch.tensor([growth[row % 2] for row in range(B)])


@cache
def toy_with_heads() -> Backbone:
    torch.manual_seed(0)
    backbone = Backbone(load_backbone_config("toy").model_copy(update={"num_draft_heads": 4}))
    return backbone.eval().requires_grad_(False)


def slow_guess(backbone: Backbone, tokens: torch.Tensor, num_tokens: int) -> list[int]:
    """Run the whole chain again for each guess, as in training; the backbone itself has not read the last token."""
    guesses: list[int] = []
    last = len(tokens) - 2
    for depth in range(num_tokens):
        known = torch.cat([tokens, torch.tensor(guesses, dtype=torch.long)])[None]
        segments = torch.zeros_like(known)
        branch = backbone.look_ahead(backbone(known), known, None, segments)[depth]
        guesses.append(int((backbone.logits(branch[0, last]) + TEXT_ONLY).argmax()))
    return guesses


def test_rows_that_leave_take_their_part_of_the_heads_with_them() -> None:
    backbone = toy_with_heads()
    tokens = torch.randint(0, 256, (3, 9))
    heads = HeadDrafts(backbone, 4, 3, 16, TEXT_ONLY)
    heads.see(torch.zeros(3, dtype=torch.long), backbone(tokens), backbone.embedding(tokens))
    reached = torch.tensor([4, 6, 5])
    first = heads.guess(reached, tokens[torch.arange(3), reached], 4)
    heads.keep([0, 2])
    assert isinstance(heads.cache, KVCache)
    kept = heads.guess(reached[[0, 2]], tokens[[0, 2], reached[[0, 2]]], 4)
    assert torch.equal(kept, first[[0, 2]])
