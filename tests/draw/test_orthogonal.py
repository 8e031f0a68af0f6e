"""Orthogonal tensors: what they promise, and that the reflections have the law of a Haar matrix."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fanin import draw
from fanin.errors import ArgumentError

EPS = {"float32": 2e-6, "float64": 1e-14, "float16": 2e-3, "bfloat16": 1.6e-2}


def drawn(shape: tuple[int, ...], distribution: object, name: str = "w", dtype=np.float32):
    return draw.fill(np.empty(shape, dtype), distribution, seed=2, name=name)


def gram_error(w: np.ndarray, square: float) -> float:
    """The largest entry of W Wᵀ - g² I, or of Wᵀ W - g² I, over g²."""
    w = w.astype(np.float64)
    product = w @ w.T if len(w) <= w.shape[1] else w.T @ w
    return float(np.abs(product / square - np.eye(len(product))).max())


@pytest.mark.parametrize(
    "shape", [(1, 1), (2, 1), (1, 7), (64, 64), (33, 200), (200, 33), (300, 257)]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_or_columns_are_orthonormal_times_the_gain(shape: tuple, dtype: type) -> None:
    w = drawn(shape, draw.Orthogonal(1.7), dtype=dtype)
    assert gram_error(w, 1.7**2) < EPS[np.dtype(dtype).name]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_types_are_orthogonal_within_their_precision(dtype: str) -> None:
    bits = draw.fill(
        np.empty((128, 96), np.uint16), draw.Orthogonal(), seed=2, name="w", dtype=dtype
    )
    wide = (
        (bits.astype(np.uint32) << 16).view(np.float32)
        if dtype == "bfloat16"
        else bits.view(np.float16)
    )
    assert gram_error(wide.astype(np.float64), 1.0) < EPS[dtype]


@pytest.mark.slow
def test_a_large_matrix_keeps_its_accuracy() -> None:
    assert gram_error(drawn((4096, 4096), draw.Orthogonal()), 1.0) < EPS["float32"]


@pytest.mark.parametrize("shape", [(96, 24), (24, 96), (40, 40)])
def test_the_second_moment_can_be_kept_for_every_shape(shape: tuple[int, int]) -> None:
    rows, columns = shape
    w = drawn(shape, draw.Orthogonal(1.3, keep="second_moment"))
    assert np.mean(w.astype(float) ** 2) == pytest.approx(1.3**2 / columns, rel=1e-6)
    assert gram_error(w, 1.3**2 * max(1.0, rows / columns)) < EPS["float32"]


def test_groups_and_experts_are_matrices_of_their_own() -> None:
    w = drawn((3, 4, 10, 6, 2), draw.Orthogonal(groups=2, batch_dims=2))
    matrices = w.reshape(3, 4, 2, 5, 12)
    assert max(gram_error(m, 1.0) for m in matrices.reshape(-1, 5, 12)) < EPS["float32"]
    assert len(np.unique(matrices[..., 0, 0])) == 24
    part = np.empty((1, 4, 5, 6, 2), np.float32)
    index = (slice(1, 2), slice(None), slice(3, 8), slice(None), slice(None))
    d = draw.Orthogonal(groups=2, batch_dims=2)
    draw.fill(part, d, seed=2, name="w", shape=w.shape, index=index)
    assert (part == w[index]).all()


@pytest.mark.parametrize("shape", [(8, 6, 3, 3), (6, 8, 4, 5), (9, 4, 7), (6, 3, 1, 1)])
def test_delta_orthogonal_is_orthogonal_at_the_centre_and_zero_elsewhere(shape: tuple) -> None:
    w = drawn(shape, draw.DeltaOrthogonal(1.5))
    centre = (slice(None), slice(None), *(n // 2 for n in shape[2:]))
    assert gram_error(w[centre], 1.5**2) < EPS["float32"]
    w[centre] = 0
    assert not w.any()


def test_delta_orthogonal_by_groups() -> None:
    w = drawn((8, 2, 3, 3), draw.DeltaOrthogonal(groups=4))
    index = (slice(3, 7), slice(1, 2), slice(0, 2), slice(None))
    part = np.empty((4, 1, 2, 3), np.float32)
    draw.fill(part, draw.DeltaOrthogonal(groups=4), seed=2, name="w", shape=w.shape, index=index)
    assert (part == w[index]).all()
    w = w[:, :, 1, 1]
    assert max(gram_error(m, 1.0) for m in w.reshape(4, 2, 2)) < EPS["float32"]


def test_the_law_is_uniform_over_orthogonal_matrices() -> None:
    """Moments of Haar matrices (Collins & Sniady 2006): E w² = 1/n, E w⁴ = 3/(n(n+2)),
    E[w11² w12²] = 1/(n(n+2)), E[w11² w22²] = (n+1)/((n-1)n(n+2)), E[w11 w12 w21 w22] =
    -1/((n-1)n(n+2)), and E tr W = 0, E (tr W)² = 1, E det W = 0; within 4 standard errors."""
    n, count = 4, 6_000
    w = drawn((count, n, n), draw.Orthogonal(batch_dims=1)).astype(np.float64)
    trace = np.trace(w, axis1=1, axis2=2)
    a, b, c, d = w[:, 0, 0], w[:, 0, 1], w[:, 1, 0], w[:, 1, 1]
    volume = (n - 1) * n * (n + 2)
    expected = [
        (a, 0.0),
        (a**2, 1 / n),
        (d**4, 3 / (n * (n + 2))),
        (a**2 * b**2, 1 / (n * (n + 2))),
        (a**2 * d**2, (n + 1) / volume),
        (a * b * c * d, -1 / volume),
        (w[:, 3, 3], 0.0),
        (w[:, 3, 3] ** 4, 3 / (n * (n + 2))),
        (trace, 0.0),
        (trace**2, 1.0),
        (np.linalg.det(w), 0.0),
    ]
    for values, mean in expected:
        error = values.std() / math.sqrt(count)
        assert abs(values.mean() - mean) < 4 * error


def test_a_one_by_one_matrix_is_a_fair_sign() -> None:
    w = drawn((2_000, 1, 1), draw.Orthogonal(batch_dims=1))
    assert np.abs(np.abs(w) - 1).max() < EPS["float32"]
    assert abs(np.sign(w).mean()) < 4 / math.sqrt(w.size)


def test_shapes_without_a_matrix_are_refused() -> None:
    with pytest.raises(ArgumentError) as error:
        drawn((5,), draw.Orthogonal())
    assert str(error.value) == (
        "Orthogonal(gain=1.0, groups=1, batch_dims=0, keep='singular_values'): expected 2 or more "
        "dimensions, dimension 0 a multiple of 1, got shape (5,)"
    )
    with pytest.raises(ArgumentError, match=r"dimension 0 a multiple of 2, got shape \(5, 4\)"):
        drawn((5, 4), draw.Orthogonal(groups=2))
    with pytest.raises(ArgumentError) as error:
        drawn((5, 4), draw.DeltaOrthogonal())
    assert str(error.value) == (
        "DeltaOrthogonal: expected a kernel [out, in, taps...] of three dimensions or more, "
        "got shape (5, 4); use Orthogonal for a matrix"
    )
    kernel = np.full((5, 4, 3), 2.0, np.float32)
    with pytest.raises(ArgumentError, match=r"dimension 0 a multiple of 2, got shape \(5, 4\)"):
        draw.fill(kernel, draw.DeltaOrthogonal(groups=2), seed=2, name="w")
    assert (kernel == 2).all()  # refused before the zeros are written
