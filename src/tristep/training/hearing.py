"""Teaching to hear: clips with transcripts become batches for the ASR mode's losses."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from tristep.backbone.audio_encoder import CtcAdaptor
from tristep.backbone.model import Backbone
from tristep.chat import Chat
from tristep.config import Settings
from tristep.modes.asr import data as asr_data
from tristep.modes.asr.decoding import hypotheses
from tristep.modes.asr.objective import asr_losses
from tristep.text import error_rate, spell_letters
from tristep.training import distributed
from tristep.training.frames import FrameStore, weights_digest
from tristep.training.mixture import (
    Batch,
    Clip,
    CorpusSettings,
    Mixture,
    Sample,
    batch_finder,
    collate,
    read_clips,
)
from tristep.training.recipes import Lesson, Recipe
from tristep.training.settings import OptimSettings
from tristep.training.step import means


class DataSettings(Settings):
    """What a run reads."""

    corpora: tuple[CorpusSettings, ...]
    dev: tuple[CorpusSettings, ...]
    batch_s: float = 240.0
    """Seconds of sound in one micro-batch."""
    row_tokens: int = 768
    """Length of a packed row, in tokens (the report packs to 32K)."""
    max_duration_s: float = 30.0
    noisy_share: float = 0.5
    """Share of the training clips that get noise before the encoder."""
    spec_augment: bool = True
    """Masks over time and channels of the frames (report section 4.1)."""
    num_time_masks: int = 2
    joined_share: float = 0.0
    """Share of the training clips that are heard with another one after them, so that long sound is met too."""
    frame_noise: float = 0.0
    """Gaussian noise on the frames, as a share of their spread."""


class LossSettings(Settings):
    """Weights of the losses."""

    next_token: float = 1.0
    ctc: float = 0.0
    letters: float = 0.0
    """The `ctc` adaptor's letters at 25 Hz."""
    load: float = 0.0
    """Auxiliary load loss of the experts."""
    drafts: float = 0.0
    """The draft heads' tokens, all heads together."""
    draft_decay: float = 0.9
    """Weight of a draft head relative to that of the one before it (report section 4.3)."""


class HearingRecipe(Recipe):
    """A run that teaches the ASR mode."""

    mode: Literal["asr"] = "asr"
    data: DataSettings
    loss: LossSettings = LossSettings()


def lesson(recipe: HearingRecipe, chat: Chat, backbone: Backbone, data_root: Path) -> Lesson:
    """Read the data of a recipe, and encode what of it no earlier run has encoded."""
    source, dev = sources(recipe, chat, backbone, data_root)
    losses = partial(asr_losses, **recipe.loss.model_dump())
    return Lesson(losses, source.batches(recipe.optim), partial(evaluate, dev=dev, losses=losses))


def sources(
    recipe: HearingRecipe, chat: Chat, backbone: Backbone, data_root: Path
) -> tuple[SampleSource, SampleSource]:
    """Read what is to be learnt from, and what is held out and heard as it is."""
    clips = read_clips(recipe.data.corpora, data_root, recipe.data.max_duration_s)
    dev_clips = read_clips(recipe.data.dev, data_root, recipe.data.max_duration_s)
    frames = data_root / "frames" / weights_digest(backbone.audio_encoder)
    plain = recipe.data.model_copy(update={"noisy_share": 0.0, "spec_augment": False})
    with distributed.leader_first():  # it encodes what is missing, once for all
        source = SampleSource(chat, backbone, clips, recipe.data, frames)
        dev = SampleSource(chat, backbone, dev_clips, plain, frames)
    return source, dev


def choose_tokens(recipe: HearingRecipe, chat: Chat, adaptor: CtcAdaptor, data_root: Path, kept: Path) -> None:
    """Choose the CTC head's tokens from the training texts, once: a resumed run finds them in the file `kept`."""
    if not kept.exists():
        texts = [clip.text for clip in read_clips(recipe.data.corpora, data_root, recipe.data.max_duration_s)]
        chosen = asr_data.choose_ctc_tokens(chat.tokenizer, texts, len(adaptor.ctc_tokens))
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(chosen))
    adaptor.ctc_tokens.copy_(torch.tensor(json.loads(kept.read_text())))


def store_key(clip: Clip) -> tuple[str, str, float]:
    """Name the store that holds the frames of a clip."""
    return clip.corpus.path, clip.corpus.split, clip.speed


