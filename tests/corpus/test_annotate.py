from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from corpus.chat_endpoint import endpoint
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tristep.audio import LISTEN_HZ
from tristep.corpus.annotate import (
    CUES,
    MAX_INSTRUCTION,
    OPENERS,
    PHRASES,
    Annotation,
    annotate,
    by_model,
    by_rules,
    checked,
    instruction,
    phrases,
    styles,
    with_cues,
    with_history,
)
from tristep.objectives.alignment import Word
from tristep.text import Cue, split_cues, without_cues

ROW = {"id": "a", "audio": "a.wav", "text": "Well, I never said so.", "prosody_bins": {"letters_per_s": "slow"}}


def answer(instruction: str, text: str) -> str:
    return json.dumps({"instruction": instruction, "text": text})


def test_every_style_has_a_dozen_phrases_and_no_two_styles_share_one() -> None:
    assert all(len(set(phrases)) == len(phrases) >= 12 for phrases in PHRASES.values())
    assert len({phrase for phrases in PHRASES.values() for phrase in phrases}) == sum(map(len, PHRASES.values()))
    assert all([Cue(cue)] == split_cues(f"({cue})") for cues in CUES.values() for cue in cues)


@given(
    wanted=st.lists(st.sampled_from(sorted(PHRASES)), max_size=2, unique=True),
    seed=st.integers(0, 1000),
)
def test_an_instruction_asks_for_its_styles_and_for_no_other(wanted: list[str], seed: int) -> None:
    written = instruction(wanted, np.random.default_rng(seed))
    assert len(written) <= MAX_INSTRUCTION
    assert written == instruction(wanted, np.random.default_rng(seed))
    body = written.rstrip(".")
    for opener in OPENERS:
        body = body.removeprefix(opener + " ")
    for style in wanted or ["neutral"]:
        assert any(phrase.lower() in body.lower() for phrase in PHRASES[style])
    assert written[0].isupper()


def test_there_are_many_ways_to_ask_for_a_style() -> None:
    assert len({instruction(["slow"], np.random.default_rng(seed)) for seed in range(300)}) > 100
    with pytest.raises(ValueError, match="no phrases for the style 'sideways'"):
        instruction(["sideways"], np.random.default_rng(0))


def test_styles_are_the_two_most_extreme_bins() -> None:
    assert styles({"letters_per_s": "slow", "pitch_hz": "very high", "level_db": "quiet"}) == ["high", "slow"]
    assert styles({"letters_per_s": "moderate", "longest_pause_s": "very long pauses"}) == ["pauses"]
    assert styles({"longest_pause_s": "very short pauses"}) == []


@pytest.mark.parametrize(
    "text",
    ["Well, I said so.", "Well, I never ever said so.", "Well, I never said so! (sadly)", "I never said so, well."],
)
def test_an_annotation_that_changes_the_words_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not the transcript"):
        checked(Annotation("Sadly.", text), ROW["text"])


@pytest.mark.parametrize("written", ["", " ", "x" * 201])
def test_an_instruction_is_neither_empty_nor_endless(written: str) -> None:
    with pytest.raises(ValueError, match="expected 1 to 200"):
        checked(Annotation(written, ROW["text"]), ROW["text"])


def test_a_model_is_asked_with_features_and_context_and_its_cues_are_kept() -> None:
    cued = "(sighing) Well, (long pause) I never said so."
    with endpoint(answer(" Weary, like a witness. ", cued)) as (client, asked):
        annotation = by_model({**ROW, "context": "user: You promised."}, client, "judge")
    assert annotation == Annotation("Weary, like a witness.", cued)
    assert asked[0]["model"] == "judge"
    given_to_it = json.loads(asked[0]["messages"][1]["content"])
    assert given_to_it == {
        "transcript": ROW["text"], "context": "user: You promised.", "prosody": ROW["prosody_bins"],
    }  # fmt: skip


@pytest.mark.parametrize("content", ["not json", "{}", answer("Sadly.", "Well, I said it.")])
def test_what_a_model_gets_wrong_is_refused_and_left_to_the_rules(content: str) -> None:
    with endpoint(content) as (client, _), pytest.raises(ValueError, match=r"did not answer|is not the transcript"):
        by_model(ROW, client, "judge")
    with endpoint(content, answer("Sadly.", "Well, I never said so.")) as (client, asked):
        refused, kept = annotate([ROW, ROW], Path(), 0, client, "judge")
    assert len(asked) == 2
    assert (refused["annotated_by"], refused["cued_text"]) == ("rules", ROW["text"])
    assert (kept["annotated_by"], kept["instruction"]) == ("judge", "Sadly.")


def buzz(pitch_hz: float, duration_s: float, level: float = 0.1) -> Tensor:
    times = torch.arange(round(duration_s * LISTEN_HZ)) / LISTEN_HZ
    return level * sum(torch.sin(2 * torch.pi * pitch_hz * n * times) / n for n in range(1, 11))  # type: ignore[no-any-return]


CLIP = torch.cat([buzz(120, 1.2), torch.zeros(LISTEN_HZ * 6 // 5), buzz(120, 1.2), buzz(190, 1.2)])
SAID = [
    Word("one", 0.0, 0.3), Word("two", 0.4, 0.7), Word("three", 0.8, 1.2),
    Word("four", 2.4, 2.7), Word("five", 2.8, 3.1), Word("six,", 3.2, 3.6),
    Word("seven", 3.6, 3.9), Word("eight", 4.0, 4.3), Word("nine.", 4.4, 4.8),
]  # fmt: skip


def test_long_pauses_and_unusual_phrases_get_their_cues() -> None:
    assert [len(phrase) for phrase in phrases(SAID)] == [3, 3, 3]
    text = with_cues(SAID, CLIP, np.random.default_rng(0))
    assert without_cues(text) == "one two three four five six, seven eight nine."
    before = {"four": CUES["long pause"], "seven": CUES["high"]}
    for word, cues in before.items():
        assert any(f"({cue}) {word}" in text for cue in cues)
    assert sum(isinstance(part, Cue) for part in split_cues(text)) == 2


def test_a_clip_is_annotated_by_rules_alike_every_time(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", CLIP.numpy(), LISTEN_HZ)
    words = [{"text": word.text, "start_s": word.start_s, "end_s": word.end_s} for word in SAID]
    row = {**ROW, "text": " ".join(word.text for word in SAID), "words": words}
    (first,), (second,) = annotate([row], tmp_path, 3), annotate([row], tmp_path, 3)
    assert first == second
    assert first["annotated_by"] == "rules"
    assert any(phrase.lower() in first["instruction"].lower() for phrase in PHRASES["slow"])
    assert any(isinstance(part, Cue) for part in split_cues(first["cued_text"]))
    unaligned = by_rules({**row, "text": "Something else."}, np.random.default_rng(0), CLIP)
    assert unaligned.text == "Something else."


def test_a_turn_has_the_turns_before_it_as_context() -> None:
    rows = [{"conversation": 1, "turn": turn, "role": "user", "text": str(turn)} for turn in range(6)] + [{"text": "x"}]
    described = with_history(rows)
    assert "context" not in described[0]
    assert described[5]["context"] == "user: 1\nuser: 2\nuser: 3\nuser: 4"
    assert described[6] == {"text": "x"}
