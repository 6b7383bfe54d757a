from __future__ import annotations

from tristep.phones import PHONES, UNLABELLED, frame_phones


def test_every_phone_has_one_symbol() -> None:
    assert len(set(PHONES)) == len(PHONES)
    assert PHONES[0] == " "


def test_a_frame_has_the_phone_in_its_middle_and_silence_after_the_last() -> None:
    labels = frame_phones([("a", 0.045), ("b", 0.065)], 5)
    assert [PHONES[label] for label in labels.tolist()] == ["a", "a", "b", " ", " "]


def test_a_clip_without_phones_is_unlabelled() -> None:
    assert frame_phones([], 3).tolist() == [UNLABELLED] * 3