class SampleSource:
    """Builds samples and batches from clips; encodes them once with the frozen encoder."""

    def __init__(self, chat: Chat, backbone: Backbone, clips: list[Clip], settings: DataSettings, folder: Path) -> None:
        self.chat, self.clips, self.settings = chat, clips, settings
        self.num_embeddings = backbone.adaptor.num_embeddings
        adaptor = backbone.adaptor
        tokens = adaptor.ctc_tokens.tolist() if isinstance(adaptor, CtcAdaptor) else None
        self.speller = asr_data.CtcSpeller(chat.tokenizer, tokens) if tokens else None
        self.stores: dict[tuple[str, str, float], FrameStore] = {}
        for key in dict.fromkeys(map(store_key, clips)):
            path, split, speed = key
            name = f"{path.replace('/', '_')}_{split}_speed{speed:g}_noisy{settings.noisy_share:g}"
            self.stores[key] = FrameStore(folder / name, backbone.config.encoder.dim)
            cuts = [clip.cut for clip in clips if store_key(clip) == key]
            self.stores[key].fill(cuts, speed, backbone.audio_encoder, settings.noisy_share)

    def frames(self, clip: Clip) -> Tensor:
        """Return the encoder frames of a clip, shape `(N, De)`."""
        return self.stores[store_key(clip)][clip.cut.id].float()

    def heard(self, clip: Clip, generator: torch.Generator | None) -> tuple[Tensor, str]:
        """Return frames `(N, De)` and transcript; with a generator masked, and sometimes joined with another's."""
        frames, text = self.frames(clip), clip.text
        if generator is None:
            return frames, text
        if other := self.neighbour(clip, generator):
            frames, text = torch.cat([frames, self.frames(other)]), f"{text} {other.text}"
        augment = asr_data.SpecAugment(self.settings.num_time_masks, noise=self.settings.frame_noise)
        return augment(frames, generator), text

    def sample(self, clip: Clip, generator: torch.Generator | None) -> Sample:
        """Build one sample."""
        frames, text = self.heard(clip, generator)
        num_slots = int(self.num_embeddings(torch.tensor(len(frames))))
        rendered = asr_data.render(self.chat, num_slots, text, clip.language, clip.style)
        targets = (self.speller.spell(text) if self.speller else None) or []
        return Sample(rendered.tokens, rendered.loss_mask, frames, targets, spell_letters(text) or [])

    def neighbour(self, clip: Clip, generator: torch.Generator) -> Clip | None:
        """Draw a clip to be heard after this one: written alike, and short enough for the encoder; often None."""
        if torch.rand((), generator=generator) >= self.settings.joined_share:
            return None
        other = self.clips[int(torch.randint(len(self.clips), (), generator=generator))]
        alike = (other.style, other.language) == (clip.style, clip.language) and clip.text and other.text
        fits = clip.duration_s + other.duration_s <= self.settings.max_duration_s
        return other if alike and fits else None

    def collate(self, clips: Sequence[Clip], generator: torch.Generator | None = None) -> Batch:
        """Build one batch."""
        return collate([self.sample(clip, generator) for clip in clips], self.settings.row_tokens)

    def batches(self, optim: OptimSettings) -> Callable[[int, int, int, int], Batch]:
        """Return the batch of any step, micro-batch and process: a pure function of them."""
        durations = np.array([clip.duration_s for clip in self.clips])
        repeats = np.array([clip.corpus.repeat for clip in self.clips])
        find = batch_finder(Mixture(durations, repeats, self.settings.batch_s, optim.seed))

        def batch_at(step: int, micro: int, rank: int, world_size: int) -> Batch:
            clips = [self.clips[i] for i in find(step, micro, optim.num_accumulation, rank, world_size)]
            generator = torch.Generator().manual_seed(hash((optim.seed, step, micro, rank)))
            return self.collate(clips, generator if self.settings.spec_augment else None)

        return batch_at


def evaluate(model: nn.Module, dev: SampleSource, losses: Callable[..., dict[str, Tensor]]) -> dict[str, float]:
    """Measure the losses on held-out clips, and the word error rate of the CTC head alone if there is one."""
    assert isinstance(model, Backbone)
    device = model.embedding.weight.device
    sums: dict[str, float] = {}
    references: list[str] = []
    heard: list[str] = []
    clips = sorted(dev.clips, key=lambda clip: clip.duration_s)
    for start in range(0, len(clips), 16):
        group = clips[start : start + 16]
        batch = dev.collate(group).to(device)
        for name, value in losses(model, batch).items():
            sums[name] = sums.get(name, 0.0) + float(value)
        if isinstance(model.adaptor, CtcAdaptor):
            references += [clip.text for clip in group]
            heard += ctc_transcripts(model, dev, group)
    measures = means(sums)
    if heard:
        measures["ctc_wer"] = error_rate(references, heard, "en").rate
    return measures


def ctc_transcripts(model: Backbone, source: SampleSource, clips: Sequence[Clip]) -> list[str]:
    """Transcribe clips by the adaptor's CTC head alone."""
    assert isinstance(model.adaptor, CtcAdaptor)
    device = model.embedding.weight.device
    rows = [source.frames(clip) for clip in clips]
    num_frames = torch.tensor([len(row) for row in rows], device=device)
    adapted = model.adapt(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device), num_frames)
    return hypotheses(adapted, model.adaptor.ctc_tokens.tolist(), source.chat.tokenizer)
