"""Branches: rows of tokens that begin alike are read as a tree, what they share once.

The answers of a group share a long prompt and differ in a few words. Read apart, the prompt is computed as often as
there are answers; here it is the trunk of a packed row, which every branch sees, and no branch sees another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

PADDING = -1
"""The segment of what is no token."""
TRUNK = 0
"""The segment of what is shared; branches are counted from 1."""


@dataclass(frozen=True)
class Tree:
    """Packed rows, a tree each, every field but the last of shape `(G, W)`."""

    tokens: Tensor
    positions: Tensor
    """Of each token in the row that it comes from."""
    segments: Tensor
    """Which branch a token belongs to."""
    trunk: Tensor
    """True where every branch sees the token."""
    places: Tensor
    """Where each token of each row went, in the flattened `(G * W)`, shape `(B, T)`; 0 beyond a row's end."""

    def to(self, device: torch.device) -> Tree:
        """Move every tensor."""
        return Tree(*(getattr(self, f.name).to(device) for f in fields(self)))


def grow(rows: Sequence[Sequence[int]], shared: Sequence[int]) -> Tree:
    """Plant rows.

    Args:
        rows: Token ids, of any lengths.
        shared: With how many tokens each row begins just as the one before it does, 0 where nothing is shared. The
            first row shares nothing, whatever is said of it.
    """
    trees = gathered(shared)
    packed = [planted([rows[place] for place in tree], shared[tree[-1]] if len(tree) > 1 else 0) for tree in trees]
    tokens, positions, segments = (
        pad_sequence([torch.tensor(each[part]) for each in packed], batch_first=True, padding_value=padding)
        for part, padding in ((0, 0), (1, 0), (2, PADDING))
    )
    places = [torch.tensor(row) + number * tokens.shape[1] for number, each in enumerate(packed) for row in each[3]]
    return Tree(tokens, positions, segments, segments == TRUNK, pad_sequence(places, batch_first=True))


def gathered(shared: Sequence[int]) -> list[list[int]]:
    """Put the rows that share as much, one after the other, into one tree."""
    trees: list[list[int]] = []
    for place, number in enumerate(shared):
        if place and number and (len(trees[-1]) == 1 or shared[place - 1] == number):
            trees[-1].append(place)
        else:
            trees.append([place])
    return trees


Planted = tuple[list[int], list[int], list[int], list[list[int]]]
"""Tokens, positions and segments of a tree, and the places of each row's tokens in it."""


def planted(rows: Sequence[Sequence[int]], num_shared: int) -> Planted:
    """Write what is shared once, and what each row goes on with."""
    trunk = list(range(num_shared))
    tokens, positions, segments = list(rows[0][:num_shared]), [*trunk], [TRUNK] * num_shared
    places = []
    for branch, row in enumerate(rows, start=1):
        rest = range(num_shared, len(row))
        places.append(trunk + list(range(len(tokens), len(tokens) + len(rest))))
        tokens += row[num_shared:]
        positions += rest
        segments += [branch] * len(rest)
    return tokens, positions, segments, places
