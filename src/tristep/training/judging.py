"""Teaching to judge: pairs of which the better answer is known become batches of cases with their verdicts.

Each pair is shown in a random order, so neither place is the better one. The sounds of a judge that hears are
embedded once by the frozen encoder and adaptor; a judge that reads has the witness' words (`corpus/judged.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tristep.audio import read_audio
from tristep.backbone.model import Backbone
from tristep.chat import Chat, Rendered
from tristep.config import Settings
from tristep.engine.agreement import agreement
from tristep.engine.judging import BackbonePanel, consider, heard_embeddings
from tristep.modes.judge.data import Known, read_known, render
from tristep.modes.judge.objective import judge_losses
from tristep.training.mixture import Mixture, batch_finder, pack_rows
from tristep.training.recipes import Lesson, Recipe
from tristep.training.settings import OptimSettings
from tristep.training.step import means


class PairsSettings(Settings):
    """One file of judged pairs."""

    path: str
    """What `corpus/judged.py` wrote, relative to the data folder."""
    split: str = "train"
    repeat: float = Field(default=1.0, gt=0)
    """Times that each pair is seen in one epoch; a fraction takes a fresh random part every epoch."""
    max_pairs: int | None = None
    """Take only so many pairs, evenly spread over the file: for evaluation."""


class JudgingData(Settings):
    """What a run reads."""

    corpora: tuple[PairsSettings, ...]
    dev: tuple[PairsSettings, ...]
    batch_tokens: int = 1024
    """Tokens in one micro-batch."""
    row_tokens: int = 512
    """Length of a packed row, in tokens."""
    hears: bool = False
    """Whether the sounds are heard beside what the witness says of them."""


class JudgingLoss(Settings):
    """Weights of the losses."""

    level: float = 5.0
    """What the level's cross-entropy counts, in tokens of the reasons."""


class JudgingRecipe(Recipe):
    """A run that teaches to judge."""

    mode: Literal["judge"]
    data: JudgingData
    loss: JudgingLoss = JudgingLoss()


@dataclass(frozen=True)
class Batch:
    """Packed cases, each field but the last of shape `(B, T)`."""

    tokens: Tensor
    loss_mask: Tensor
    segments: Tensor
    """Which packed sequence each token belongs to, -1 for padding."""
    audio_embeddings: Tensor | None
    """Vectors for the audio slots in reading order, shape `(N, D)`; None where nothing is heard."""

    def to(self, device: torch.device) -> Batch:
        """Move every tensor."""
        tokens, loss_mask, segments = (
            tensor.to(device, non_blocking=True) for tensor in (self.tokens, self.loss_mask, self.segments)
        )
        heard = self.audio_embeddings
        return Batch(tokens, loss_mask, segments, heard if heard is None else heard.to(device, non_blocking=True))


@dataclass(frozen=True)
class Pair:
    """One pair of a corpus, where its sounds lie, and how often it is seen."""

    known: Known
    folder: Path
    repeat: float


def read_pairs(corpora: Sequence[PairsSettings], root: Path) -> list[Pair]:
    """Read every corpus of a mixture."""
    pairs: list[Pair] = []
    for corpus in corpora:
        path = root / corpus.path
        known = read_known(path, corpus.split)
        places = np.linspace(0, len(known) - 1, min(corpus.max_pairs or len(known), len(known))).round().astype(int)
        pairs += [Pair(known[place], path.parent, corpus.repeat) for place in places]
    return pairs


Ear = Callable[[Path], Tensor]
"""Turns a sound file into what fills its audio slots, shape `(N, D)`."""


