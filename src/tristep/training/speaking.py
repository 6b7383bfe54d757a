"""Teaching to speak: utterances of words and codes become batches for the TTS mode's losses.

The corpus is an `utterances.jsonl` (`corpus/utterances.py`): each row holds words with the code before which they are
written, codes, the speaker, and the instructions that describe how it was said.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import pad_sequence

from tristep.backbone.model import Backbone
from tristep.chat import Chat, Turn
from tristep.codec.tokenizer import Lattice
from tristep.config import Settings
from tristep.modes.tts.data import IGNORED, Manner, Sample, Utterance, Word, render, render_manner, turns
from tristep.modes.tts.objective import tts_losses
from tristep.training.mixture import Mixture, batch_finder, pack_rows
from tristep.training.recipes import Lesson, Recipe
from tristep.training.settings import OptimSettings
from tristep.training.step import means

UNSPOKEN_S = 1.0
"""As how much speech an utterance without codes counts: its manner is all that is learnt of it."""


class UtteranceSettings(Settings):
    """One corpus of utterances."""

    path: str
    """An `utterances.jsonl`, relative to the data folder."""
    split: str = "train"
    repeat: float = Field(default=1.0, gt=0)
    """Times that each utterance is seen in one epoch; a fraction takes a fresh random part every epoch."""
    max_clips: int | None = None
    """Take only the first utterances: for evaluation."""


class SpeakingData(Settings):
    """What a run reads."""

    corpora: tuple[UtteranceSettings, ...]
    dev: tuple[UtteranceSettings, ...]
    batch_s: float = 120.0
    """Seconds of speech in one micro-batch."""
    row_tokens: int = 768
    """Length of a packed row, in tokens."""
    max_duration_s: float = 20.0
    instructed_share: float = 0.5
    """Share of the utterances that come with an instruction."""
    cloned_share: float = 0.2
    """Share of the utterances that come with another one of the same speaker."""
    reference_s: float = 4.0
    """Longest reference."""


class CodesSettings(Settings):
    """The codes that the vocabulary gains."""

    levels: tuple[int, ...]
    """Levels of the codec's lattice."""
    num_phone_dims: int = 0
    """Its first dimensions, which say the phones."""
    rate_hz: float
    """Codes per second."""


class SpeakingRecipe(Recipe):
    """A run that teaches the TTS mode."""

    mode: Literal["tts"]
    codes: CodesSettings
    data: SpeakingData


@dataclass(frozen=True)
class Direction:
    """One way to ask for a manner."""

    instructions: str
    manner: dict[str, int]
    """Which degrees it settles."""
    cue: str = ""
    """A cue before the text."""

    def cued(self, text: str) -> str:
        """Return a text with the cue."""
        return f"({self.cue}) {text}" if self.cue else text


@dataclass(frozen=True)
class Clip:
    """One utterance of a corpus, and how often it is seen."""

    utterance: Utterance
    speaker: str
    duration_s: float
    repeat: float
    directions: tuple[Direction, ...]
    """What could have been asked for."""


def read_clips(corpora: Sequence[UtteranceSettings], root: Path, codes: CodesSettings, max_s: float) -> list[Clip]:
    """Read every corpus of a mixture."""
    clips = []
    for corpus in corpora:
        path = root / corpus.path
        if not path.exists():
            raise ValueError(
                f"there are no utterances {str(path)!r}: make them with `python -m tristep.corpus.utterances`"
            )
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        rows = [row for row in rows if row.get("split", "train") == corpus.split]
        kept = [clip for clip in (read_clip(row, codes, corpus.repeat) for row in rows) if clip.duration_s <= max_s]
        if not kept:
            raise ValueError(f"{str(path)!r} has no utterance of split {corpus.split!r} up to {max_s:.0f} s long")
        clips += kept[: corpus.max_clips]
    return clips


def read_clip(row: dict[str, Any], codes: CodesSettings, repeat: float) -> Clip:
    """Read one row."""
    words = tuple(Word(text, first) for text, first in row["words"])
    utterance = Utterance(words, tuple(row["codes"]), Manner(**row.get("manner", {})))
    directions = tuple(
        Direction(entry["text"], entry["manner"], entry.get("cue", "")) for entry in row.get("instructions", ())
    )
    duration_s = len(row["codes"]) / codes.rate_hz or UNSPOKEN_S
    return Clip(utterance, row.get("speaker", ""), duration_s, repeat, directions)


NOTHING_ASKED = Direction("", {})


@dataclass(frozen=True)
class Batch:
    """Packed utterances, each field of shape `(B, T)`."""

    tokens: Tensor
    targets: Tensor
    segments: Tensor
    """Which packed sequence each token belongs to, -1 for padding."""

    def to(self, device: torch.device) -> Batch:
        """Move every tensor."""
        return Batch(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))


