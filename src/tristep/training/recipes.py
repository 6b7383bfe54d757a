"""Recipes: what every run on the backbone sets, whatever mode it teaches.

The curriculum lives in the recipes: what learns at which rate is a table, not code (report section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from tristep.config import Settings
from tristep.training.settings import LoopSettings, OptimSettings
from tristep.training.step import Losses


class ModelSettings(Settings):
    """What a run starts from."""

    config: str = "nano"
    """A backbone config: its name, or a .toml file."""
    start: str | None = None
    """A folder in our format, such as an earlier run's `model`; it replaces `config`, `encoder` and `decoder`."""
    start_mode: str | None = None
    """The mode whose updates the run goes on from, where `start` serves several."""
    encoder: str | None = None
    """Whisper weights: a folder or a Hugging Face id; random if neither is given."""
    decoder: str | None = None
    """Llama or Qwen2 weights: a folder, a GGUF file, or a Hugging Face id; random if not given."""
    num_draft_heads: int = 0
    """Draft heads that a model without any is given, each a copy of its last block (report section 4.3: 5)."""
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
    draft_heads: float = 0.0
    low_rank: LowRankSettings | None = None


class Recipe(Settings):
    """One run: a recipe reads alone, nothing is inherited."""

    model: ModelSettings
    learn: LearnSettings
    optim: OptimSettings
    loop: LoopSettings = LoopSettings()


@dataclass(frozen=True)
class Lesson:
    """What a mode's data and objective hand to the loop."""

    losses: Losses
    batch_at: Callable[[int, int, int, int], Any]
    evaluate: Callable[[nn.Module], dict[str, float]]
