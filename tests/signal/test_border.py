"""Covariances of positions near a zero-padded border, against every pair followed one by one."""

from __future__ import annotations

import numpy as np
import pytest

from fanin.signal.border import beside
from fanin.signal.table import Table
from fanin.signal.transfer.convolution import taps


def followed(size: int, layers: int) -> np.ndarray:
    """All pairs of positions under convolutions of three taps with independent weights."""
    pairs = np.ones((size, size))
    for _ in range(layers):
        wide = np.pad(pairs, 1)
        pairs = sum(wide[t : t + size, t : t + size] for t in range(3)) / 3
    return pairs


def tabled(size: int, layers: int) -> Table:
    """The same with a table, which keeps an average over the others of each position."""
    table = Table.constant((size,), 1.0)
    index = taps(size, 3, 1, 1, 1, size)
    for _ in range(layers):
        table = table.tapped(0, index)
        table = Table(table.dims, table.mean, table.pairs / 3)
    return table


@pytest.mark.parametrize(("size", "layers"), [(16, 8), (16, 16), (32, 31)])
def test_a_pair_is_lost_with_the_first_of_its_elements(size: int, layers: int) -> None:
    """Within 4%; every other alike would lose 15, 33 and 36%."""
    exact, table = followed(size, layers), tabled(size, layers)
    assert table.same == pytest.approx(np.diag(exact))
    assert table.covariance(0) == pytest.approx(
        (exact.sum() - np.trace(exact)) / (size * (size - 1)), rel=0.04
    )


def test_pairs_far_apart_near_both_borders_are_lost_at_both() -> None:
    """Second moments 1, 2, 2, 1: C is as 4 in the middle, 2 with one border, 1 from end to end."""
    share = beside(taps(4, 3, 1, 1, 1, 4), np.array([1.0, 2.0, 2.0, 1.0]))
    pairs = np.array([[0, 2, 2, 1], [2, 0, 4, 2], [2, 4, 0, 2], [1, 2, 2, 0.0]])
    kept = pairs.copy()
    kept[:, 0] = 0  # no output reaches position 0 by its last tap
    expected = kept.sum(1) / pairs.sum(1)
    assert share[:3, 2] == pytest.approx(expected[1:])
    assert share[3, 2] == 0
    assert share[:, 1] == pytest.approx(1.0)


def test_where_all_positions_are_alike_others_count_the_same() -> None:
    share = beside(taps(5, 3, 1, 1, 1, 5), np.ones(5))
    assert share[:, 0] == pytest.approx([0, 0.75, 0.75, 0.75, 0.75])
