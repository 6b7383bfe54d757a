"""Rows that share: the vocabulary's codes learn together, because they lie on one lattice.

A code is a combination of a few levels, so its row is taught as a sum: where it starts, a vector for each of its levels
and one for each pair of them; and one for what it says as a phone, and one for the rest, where the lattice's first
dimensions say the phones. What one code learns, the codes that share a level with it learn too: thousands of rows
learn from hours of speech instead of from weeks, where rows that learn alone, or besides, learn their clips by heart
(docs/log.md). The sum is a row like any other, and is stored as one.
"""

from __future__ import annotations

import math
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
    """What each code has in common with others, 0 or 1, shape `(codes, features)`."""

    def __init__(self, lattice: Lattice, num_phone_dims: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("features", shared_features(lattice, num_phone_dims), persistent=False)
        self.directions = nn.Parameter(torch.zeros(self.features.shape[1], dim))

    def forward(self, rows: Tensor) -> Tensor:
        """Add what is shared to rows `(R, D)`."""
        first_code = len(rows) - len(self.features)
        codes = rows[first_code:].detach() + self.features @ self.directions
        return torch.cat([rows[:first_code], codes])


def shared_features(lattice: Lattice, num_phone_dims: int = 0) -> Tensor:
    """Mark the levels and the pairs of levels of every code, its phone and its prosody, shape `(codes, features)`.

    Args:
        lattice: Whose codes.
        num_phone_dims: The lattice's first dimensions, which say the phones; 0 if phones have none of their own.
    """
    codes = torch.arange(lattice.size)
    digits = lattice.digits(codes)
    single = [F.one_hot(digits[:, place], levels) for place, levels in enumerate(lattice.levels)]
    pairs = [(first[:, :, None] * second[:, None, :]).flatten(start_dim=1) for first, second in combinations(single, 2)]
    num_phones = math.prod(lattice.levels[:num_phone_dims])
    whole = [F.one_hot(codes % num_phones), F.one_hot(codes // num_phones)] if num_phone_dims else []
    return torch.cat([*single, *pairs, *whole], dim=1).float()


def share_rows(backbone: Backbone, lattice: Lattice, num_phone_dims: int = 0) -> None:
    """Let the rows of a backbone's codes learn together."""
    for table in backbone.tables:
        rows = LatticeRows(lattice, num_phone_dims, table.grown.shape[1])
        parametrize.register_parametrization(table, "grown", rows)


def settle_rows(backbone: Backbone) -> None:
    """Write each row as the sum that it is, where rows learnt together."""
    for table in backbone.tables:
        if parametrize.is_parametrized(table):
            parametrize.remove_parametrizations(table, "grown")
