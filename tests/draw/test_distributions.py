"""What comes out: moments, tails, independence, and the parameters that are refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from benchmarks import draw_statistics
from fanin import draw
from fanin.errors import ArgumentError, ArgumentTypeError


# Bounds: with s scores of a standard normal, one beyond 4.5 has probability 7e-6 s < 0.1 %.
@pytest.mark.parametrize("name", ["normal", "uniform", "truncated normal", "rademacher"])
def test_moments_tails_and_independence(name: str) -> None:
    scores = draw_statistics.scores(*draw_statistics.cases()[name], 2**20)
    assert max(scores.values(), key=abs) < 4.5
    assert min(scores.values()) > -4.5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["normal", "uniform", "truncated normal", "rademacher"])
def test_moments_tails_and_independence_at_length(name: str) -> None:
    scores = draw_statistics.scores(*draw_statistics.cases()[name], 10**8)
    assert max(abs(z) for z in scores.values()) < 4.5


def test_names_that_differ_are_not_correlated() -> None:
    """All pairs of 40 names, and of a name under 40 seeds: the largest of 780 scores."""
    n = 2**12
    for streams in ([(0, f"h.{i}.w") for i in range(40)], [(i, "w") for i in range(40)]):
        rows = [draw.fill(np.empty(n), draw.Normal(), seed=s, name=k) for s, k in streams]
        scores = np.corrcoef(np.stack(rows))[np.triu_indices(40, 1)] * math.sqrt(n)
        assert np.abs(scores).max() < stats.norm.isf(1e-3 / 780 / 2)


@pytest.mark.parametrize("bound", [0.5, 1.0, 2.0, 3.0, 5.0])
def test_a_truncated_normal_has_the_std_that_is_asked_for(bound: float) -> None:
    d = draw.TruncatedNormal(0.5, 0.02, bound)
    law = stats.truncnorm(-bound, bound, loc=0.5, scale=d.scale)
    assert law.std() == pytest.approx(0.02, rel=1e-9)
    x = draw.fill(np.empty(2**18, np.float32), d, seed=0, name="w").astype(float)
    assert stats.kstest(x, law.cdf).pvalue > 1e-4
    assert np.abs(x - 0.5).max() <= d.limit * (1 + 1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_two_sigma_bounds_of_a_matrix_of_weights(dtype: str) -> None:
    """std 0.02 within 0.5 %, nothing beyond the bound, and no heap of values at it."""
    d = draw.TruncatedNormal(std=0.02, bound=2.0)
    bits = draw.fill(
        np.empty((2000, 2000), np.float32 if dtype == "float32" else np.uint16),
        d, seed=0, name="w", dtype=dtype,
    )  # fmt: skip
    x = bits.astype(np.uint32) << 16 if dtype == "bfloat16" else bits
    x = x.view({"float16": np.float16}.get(dtype, np.float32)).astype(float)
    step = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    assert abs(x.std() / 0.02 - 1) < 0.005
    assert np.abs(x).max() <= d.limit * (1 + step)
    last = np.mean(np.abs(x) > d.limit * (1 - 2 * step))
    density = 2 * stats.norm.pdf(2) * 2 / math.erf(math.sqrt(2))
    assert last < 5 * step * density + 1e-5


def test_scales_and_shifts_are_exact_where_they_can_be() -> None:
    unit = draw.fill(np.empty(1000, np.float32), draw.Normal(), seed=0, name="w")
    for std in (0.25, 4.0):
        scaled = draw.fill(np.empty(1000, np.float32), draw.Normal(std=std), seed=0, name="w")
        assert (scaled == unit * np.float32(std)).all()
    assert (draw.fill(np.empty(9), draw.Normal(3.0, 0.0), seed=0, name="w") == 3.0).all()
    ends = draw.fill(np.empty(2**20, np.float32), draw.Uniform(1.0, 2.0), seed=0, name="w")
    assert ends.min() >= 1.0
    assert ends.max() <= 2.0


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: draw.Normal(std=-1.0), ArgumentError, "Normal: expected std >= 0, got Normal("),
        (lambda: draw.Normal(std=math.nan), ArgumentError, "Normal(std): expected a finite number"),
        (lambda: draw.Normal("a"), ArgumentTypeError, "Normal(mean): expected a number, got str"),  # type: ignore[arg-type]
        (lambda: draw.Uniform(1.0, 0.0), ArgumentError, "Uniform: expected low <= high, got"),
        (
            lambda: draw.TruncatedNormal(bound=0.0),
            ArgumentError,
            "TruncatedNormal: expected std >= 0 and bound >= 0.01, got",
        ),
        (lambda: draw.Constant(math.inf), ArgumentError, "Constant(value): expected a finite"),
        (lambda: draw.Orthogonal(groups=0), ArgumentError, "Orthogonal: expected groups >= 1"),
        (
            lambda: draw.Orthogonal(keep="norm"),  # type: ignore[arg-type]
            ArgumentError,
            "Orthogonal: expected a known `keep`, got Orthogonal(",
        ),
    ],
)
def test_parameters_outside_their_domain_are_refused(make, error, message: str) -> None:
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value).startswith(message)
