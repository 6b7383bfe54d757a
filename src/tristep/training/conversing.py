"""Teaching to converse: exchanges in sound and in text, and clips to write down, become batches for the realtime mode.

An exchange is a row of an `exchanges.jsonl` (`corpus/personas.py`): who answers, what came before, what the user
said, as text and mostly as sound, and the answer. Progressive SFT (report section 6.1) is a list of injections: each
begins at a step and says what share of every batch's tokens each corpus takes from then on, rehearsal included.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tristep.backbone.model import Backbone
from tristep.chat import Chat, Turn
from tristep.config import Settings
from tristep.modes.asr import data as asr_data
from tristep.modes.realtime.data import NOTHING, Sample, Trace, label_of, remembered, render, turns
from tristep.modes.realtime.objective import realtime_losses
from tristep.text import speakable, spoken_words
from tristep.training import distributed
from tristep.training.frames import weights_digest
from tristep.training.hearing import DataSettings as HearingData
from tristep.training.hearing import SampleSource
from tristep.training.mixture import (
    Clip,
    CorpusSettings,
    Mixture,
    batch_finder,
    pack_rows,
    read_clips,
    row_cut,
)
from tristep.training.recipes import Lesson, Recipe
from tristep.training.step import means

EXCHANGES = "exchanges.jsonl"
"""A corpus by this name holds exchanges; any other one holds clips to write down."""


class ConversingData(Settings):
    """What a run reads."""

    corpora: dict[str, CorpusSettings]
    """By name: files of exchanges, and of clips to write down."""
    dev: dict[str, CorpusSettings]
    """What is measured, by name."""
    batch_tokens: int = 2048
    """Tokens in one micro-batch, every frame of sound counted as shown."""
    row_tokens: int = 1024
    """Length of a packed row, in tokens."""
    max_duration_s: float = 20.0
    noisy_share: float = 0.5
    """Share of the training clips that get noise before the encoder."""
    num_time_masks: int = 2
    frame_noise: float = 0.0
    """Gaussian noise on the frames, as a share of their spread."""
    traced_share: float = 1.0
    """Share of the exchanges in sound whose answer follows a trace; the others are answered at once."""
    heard_share: float = 0.0
    """Share of the typed exchanges whose user is written as the ear hears: what a session hears by the ASR mode."""


class Injection(Settings):
    """What a run is given from one step on."""

    name: str
    from_step: int = Field(ge=0)
    shares: dict[str, float]
    """Share of a batch's tokens, by corpus."""


class TargetWeights(Settings):
    """Weight of a token in the loss, by what it belongs to."""

    trace: float = 1.0
    answer: float = 1.0
    text: float = 1.0
    transcript: float = 1.0


class ConversingRecipe(Recipe):
    """A run that teaches the realtime mode."""

    mode: Literal["realtime"]
    data: ConversingData
    injections: tuple[Injection, ...]
    loss: TargetWeights = TargetWeights()


@dataclass(frozen=True)
class Exchange:
    """One turn of the user, what it is answered, and what both follow from."""

    persona: str
    history: tuple[tuple[Literal["user", "assistant"], str], ...]
    text: str
    """What the user said, as it is written."""
    answer: str
    cues: tuple[str, ...]
    clip: Clip | None
    """How it sounds; None where it was typed."""
    language: str = "en"


Item = Exchange | Clip


def read_items(corpus: CorpusSettings, root: Path, max_s: float) -> list[Item]:
    """Read a corpus: exchanges, or clips to write down.

    Raises:
        ValueError: If there is none, or it has nothing of its split.
    """
    path = root / corpus.path
    if path.name != EXCHANGES:
        return list(read_clips([corpus], root, max_s))
    if not path.exists():
        raise ValueError(f"there are no exchanges {str(path)!r}: make them with `python -m tristep.corpus.personas`")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    kept = [row for row in rows if row.get("split", "train") == corpus.split and row.get("duration", 0.0) <= max_s]
    if not kept:
        raise ValueError(f"{str(path)!r} has no exchange of split {corpus.split!r} up to {max_s:.0f} s long")
    return [read_exchange(row, corpus, path.parent) for row in kept[: corpus.max_clips]]


def read_exchange(row: Mapping[str, Any], corpus: CorpusSettings, folder: Path) -> Exchange:
    """Read one row; its sound, if it has any, lies relative to `folder`."""
    clip = None
    if row.get("audio"):
        clip = Clip(row_cut({"language": "en", **row}, folder), corpus, 1.0)
    history = tuple((role, text) for role, text in row["history"])
    cues = tuple(row.get("cues") or ())
    return Exchange(row["persona"], history, row["text"], row["answer"], cues, clip, row.get("language", "en"))


