"""The algebra of tables: on a measured array it is exact, whatever the array."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fanin.signal.joint import sample
from fanin.signal.state import Given
from fanin.signal.table import Table, add, align, concatenate, product

sizes = st.lists(st.integers(2, 5), min_size=1, max_size=4)


def _array(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Numbers with a mean, and with parts shared along every axis."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape) + 0.7
    for a in range(len(shape)):
        x = x + rng.standard_normal([n if b == a else 1 for b, n in enumerate(shape)])
    return x


def _equal(table: Table, array: np.ndarray) -> None:
    """The table is that of the array, without profiles."""
    other = Table.measured(array)
    assert table.shape == array.shape
    flat = table.flat().refactored(other.dims)
    np.testing.assert_allclose(flat.pairs, other.pairs, rtol=1e-9, atol=1e-9)
    assert table.average == pytest.approx(array.mean(), abs=1e-12)


@given(sizes, st.integers(0, 99), st.data())
@settings(deadline=None, max_examples=60)
def test_sums_means_and_centring_are_exact(
    shape: list[int], seed: int, data: st.DataObject
) -> None:
    x = _array(tuple(shape), seed)
    dims = tuple(data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1)))
    table = Table.measured(x)
    _equal(table.sum(dims, keepdim=True), x.sum(dims, keepdims=True))
    _equal(table.average_over(dims), x.mean(dims))
    _equal(table.centred(dims), x - x.mean(dims, keepdims=True))


@given(sizes, st.integers(0, 99), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=60)
def test_permutations_and_joined_dimensions_are_exact(shape: list[int], seed: int, random) -> None:
    x = _array(tuple(shape), seed)
    order = list(range(len(shape)))
    random.shuffle(order)
    table = Table.measured(x).permute(order)
    _equal(table, x.transpose(order))
    _equal(table.reshape((x.size,)), x.transpose(order).reshape(-1))
    _equal(table.reshape((x.size,)).reshape(table.shape), x.transpose(order))  # nothing was lost


@given(sizes, st.integers(0, 99), st.floats(-3, 3), st.floats(-3, 3))
@settings(deadline=None, max_examples=40)
def test_affine_maps_are_exact(shape: list[int], seed: int, scale: float, shift: float) -> None:
    x = _array(tuple(shape), seed)
    _equal(Table.measured(x) * scale + shift, x * scale + shift)


def test_a_known_linear_map_on_an_exchangeable_axis() -> None:
    rng = np.random.default_rng(0)
    table = Table.iid((4, 6), 0.5, 1.25)
    table = Table(
        table.dims, table.mean, table.pairs + np.array([[0, 0], [0.3, 0]])[..., None, None]
    )
    matrix = rng.standard_normal((3, 6))
    gram = 0.25 + np.eye(6)  # E[x_i x_j] of one row
    here = np.einsum("oi,ij,oj->o", matrix, gram, matrix)
    found = table.mixed(1, matrix)
    np.testing.assert_allclose(found.same.ravel(), here)
    whole = matrix @ gram @ matrix.T
    apart = (whole.sum(1) - here) / 2
    np.testing.assert_allclose(found.pairs[0, 1].ravel(), apart)


def test_picks_padding_and_repeats() -> None:
    table = Table.iid((8, 5), 1.0, 3.0)  # variance 2 around 1
    picked = table.gather(1, np.array([0, 0, 3, -1]), fill=2.0)
    np.testing.assert_allclose(picked.same.ravel(), [3, 3, 3, 4])
    pairs = np.array([[3, 3, 1, 2], [3, 3, 1, 2], [1, 1, 3, 2], [2, 2, 2, 4]])
    np.testing.assert_allclose(picked.pairs[0, 1].ravel(), (pairs.sum(1) - np.diag(pairs)) / 3)
    np.testing.assert_allclose(picked.mean.ravel(), [1, 1, 1, 2])


def test_window_sums_count_the_taps_inside() -> None:
    table = Table.iid((2, 4), 0.0, 1.0)
    taps = np.arange(4)[:, None] + np.arange(3) - 1
    taps = np.where((taps >= 0) & (taps < 4), taps, -1)
    np.testing.assert_allclose(table.tapped(1, taps).same.ravel(), [2, 3, 3, 2])


def test_concatenation_keeps_the_parts() -> None:
    table = concatenate([Table.iid((4, 8), 0, 1), Table.iid((4, 24), 1, 3)], 1)
    assert table.second_moment == pytest.approx((8 * 1 + 24 * 3) / 32)
    assert table.gather(1, np.arange(8)).second_moment == pytest.approx(1)
    np.testing.assert_allclose(table.gather(1, np.arange(8, 32)).mean.mean(), 1)


def test_products_and_sums_of_independent_arrays() -> None:
    x, y = Table.iid((4, 8), 0.5, 1.0), Table.iid((8,), 2.0, 5.0)
    both = product(x, y)
    assert both.second_moment == pytest.approx(5.0)
    assert both.covariance(0) == pytest.approx(0.25 * 5.0)  # two samples, one gain
    assert both.covariance(1) == pytest.approx(0.25 * 4.0)
    total = add(x, y, scale=-1.0)
    assert total.second_moment == pytest.approx(1 + 5 - 2 * 0.5 * 2)
    assert total.covariance(0) == pytest.approx(0.25 + 5 - 2)


def test_tables_align_on_the_finest_factors_that_both_have() -> None:
    x, y = align(Table.iid((6, 4)).reshape((24,)), Table.iid((24,)))
    assert x.dims == y.dims == ((6, 4),)
    x, y = align(Table.iid((6, 4)).reshape((24,)), Table.iid((4, 6)).reshape((24,)))
    assert x.dims == y.dims == ((24,),)


def test_a_draw_has_the_second_moments_of_its_table() -> None:
    table = Table.measured(_array((40, 50), 3))
    rng = np.random.default_rng(1)
    draws = [Table.measured(sample(table, rng)).pairs for _ in range(200)]
    error = np.std(draws, axis=0) / 200**0.5
    assert (np.abs(np.mean(draws, axis=0) - table.pairs) < 4 * error).all()


def test_resolved_axes_fold_into_averages() -> None:
    table = Table.iid((3, 6), 0.5, 1.0)
    table = table.unfolded((1,))
    assert table.resolved == (1,)
    np.testing.assert_allclose(
        table.folded().pairs, Table.iid((3, 6), 0.5, 1.0).unfolded(()).pairs * np.ones(6)[None, :]
    )
    np.testing.assert_allclose(table.sum((1,)).pairs, Table.iid((3, 6), 0.5, 1.0).sum((1,)).pairs)


def test_centred_rows_do_not_see_what_inputs_share() -> None:
    weight = Given(variance=0.1, structure="centred rows").table((5, 8))
    ones = Table.constant((8,), 3.0)
    assert product(weight, ones).sum((1,)).second_moment == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            Given(structure="sparse"),
            "Given(structure): expected one of independent, centred rows, orthogonal, constant, "
            "got 'sparse'",
        ),
        (
            Given(variance=-1.0),
            "Given(mean, variance): expected a finite mean and a variance of at least 0, "
            "got 0.0, -1.0",
        ),
    ],
)
def test_bad_statements_are_refused(given: Given, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        given.table((2, 3))
    assert str(caught.value) == message
