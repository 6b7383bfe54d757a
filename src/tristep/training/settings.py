"""What a run may set: how a step is taken, and how often the loop logs, evaluates and saves."""

from __future__ import annotations

from typing import Literal, TypeVar

from pydantic import Field

from tristep.config import Settings


class OptimSettings(Settings):
    """How one step turns gradients into weights; the peak learning rates belong to the parameter groups."""

    steps: int = Field(gt=0)
    """Optimizer steps that the learning rate schedule spans."""

    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rates rise linearly from zero to their peaks."""

    min_lr_ratio: float = Field(default=0.05, ge=0, le=1)
    """Where the cosine ends, as a fraction of the peak."""

    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay of the running mean and of the running square of the gradient."""

    weight_decay: float = Field(default=0.0, ge=0)
    """Decay of the weights in groups that do not set their own."""

    clip_norm: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient of all trainable weights together."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the forward pass; bf16 is autocast, so the weights keep their own type."""

    num_accumulation: int = Field(default=1, gt=0)
    """Micro-batches whose gradients are added up before a step."""

    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the running average of the weights, which is then what is evaluated; 0 keeps none."""

    seed: int = Field(default=0, ge=0)
    """Seed from which each step derives its own randomness."""


class LoopSettings(Settings):
    """How often the loop reports and saves, in steps."""

    log_every: int = Field(default=10, gt=0)
    """Steps between two lines of training losses."""

    evaluate_every: int = Field(default=500, gt=0)
    """Steps between two evaluations; the last step is always evaluated."""

    evaluate_first: bool = False
    """Evaluate before the first step too, so that the run says from where it came."""

    save_every: int = Field(default=100, gt=0)
    """Steps between two checkpoints: the most that a killed run loses."""

    keep: int = Field(default=2, gt=0)
    """Checkpoints kept; older ones are removed."""

    prefetch: int = Field(default=0, ge=0)
    """Micro-batches that a thread builds ahead; worth it where the model runs on a GPU."""

    workers: int = Field(default=0, ge=0)
    """Processes that build micro-batches ahead instead of that thread: where a GPU waits for Python."""

    minutes: float | None = Field(default=None, gt=0)
    """Stop taking steps after so many minutes; by then the learning rate has run its course, however many steps it
    was. The last evaluation and saving come after them."""


RecipeT = TypeVar("RecipeT", bound=Settings)


def lasting(recipe: RecipeT, minutes: float | None) -> RecipeT:
    """Return a recipe whose run stops taking steps after so many minutes; the same one if no number is given."""
    if minutes is None:
        return recipe
    loop: LoopSettings = getattr(recipe, "loop")  # noqa: B009
    return recipe.model_copy(update={"loop": loop.model_copy(update={"minutes": minutes})})
