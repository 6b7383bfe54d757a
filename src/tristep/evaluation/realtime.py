"""Measure a conversation: does the persona stay who it is, do its answers answer, and how soon do they come.

The model is handed in as a function of what has been said, so this project's model, the text model that it grew from
and any other are measured by the same code. The user's side of every dialogue is fixed, as text and, where there is a
recording, as sound; the model's own answers become the history. Three things are measured:

* In character: the share of answers in which the rules of `modes/realtime/persona.py` find nothing.
* Relevance: the share of answers that a text model finds likelier after the turn that they answer than after the turn
  at the same place of another dialogue. Chance is one half, and what suits any question stays near it.
* Latency, each answer alone: until its first token and, where the model speaks, until its first sound.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.progress import track

from tristep.config import parse
from tristep.evaluation.asr import conditions
from tristep.evaluation.realtime_report import AnswerResult, DialogueResult, Latency, ModelResult, RealtimeReport
from tristep.evaluation.tts import mean, ratio
from tristep.modes.realtime.persona import PersonaCard, habits_shown, violations

NUM_TIMED = 12
"""Dialogues whose last answer is timed."""
Role = Literal["user", "assistant"]


@dataclass(frozen=True)
class UserTurn:
    """What the user says."""

    text: str
    audio: Path | None = None


@dataclass(frozen=True)
class Script:
    """The user's side of one dialogue, and who answers it."""

    id: str
    card: PersonaCard
    turns: tuple[UserTurn, ...]

    @property
    def is_spoken(self) -> bool:
        """Whether there is a recording of every turn."""
        return all(turn.audio for turn in self.turns)


@dataclass(frozen=True)
class Situation:
    """What has been said when an answer is due."""

    persona: str
    history: tuple[tuple[Role, str], ...]
    said: UserTurn


@dataclass(frozen=True)
class Reply:
    """What a model made of a situation."""

    text: str
    heard: str | None = None
    """What it understood of the user's sound; None where it was given text."""
    first_text_s: float | None = None
    first_audio_s: float | None = None


Converse = Callable[[Sequence[Situation]], list[Reply]]
"""A model: situations, one a conversation -> replies."""
Judge = Callable[[str, str], float]
"""How likely an answer is after a turn of the user: turn, answer -> mean log-probability of its tokens."""


def read_scripts(path: str | Path, most: int | None = None) -> list[Script]:
    """Read dialogues to be held, JSON lines as `python -m tristep.corpus.personas script` writes them.

    Args:
        path: The file; recordings lie relative to it.
        most: Take only the first ones.

    Raises:
        ValueError: If it can't be read, or a dialogue is not like the others.
    """
    path = Path(path)
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()][:most]
        scripts = [read_script(row, path) for row in rows]
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{str(path)!r} can't be read as dialogues ({error!r}): make them with "
            "`python -m tristep.corpus.personas script`"
        ) from error
    if len({len(script.turns) for script in scripts}) != 1 or not scripts[0].turns:
        raise ValueError(f"{str(path)!r}: expected dialogues, all with the same number of turns; cut the longer ones")
    return scripts


def read_script(row: Mapping[str, Any], path: Path) -> Script:
    """Read one dialogue."""
    card = parse({"id": row["id"], **row["card"]}, PersonaCard, f"{path}, dialogue {row['id']}")
    turns = (
        UserTurn(turn["text"], path.parent / turn["audio"] if turn.get("audio") else None) for turn in row["turns"]
    )
    return Script(row["id"], card, tuple(turns))


def evaluate_realtime(
    models: Mapping[str, Converse],
    scripts: Sequence[Script],
    judge: Judge | None = None,
    *,
    model: str = "",
    batch_size: int = 8,
    num_timed: int = NUM_TIMED,
    progress: bool = True,
) -> RealtimeReport:
    """Hold the same dialogues with every model.

    Args:
        models: By the names that the report gives them.
        scripts: The user's side of the dialogues, all of as many turns.
        judge: Says how likely an answer is after a turn; without one relevance is not measured.
        model: How the report names the weights.
        batch_size: Dialogues that are held at once.
        num_timed: Dialogues whose last turn is answered again alone, to be timed.
        progress: Whether to draw progress bars to standard error.

    Raises:
        ValueError: If there is no dialogue or no model.
    """
    if not scripts or not models:
        raise ValueError(f"{len(scripts)} dialogues and {len(models)} models: give at least one of each")
    start = time.perf_counter()
    results = []
    for name, converse in models.items():
        batches = [scripts[first : first + batch_size] for first in range(0, len(scripts), batch_size)]
        shown = track(batches, f"{name}:", console=Console(stderr=True), disable=not progress)
        held = [dialogue for batch in shown for dialogue in hold(converse, batch)]
        dialogues = [judged(script, replies, place, scripts, judge) for place, (script, replies) in enumerate(held)]
        results.append(summarise(name, dialogues, timed(converse, held[:num_timed])))
    return RealtimeReport(
        models=tuple(results), conditions=conditions(model, batch_size), wall_s=time.perf_counter() - start
    )


