from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest
import torch

from tristep.audio import SPEAK_HZ, write_audio
from tristep.evaluation.arena import (
    HOLED,
    WHOLE,
    Arena,
    counted,
    listeners,
    read_prompts,
    read_systems,
    with_holes,
)
from tristep.evaluation.preferences import elo_ratings, training_pairs

PROMPTS = [f"p{number}" for number in range(6)]
LEVELS = {"loud": 0.5, "middle": 0.2, "quiet": 0.05}


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    for name, level in LEVELS.items():
        (tmp_path / name).mkdir()
        for number, prompt in enumerate(PROMPTS):
            tone = level * torch.sin(torch.arange(SPEAK_HZ) * 0.02 * (number + 1))
            write_audio(tmp_path / name / f"{prompt}.wav", tone, SPEAK_HZ)
    return [tmp_path / name for name in LEVELS]


@pytest.fixture
def arena(folders: list[Path], tmp_path: Path) -> Arena:
    return Arena(read_systems(folders), tmp_path / "verdicts.jsonl")


def listen(arena: Arena, name: str, ear: float = 1.0) -> None:
    """Judge everything by ear: the louder one is better; with `ear` -1, all the other way round."""
    while trial := arena.next_trial(name):
        a, b = (float(arena.sound(name, trial.id, side).square().mean()) for side in ("a", "b"))  # type: ignore[arg-type]
        arena.judge(name, trial.id, "a" if ear * a > ear * b else "b", 2, "it is louder")


def test_every_pair_on_every_prompt_is_heard_once_with_traps_in_between(arena: Arena) -> None:
    trials = arena.trials("ann")
    asked = [(trial.prompt, frozenset(trial.systems)) for trial in trials if not trial.is_trap]
    expected = [(prompt, frozenset(pair)) for prompt in PROMPTS for pair in combinations(LEVELS, 2)]
    assert len(asked) == len(expected)
    assert set(asked) == set(expected)
    assert sum(trial.is_trap for trial in trials) == 2
    assert len({trial.id for trial in trials}) == len(trials)


def test_each_listener_has_an_order_and_sides_of_their_own_and_keeps_them(arena: Arena) -> None:
    assert arena.trials("ann") == arena.trials("ann") != arena.trials("bob")
    assert {trial.systems[0] < trial.systems[1] for trial in arena.trials("ann")} == {True, False}


def test_what_names_a_trial_says_nothing_about_the_systems(arena: Arena) -> None:
    assert not any(name in trial.id for trial in arena.trials("ann") for name in LEVELS)
    assert not {t.id for t in arena.trials("ann")} & {t.id for t in arena.trials("bob")}


def test_a_listener_who_comes_back_goes_on_where_they_were(arena: Arena, folders: list[Path]) -> None:
    first = arena.next_trial("ann")
    assert first is not None
    arena.judge("ann", first.id, "a", 1, "clearer")
    again = Arena(read_systems(folders), arena.store)
    assert again.next_trial("ann") == arena.trials("ann")[1]
    assert again.next_trial("bob") == arena.trials("bob")[0]
    with pytest.raises(ValueError, match="judged already"):
        again.judge("ann", first.id, "a", 1, "clearer")


@pytest.mark.parametrize(("strength", "reason"), [(0, "louder"), (4, "louder"), (1, " ")])
def test_a_verdict_needs_a_reason_and_a_strength(arena: Arena, strength: int, reason: str) -> None:
    trial = arena.next_trial("ann")
    assert trial is not None
    with pytest.raises(ValueError, match="written reason"):
        arena.judge("ann", trial.id, "a", strength, reason)
    assert not arena.store.exists()


def test_a_sound_with_holes_is_silent_in_them_and_itself_elsewhere(arena: Arena) -> None:
    trap = next(trial for trial in arena.trials("ann") if trial.is_trap)
    whole, holed = (arena.sound("ann", trap.id, "ab"[trap.systems.index(name)]) for name in (WHOLE, HOLED))  # type: ignore[arg-type]
    assert torch.equal(holed, with_holes(whole))
    assert 0.4 < float((holed == whole).float().mean()) < 0.8


def test_listeners_who_fall_for_traps_are_not_counted(arena: Arena) -> None:
    listen(arena, "ann")
    listen(arena, "bob")
    listen(arena, "contrary", ear=-1.0)
    found = {listener.name: listener for listener in listeners(arena.verdicts())}
    assert found["ann"].passes
    assert not found["contrary"].passes
    assert (found["ann"].num_verdicts, found["ann"].num_traps, found["ann"].num_traps_right) == (18, 2, 2)
    kept = counted(arena.verdicts())
    assert {verdict.rater for verdict in kept} == {"ann", "bob"}
    assert len(kept) == 36


def test_agreement_is_with_the_majority_of_the_others(arena: Arena) -> None:
    for name, ear in (("ann", 1.0), ("bob", 1.0), ("cy", 1.0), ("contrary", -1.0)):
        listen(arena, name, ear)
    found = {listener.name: listener.agreement for listener in listeners(arena.verdicts())}
    assert found == {"ann": 1.0, "bob": 1.0, "cy": 1.0, "contrary": 0.0}


def test_one_listener_alone_agrees_with_nobody(arena: Arena) -> None:
    listen(arena, "ann")
    assert listeners(arena.verdicts())[0].agreement is None


def test_systems_are_rated_as_they_were_heard_and_verdicts_become_training_pairs(arena: Arena) -> None:
    listen(arena, "ann")
    listen(arena, "bob")
    kept = counted(arena.verdicts())
    rated = elo_ratings(kept)
    assert list(rated) == ["loud", "middle", "quiet"]
    assert rated["loud"].value > rated["middle"].value > rated["quiet"].value
    pairs = training_pairs(kept)
    assert len(pairs) == 18
    assert all(pair["num_verdicts"] == 2 and pair["margin"] == 2 for pair in pairs)
    assert sum("/loud/" in pair["chosen"] for pair in pairs) == 12


def test_verdicts_that_call_two_the_same_are_half_a_win_each(arena: Arena) -> None:
    while trial := arena.next_trial("ann"):
        choice = "ab"[trial.systems.index(WHOLE)] if trial.is_trap else "same"
        arena.judge("ann", trial.id, choice, 1, "no difference")  # type: ignore[arg-type]
    rated = elo_ratings(counted(arena.verdicts()))
    assert all(estimate.value == pytest.approx(1000) for estimate in rated.values())


def test_only_prompts_that_all_systems_have_are_compared(folders: list[Path]) -> None:
    (folders[0] / "p0.wav").unlink()
    (folders[1] / "notes.txt").write_text("not a sound")
    assert {tuple(sounds) for sounds in read_systems(folders).values()} == {tuple(PROMPTS[1:])}


def test_systems_that_cannot_be_compared_are_refused(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least two systems"):
        read_systems(folders[:1])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="share no prompt"):
        read_systems([folders[0], tmp_path / "empty"])


def test_a_limit_cuts_the_list_and_leaves_the_order(arena: Arena, folders: list[Path]) -> None:
    short = Arena(read_systems(folders), arena.store, max_trials=5)
    assert short.trials("ann") == arena.trials("ann")[:5]


def test_prompts_are_read_with_what_was_asked(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"id": "p0", "text": "Hello.", "instructions": "slowly"}) + "\n")
    assert read_prompts(path)["p0"].instructions == "slowly"
    path.write_text("{}\n")
    with pytest.raises(ValueError, match="line 1 has no `id`"):
        read_prompts(path)