@dataclass(frozen=True)
class Batch:
    """Packed samples and the sounds in them, in reading order."""

    tokens: Tensor
    """Shape `(B, T)`."""
    labels: Tensor
    """What each token is a target of, shape `(B, T)`."""
    segments: Tensor
    """Which packed sequence each token belongs to, -1 for padding."""
    frames: Tensor
    """Encoder frames of the sounds, shape `(A, N, De)`; `A` may be 0."""
    num_frames: Tensor

    def to(self, device: torch.device) -> Batch:
        """Move every tensor."""
        return Batch(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))


def collate(samples: Sequence[tuple[Sample, Tensor | None]], row_tokens: int) -> Batch:
    """Pack samples into rows, pad what is left, and bring the frames of those with sound, `(N, De)`, into order."""
    rows = pack_rows([len(sample.tokens) for sample, _ in samples], row_tokens)
    packed = [[samples[index][0] for index in row] for row in rows]

    def padded(values: Callable[[int, Sample], list[int]], padding: int) -> Tensor:
        joined = [[v for number, sample in enumerate(row) for v in values(number, sample)] for row in packed]
        return pad_sequence([torch.tensor(row) for row in joined], batch_first=True, padding_value=padding)

    sounds = [frames for row in rows for index in row if (frames := samples[index][1]) is not None]
    return Batch(
        padded(lambda number, sample: sample.tokens, 0),
        padded(lambda number, sample: sample.labels, NOTHING),
        padded(lambda number, sample: [number] * len(sample.tokens), -1),
        pad_sequence(sounds, batch_first=True) if sounds else torch.zeros(0, 0, 0),
        torch.tensor([len(frames) for frames in sounds]),
    )


class ItemSource:
    """Builds samples of exchanges and clips; encodes their sound once with the frozen encoder."""

    def __init__(
        self, chat: Chat, backbone: Backbone, items: Sequence[Item], settings: ConversingData, folder: Path
    ) -> None:
        self.chat, self.items, self.settings = chat, items, settings
        clips = [clip for item in items if (clip := clip_of(item)) is not None]
        hearing = HearingData(corpora=(), dev=(), noisy_share=settings.noisy_share)
        self.sounds = SampleSource(chat, backbone, clips, hearing, folder)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of every item, each frame of sound counted as shown, shape `(items,)`."""
        return np.array([len(self.sample(item)[0].tokens) for item in self.items], float)

    def sample(self, item: Item, generator: torch.Generator | None = None) -> tuple[Sample, Tensor | None]:
        """Build one sample and the frames of its sound, `(N, De)`; masked and noisy ones if a generator is given."""
        frames = self.frames(item, generator)
        num_slots = None if frames is None else int(self.sounds.num_embeddings(torch.tensor(len(frames))))
        if isinstance(item, Clip):
            assert num_slots is not None
            return transcribed(self.chat, item, num_slots), frames
        chance = 0.0 if generator is None else float(torch.rand((), generator=generator))
        if num_slots is None:
            heard = generator is not None and chance < self.settings.heard_share
            return answered(self.chat, item, as_heard(item.text) if heard else item.text, heard), None
        return answered(self.chat, item, num_slots, True, chance < self.settings.traced_share), frames

    def frames(self, item: Item, generator: torch.Generator | None) -> Tensor | None:
        """Return the frames of an item's sound, None where it was typed."""
        clip = clip_of(item)
        if clip is None or generator is None:
            return None if clip is None else self.sounds.frames(clip)
        augment = asr_data.SpecAugment(self.settings.num_time_masks, noise=self.settings.frame_noise)
        return augment(self.sounds.frames(clip), generator)


def clip_of(item: Item) -> Clip | None:
    """Return an item's sound."""
    return item if isinstance(item, Clip) else item.clip


def transcribed(chat: Chat, clip: Clip, num_slots: int) -> Sample:
    """Write a clip as the ASR mode does."""
    rendered = asr_data.render(chat, num_slots, clip.text, clip.language, clip.style)
    labels = [label_of("transcript") if counts else NOTHING for counts in rendered.loss_mask]
    return Sample(rendered.tokens, labels)


def answered(chat: Chat, exchange: Exchange, said: int | str, heard: bool, traced: bool = False) -> Sample:
    """Write an exchange."""
    trace = Trace(as_heard(exchange.text), exchange.cues) if traced else None
    return render(chat, given(exchange, said, heard), exchange.answer, trace)


def given(exchange: Exchange, said: int | str, heard: bool) -> list[Turn]:
    """Build what is answered; where it was heard, the user's earlier turns are remembered as they were heard."""
    history = [
        remembered(role, as_heard(text) if heard and role == "user" else text) for role, text in exchange.history
    ]
    return turns(exchange.persona, history, said)


