"""Makes gaussian_moments.json and gaussian_pairs.json from the definitions, at 50 digits.

Run it with `python tests/reference/make_gaussian.py`; it takes half an hour, less with gmpy2. The
moments are sums over Gauss-Legendre panels at two orders that must agree to 20 digits. The pairs
come from Price's theorem for piecewise linear functions, and from the trapezoidal rule in the plane
for analytic ones.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable
from functools import cache
from multiprocessing import Pool
from pathlib import Path
from runpy import run_path
from typing import Any

from mpmath import mp, mpf

HERE = Path(__file__).parent
shared = run_path(str(HERE / "mp_activations.py"))
Reference, sigmoid, softplus = shared["Reference"], shared["sigmoid"], shared["softplus"]
mp.dps = 50

AGREED = mpf(10) ** -20
UNDERFLOW = mpf(10) ** -330  # below float64
ROUNDING = mpf(10) ** -90  # a variance below this is the square of a rounding error
OPERATING_POINTS = (
    *((0, q) for q in ("1e-6", "1e-3", "0.1", "1", "10", "1e3", "1e6")),
    *(("0.7", q) for q in ("1e-6", "0.1", "1", "1e6")),
    *(("-5", q) for q in ("1", "1e3")),
    ("20", "0.1"),
    ("-1000", "1e6"),
)
# Beyond these variances the moments leave float64, or the panels below do not follow the waves.
LARGEST = {
    "exp": 10,
    "sinh": 10,
    "sin": 100,
    "cos": 100,
    "snake": 100,
    "sinc": 100,
    "sin(30)": "0.1",
}


def clip(x: mpf, low: Any, high: Any) -> mpf:
    return min(max(x, mpf(low)), mpf(high))


def ramp(x: mpf, at: Any, steepness: int) -> mpf:
    return clip((x - mpf(at)) * steepness, -1, 1)


def between(x: mpf, low: Any, high: Any) -> mpf:
    return mpf(mpf(low) < x < mpf(high))


def gelu_tanh(x: mpf) -> mpf:
    return x * (1 + mp.tanh(mp.sqrt(2 / mp.pi) * (x + mpf(44715) / 10**6 * x**3))) / 2


def gelu_tanh_slope(x: mpf) -> mpf:
    root = mp.sqrt(2 / mp.pi)
    u, du = root * (x + mpf(44715) / 10**6 * x**3), root * (1 + 3 * mpf(44715) / 10**6 * x**2)
    return (1 + mp.tanh(u)) / 2 + x * mp.sech(u) ** 2 * du / 2


MORE = {
    "leaky_relu(0.2)": Reference(
        lambda x: x if x > 0 else x * mpf(0.2), lambda x: mpf(1) if x > 0 else mpf(0.2), (0,)
    ),
    "hardsigmoid": Reference(
        lambda x: clip(x + 3, 0, 6) / 6, lambda x: between(x, -3, 3) / 6, (-3, 3)
    ),
    "softshrink": Reference(
        lambda x: x - clip(x, -0.5, 0.5), lambda x: mpf(abs(x) > 0.5), (-0.5, 0.5)
    ),
    "hardshrink": Reference(
        lambda x: x if abs(x) > 0.5 else mpf(0), lambda x: mpf(abs(x) > 0.5), (-0.5, 0.5)
    ),
    "step": Reference(lambda x: mpf(x > 0), lambda x: mpf(0), (0,)),
    "ramp": Reference(
        lambda x: ramp(x, 0, 10**4),
        lambda x: 10**4 * between(x, "-1e-4", "1e-4"),
        ("-1e-4", "1e-4"),
    ),
    "far ramp": Reference(
        lambda x: ramp(x, "3.7", 10**4),
        lambda x: 10**4 * between(x, "3.6999", "3.7001"),
        ("3.6999", "3.7001"),
    ),
    "elu(0.5)": Reference(
        lambda x: x if x > 0 else mp.expm1(x) / 2,
        lambda x: mpf(1) if x > 0 else mp.exp(x) / 2,
        (0,),
    ),
    "gelu(tanh)": Reference(gelu_tanh, gelu_tanh_slope),
    "softplus(2)": Reference(lambda x: softplus(2 * x) / 2, lambda x: sigmoid(2 * x)),
    "logsigmoid": Reference(lambda x: -softplus(-x), lambda x: sigmoid(-x)),
    "penalized_tanh": Reference(
        lambda x: mp.tanh(x) if x > 0 else mp.tanh(x) / 4,
        lambda x: mp.sech(x) ** 2 * (1 if x > 0 else mpf(1) / 4),
        (0,),
    ),
    "gaussian": Reference(lambda x: mp.exp(-x * x), lambda x: -2 * x * mp.exp(-x * x)),
    "sinh": Reference(mp.sinh, mp.cosh),
    "asinh": Reference(mp.asinh, lambda x: 1 / mp.sqrt(1 + x * x)),
    "isru": Reference(lambda x: x / mp.sqrt(1 + x * x), lambda x: (1 + x * x) ** mpf(-1.5)),
    "bent_identity": Reference(
        lambda x: (mp.sqrt(x * x + 1) - 1) / 2 + x, lambda x: x / (2 * mp.sqrt(x * x + 1)) + 1
    ),
    "squareplus": Reference(
        lambda x: (x + mp.sqrt(x * x + 4)) / 2, lambda x: (1 + x / mp.sqrt(x * x + 4)) / 2
    ),
    "cos": Reference(mp.cos, lambda x: -mp.sin(x)),
    "sin(30)": Reference(lambda x: mp.sin(30 * x), lambda x: 30 * mp.cos(30 * x)),
    "snake": Reference(lambda x: x + mp.sin(x) ** 2, lambda x: 1 + mp.sin(2 * x)),
    "sinc": Reference(
        lambda x: mp.sincpi(x), lambda x: (mp.cospi(x) - mp.sincpi(x)) / x if x else mpf(0)
    ),
}
ACTIVATIONS = {**shared["ACTIVATIONS"], **MORE}


@cache
def rule(order: int) -> tuple[tuple[mpf, mpf], ...]:
    """Nodes and weights of the Gauss-Legendre rule, by Newton's method."""
    result = []
    for k in range(order):
        x = mp.cos(mp.pi * (k + mpf(3) / 4) / (order + mpf(1) / 2))
        for _ in range(8):
            before, now = mpf(1), x
            for n in range(2, order + 1):
                before, now = now, ((2 * n - 1) * x * now - (n - 1) * before) / n
            slope = order * (x * now - before) / (x * x - 1)
            x -= now / slope
        result.append((x, 2 / ((1 - x * x) * slope**2)))
    return tuple(result)


