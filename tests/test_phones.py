from __future__ import annotations

import torch

from tristep.phones import PHONES, UNLABELLED, frame_phones, read_phones


def test_every_phone_has_one_symbol() -> None:
    assert len(set(PHONES)) == len(PHONES)
    assert PHONES[0] == " "


def test_a_frame_has_the_phone_in_its_middle_and_silence_after_the_last() -> None:
    labels = frame_phones([("a", 0.045), ("b", 0.065)], 5)
    assert [PHONES[label] for label in labels.tolist()] == ["a", "a", "b", " ", " "]


def test_a_clip_without_phones_is_unlabelled() -> None:
    assert frame_phones([], 3).tolist() == [UNLABELLED] * 3


def test_phones_are_read_once_each_and_blips_and_silence_not_at_all() -> None:
    frames = torch.tensor([PHONES.index(phone) for phone in "  hhaabaa  aatt "])
    assert read_phones(frames) == "hat"
