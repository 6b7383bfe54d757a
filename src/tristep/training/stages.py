"""Stages: a recipe becomes a model, the parts of it that learn, its losses and its data, and the loop runs them.

    tristep train recipes/nano/1_align.toml --out runs/align
    tristep train recipes/nano/3_sft.toml --out runs/sft

The curriculum lives in the recipes: what learns at which rate is a table, not code (report section 3.2).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lhotse import MonoCut
from torch import Tensor, nn

from tristep.backbone.audio_encoder import CtcAdaptor
from tristep.backbone.checkpoints import load_backbone, save_backbone
from tristep.backbone.foreign import start_backbone
from tristep.backbone.low_rank import add_low_rank
from tristep.backbone.model import Backbone
from tristep.backbone.packing import SHIPPED, pack_in_place
from tristep.chat import Chat
from tristep.config import Settings, load_backbone_config, load_toml
from tristep.modes.asr import data as asr_data
from tristep.modes.asr.decoding import ctc_tokens
from tristep.modes.asr.objective import asr_losses
from tristep.text import error_rate
from tristep.training import distributed
from tristep.training.checkpoints import load_trained
from tristep.training.frames import FrameStore
from tristep.training.mixture import Batch, CorpusSettings, Mixture, Sample, batch_finder, collate, read_corpus
from tristep.training.settings import LoopSettings, OptimSettings
from tristep.training.step import Task, means
from tristep.training.supervised import train
from tristep.vocab import TextTokenizer

LEARNT_IN_FULL = {**SHIPPED, "adaptor.*": "fp32", "*.up": "fp32", "*.down": "fp32", "embedding.grown": "fp32"}
"""How a run on packed weights is saved: what is frozen as it ships, what learns unrounded."""


class ModelSettings(Settings):
    """What a run starts from."""

    config: str = "nano"
    """A backbone config: its name, or a .toml file."""
    start: str | None = None
    """A folder in our format, such as an earlier run's `model`; it replaces the three settings around it."""
    encoder: str | None = None
    """Whisper weights: a folder or a Hugging Face id; random if neither is given."""
    decoder: str | None = None
    """Llama or Qwen2 weights: a folder, a GGUF file, or a Hugging Face id; random if not given."""
    packing: Literal["fp32", "shipped"] = "fp32"
    """`shipped` rounds the frozen weights as they will be stored, so that what learns meets what ships."""


class LowRankSettings(Settings):
    """Low-rank updates of the decoder's projections."""

    rank: int = 16
    lr: float
    names: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LearnSettings(Settings):
    """Peak learning rate of each part; 0 freezes it. The encoder never learns (report section 2.1)."""

    adaptor: float = 0.0
    decoder: float = 0.0
    router: float = 0.0
    """The experts' routers, apart from the decoder: the report warms them up at a lower rate."""
    embedding: float = 0.0
    grown: float = 0.0
    """The rows that the vocabulary gained: control tokens and audio codes."""
    head: float = 0.0
    """The output layer, where it is not the embedding."""
    low_rank: LowRankSettings | None = None


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
    frame_noise: float = 0.0
    """Gaussian noise on the frames, as a share of their spread."""


class LossSettings(Settings):
    """Weights of the losses."""

    next_token: float = 1.0
    ctc: float = 0.0
    load: float = 0.0
    """Auxiliary load loss of the experts."""


class Recipe(Settings):
    """One run: a recipe reads alone, nothing is inherited."""

    model: ModelSettings
    learn: LearnSettings
    data: DataSettings
    loss: LossSettings = LossSettings()
    optim: OptimSettings
    loop: LoopSettings = LoopSettings()


def run(recipe_path: Path, out: Path, steps: int | None = None, data_root: Path = Path("data")) -> dict[str, float]:
    """Train what a recipe says and write the whole model to `out/model`.

    Args:
        recipe_path: A TOML file.
        out: The run's folder; a run that was stopped goes on where it was.
        steps: Stop after this many steps instead of the recipe's.
        data_root: Folder that the recipe's manifests are relative to.

    Returns:
        The last evaluation.
    """
    recipe = load_toml(recipe_path, Recipe)
    distributed.start()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clips = read_clips(recipe.data.corpora, data_root, recipe.data.max_duration_s)
    dev_clips = read_clips(recipe.data.dev, data_root, recipe.data.max_duration_s)
    backbone, tokenizer = prepare(recipe, clips)
    backbone.to(device)
    frames = data_root / "frames" / encoder_digest(backbone)
    chat = Chat(backbone.vocab, tokenizer)
    plain = recipe.data.model_copy(update={"noisy_share": 0.0, "spec_augment": False})
    with distributed.leader_first():  # it encodes what is missing, once for all
        source = SampleSource(chat, backbone, clips, recipe.data, frames)
        dev = SampleSource(chat, backbone, dev_clips, plain, frames)
    distributed.shard(backbone, backbone.decoder.blocks, methods=["adapt", "logits"])
    losses = partial(asr_losses, **recipe.loss.model_dump())
    groups = parameter_groups(backbone, recipe.learn)
    task = Task(backbone, losses, source.batches(recipe.optim), partial(evaluate, dev=dev, losses=losses), groups)
    measures = train(task, recipe.optim, recipe.loop, out, steps)
    if distributed.world().rank == 0:
        save_trained(recipe, clips, out)
    return measures


