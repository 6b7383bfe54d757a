"""Fitting: how well a reply fits what was said, measured by a text model and put into words that a judge can read.

A small judge can't tell which of two sensible replies was said here. A text model can, by how much likelier a reply is
to come from this persona after what was said than out of the blue: their pointwise mutual information, in nats a token.
What is made up: the text model is the frozen half of the judge that ships, so the two are less independent than a judge
of readings and its witness.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tristep.backbone.checkpoints import load_backbone
from tristep.backbone.low_rank import merge_low_rank
from tristep.backbone.precision import compute_in
from tristep.chat import Chat, Turn
from tristep.engine.answers import mean_logprobs
from tristep.engine.witness import better
from tristep.modes.judge.data import Answer, Clause, Known
from tristep.modes.realtime.data import PERSONA, remembered

FITS = ("badly", "somewhat", "well")
EDGES = (0.25, 0.75)
"""Gains, in nats a token, below which a reply fits badly, and from which it fits well."""
NEAR = 0.25
"""Gains that are nearer to each other than this are alike."""
MOST = 9.9
"""No gain is told to be further from 0 than this; nothing said fits worst."""
PERSONA_LINE = "Persona: "
TURN = re.compile(r"^(user|assistant): (.*?)(?=^(?:user|assistant): |\Z)", re.MULTILINE | re.DOTALL)

Likely = Callable[[Sequence[Sequence[Turn]], Sequence[str]], Sequence[float]]
"""How likely replies are after conversations: conversations, replies -> mean log-probabilities of their tokens."""


@dataclass(frozen=True)
class Fit:
    """How much likelier a reply is here than out of the blue."""

    gain: float
    """In nats a token, with one digit behind the point, as it is told."""

    def __str__(self) -> str:
        return f"{FITS[sum(self.gain >= edge for edge in EDGES)]} {self.gain:+.1f}"


@dataclass(frozen=True)
class Reader:
    """Reads replies, as a `Witness` hears readings."""

    likely: Likely

    @classmethod
    def load(cls, weights: str | Path) -> Reader:
        """Read by a text model: a name, or a folder of weights."""
        return cls(text_model(weights))

    def fits(self, persona: str, said: Sequence[tuple[str, str]], replies: Sequence[str]) -> list[Fit]:
        """Measure how well replies fit.

        Args:
            persona: Whose replies they are.
            said: Who spoke before, `user` or `assistant`, and what was said; the last turn is what they reply to.
            replies: The replies.
        """
        written = list(dict.fromkeys(reply for reply in replies if reply.strip()))
        nowhere, here = ([Turn("system", (who,))] for who in (PERSONA, persona or PERSONA))
        here += [remembered("assistant" if role == "assistant" else "user", text) for role, text in said]
        found = self.likely([here] * len(written) + [nowhere] * len(written), written * 2) if written else []
        half = len(written)
        gains = {reply: own - other for reply, own, other in zip(written, found[:half], found[half:], strict=True)}
        return [Fit(round(max(-MOST, min(MOST, gains.get(reply, -MOST))), 1)) for reply in replies]

    def answers(self, persona: str, said: Sequence[tuple[str, str]], replies: Sequence[str]) -> list[Answer]:
        """Put replies before the judge, each with how well it fits."""
        fits = self.fits(persona, said, replies)
        return [Answer(reply, fits=str(fit)) for reply, fit in zip(replies, fits, strict=True)]


def text_model(weights: str | Path) -> Likely:
    """Let a text model say how likely replies are."""
    backbone, tokenizer = load_backbone(weights)
    merge_low_rank(backbone)
    compute_in(backbone, "bf16")
    chat = Chat(backbone.eval().vocab, tokenizer)

    def likely(conversations: Sequence[Sequence[Turn]], replies: Sequence[str]) -> list[float]:
        prompts = [chat.prompt(turns) for turns in conversations]
        return mean_logprobs(backbone, prompts, [tokenizer.encode(reply) for reply in replies])

    return likely


def fit_clause(first: Fit, second: Fit) -> Clause:
    """Say which of two replies fits better: what a judge should see in the evidence."""
    findings = (str(first), str(second))
    if abs(first.gain - second.gain) < NEAR:
        return Clause("alike", findings)
    return Clause(better(-first.gain, -second.gain), findings)


def witnessed(known: Known, reader: Reader | None) -> Known:
    """Tell the judge how well the replies of a known pair fit, and say so in its verdict.

    What is said already stays, and so do readings, and everything where there is no reader.
    """
    case = known.case
    if reader is None or case.task != "dialogue" or case.first.fits:
        return known
    replies = (case.first, case.second)
    fits = reader.fits(*read_prompt(case.prompt), [reply.text for reply in replies])
    first, second = (replace(reply, fits=str(fit)) for reply, fit in zip(replies, fits, strict=True))
    clauses = {**known.verdict.clauses, "coherence": fit_clause(*fits)}
    return replace(
        known, case=replace(case, first=first, second=second), verdict=replace(known.verdict, clauses=clauses)
    )


def read_prompt(prompt: str) -> tuple[str, list[tuple[str, str]]]:
    """Read the persona and the turns of a `DialoguePrompt` that was written as text."""
    persona = TURN.split(prompt, maxsplit=1)[0].removeprefix(PERSONA_LINE).strip()
    return persona, [(role, text.rstrip("\n")) for role, text in TURN.findall(prompt)]
