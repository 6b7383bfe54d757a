"""Judging: which of two answers does better what was asked, from both sides, several times, with how sure it is.

    judge = Judge.load("runs/judge/model", Witness(recognise, embed), Reader.load("nano"))
    judge.score(SpeechPrompt(text, usual, instructions), candidate, reference)     # waveforms at 24 kHz
    judge.score(DialoguePrompt(persona, turns), candidate, reference)              # texts

A score goes from -1, the reference is clearly better, to 1, the candidate is. Each pair is judged in both orders,
and half the difference is taken, so that a liking for the first place is gone (`rewards.unswapped`). One reading of a
verdict takes the most probable words; more readings draw them, and their mean is taken (Wang et al. 2023,
self-consistency). Whoever writes verdicts, this backbone or a chat endpoint, is judged by the same measures.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from tristep.audio import LISTEN_HZ, padded_mel
from tristep.backbone.checkpoints import load_backbone
from tristep.backbone.low_rank import merge_low_rank
from tristep.backbone.model import Backbone
from tristep.backbone.precision import Precision, compute_in
from tristep.chat import Chat
from tristep.codec.voice import to_listening_rate
from tristep.engine.fitting import PERSONA_LINE, Reader
from tristep.engine.reciting import Sampling, draw
from tristep.engine.sampling import kept_rows, padded, prefill
from tristep.engine.witness import SpeechPrompt, Witness, evidence_of, speech_case
from tristep.modes.judge.data import ALIKE, NUM_LEVELS, RUBRICS, Answer, Case, Side, prompt, read_sides
from tristep.modes.judge.decoding import MAX_REASON_TOKENS, Constraint, Deliberation, level_tokens
from tristep.objectives.rewards import from_level, unswapped
from tristep.vocab import TextTokenizer

Score = Callable[[Any, Any, Any], float]
"""`score(prompt, candidate, reference)`: from -1, the reference is clearly better, to 1, the candidate is."""
Hear = Callable[[Tensor], Tensor]
"""Turns a waveform at 24 kHz `(S,)` into what fills its audio slots `(N, D)`."""
TEMPERATURE = 0.7
"""At which every reading but the first is drawn."""
DEADBAND = 0.1
"""Scores nearer to 0 than this call two answers alike."""
SIDES: dict[Side, float] = {"first": 1.0, "alike": 0.0, "second": -1.0}


@dataclass(frozen=True)
class DialoguePrompt:
    """What a reply replies to."""

    persona: Sequence[str]
    """What the persona card says, in sentences."""
    turns: Sequence[tuple[str, str]]
    """Who spoke, `user` or `assistant`, and what was said; the last one is to be replied to."""

    def __str__(self) -> str:
        lines = [f"{role}: {text}" for role, text in self.turns]
        return "\n".join([PERSONA_LINE + " ".join(self.persona), *lines])


Prompt = SpeechPrompt | DialoguePrompt


@dataclass(frozen=True)
class Opinion:
    """One verdict as it was written, about the first answer against the second."""

    reasons: str
    level_probs: tuple[float, ...]
    """The probability of each level, the lowest first; shape `(5,)`."""

    @property
    def score(self) -> float:
        """The expected level, from -1 to 1."""
        expected = sum(level * p for level, p in enumerate(self.level_probs, start=1))
        return float(from_level(torch.tensor(expected), NUM_LEVELS))

    @property
    def sides(self) -> dict[str, float]:
        """What the reasons say of each aspect: 1 the first is better, -1 the second, 0 alike."""
        return {aspect: SIDES[side] for aspect, side in read_sides(self.reasons).items()}


class Panel(Protocol):
    """Whoever writes verdicts."""

    @property
    def name(self) -> str:
        """What it is, for the store of preferences and for reports."""

    def opinions(self, cases: Sequence[Case], sound: Sequence[Tensor] = (), seed: int = 0) -> list[Opinion]:
        """Write a verdict on each case; seed 0 is the most probable one, every other draws.

        Args:
            cases: What is judged.
            sound: Audio embeddings of the cases that have audio slots, `(N, D)` each, in reading order.
            seed: Which reading this is.
        """


@dataclass(frozen=True)
class Judgement:
    """What came of judging one pair in both orders."""

    score: float
    """From -1, the reference is clearly better, to 1, the candidate is."""
    forward: float
    """The score of the candidate when it came first."""
    backward: float
    """The score of the reference when it came first."""
    spread: float
    """Standard deviation of the score over readings."""
    prob_better: float
    """How probable the judge thinks it that the candidate is the better one."""
    rubric: Mapping[str, float]
    """By aspect, as the reasons say, from -1 to 1."""
    reasons: str
    """Of the first reading, the candidate being the first answer."""

    @property
    def preferred(self) -> int:
        """Which one is better: 1 the candidate, -1 the reference, 0 neither."""
        return choice(self.score)

    @property
    def agrees(self) -> bool:
        """Whether both orders prefer the same answer, or none."""
        return choice(self.forward) == -choice(self.backward)


def choice(score: float) -> int:
    """Return 1 for the first answer, -1 for the second, 0 for alike."""
    return 0 if abs(score) < DEADBAND else int(math.copysign(1, score))


def consider(
    panel: Panel, cases: Sequence[Case], sounds: Sequence[Sequence[Tensor]] = (), num_readings: int = 1
) -> list[Judgement]:
    """Judge pairs in both orders.

    Args:
        panel: Who writes the verdicts.
        cases: The candidate is the first answer, the reference the second.
        sounds: Audio embeddings of both, for cases with audio slots.
        num_readings: Verdicts for each order.
    """
    swapped = [case.swapped() for case in cases]
    both = [[sound for pair in sounds for sound in pair], [sound for pair in sounds for sound in reversed(pair)]]
    forward = [panel.opinions(cases, both[0], seed) for seed in range(num_readings)]
    backward = [panel.opinions(swapped, both[1], seed) for seed in range(num_readings)]
    return [
        judgement([reading[row] for reading in forward], [reading[row] for reading in backward])
        for row in range(len(cases))
    ]


def judgement(forward: Sequence[Opinion], backward: Sequence[Opinion]) -> Judgement:
    """Join the readings of a pair and of the same pair swapped."""
    ahead, behind = (torch.tensor([opinion.score for opinion in side]) for side in (forward, backward))
    scores = unswapped(ahead, behind)
    wins = [prob_first(opinion) for opinion in forward] + [1 - prob_first(opinion) for opinion in backward]
    aspects = dict.fromkeys(aspect for opinion in (*forward, *backward) for aspect in opinion.sides)
    return Judgement(
        score=float(scores.mean()),
        forward=float(ahead.mean()),
        backward=float(behind.mean()),
        spread=float(scores.std(correction=0)),
        prob_better=sum(wins) / len(wins),
        rubric={aspect: marked(aspect, forward, backward) for aspect in aspects},
        reasons=forward[0].reasons,
    )


def prob_first(opinion: Opinion) -> float:
    """Return the probability that the first answer is better; alike is half."""
    return sum(opinion.level_probs[ALIKE:]) + opinion.level_probs[ALIKE - 1] / 2


def marked(aspect: str, forward: Sequence[Opinion], backward: Sequence[Opinion]) -> float:
    """Average what all readings say of one aspect."""
    marks = [opinion.sides[aspect] for opinion in forward if aspect in opinion.sides]
    marks += [-opinion.sides[aspect] for opinion in backward if aspect in opinion.sides]
    return sum(marks) / len(marks)


class Judge:
    """A panel that scores answers as they are: waveforms and texts."""

    def __init__(
        self,
        panel: Panel,
        witness: Witness | None = None,
        hear: Hear | None = None,
        num_readings: int = 1,
        reader: Reader | None = None,
    ) -> None:
        """Put a panel to work.

        Args:
            panel: Who writes the verdicts.
            witness: Measures sound; not needed to judge texts.
            hear: Fills audio slots, for a panel that has learnt to hear too (`BackbonePanel.hear`).
            num_readings: Verdicts for each order of each pair.
            reader: Measures how well replies fit what was said, for a panel that has learnt to read that.
        """
        self.panel, self.witness, self.hear, self.num_readings, self.reader = panel, witness, hear, num_readings, reader

    @classmethod
    def load(
        cls, folder: str | Path, witness: Witness | None = None, reader: Reader | None = None, num_readings: int = 1
    ) -> Judge:
        """Load the weights of a judge that reads what the witness says of sounds and the reader of replies."""
        return cls(BackbonePanel.load(folder), witness, num_readings=num_readings, reader=reader)

    def score(self, prompt: Prompt, candidate: Tensor | str, reference: Tensor | str) -> float:
        """Score one candidate against its reference: waveforms `(S,)` at 24 kHz, or texts."""
        return self.scores([prompt], [candidate], [reference])[0]

    def scores(
        self, prompts: Sequence[Prompt], candidates: Sequence[Tensor | str], references: Sequence[Tensor | str]
    ) -> list[float]:
        """Score many at once."""
        return [judged.score for judged in self.judge(prompts, candidates, references)]

    def judge(
        self, prompts: Sequence[Prompt], candidates: Sequence[Tensor | str], references: Sequence[Tensor | str]
    ) -> list[Judgement]:
        """Judge many, with all there is to know of each verdict.

        Raises:
            ValueError: If sound is to be judged without a witness, or answers are not what their prompt asks for.
        """
        put = [self.put(*row) for row in zip(prompts, candidates, references, strict=True)]
        heard = [sounds for _, sounds in put if sounds]
        return consider(self.panel, [case for case, _ in put], heard, self.num_readings)

    def put(self, prompt: Prompt, candidate: Tensor | str, reference: Tensor | str) -> tuple[Case, tuple[Tensor, ...]]:
        """Put a pair before the panel: as a case, and as the sounds that belong to it, where it hears."""
        if isinstance(prompt, DialoguePrompt) and isinstance(candidate, str) and isinstance(reference, str):
            replies = (candidate, reference)
            answers = [Answer(reply) for reply in replies]
            if self.reader:
                answers = self.reader.answers(" ".join(prompt.persona), prompt.turns, replies)
            return Case("dialogue", str(prompt), *answers), ()
        if isinstance(prompt, SpeechPrompt) and isinstance(candidate, Tensor) and isinstance(reference, Tensor):
            if self.witness is None:
                raise ValueError("this judge has no witness, so it can't judge sound: give it one, or texts")
            pair = (candidate, reference)
            first, second = (evidence_of(prompt, self.witness.hear(waveform)) for waveform in pair)
            sounds = tuple(self.hear(waveform) for waveform in pair) if self.hear else ()
            return speech_case(prompt, first, second, [len(sound) for sound in sounds]), sounds
        raise ValueError(
            f"a {type(prompt).__name__} with a {type(candidate).__name__} and a {type(reference).__name__}: "
            "give two waveforms for a SpeechPrompt, two texts for a DialoguePrompt"
        )


class BackbonePanel:
    """This project's own backbone as the judge."""

    def __init__(self, backbone: Backbone, tokenizer: TextTokenizer, name: str = "judge", batch_size: int = 8) -> None:
        self.backbone, self.chat = backbone, Chat(backbone.vocab, tokenizer)
        self.name, self.batch_size = name, batch_size
        self.constraint = Constraint(backbone.vocab, level_tokens(tokenizer))

    @classmethod
    def load(cls, folder: str | Path, precision: Precision | None = None) -> BackbonePanel:
        """Load the weights that a run of a `5_judge.toml` left behind."""
        backbone, tokenizer = load_backbone(folder, mode="judge")
        merge_low_rank(backbone)
        compute_in(backbone, precision)
        return cls(backbone.eval(), tokenizer, str(folder))

    def opinions(self, cases: Sequence[Case], sound: Sequence[Tensor] = (), seed: int = 0) -> list[Opinion]:
        """Write a verdict on each case, some at a time."""
        rest = iter(sound)
        written = []
        for first in range(0, len(cases), self.batch_size):
            group = cases[first : first + self.batch_size]
            heard = [next(rest) for case in group for answer in (case.first, case.second) if answer.num_slots]
            rows = deliberate(
                self.backbone, [prompt(self.chat, case) for case in group], torch.cat(heard) if heard else None,
                self.constraint, [seed * 1_000_003 + first + row for row in range(len(group))],
                Sampling(0.0 if seed == 0 else TEMPERATURE),
            )  # fmt: skip
            written += [self.read(row) for row in rows]
        return written

    def read(self, row: Deliberation) -> Opinion:
        """Read what was written."""
        assert row.level_probs is not None
        return Opinion(self.chat.tokenizer.decode(row.tokens).strip(), row.level_probs)

    @torch.inference_mode()
    def hear(self, waveform: Tensor) -> Tensor:
        """Turn a waveform at 24 kHz, shape `(S,)`, into what fills its audio slots, shape `(N, D)`."""
        return heard_embeddings(self.backbone, to_listening_rate(waveform))


