"""Low-rank updates (LoRA, Hu et al. 2021): a frozen projection learns through two thin matrices.

The frozen weights can then stay in few bits, and what a mode or a run has learnt is a small file of its own.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LowRankLinear(nn.Module):
    """`base(x) + scale * up(down(x))`, equal to `base` until it learns, because `up` starts at zero."""

    def __init__(self, base: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        self.base.requires_grad_(False)
        like = base.weight
        self.down = nn.Parameter(like.new_empty(rank, base.in_features))
        self.up = nn.Parameter(like.new_zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.base(hidden) + self.scale * F.linear(F.linear(hidden, self.down), self.up)

    def merged(self) -> nn.Linear:
        """Return one plain projection that computes the same."""
        with torch.no_grad():
            self.base.weight += self.scale * (self.up @ self.down)
        return self.base


def add_low_rank(module: nn.Module, rank: int, names: Collection[str], scale: float = 2.0) -> list[nn.Parameter]:
    """Wrap every projection inside `module` whose attribute name is in `names`; return the new parameters."""
    found = [
        (parent, name, child)
        for parent in module.modules()
        if not isinstance(parent, LowRankLinear)
        for name, child in parent.named_children()
        if name in names and isinstance(child, nn.Linear)
    ]
    if not found:
        raise ValueError(f"no projection is called any of {', '.join(sorted(names))}: nothing to update by low rank")
    wrapped = [LowRankLinear(child, rank, scale) for _, _, child in found]
    for (parent, name, _), layer in zip(found, wrapped, strict=True):
        setattr(parent, name, layer)
    return [parameter for layer in wrapped for parameter in (layer.down, layer.up)]


def merge_low_rank(module: nn.Module) -> None:
    """Fold every low-rank update inside `module` into its projection, for faster inference."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LowRankLinear):
                setattr(parent, name, child.merged())
