"""The arena: listeners compare systems in pairs, blindly, and say why; systems get ratings with intervals.

A system is a folder of sounds named by prompt. Each listener meets all pairs of systems on all prompts that they
share, in an order and with sides of their own; the page knows sounds by the number of a trial and no names. In between
come traps, a sound beside itself with holes in it: who does not hear those is not counted (report section 5.5:
listener screening, random pairs and order, written reasons). Verdicts go to a store of preferences, which is all the
state there is: a listener who comes back goes on where they were.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from tristep.audio import SPEAK_HZ, read_audio
from tristep.evaluation.preferences import (
    Candidate,
    Preference,
    append_preferences,
    elo_ratings,
    read_preferences,
    win_rate,
)

Side = Literal["a", "b"]
Choice = Literal["a", "b", "same"]

VERSION = "arena 1"
"""The page that listeners had."""
SOUNDS = (".wav", ".flac", ".mp3", ".ogg", ".opus")
WHOLE, HOLED = "trap: whole", "trap: with holes"
HOLE_S, HOLE_EVERY_S = 0.25, 0.6
MIN_REASON = 3
"""Letters of a written reason."""
MAX_STRENGTH = 3
"""1 slightly, 2 clearly, 3 far better."""
MIN_TRAPS, MIN_TRAPS_RIGHT = 2, 0.75
"""Traps that a listener must have met, and the share to be right about, to be counted."""


@dataclass(frozen=True)
class Prompt:
    """What the systems were asked to say."""

    name: str
    text: str = ""
    instructions: str = ""


@dataclass(frozen=True)
class Trial:
    """Two sounds that a listener compares."""

    id: str
    """Says nothing about the systems."""
    prompt: str
    systems: tuple[str, str]
    """Of the sounds `a` and `b`."""

    @property
    def is_trap(self) -> bool:
        """Whether one of the two is known to be worse."""
        return WHOLE in self.systems


@dataclass(frozen=True)
class Listener:
    """What is known of somebody who listened."""

    name: str
    num_verdicts: int
    """Traps not counted."""
    num_traps: int
    num_traps_right: int
    agreement: float | None
    """Share of verdicts that agree with the majority of the others on the same two sounds; None where nobody else."""

    @property
    def passes(self) -> bool:
        """Whether they hear what nobody can miss, so that their verdicts count."""
        return self.num_traps >= MIN_TRAPS and self.num_traps_right >= MIN_TRAPS_RIGHT * self.num_traps


def read_prompts(path: Path) -> dict[str, Prompt]:
    """Read what was asked: JSON lines with `id`, `text` and maybe `instructions`.

    Raises:
        ValueError: If a line has no `id`.
    """
    prompts = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        row = json.loads(line)
        if "id" not in row:
            raise ValueError(f"{path}, line {number} has no `id`: give each prompt the name of its sounds")
        prompts[row["id"]] = Prompt(row["id"], row.get("text", ""), row.get("instructions", ""))
    return prompts


def read_systems(folders: Sequence[Path]) -> dict[str, dict[str, Path]]:
    """Find the sounds of each system, by prompt: those that all of them have.

    Raises:
        ValueError: If there are fewer than two systems, two have the same name, or they share no prompt.
    """
    names = [folder.resolve().name for folder in folders]
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"the folders are named {names}: give at least two systems with names of their own")
    systems = {
        name: {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in SOUNDS}
        for name, folder in zip(names, folders, strict=True)
    }
    shared = set.intersection(*(set(sounds) for sounds in systems.values()))
    if not shared:
        raise ValueError(f"{', '.join(names)} share no prompt: name the sounds of a prompt alike in every folder")
    return {name: {prompt: sounds[prompt] for prompt in sorted(shared)} for name, sounds in systems.items()}


class Arena:
    """Systems, a store of verdicts on them, and who has still to hear what."""

    def __init__(
        self, systems: Mapping[str, Mapping[str, Path]], store: Path, prompts: Mapping[str, Prompt] | None = None,
        *, trap_share: float = 0.1, max_trials: int | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        """Open an arena.

        Args:
            systems: The sound of each system for each prompt.
            store: Where verdicts go (`preferences.py`).
            prompts: What was asked, by name.
            trap_share: Share of the trials that are traps.
            max_trials: The most trials of one listener, traps included.
            seed: Seed of every listener's order.
        """
        self.systems, self.store, self.prompts = systems, store, prompts or {}
        self.trap_share, self.max_trials, self.seed = trap_share, max_trials, seed
        self._planned = lru_cache(maxsize=256)(self._plan)

    @cached_property
    def names(self) -> list[str]:
        """The prompts."""
        return list(next(iter(self.systems.values())))

    def trials(self, listener: str) -> list[Trial]:
        """Return all that a listener will hear, in order: a function of their name and the seed."""
        return self._planned(listener)

    def _plan(self, listener: str) -> list[Trial]:
        rng = np.random.default_rng(list(hashlib.sha256(f"{self.seed} {listener}".encode()).digest()))
        pairs = [(prompt, pair) for prompt in self.names for pair in combinations(self.systems, 2)]
        planned = [pairs[index] for index in rng.permutation(len(pairs))]
        num_traps = max(MIN_TRAPS, round(self.trap_share * len(planned))) if self.trap_share else 0
        for _ in range(min(num_traps, len(self.names))):
            free = sorted(set(self.names) - {prompt for prompt, pair in planned if WHOLE in pair})
            # Traps come in the first half of what a listener hears, so that most listeners meet them.
            planned.insert(int(rng.integers(len(planned) // 2 + 1)), (str(rng.choice(free)), (WHOLE, HOLED)))
        planned = planned[: self.max_trials]
        sides = rng.random(len(planned)) < 0.5
        return [
            Trial(self._id(listener, number), prompt, (pair[1], pair[0]) if swapped else pair)
            for number, ((prompt, pair), swapped) in enumerate(zip(planned, sides, strict=True))
        ]

    def _id(self, listener: str, number: int) -> str:
        return hashlib.sha256(f"{self.seed} {listener} {number}".encode()).hexdigest()[:16]

    def next_trial(self, listener: str) -> Trial | None:
        """Return the first trial that a listener has not judged, None where all are."""
        judged = {(verdict.prompt, systems_of(verdict)) for verdict in self.verdicts() if verdict.rater == listener}
        return next((t for t in self.trials(listener) if (t.prompt, frozenset(t.systems)) not in judged), None)

    def find(self, listener: str, trial: str) -> Trial:
        """Return a trial of a listener by its number.

        Raises:
            ValueError: If they have no such trial.
        """
        found = next((candidate for candidate in self.trials(listener) if candidate.id == trial), None)
        if found is None:
            raise ValueError(f"{listener!r} has no trial {trial!r}: ask for the next one")
        return found

    def judge(self, listener: str, trial: str, choice: Choice, strength: int, reason: str) -> Preference:
        """Take a verdict into the store.

        Raises:
            ValueError: If there is no such trial, it is not the next one, or no reason was written.
        """
        found = self.find(listener, trial)
        if found != self.next_trial(listener):
            raise ValueError(f"the trial {trial!r} is not the next one of {listener!r}: it was judged already")
        if len(reason.strip()) < MIN_REASON or not 1 <= strength <= MAX_STRENGTH:
            raise ValueError(f"a verdict needs a written reason, and a strength from 1 to {MAX_STRENGTH}")
        won = found.systems[choice == "b"]
        lost = found.systems[choice != "b"]
        verdict = Preference(
            prompt=found.prompt,
            chosen=Candidate(content=self.content(won, found.prompt), system=won),
            rejected=Candidate(content=self.content(lost, found.prompt), system=lost),
            margin=0 if choice == "same" else strength,
            source="human",
            version=VERSION,
            rater=listener,
            reason=reason.strip(),
        )
        append_preferences(self.store, [verdict])
        return verdict

    def content(self, system: str, prompt: str) -> str:
        """Return the path of a system's sound; a trap is a sound of the first system."""
        return str(self.systems.get(system, next(iter(self.systems.values())))[prompt])

    def sound(self, listener: str, trial: str, side: Side) -> Tensor:
        """Read one of the sounds of a trial at 24 kHz, shape `(S,)`.

        Raises:
            ValueError: If the listener has no such trial.
        """
        found = self.find(listener, trial)
        system = found.systems[side == "b"]
        waveform = read_audio(self.content(system, found.prompt), SPEAK_HZ)
        return with_holes(waveform) if system == HOLED else waveform

    def verdicts(self) -> list[Preference]:
        """Return all verdicts so far."""
        return read_preferences(self.store) if self.store.exists() else []