def heard_embeddings(backbone: Backbone, waveform: Tensor) -> Tensor:
    """Run encoder and adaptor over one waveform at 16 kHz, shape `(S,)`, at most 30 s; keep what is shown, `(N, D)`."""
    weight = backbone.audio_encoder.conv1.weight
    mel = padded_mel(waveform[: 30 * LISTEN_HZ].to(weight.device), weight.shape[1])[None].to(weight.dtype)
    adapted = backbone.adapt(*backbone.encode_audio(mel, torch.tensor([mel.shape[2]], device=weight.device)))
    return adapted.flat()


@torch.inference_mode()
def deliberate(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    audio_embeddings: Tensor | None,
    constraint: Constraint,
    seeds: Sequence[int],
    sampling: Sampling,
    budget: int = MAX_REASON_TOKENS,
) -> list[Deliberation]:
    """Write the reasons of a batch, and read off the level of each.

    Args:
        backbone: The model.
        prompts: Token ids, each up to where its reasons begin.
        audio_embeddings: Vectors for the audio slots of all prompts in reading order, shape `(N, D)`.
        constraint: What may be written.
        seeds: The seed of each row: what it writes does not depend on its neighbours.
        sampling: How the reasons are drawn; temperature 0 takes the most probable ones.
        budget: The most tokens of the reasons.

    Raises:
        ValueError: If a prompt and its reasons are longer than the backbone reads.
    """
    longest = max(map(len, prompts)) + budget + 2
    if longest > backbone.config.decoder.max_positions:
        raise ValueError(
            f"a case and its reasons may take {longest} tokens, the backbone reads "
            f"{backbone.config.decoder.max_positions}: judge shorter answers"
        )
    device = backbone.embedding.weight.device
    cache = backbone.new_cache(len(prompts), longest)
    reasons, level = ((~mask).to(device) for mask in (constraint.reasons(), constraint.level()))
    think_end = backbone.vocab.control("think_end")
    everyone = [Deliberation(think_end, budget) for _ in prompts]
    rows = list(zip(everyone, (torch.Generator().manual_seed(seed) for seed in seeds), strict=True))
    hidden = prefill(backbone, prompts, audio_embeddings, cache)  # (B, D)
    while True:
        logits = backbone.logits(hidden).float()  # (B, V)
        last = []
        for (row, generator), scores in zip(rows, logits, strict=True):
            if row.is_decided:
                probs = scores.masked_fill(level, -math.inf).softmax(dim=-1)
                row.level_probs = tuple(probs[list(constraint.levels)].tolist())
            else:
                last.append(row.write(draw(scores.masked_fill(reasons, -math.inf), sampling, generator)))
        places = [place for place, (row, _) in enumerate(rows) if row.level_probs is None]
        if not places:
            return everyone
        if len(places) < len(rows):
            rows, cache = [rows[place] for place in places], kept_rows(cache, places)
        tokens, _ = padded(backbone, [[token] for token in last])
        hidden = backbone(tokens, kv_cache=cache)[:, -1]