def panels(mean: mpf, s: mpf, breaks: tuple[Any, ...]) -> list[tuple[mpf, mpf]]:
    """Intervals of z: unit steps, every break, and steps that double away from zero and breaks.

    A function that is zero around its mean counts only further out, so the range follows the mean
    and the breaks.
    """
    furthest = max([abs(mean), *(abs(mpf(b) - mean) for b in breaks)])
    reach = min(90, 16 + int(furthest / s))
    ends = {mpf(k) for k in range(-reach, reach + 1)}
    for centre in (mpf(0), *map(mpf, breaks)):
        ends.add((centre - mean) / s)
        for j in range(-2, 17):
            ends |= {(centre + sign * mpf(2) ** j - mean) / s for sign in (-1, 1)}
    inside = sorted(end for end in ends if abs(end) <= reach)
    return list(itertools.pairwise(inside))


def moments_at(name: str, mean: mpf, q: mpf, order: int) -> dict[str, mpf]:
    """All moments from the same nodes."""
    f, df, breaks = ACTIVATIONS[name]
    s = mp.sqrt(q)
    rows = []
    for left, right in panels(mean, s, breaks):
        half, centre = (right - left) / 2, (right + left) / 2
        for t, weight in rule(order):
            z = centre + half * t
            x = mean + s * z
            rows.append((z, half * weight * mp.npdf(z), f(x), df(x)))
    first = mp.fsum(w * y for _, w, y, _ in rows)
    second = mp.fsum(w * y * y for _, w, y, _ in rows)
    flow = mp.fsum(w * d * d for _, w, _, d in rows)
    growth = mp.fsum(w * y * y * (z * z - 1) for z, w, y, _ in rows) / (2 * q)
    return {
        "mean": first,
        "second_moment": second,
        "variance": mp.fsum(w * (y - first) ** 2 for _, w, y, _ in rows),
        "derivative_mean": mp.fsum(w * d for _, w, _, d in rows),
        "derivative_second_moment": flow,
        "curvature": growth - flow,
        "growth": growth,
        "slope": q * growth / second if second else mpf(0),
    }


def digits(x: mpf) -> str:
    return mp.nstr(x, 22)


