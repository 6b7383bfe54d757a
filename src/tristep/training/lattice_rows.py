"""Rows that share: the vocabulary's codes learn together, because they lie on one lattice.

A code is a combination of a few levels, so its row is taught as a sum: where it starts, a vector for each of its levels
and one for each pair of them. What one code learns, the codes that share a level with it learn too: thousands of rows
learn from hours of speech instead of from weeks, where rows that learn alone, or besides, learn their clips by heart
(docs/log.md). The sum is a row like any other, and is stored as one.
"""

from __future__ import annotations

from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tristep.backbone.model import Backbone
from tristep.codec.tokenizer import Lattice


class LatticeRows(nn.Module):
    """Adds to the rows of the codes, which are the last ones of a table, what they share."""

    features: Tensor
    """Which levels and pairs of levels each code has, 0 or 1, shape `(codes, features)`."""

    def __init__(self, lattice: Lattice, dim: int) -> None:
        super().__init__()
        self.register_buffer("features", shared_features(lattice), persistent=False)
        self.directions = nn.Parameter(torch.zeros(self.features.shape[1], dim))

    def forward(self, rows: Tensor) -> Tensor:
        """Add what is shared to rows `(R, D)`."""
        first_code = len(rows) - len(self.features)
        codes = rows[first_code:].detach() + self.features @ self.directions
        return torch.cat([rows[:first_code], codes])


def shared_features(lattice: Lattice) -> Tensor:
    """Mark the levels and the pairs of levels of every code, shape `(codes, features)`."""
    digits = lattice.digits(torch.arange(lattice.size))
    single = [F.one_hot(digits[:, place], levels) for place, levels in enumerate(lattice.levels)]
    pairs = [(first[:, :, None] * second[:, None, :]).flatten(start_dim=1) for first, second in combinations(single, 2)]
    return torch.cat([*single, *pairs], dim=1).float()


def share_rows(backbone: Backbone, lattice: Lattice) -> None:
    """Let the rows of a backbone's codes learn together."""
    for table in backbone.tables:
        parametrize.register_parametrization(table, "grown", LatticeRows(lattice, table.grown.shape[1]))


def settle_rows(backbone: Backbone) -> None:
    """Write each row as the sum that it is, where rows learnt together."""
    for table in backbone.tables:
        if parametrize.is_parametrized(table):
            parametrize.remove_parametrizations(table, "grown")
