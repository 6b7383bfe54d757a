from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tristep.codec.code_listener import CONTEXT, MISSED, MOST_CHANGES, WORTH_IT, CodeListener, in_order
from tristep.codec.codec import fill
from tristep.codec.flow import NO_CODE
from tristep.config import TokenizerConfig
from tristep.phones import PHONES

CONFIG = TokenizerConfig(stride=2, levels=(3, 3, 3), num_phone_dims=2)


def listener() -> CodeListener:
    torch.manual_seed(0)
    return CodeListener(CONFIG).eval().requires_grad_(False)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=4), st.integers(1, 5), st.integers(0, 99))
def test_phones_in_order_are_the_best_of_all_ways_to_place_them(phones: list[int], num_frames: int, seed: int) -> None:
    heard = torch.randn(num_frames, len(PHONES), generator=torch.Generator().manual_seed(seed)) * 2 - 2
    places = itertools.product([None, *range(num_frames)], repeat=len(phones))  # None: it is not heard
    best = max(
        sum(MISSED if place is None else float(heard[place, phone]) for place, phone in zip(way, phones, strict=True))
        for way in places
        if (frames := [place for place in way if place is not None]) == sorted(set(frames))
    )
    assert float(in_order(heard[None], "".join(PHONES[phone] for phone in phones))) == pytest.approx(best, abs=1e-4)


def test_a_word_without_phones_or_codes_has_a_verdict() -> None:
    assert listener().verify([1, 2, 3], range(1, 3), "") == (0.0, [2, 3])
    assert listener().verify([1], range(1, 1), PHONES[1]) == (MISSED, [])


def test_what_is_heard_are_probabilities_of_two_frames_a_code() -> None:
    heard = listener()(torch.tensor([[1, 2, NO_CODE], [3, 4, 5]]))
    assert heard.shape == (2, 6, len(PHONES))
    torch.testing.assert_close(heard.exp().sum(dim=-1), torch.ones(2, 6))


def test_a_verdict_depends_on_what_is_near() -> None:
    codes = torch.randint(27, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    verdict = listener().verify(codes, range(25, 32), PHONES[1:4])
    far = [(code + 1) % 27 for code in codes[: 25 - CONTEXT]] + codes[25 - CONTEXT :]
    near = [*codes[:24], (codes[24] + 1) % 27, *codes[25:]]
    assert listener().verify(far, range(25, 32), PHONES[1:4]) == verdict
    assert listener().verify(near, range(25, 32), PHONES[1:4]) != verdict


def test_a_word_is_mended_in_its_own_codes_and_keeps_its_prosody() -> None:
    codes = torch.randint(27, (30,), generator=torch.Generator().manual_seed(2)).tolist()
    mending, own = listener(), range(10, 18)
    torch.nn.init.normal_(mending.head.weight, std=0.5)  # so that codes matter
    before = float(mending.scores(mending(torch.tensor([codes])), own, PHONES[1:4]))
    score, mended = mending.verify(codes, own, PHONES[1:4])
    after = float(mending.scores(mending(torch.tensor([[*codes[:10], *mended, *codes[18:]]])), own, PHONES[1:4]))
    assert score == pytest.approx(after, abs=1e-3)
    assert score >= before + WORTH_IT
    assert 0 < sum(one != other for one, other in zip(codes[10:18], mended, strict=True)) <= MOST_CHANGES
    assert [code // 9 for code in mended] == [code // 9 for code in codes[10:18]]


def test_what_the_gradient_promises_is_near_what_is_found() -> None:
    codes, own = torch.randint(27, (20,), generator=torch.Generator().manual_seed(3)), range(8, 12)
    every = torch.stack(
        [codes.clone().index_fill_(0, torch.tensor(place), code) for place in own for code in range(27)]
    )
    wanted = listener().scores(listener()(every), own, PHONES[1:3])
    found = listener().scores(listener()(listener().changes(codes, own, PHONES[1:3])), own, PHONES[1:3])
    assert float(found.max()) >= float(wanted.quantile(0.8))


def test_a_listener_comes_back_as_it_was_written(tmp_path: Path) -> None:
    listener().save(tmp_path / "listener.safetensors")
    again, codes = listener(), torch.tensor([[1, 2, 3]])
    torch.nn.init.zeros_(again.head.weight)
    fill(again, tmp_path / "listener.safetensors")
    torch.testing.assert_close(again(codes), listener()(codes), atol=0.05, rtol=0.05)
    with pytest.raises(ValueError, match="does not fit"):
        fill(
            CodeListener(TokenizerConfig(stride=2, levels=(3, 3, 3), num_phone_dims=1)),
            tmp_path / "listener.safetensors",
        )