def collate(samples: Sequence[Sample], row_tokens: int) -> Batch:
    """Pack samples into rows and pad what is left."""
    rows = pack_rows([len(sample.tokens) for sample in samples], row_tokens)

    def padded(row_of: Callable[[int], list[int]], padding: int) -> Tensor:
        joined = [torch.tensor([value for index in row for value in row_of(index)]) for row in rows]
        return pad_sequence(joined, batch_first=True, padding_value=padding)

    numbers = {index: number for row in rows for number, index in enumerate(row)}
    return Batch(
        padded(lambda index: samples[index].tokens, 0),
        padded(lambda index: samples[index].targets, IGNORED),
        padded(lambda index: [numbers[index]] * len(samples[index].tokens), -1),
    )


class UtteranceSource:
    """Builds samples and batches from utterances."""

    def __init__(self, chat: Chat, clips: list[Clip], settings: SpeakingData, codes: CodesSettings) -> None:
        self.chat, self.clips, self.settings = chat, clips, settings
        self.max_reference = round(settings.reference_s * codes.rate_hz)
        self.references: dict[str, list[int]] = defaultdict(list)
        for index, clip in enumerate(clips):
            if 0 < len(clip.utterance.codes) <= self.max_reference:
                self.references[clip.speaker].append(index)

    def sample(self, index: int, rng: np.random.Generator | None) -> Sample:
        """Build one sample; with a generator, sometimes instructed and sometimes cloned."""
        clip = self.clips[index]
        if rng is None:
            return self.rendered(turns(clip.utterance.text), clip.utterance)
        asked = NOTHING_ASKED
        if clip.directions and rng.random() < self.settings.instructed_share:
            asked = clip.directions[rng.integers(len(clip.directions))]
        reference = self.reference(index, rng) if rng.random() < self.settings.cloned_share else None
        utterance = replace(clip.utterance, manner=replace(clip.utterance.manner, **asked.manner))
        return self.rendered(turns(asked.cued(utterance.text), asked.instructions, reference), utterance)

    def rendered(self, context: Sequence[Turn], utterance: Utterance) -> Sample:
        """Write an utterance; of one that nobody has spoken, the manner."""
        if utterance.codes:
            return render(self.chat, context, utterance)
        return render_manner(self.chat, context, utterance.manner)

    def reference(self, index: int, rng: np.random.Generator) -> Utterance | None:
        """Choose another utterance of the same speaker, None if there is none short enough."""
        others = [other for other in self.references[self.clips[index].speaker] if other != index]
        return self.clips[others[rng.integers(len(others))]].utterance if others else None

    def batches(self, optim: OptimSettings) -> Callable[[int, int, int, int], Batch]:
        """Return the batch of any step, micro-batch and process: a pure function of them."""
        durations = np.array([clip.duration_s for clip in self.clips])
        repeats = np.array([clip.repeat for clip in self.clips])
        find = batch_finder(Mixture(durations, repeats, self.settings.batch_s, optim.seed))

        def batch_at(step: int, micro: int, rank: int, world_size: int) -> Batch:
            rng = np.random.default_rng([optim.seed, step, micro, rank])
            indices = find(step, micro, optim.num_accumulation, rank, world_size)
            return collate([self.sample(index, rng) for index in indices], self.settings.row_tokens)

        return batch_at


def lesson(recipe: SpeakingRecipe, chat: Chat, data_root: Path) -> Lesson:
    """Read the data of a recipe."""
    read = partial(read_clips, root=data_root, codes=recipe.codes, max_s=recipe.data.max_duration_s)
    source = UtteranceSource(chat, read(recipe.data.corpora), recipe.data, recipe.codes)
    dev = UtteranceSource(chat, read(recipe.data.dev), recipe.data, recipe.codes)
    return Lesson(losses, source.batches(recipe.optim), partial(evaluate, dev=dev))


def losses(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Compute the mode's losses; what the codes' rows share is added up once for the batch."""
    assert isinstance(model, Backbone)
    with parametrize.cached():
        return tts_losses(model, batch)


def evaluate(model: nn.Module, dev: UtteranceSource) -> dict[str, float]:
    """Measure the losses on held-out utterances."""
    device = next(model.parameters()).device
    sums: dict[str, float] = {}
    for start in range(0, len(dev.clips), 16):
        samples = [dev.sample(index, None) for index in range(start, min(start + 16, len(dev.clips)))]
        batch = collate(samples, dev.settings.row_tokens).to(device)
        for name, value in losses(model, batch).items():
            sums[name] = sums.get(name, 0.0) + float(value)
    return means(sums)


def grow(backbone: Backbone, codes: CodesSettings) -> None:
    """Give the vocabulary the codec's codes, if it lacks them; codes that are neighbours start close together."""
    lattice = Lattice(codes.levels)
    if backbone.vocab.config.num_codes == lattice.size:
        return
    if backbone.vocab.config.num_codes:
        raise ValueError(
            f"the backbone has {backbone.vocab.config.num_codes} codes, the recipe's levels make {lattice.size}: "
            "start from a backbone without codes, or from one that was trained with this codec"
        )
    backbone.grow_vocabulary(lattice.size)
    points = lattice.points(torch.arange(lattice.size))  # (codes, dimensions)
    for table in backbone.tables:
        directions = torch.randn(points.shape[1], table.grown.shape[1]) / points.shape[1] ** 0.5
        table.grown.data[-lattice.size :] += table.weight.std() * points @ directions