@dataclass(frozen=True)
class EndpointPanel:
    """A chat model behind an endpoint as the judge: it reads, so sound is not for it."""

    ask: Callable[[str, dict[str, Any]], str]
    """Puts a question to it: what to do, and what to do it with -> a JSON object (`corpus.endpoint.ask`)."""
    name: str

    def opinions(self, cases: Sequence[Case], sound: Sequence[Tensor] = (), seed: int = 0) -> list[Opinion]:
        """Ask for a verdict on each case.

        Raises:
            ValueError: If it does not answer as it was asked to.
        """
        return [self.opinion(case, seed) for case in cases]

    def opinion(self, case: Case, seed: int) -> Opinion:
        """Ask for one verdict."""
        rubric = RUBRICS[case.task]
        question = {"prompt": case.prompt, "first": case.first.text, "second": case.second.text, "reading": seed}
        return read_answer(self.ask(endpoint_prompt(rubric), question), rubric)


def endpoint_prompt(rubric: Mapping[str, str]) -> str:
    """Tell a chat model what to answer."""
    meanings = "; ".join(f"{aspect}: {meaning}" for aspect, meaning in rubric.items())
    return (
        f"You compare two answers to one prompt. Aspects: {meanings}. Answer with a JSON object: `reasons`, an object "
        "that gives for each aspect `first`, `second` or `alike`, whichever is better in it; and `level`, from 1, the "
        f"second answer is clearly better, over {ALIKE}, alike, to {NUM_LEVELS}, the first is."
    )


def read_answer(content: str, rubric: Mapping[str, str]) -> Opinion:
    """Read what a chat model answered.

    Raises:
        ValueError: If it is not what was asked for.
    """
    try:
        answer = json.loads(content)
        level = int(answer["level"])
        sides = {aspect: str(side) for aspect, side in answer["reasons"].items() if aspect in rubric}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the judge did not answer with `reasons` and `level` in JSON but with {content!r}") from error
    if not 1 <= level <= NUM_LEVELS or not set(sides.values()) <= set(SIDES):
        raise ValueError(f"the judge answered {content!r}: expected a level from 1 to {NUM_LEVELS} and known sides")
    probs = tuple(float(level == possible) for possible in range(1, NUM_LEVELS + 1))
    return Opinion("; ".join(f"{aspect}: {side}" for aspect, side in sides.items()), probs)