class PairSource:
    """Builds samples and batches from judged pairs."""

    def __init__(self, chat: Chat, pairs: Sequence[Pair], settings: JudgingData, ear: Ear | None) -> None:
        self.chat, self.pairs, self.settings, self.ear = chat, pairs, settings, ear

    def heard(self, pair: Pair, is_swapped: bool = False) -> tuple[Known, list[Tensor]]:
        """Return a pair in the order asked for, with its sounds in their slots where they are heard."""
        known = pair.known.swapped() if is_swapped else pair.known
        if self.ear is None:
            return known, []
        sounds = [self.ear(pair.folder / sound) for sound in known.sounds]
        if not sounds:
            return known, []
        first, second = (
            replace(answer, num_slots=len(sound))
            for answer, sound in zip((known.case.first, known.case.second), sounds, strict=True)
        )
        return replace(known, case=replace(known.case, first=first, second=second)), sounds

    def collate(self, pairs: Sequence[Pair], rng: np.random.Generator | None = None) -> Batch:
        """Build one batch; with a generator, every pair in a random order."""
        heard = [self.heard(pair, rng is not None and rng.random() < 0.5) for pair in pairs]
        samples = [render(self.chat, known.case, known.verdict) for known, _ in heard]
        return collate(samples, [sounds for _, sounds in heard], self.settings.row_tokens)

    def batches(self, optim: OptimSettings) -> Callable[[int, int, int, int], Batch]:
        """Return the batch of any step, micro-batch and process: a pure function of them."""
        rendered = (self.heard(pair)[0] for pair in self.pairs)
        lengths = np.array([len(render(self.chat, known.case, known.verdict).tokens) for known in rendered])
        repeats = np.array([pair.repeat for pair in self.pairs])
        find = batch_finder(Mixture(lengths, repeats, self.settings.batch_tokens, optim.seed))

        def batch_at(step: int, micro: int, rank: int, world_size: int) -> Batch:
            rng = np.random.default_rng([optim.seed, step, micro, rank])
            return self.collate(
                [self.pairs[i] for i in find(step, micro, optim.num_accumulation, rank, world_size)], rng
            )

        return batch_at


def collate(samples: Sequence[Rendered], sounds: Sequence[Sequence[Tensor]], row_tokens: int) -> Batch:
    """Pack samples, and the sounds that each one hears, into rows and pad what is left."""
    rows = pack_rows([len(sample.tokens) for sample in samples], row_tokens)
    order = [index for row in rows for index in row]

    def padded(row_of: Callable[[int], Sequence[int]], padding: int) -> Tensor:
        joined = [torch.tensor([value for index in row for value in row_of(index)]) for row in rows]
        return pad_sequence(joined, batch_first=True, padding_value=padding)

    numbers = {index: number for row in rows for number, index in enumerate(row)}
    embeddings = [sound for index in order for sound in sounds[index]]
    return Batch(
        padded(lambda index: samples[index].tokens, 0),
        padded(lambda index: samples[index].loss_mask, 0).bool(),
        padded(lambda index: [numbers[index]] * len(samples[index].tokens), -1),
        torch.cat(embeddings) if embeddings else None,
    )


def lesson(recipe: JudgingRecipe, chat: Chat, backbone: Backbone, data_root: Path) -> Lesson:
    """Read the data of a recipe.

    Raises:
        ValueError: If the adaptor is to learn in a run whose sounds it has embedded already.
    """
    if recipe.data.hears and recipe.learn.adaptor:
        raise ValueError("a judge that hears has its sounds embedded once: set adaptor = 0 in [learn]")
    ear = open_ear(backbone) if recipe.data.hears else None
    source = PairSource(chat, read_pairs(recipe.data.corpora, data_root), recipe.data, ear)
    dev = PairSource(chat, read_pairs(recipe.data.dev, data_root), recipe.data, ear)
    losses = partial(judge_losses, level_weight=recipe.loss.level)
    return Lesson(losses, source.batches(recipe.optim), partial(evaluate, dev=dev, losses=losses))


def open_ear(backbone: Backbone) -> Ear:
    """Listen by the backbone's frozen encoder and adaptor, to each file once."""

    @cache
    @torch.no_grad()
    def ear(path: Path) -> Tensor:
        was_training = backbone.training
        heard = heard_embeddings(backbone.eval(), read_audio(path)).cpu()
        backbone.train(was_training)
        return heard

    return ear


def evaluate(model: nn.Module, dev: PairSource, losses: Callable[..., dict[str, Tensor]]) -> dict[str, float]:
    """Measure the losses on held-out pairs, and what the verdicts that are written about them are worth."""
    assert isinstance(model, Backbone)
    device = model.embedding.weight.device
    sums: dict[str, float] = {}
    for start in range(0, len(dev.pairs), 16):
        for name, value in losses(model, dev.collate(dev.pairs[start : start + 16]).to(device)).items():
            sums[name] = sums.get(name, 0.0) + float(value)
    heard = [dev.heard(pair) for pair in dev.pairs]
    panel = BackbonePanel(model, dev.chat.tokenizer)
    sounds = [[sound.to(device) for sound in both] for _, both in heard if both]
    worth = agreement(consider(panel, [known.case for known, _ in heard], sounds), [known for known, _ in heard])
    return {
        **means(sums),
        "accuracy": worth.accuracy,
        "position_agreement": worth.position_agreement,
        "calibration_error": worth.calibration_error,
    }
