from __future__ import annotations

import torch

from tristep.backbone.branches import PADDING, TRUNK, gathered, grow


def test_what_rows_share_is_written_once_and_every_branch_goes_on_from_there() -> None:
    tree = grow([[5, 6, 7, 8], [5, 6, 9], [5, 6, 1, 2, 3]], [0, 2, 2])
    assert tree.tokens.tolist() == [[5, 6, 7, 8, 9, 1, 2, 3]]
    assert tree.positions.tolist() == [[0, 1, 2, 3, 2, 2, 3, 4]]
    assert tree.segments.tolist() == [[TRUNK, TRUNK, 1, 1, 2, 3, 3, 3]]
    assert tree.trunk.tolist() == [[True, True, False, False, False, False, False, False]]


def test_every_token_of_every_row_is_found_where_it_went() -> None:
    rows = [[1, 2, 3], [1, 2, 4, 5], [7], [8, 9], [8, 1]]
    tree = grow(rows, [0, 2, 0, 0, 1])
    assert tree.tokens.shape == tree.segments.shape == (3, 5)
    assert tree.segments[1].tolist() == [1, PADDING, PADDING, PADDING, PADDING]
    for row, places in zip(rows, tree.places, strict=True):
        assert tree.tokens.flatten()[places[: len(row)]].tolist() == row


def test_rows_that_share_another_beginning_stand_in_another_tree() -> None:
    assert gathered([0, 3, 3, 0, 2]) == [[0, 1, 2], [3, 4]]
    assert gathered([0, 3, 2]) == [[0, 1], [2]]
    assert gathered([4, 4]) == [[0, 1]]  # a batch that was cut inside a group


def test_a_tree_moves_whole() -> None:
    assert grow([[1]], [0]).to(torch.device("meta")).places.is_meta