Held = tuple[Script, list[Reply]]


def hold(converse: Converse, scripts: Sequence[Script]) -> list[Held]:
    """Hold dialogues to their end, side by side."""
    held: list[Held] = [(script, []) for script in scripts]
    for turn in range(len(scripts[0].turns)):
        replies = converse([situation(script, said[:turn]) for script, said in held])
        for (_, said), answer in zip(held, replies, strict=True):
            said.append(answer)
    return held


def situation(script: Script, replies: Sequence[Reply]) -> Situation:
    """Return what has been said after some replies; what was heard of the user is what is remembered."""
    history: list[tuple[Role, str]] = []
    for turn, answer in zip(script.turns, replies, strict=False):
        history += [("user", turn.text if answer.heard is None else answer.heard), ("assistant", answer.text)]
    return Situation(script.card.prompt(), tuple(history), script.turns[len(replies)])


def timed(converse: Converse, held: Sequence[Held]) -> list[Reply]:
    """Answer the last turn of each dialogue again, alone."""
    return [converse([situation(script, replies[:-1])])[0] for script, replies in held]


def judged(
    script: Script, replies: Sequence[Reply], place: int, scripts: Sequence[Script], judge: Judge | None
) -> DialogueResult:
    """Judge the answers of one dialogue; the one after it lends the turns that they do not answer."""
    other = scripts[(place + 1) % len(scripts)]
    said = [answer.text for answer in replies]
    results = []
    for turn, answer in enumerate(replies):
        own, foreign = script.turns[turn].text, other.turns[turn].text
        results.append(
            AnswerResult(
                said=own,
                heard=answer.heard,
                answer=answer.text,
                violations=tuple(violations(script.card, answer.text, said[:turn])),
                gain=gain(judge, own, foreign, answer.text) if judge and own != foreign else None,
            )
        )
    return DialogueResult(
        id=script.id,
        persona=script.card.prompt(),
        answers=tuple(results),
        habits_shown=habits_shown(script.card, said),
    )


def gain(judge: Judge, own: str, foreign: str, answer: str) -> float | None:
    """Return how much likelier an answer is after its own turn than after another, in nats a token."""
    return judge(own, answer) - judge(foreign, answer) if answer else None


def summarise(name: str, dialogues: Sequence[DialogueResult], replies: Sequence[Reply]) -> ModelResult:
    """Sum up what one model said; intervals are over dialogues."""
    good = [sum(not answer.violations for answer in dialogue.answers) for dialogue in dialogues]
    numbers = [len(dialogue.answers) for dialogue in dialogues]
    gains = [[answer.gain for answer in dialogue.answers if answer.gain is not None] for dialogue in dialogues]
    shown = [dialogue.habits_shown for dialogue in dialogues if dialogue.habits_shown is not None]
    return ModelResult(
        name=name,
        in_character=ratio(good, numbers),
        whole_dialogues=ratio([int(part == whole) for part, whole in zip(good, numbers, strict=True)], [1] * len(good)),
        relevant=ratio([sum(each > 0 for each in own) for own in gains], list(map(len, gains))) if any(gains) else None,
        habits_shown=mean(shown),
        num_words=float(np.mean([len(a.answer.split()) for dialogue in dialogues for a in dialogue.answers])),
        first_text=latency([answer.first_text_s for answer in replies]),
        first_audio=latency([answer.first_audio_s for answer in replies]),
        dialogues=tuple(dialogues),
    )


def latency(seconds: Sequence[float | None]) -> Latency | None:
    """Sum up times; None where none is known."""
    known = [1000 * each for each in seconds if each is not None]
    if not known:
        return None
    p50, p95 = np.percentile(known, [50, 95])
    return Latency(num_timed=len(known), p50_ms=float(p50), p95_ms=float(p95), times_ms=tuple(known))