def with_holes(waveform: Tensor) -> Tensor:
    """Silence a stretch again and again, as nobody can fail to hear; waveform at 24 kHz, shape `(S,)`."""
    seconds = torch.arange(len(waveform)) / SPEAK_HZ
    return waveform * (seconds % HOLE_EVERY_S >= HOLE_S)


def systems_of(verdict: Preference) -> frozenset[str]:
    """Return the two systems of a verdict."""
    return frozenset((verdict.chosen.system, verdict.rejected.system))


def is_trap(verdict: Preference) -> bool:
    """Say whether a verdict is on a trap."""
    return WHOLE in systems_of(verdict)


def listeners(verdicts: Sequence[Preference]) -> list[Listener]:
    """Say of each listener how often they fell for traps and how often others agree with them."""
    on_pairs: dict[tuple[str, frozenset[str]], dict[str, float]] = defaultdict(dict)
    for verdict in verdicts:
        if not is_trap(verdict):
            on_pairs[verdict.prompt, systems_of(verdict)][verdict.rater] = signed(verdict)
    found = []
    for name in sorted({verdict.rater for verdict in verdicts}):
        traps = [verdict for verdict in verdicts if verdict.rater == name and is_trap(verdict)]
        shared = [rated for rated in on_pairs.values() if name in rated and len(rated) > 1]
        agreed = [
            np.sign(rated[name]) == np.sign(sum(np.sign(v) for r, v in rated.items() if r != name)) for rated in shared
        ]
        found.append(Listener(
            name=name,
            num_verdicts=sum(name in rated for rated in on_pairs.values()),
            num_traps=len(traps),
            num_traps_right=sum(trap.chosen.system == WHOLE and trap.margin > 0 for trap in traps),
            agreement=float(np.mean(agreed)) if agreed else None,
        ))  # fmt: skip
    return found