def as_heard(text: str) -> str:
    """Write a text as the ear hears it: in lower case, numbers in words, without punctuation."""
    words = spoken_words(speakable(text))
    return text.lower() if words is None else " ".join(words)


class Curriculum:
    """The batch of any step: what the injection in force says of each corpus."""

    def __init__(self, sources: Mapping[str, ItemSource], recipe: ConversingRecipe) -> None:
        self.sources, self.recipe = sources, recipe
        check_injections(recipe)
        self.find = {
            (injection.name, name): batch_finder(self.mixture(name, share, place))
            for injection in recipe.injections
            for place, (name, share) in enumerate(sorted(injection.shares.items()))
        }

    def mixture(self, name: str, share: float, place: int) -> Mixture:
        """Cut a corpus into pieces as long as its share of a batch."""
        lengths = self.sources[name].lengths
        repeats = np.full(len(lengths), self.recipe.data.corpora[name].repeat)
        return Mixture(lengths, repeats, share * self.recipe.data.batch_tokens, self.recipe.optim.seed + place)

    def batch_at(self, step: int, micro: int, rank: int, world_size: int) -> Batch:
        """Build a batch: a pure function of where it is met."""
        injection, optim = injection_at(self.recipe.injections, step), self.recipe.optim
        generator = torch.Generator().manual_seed(hash((optim.seed, step, micro, rank)))
        samples = [
            self.sources[name].sample(self.sources[name].items[index], generator)
            for name in sorted(injection.shares)
            for index in self.find[injection.name, name](step, micro, optim.num_accumulation, rank, world_size)
        ]
        return collate(samples, self.recipe.data.row_tokens)


def injection_at(injections: Sequence[Injection], step: int) -> Injection:
    """Return the injection in force at a step: the last that has begun."""
    return max((each for each in injections if each.from_step <= step), key=lambda each: each.from_step)


def check_injections(recipe: ConversingRecipe) -> None:
    """Refuse injections that leave the first steps without one, or name a corpus that there is not."""
    if min((injection.from_step for injection in recipe.injections), default=1):
        raise ValueError("no injection begins at step 0: give the first one from_step = 0")
    for injection in recipe.injections:
        if unknown := sorted(set(injection.shares) - set(recipe.data.corpora)):
            known = ", ".join(sorted(recipe.data.corpora))
            raise ValueError(f"injection {injection.name!r} takes a share of {unknown[0]!r}: expected some of {known}")


def lesson(recipe: ConversingRecipe, chat: Chat, backbone: Backbone, data_root: Path) -> Lesson:
    """Read the data of a recipe, and encode what of it no earlier run has encoded."""
    found, dev = sources(recipe, chat, backbone, data_root)
    losses = partial(realtime_losses, **recipe.loss.model_dump())
    return Lesson(losses, Curriculum(found, recipe).batch_at, partial(evaluate, dev=dev, losses=losses))


def sources(
    recipe: ConversingRecipe, chat: Chat, backbone: Backbone, data_root: Path
) -> tuple[dict[str, ItemSource], dict[str, ItemSource]]:
    """Read what is to be learnt from, and what is held out and heard as it is, by corpus."""
    folder = data_root / "frames" / weights_digest(backbone.audio_encoder)
    plain = recipe.data.model_copy(update={"noisy_share": 0.0})

    def source(corpus: CorpusSettings, settings: ConversingData) -> ItemSource:
        return ItemSource(chat, backbone, read_items(corpus, data_root, settings.max_duration_s), settings, folder)

    with distributed.leader_first():  # it encodes what is missing, once for all
        found = {name: source(corpus, recipe.data) for name, corpus in recipe.data.corpora.items()}
        return found, {name: source(corpus, plain) for name, corpus in recipe.data.dev.items()}


def evaluate(
    model: nn.Module, dev: Mapping[str, ItemSource], losses: Callable[..., dict[str, Tensor]]
) -> dict[str, float]:
    """Measure the losses on held-out items, corpus by corpus: what is rehearsed shows whether it is kept."""
    device = next(model.parameters()).device
    measures: dict[str, float] = {}
    for name, source in dev.items():
        sums: dict[str, float] = {}
        for start in range(0, len(source.items), 8):
            samples = [source.sample(item) for item in source.items[start : start + 8]]
            for key, value in losses(model, collate(samples, source.settings.row_tokens).to(device)).items():
                sums[key] = sums.get(key, 0.0) + float(value)
        measured = means({key: value for key, value in sums.items() if value})
        measures |= {f"{name}_{key}": value for key, value in measured.items()}
    return measures