def prepare(recipe: Recipe, clips: Sequence[Clip]) -> tuple[Backbone, TextTokenizer]:
    """Build what a run starts from, with the CTC head's tokens chosen and the low-rank updates in place."""
    torch.manual_seed(recipe.optim.seed)
    backbone, tokenizer = start_model(recipe.model, recipe.optim.seed)
    if isinstance(backbone.adaptor, CtcAdaptor) and recipe.model.start is None:
        set_ctc_tokens(backbone.adaptor, tokenizer, [clip.text for clip in clips])
    parameter_groups(backbone, recipe.learn)
    return backbone, tokenizer


def save_trained(recipe: Recipe, clips: Sequence[Clip], out: Path) -> None:
    """Write `out/model`: the start of the run with its trained (and averaged) parameters put in."""
    backbone, tokenizer = prepare(recipe, clips)
    load_trained(backbone, out / "trained.safetensors")
    packed = recipe.model.packing == "shipped"
    save_backbone(backbone, tokenizer, out / "model", LEARNT_IN_FULL if packed else "fp32")


def start_model(settings: ModelSettings, seed: int) -> tuple[Backbone, TextTokenizer]:
    """Build the backbone that a run starts from."""
    if settings.start:
        backbone, tokenizer = load_backbone(settings.start)
    else:
        config = load_backbone_config(settings.config)
        backbone, tokenizer = start_backbone(config, settings.encoder, settings.decoder, seed)
    if settings.packing == "shipped":
        pack_in_place(backbone, SHIPPED)
    return backbone, tokenizer


def set_ctc_tokens(adaptor: CtcAdaptor, tokenizer: TextTokenizer, texts: Sequence[str]) -> None:
    """Choose the CTC head's tokens from the training texts."""
    chosen = asr_data.choose_ctc_tokens(tokenizer, texts, len(adaptor.ctc_tokens))
    adaptor.ctc_tokens.copy_(torch.tensor(chosen))


def parameter_groups(backbone: Backbone, learn: LearnSettings) -> list[dict[str, Any]]:
    """Freeze everything but the parts with a learning rate; return those as optimizer groups.

    Called again after sharding, it finds the same groups among the sharded parameters.
    """
    decoder = dict(backbone.decoder.named_parameters())
    routers = [name for name in decoder if ".router." in name]
    low_rank = [name for name in decoder if name.endswith((".up", ".down"))]
    parts: dict[str, tuple[float, list[nn.Parameter]]] = {
        "adaptor": (learn.adaptor, list(backbone.adaptor.parameters())),
        "decoder": (learn.decoder, [p for n, p in decoder.items() if n not in {*routers, *low_rank}]),
        "router": (learn.router, [decoder[name] for name in routers]),
        "embedding": (learn.embedding, [backbone.embedding.weight]),
        "grown": (learn.grown, [backbone.embedding.grown]),
    }
    if backbone.head is not backbone.embedding:
        parts["head"] = (learn.head, list(backbone.head.parameters()))
    if learn.low_rank:
        if not low_rank:
            add_low_rank(backbone.decoder, learn.low_rank.rank, learn.low_rank.names)
            return parameter_groups(backbone, learn)
        parts["low_rank"] = (learn.low_rank.lr, [decoder[name] for name in low_rank])
    backbone.requires_grad_(False)
    for lr, parameters in parts.values():
        for parameter in parameters:
            parameter.requires_grad_(lr > 0 and parameter.numel() > 0)
    return [
        {"name": name, "lr": lr, "params": [p for p in parameters if p.requires_grad]}
        for name, (lr, parameters) in parts.items()
        if any(p.requires_grad for p in parameters)
    ]


@dataclass(frozen=True)
class Clip:
    """One cut at one speed, and how its corpus is read."""

    cut: MonoCut
    corpus: CorpusSettings
    speed: float

    @property
    def text(self) -> str:
        """The transcript."""
        return self.cut.supervisions[0].text or ""

    @property
    def duration_s(self) -> float:
        """How long it sounds."""
        return float(self.cut.duration / self.speed)

    @property
    def language(self) -> str:
        """The language of the transcript."""
        return self.cut.supervisions[0].language or "en"


def read_clips(corpora: Sequence[CorpusSettings], root: Path, max_duration_s: float) -> list[Clip]:
    """Read every corpus of a mixture."""
    return [
        Clip(cut, corpus, speed)
        for corpus in corpora
        for cut in read_corpus(corpus, root, max_duration_s * min(corpus.speeds))
        for speed in corpus.speeds
    ]


def encoder_digest(backbone: Backbone) -> str:
    """Name the frozen encoder by its weights, so that frames are never mistaken for another encoder's."""
    digest = hashlib.sha256()
    for parameter in backbone.audio_encoder.parameters():
        digest.update(parameter.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


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

    def sample(self, clip: Clip, generator: torch.Generator | None) -> Sample:
        """Build one sample, its features masked if a generator is given."""
        frames = self.frames(clip)
        num_slots = int(self.num_embeddings(torch.tensor(len(frames))))
        rendered = asr_data.render(self.chat, num_slots, clip.text, clip.language, clip.corpus.style)
        if generator is not None:
            augment = asr_data.SpecAugment(self.settings.num_time_masks, noise=self.settings.frame_noise)
            frames = augment(frames, generator)
        targets = (self.speller.spell(clip.text) if self.speller else None) or []
        return Sample(rendered.tokens, rendered.loss_mask, frames, targets)

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
    assert adapted.ctc_logits is not None
    text_tokens = model.adaptor.ctc_tokens.tolist()
    return [
        source.chat.tokenizer.decode([text_tokens[index] for index in row]).strip()
        for row in ctc_tokens(adapted.ctc_logits, adapted.num_embeddings)
    ]