def signed(verdict: Preference) -> float:
    """Return the margin, negative where the system whose name comes later was preferred."""
    return verdict.margin if verdict.chosen.system < verdict.rejected.system else -verdict.margin


def counted(verdicts: Iterable[Preference]) -> list[Preference]:
    """Keep what counts: verdicts on systems by listeners who pass, and those by judges and measures."""
    kept = list(verdicts)
    heard = {listener.name for listener in listeners([v for v in kept if v.source == "human"]) if listener.passes}
    return [v for v in kept if not is_trap(v) and (v.source != "human" or v.rater in heard)]


def listeners_table(found: Sequence[Listener]) -> Table:
    """Lay out who listened, and whether they count."""
    table = Table("listener", "verdicts", "traps heard", "agrees with the others", "counts", title="listeners")
    for listener in found:
        traps = f"{listener.num_traps_right} of {listener.num_traps}"
        agrees = "" if listener.agreement is None else f"{listener.agreement:.0%}"
        table.add_row(listener.name, str(listener.num_verdicts), traps, agrees, "yes" if listener.passes else "no")
    return table


def ratings_table(verdicts: Sequence[Preference], seed: int = 0) -> Table:
    """Lay out the systems by their ratings, and how often each wins against the best one.

    Raises:
        ValueError: If there is no verdict that counts.
    """
    if not verdicts:
        raise ValueError(
            f"no verdict counts yet: a listener counts after {MIN_TRAPS} traps, {MIN_TRAPS_RIGHT:.0%} of them heard"
        )
    rated = elo_ratings(verdicts, seed)
    best = next(iter(rated))
    met = set(map(systems_of, verdicts))
    title = f"Bradley-Terry ratings, {len(verdicts)} verdicts, 95 % intervals over prompts"
    table = Table("system", "rating", "verdicts", f"wins against {best}", title=title)
    for name, estimate in rated.items():
        wins = ""
        if name != best and frozenset((name, best)) in met:
            rate = win_rate(verdicts, name, best, seed)
            wins = f"{rate.value:.0%} ({rate.low:.0%} - {rate.high:.0%})"
        rating = f"{estimate.value:.0f} ({estimate.low:.0f} - {estimate.high:.0f})"
        table.add_row(name, rating, str(estimate.num_verdicts), wins)
    return table