def moment_rows(name: str) -> list[dict[str, Any]]:
    rows = []
    for mean, q in OPERATING_POINTS:
        if mpf(q) > mpf(LARGEST.get(name, "inf")):
            continue
        coarse = moments_at(name, mpf(mean), mpf(q), 20)
        if coarse["second_moment"] < mpf(10) ** -250:
            continue
        fine = moments_at(name, mpf(mean), mpf(q), 28)
        scale = {**fine, "mean": mp.sqrt(fine["second_moment"]), "slope": mpf(1)}
        scale["derivative_mean"] = mp.sqrt(fine["derivative_second_moment"])
        spread = fine["second_moment"] / mpf(q) + fine["derivative_second_moment"]
        scale["curvature"] = scale["growth"] = spread
        for key, value in fine.items():
            noise = key == "variance" and value < ROUNDING * fine["second_moment"]
            if noise or abs(value) < UNDERFLOW:
                fine[key] = mpf(0)
            elif abs(value - coarse[key]) > AGREED * scale[key]:
                raise ArithmeticError(f"{name} {mean} {q} {key}: {value}, {coarse[key]}")
        values = {key: digits(value) for key, value in fine.items()}
        rows.append({"name": name, "input_mean": str(mean), "input_variance": q, **values})
    print(name, flush=True)
    return rows


# --- pairs ----------------------------------------------------------------------------------------

# Kinks of piecewise linear functions: where, and how much the slope changes.
BENDS: dict[str, tuple[tuple[Any, int], ...]] = {
    "relu": ((0, 1),),
    "abs": ((0, 2),),
    "relu6": ((0, 1), (6, -1)),
    "hardtanh": ((-1, 1), (1, -1)),
    "softshrink": ((-0.5, -1), (0.5, 1)),
}
ANALYTIC = ("tanh", "gelu", "sigmoid", "softplus", "mish", "erf")
CORRELATIONS = ("-1", "-0.999", "-0.7", "0", "0.3", "0.9", "0.999", "0.999999")


def by_price(name: str, c: mpf, mean: mpf, q: mpf) -> mpf:
    """E(c) = E(0) + c E'(0) + integral of (c - t) E''(t), E'' = q^2 sum s_i s_j p(k_i, k_j; t)."""
    at = moments_at(name, mean, q, 28)
    s = mp.sqrt(q)

    def integrand(angle: mpf) -> mpf:
        """t = sin(angle) takes the root out of the density."""
        t, rest = mp.sin(angle), mp.cos(angle) ** 2
        total = mpf(0)
        for k, change in BENDS[name]:
            for other, other_change in BENDS[name]:
                a, b = (mpf(k) - mean) / s, (mpf(other) - mean) / s
                total += (
                    change * other_change * mp.exp(-(a * a - 2 * t * a * b + b * b) / (2 * rest))
                )
        return (c - t) * total * q / (2 * mp.pi)

    cuts = [mp.asin(c) * (1 - mpf(2) ** -k) for k in range(80)]
    rest = mp.fsum(
        (right - left) / 2 * weight * integrand((left + right) / 2 + (right - left) / 2 * node)
        for left, right in itertools.pairwise(cuts)
        for node, weight in rule(32)
    )
    return at["mean"] ** 2 + c * q * at["derivative_mean"] ** 2 + rest


def by_trapezoid(f: Callable[[mpf], mpf], c: mpf, mean: mpf, q: mpf) -> mpf:
    """The trapezoidal rule over independent t and w converges geometrically for analytic f."""
    h, reach = mpf(1) / 6, 66
    s, across = mp.sqrt(q), mp.sqrt(1 - c * c)
    weights = [mp.npdf(h * k) * h for k in range(-reach, reach + 1)]
    total = mpf(0)
    for i, w in enumerate(weights):
        t = h * (i - reach)
        inner = mp.fsum(
            weights[j] * f(mean + s * (c * t + across * h * (j - reach)))
            for j in range(2 * reach + 1)
        )
        total += w * f(mean + s * t) * inner
    return total


def pair_rows(name: str) -> list[dict[str, Any]]:
    rows = []
    for mean, q in (("0", "0.1"), ("0", "1"), ("0.5", "1"), ("0", "1e3"), ("0.5", "1e6")):
        if name in ANALYTIC and mpf(q) > 1:
            continue
        for c in CORRELATIONS:
            at = mpf(c), mpf(mean), mpf(q)
            if name in BENDS:
                value = by_price(name, *at)
            else:
                mp.dps = 25
                value = by_trapezoid(ACTIVATIONS[name].value, *at)
                mp.dps = 50
            row = {"name": name, "correlation": c, "mean": mean, "variance": q}
            rows.append({**row, "value": digits(value)})
    print(name, flush=True)
    return rows


def make(name: str, rows_of: Callable[[str], list[dict[str, Any]]], names: Iterable[str]) -> None:
    """Writes a table, one row a line."""
    with Pool(2) as pool:
        rows = itertools.chain.from_iterable(pool.map(rows_of, names, chunksize=1))
    lines = ",\n".join(json.dumps(row) for row in rows)
    (HERE / name).write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    make("gaussian_pairs.json", pair_rows, (*BENDS, *ANALYTIC))
    make("gaussian_moments.json", moment_rows, ACTIVATIONS)
