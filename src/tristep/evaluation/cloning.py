"""Measure cloning: does speech in the voice of a few seconds of somebody sound like them?

Every reader gives a clip to clone from, and the rest of the recording beside it. What the clone says is compared with
that clip, with the rest, which no synthesiser has heard, and with the other readers; so that the numbers have a scale,
two stretches of one reader are compared, and the readers with one another. Likeness to the rest is what a listener who
knows the reader would judge: likeness to the clip also counts its microphone and its room.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Table
from torch import Tensor

from tristep.audio import SPEAK_HZ
from tristep.codec.speaker import similarity
from tristep.evaluation.speech import Judges, rectified_similarity
from tristep.evaluation.tts import Measured, Prompt, Synthesise, evaluate_tts, mean
from tristep.evaluation.tts_report import Estimate

MIN_REST_S = 3.0
"""Shortest rest of a recording that is compared with."""
RELATIONS = ("clone, clip", "clone, rest", "clone, others", "clip, rest", "clip, others")
"""Pairs of sounds that are compared."""


@dataclass(frozen=True, eq=False)
class Reader:
    """Somebody whose voice is cloned."""

    name: str
    text: str
    """What is said in the recording."""
    clip: Tensor
    """What the voice is cloned from, 24 kHz, shape `(S,)`."""
    rest: Tensor
    """What follows it, 24 kHz, shape `(R,)`."""


@dataclass(frozen=True)
class Likeness:
    """How alike the voices of one kind of pair are."""

    relation: str
    """One of `RELATIONS`."""
    similarity: Estimate
    """The cosine of CAM++'s embeddings; the interval is over readers."""
    rectified: Estimate
    """The same on the scale of copies of CAM++ with a last rectifier (`rectified_similarity`)."""


@dataclass(frozen=True)
class Cloning:
    """What was measured."""

    likenesses: tuple[Likeness, ...]
    measured: Measured
    """What the clones said, and how it was understood and rated."""


def read_reader(name: str, text: str, waveform: Tensor, clip_s: float) -> Reader | None:
    """Cut a recording at 24 kHz `(S,)` into a clip and the rest; None if too little would be left."""
    cut = round(clip_s * SPEAK_HZ)
    if len(waveform) - cut < MIN_REST_S * SPEAK_HZ:
        return None
    return Reader(name, text, waveform[:cut], waveform[cut:])


def evaluate_cloning(
    synthesise: Synthesise,
    readers: Sequence[Reader],
    sentences: Mapping[str, str],
    judges: Judges,
    *,
    num_each: int = 2,
    model: str = "",
    seed: int = 0,
    progress: bool = True,
) -> Cloning:
    """Let every reader's clone say some of the sentences, in turn, and compare.

    Args:
        synthesise: Speaks in the voice of the reader whose name it is given.
        readers: Whose voices have been cloned.
        sentences: What to say, by their names.
        judges: Who listens; one must tell voices apart.
        num_each: Sentences of each reader.
        model: How the report names the synthesiser.
        seed: Handed over with every text.
        progress: Whether to draw a progress bar to standard error.

    Raises:
        ValueError: If there are fewer than two readers, or nobody tells voices apart.
    """
    if judges.embed is None:
        raise ValueError("nobody tells voices apart: give the weights of CAM++ (speaker.safetensors)")
    if len(readers) < 2:
        raise ValueError(
            f"there are {len(readers)} readers: expected at least two, each with a clip and {MIN_REST_S:g} s more; "
            "give longer recordings, or cut shorter clips"
        )
    prompts = clone_prompts([reader.name for reader in readers], sentences, num_each)
    clips = {reader.name: judges.embed(reader.clip) for reader in readers}
    rests = {reader.name: judges.embed(reader.rest) for reader in readers}
    measured = evaluate_tts(synthesise, prompts, judges, targets=clips, model=model, seed=seed, progress=progress)
    clones: dict[str, list[Tensor]] = {name: [] for name in clips}
    for prompt in prompts:
        if (waveform := measured.waveforms[prompt.id]).any():
            clones[str(prompt.voice)].append(judges.embed(waveform))
    if not any(clones.values()):
        raise ValueError(f"no clone said anything: {measured.report.sentences[0].error or 'all were silent'}")
    return Cloning(tuple(compare(clones, clips, rests)), measured)


def clone_prompts(names: Sequence[str], sentences: Mapping[str, str], num_each: int) -> list[Prompt]:
    """Deal sentences out to readers, one after the other, and again from the first when they are used up."""
    keys = list(sentences)
    dealt = [(name, keys[(num_each * place + turn) % len(keys)]) for place, name in enumerate(names)
             for turn in range(num_each)]  # fmt: skip
    return [Prompt(f"{name} {turn} {key}", sentences[key], voice=name, reference=sentences[key])
            for turn, (name, key) in enumerate(dealt)]  # fmt: skip


def compare(
    clones: Mapping[str, Sequence[Tensor]], clips: Mapping[str, Tensor], rests: Mapping[str, Tensor]
) -> list[Likeness]:
    """Compare embeddings `(D,)`, by readers' names, in every relation."""
    others = {name: [clip for other, clip in clips.items() if other != name] for name in clips}
    pairs: dict[str, list[list[tuple[Tensor, Tensor]]]] = {
        "clone, clip": [[(said, clips[name]) for said in each] for name, each in clones.items()],
        "clone, rest": [[(said, rests[name]) for said in each] for name, each in clones.items()],
        "clone, others": [[(said, clip) for said in each for clip in others[name]] for name, each in clones.items()],
        "clip, rest": [[(clips[name], rests[name])] for name in clips],
        "clip, others": [[(clips[name], clip) for clip in others[name]] for name in clips],
    }
    return [likeness(relation, pairs[relation]) for relation in RELATIONS]


def likeness(relation: str, by_reader: Sequence[Sequence[tuple[Tensor, Tensor]]]) -> Likeness:
    """Average pairs of embeddings within readers and then over them."""
    scales = []
    for scale in (similarity, rectified_similarity):
        means = [float(np.mean([scale(*pair) for pair in pairs])) for pairs in by_reader if pairs]
        estimate = mean(means)
        assert estimate is not None
        scales.append(estimate)
    return Likeness(relation, *scales)


def likeness_table(cloning: Cloning) -> Table:
    """Show how alike voices are, with intervals over readers."""
    table = Table("pair", "similarity", "95 % interval", "rectified", "95 % interval")
    for row in cloning.likenesses:
        cells = [(f"{each.mean:.3f}", f"{each.low:.3f} - {each.high:.3f}") for each in (row.similarity, row.rectified)]
        table.add_row(row.relation, *cells[0], *cells[1])
    return table
