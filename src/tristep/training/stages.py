"""Stages: a recipe becomes a model, the parts of it that learn, its losses and its data, and the loop runs them.

tristep train recipes/nano/1_align.toml --out runs/align
tristep train recipes/nano/3_sft.toml --out runs/sft
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tristep.backbone.audio_encoder import CtcAdaptor
from tristep.backbone.checkpoints import load_backbone, save_backbone
from tristep.backbone.foreign import start_backbone
from tristep.backbone.low_rank import add_low_rank
from tristep.backbone.model import Backbone
from tristep.backbone.packing import SHIPPED, pack_in_place
from tristep.chat import Chat
from tristep.codec.tokenizer import Lattice
from tristep.config import load_backbone_config, load_toml
from tristep.training import conversing, distributed, hearing, judging, speaking
from tristep.training.checkpoints import load_trained
from tristep.training.conversing import ConversingRecipe
from tristep.training.hearing import HearingRecipe
from tristep.training.judging import JudgingRecipe
from tristep.training.lattice_rows import settle_rows, share_rows
from tristep.training.policies import RewardedConversing, RewardedHearing, RewardedSpeaking, learns_from_rewards
from tristep.training.recipes import LearnSettings, Lesson, ModelSettings
from tristep.training.settings import lasting
from tristep.training.speaking import SpeakingRecipe
from tristep.training.step import Task
from tristep.training.supervised import train
from tristep.vocab import TextTokenizer

ModeRecipe = HearingRecipe | SpeakingRecipe | ConversingRecipe | JudgingRecipe
"""A recipe of one of the three modes, or of the judge."""
LEARNT_IN_FULL = {
    **SHIPPED,
    "adaptor.*": "fp32",
    "*.up": "fp32",
    "*.down": "fp32",
    "embedding.grown": "fp32",
    "draft_heads.*": "fp32",
}
"""How a run on packed weights is saved: what is frozen as it ships, what learns unrounded."""


def load_recipe(path: Path) -> ModeRecipe:
    """Read a recipe of the mode that it names, ASR if it names none."""
    try:
        mode = tomllib.loads(path.read_text(encoding="utf-8")).get("mode")
    except (OSError, ValueError):
        mode = None  # and `load_toml` says what is wrong
    rewarded = learns_from_rewards(path)
    if mode == "tts":
        return load_toml(path, RewardedSpeaking if rewarded else SpeakingRecipe)
    if mode == "realtime":
        return load_toml(path, RewardedConversing if rewarded else ConversingRecipe)
    if mode == "judge":
        return load_toml(path, JudgingRecipe)
    return load_toml(path, RewardedHearing if rewarded else HearingRecipe)


def run(
    recipe_path: Path,
    out: Path,
    steps: int | None = None,
    data_root: Path = Path("data"),
    minutes: float | None = None,
) -> dict[str, float]:
    """Train what a recipe says and write the whole model to `out/model`.

    Args:
        recipe_path: A TOML file.
        out: The run's folder; a run that was stopped goes on where it was.
        steps: Stop after this many steps instead of the recipe's.
        data_root: Folder that the recipe's manifests are relative to.
        minutes: Stop taking steps after so long instead of the recipe's time.

    Returns:
        The last evaluation.
    """
    recipe = lasting(load_recipe(recipe_path), minutes)
    distributed.start()
    backbone, tokenizer = prepare(recipe, data_root, out)
    backbone.to(distributed.device())
    lesson = teach(recipe, Chat(backbone.vocab, tokenizer), backbone, data_root)
    distributed.shard(backbone, backbone.decoder.blocks, methods=["adapt", "logits", "look_ahead"])
    groups = parameter_groups(backbone, recipe.learn)
    task = Task(backbone, lesson.losses, lesson.batch_at, lesson.evaluate, groups)
    measures = train(task, recipe.optim, recipe.loop, out, steps)
    if distributed.world().rank == 0:
        save_trained(recipe, data_root, out)
    return measures


def teach(recipe: ModeRecipe, chat: Chat, backbone: Backbone, data_root: Path) -> Lesson:
    """Build the losses and batches of the mode that a recipe teaches."""
    if isinstance(recipe, SpeakingRecipe):
        return speaking.lesson(recipe, chat, data_root)
    if isinstance(recipe, ConversingRecipe):
        return conversing.lesson(recipe, chat, backbone, data_root)
    if isinstance(recipe, JudgingRecipe):
        return judging.lesson(recipe, chat, backbone, data_root)
    return hearing.lesson(recipe, chat, backbone, data_root)


def prepare(recipe: ModeRecipe, data_root: Path, out: Path) -> tuple[Backbone, TextTokenizer]:
    """Build what a run starts from, with the CTC head's tokens chosen and the low-rank updates in place."""
    torch.manual_seed(recipe.optim.seed)
    backbone, tokenizer = start_model(recipe.model, recipe.optim.seed)
    adaptor = backbone.adaptor
    if isinstance(recipe, HearingRecipe) and isinstance(adaptor, CtcAdaptor) and recipe.model.start is None:
        hearing.choose_tokens(recipe, Chat(backbone.vocab, tokenizer), adaptor, data_root, out / "ctc_tokens.json")
    if isinstance(recipe, SpeakingRecipe):
        speaking.grow(backbone, recipe.codes)
        share_rows(backbone, Lattice(recipe.codes.levels), recipe.codes.num_phone_dims)
    parameter_groups(backbone, recipe.learn)
    return backbone, tokenizer


def save_trained(recipe: ModeRecipe, data_root: Path, out: Path) -> None:
    """Write `out/model`: the start of the run with its trained (and averaged) parameters put in."""
    backbone, tokenizer = prepare(recipe, data_root, out)
    load_trained(backbone, out / "trained.safetensors")
    write_model(recipe, backbone, tokenizer, out)


def write_model(recipe: ModeRecipe, backbone: Backbone, tokenizer: TextTokenizer, out: Path) -> None:
    """Write `out/model`, packed as the recipe says."""
    settle_rows(backbone)
    packed = recipe.model.packing == "shipped"
    save_backbone(backbone, tokenizer, out / "model", LEARNT_IN_FULL if packed else "fp32")


def start_model(settings: ModelSettings, seed: int) -> tuple[Backbone, TextTokenizer]:
    """Build the backbone that a run starts from."""
    if settings.start:
        backbone, tokenizer = load_backbone(settings.start, mode=settings.start_mode)
    else:
        config = load_backbone_config(settings.config)
        backbone, tokenizer = start_backbone(config, settings.encoder, settings.decoder, seed)
    if settings.num_draft_heads and backbone.draft_heads is None:
        backbone.add_draft_heads(settings.num_draft_heads)
    if settings.packing == "shipped":
        pack_in_place(backbone, SHIPPED)
    return backbone, tokenizer


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
        "grown": (learn.grown, [p for n, p in backbone.embedding.named_parameters() if n != "weight"]),
    }
    if backbone.head is not backbone.embedding:
        parts["head"] = (learn.head, list(backbone.head.parameters()))
    if backbone.draft_heads is not None:
        parts["draft_heads"] = (learn.draft_heads, list(backbone.draft_heads.parameters()))
    elif learn.draft_heads:
        raise ValueError(
            "draft_heads has a learning rate but the model has no draft heads: set num_draft_heads in [model]"
        )
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
