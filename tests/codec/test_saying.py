from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tristep.codec.saying import PhoneCells, read_cells, silent_codes
from tristep.codec.tokenizer import Lattice
from tristep.phones import PHONES, SILENCE, UNLABELLED

LEVELS = (3, 3, 3)
NUM_PHONE_DIMS = 2
CODES = st.lists(st.integers(0, 26), min_size=1, max_size=12)


def cells() -> PhoneCells:
    """Return nine cells, of which the n-th says the n-th phone twice."""
    logits = 12.0 * torch.eye(len(PHONES))[:9, None].expand(9, 2, -1)
    return PhoneCells(LEVELS, NUM_PHONE_DIMS, logits.log_softmax(dim=-1))


@given(CODES, st.integers(0, 10_000))
def test_moved_codes_say_the_phones_and_keep_their_prosody(codes: list[int], seed: int) -> None:
    heard = torch.tensor(codes)
    phones = torch.randint(0, 9, (len(codes),), generator=torch.Generator().manual_seed(seed))
    moved = cells().say(heard, phones.repeat_interleave(2))
    assert (moved % 9).tolist() == phones.tolist()
    assert (moved // 9).tolist() == (heard // 9).tolist()


@given(CODES)
def test_codes_that_say_the_phones_already_stay(codes: list[int]) -> None:
    heard = torch.tensor(codes)
    assert cells().say(heard, (heard % 9).repeat_interleave(2)).tolist() == codes


def test_codes_whose_phones_are_not_known_stay() -> None:
    heard = torch.tensor([1, 2, 3, 4])
    phones = torch.tensor([5, UNLABELLED, 6, 6, 7])
    assert cells().say(heard, phones).tolist() == [1, 6, 3, 4]


def test_of_cells_that_say_the_same_the_nearest_is_taken() -> None:
    logits = torch.zeros(9, 2, len(PHONES))
    logits[[0, 8], :, 3] = 12.0  # opposite corners
    twins = PhoneCells(LEVELS, NUM_PHONE_DIMS, logits.log_softmax(dim=-1))
    assert twins.say(torch.tensor([1, 7]), torch.full((4,), 3)).tolist() == [0, 8]


def test_cells_are_what_the_reader_says_of_each_combination() -> None:
    torch.manual_seed(0)
    reader = nn.Linear(NUM_PHONE_DIMS, 2 * len(PHONES))
    logprobs = read_cells(reader, LEVELS[:NUM_PHONE_DIMS], stride=2)
    point = Lattice(LEVELS).points(torch.tensor([5]))[0, :NUM_PHONE_DIMS]
    expected = reader(point).view(2, -1).log_softmax(dim=-1)
    torch.testing.assert_close(logprobs[5], expected)


def test_a_code_is_silent_where_its_cell_says_silence_from_end_to_end() -> None:
    logprobs = torch.full((3, 2, len(PHONES)), -20.0)
    says = [(SILENCE, SILENCE), (SILENCE, "a"), ("a", "a")]
    for cell, frames in enumerate(says):
        for frame, phone in enumerate(frames):
            logprobs[cell, frame, PHONES.index(phone)] = 0.0
    assert silent_codes(logprobs, 7).tolist() == [True, False, False, True, False, False, True]
