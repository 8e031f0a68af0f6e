"""Makes the polynomials of `fanin.draw.transform` and `fanin.draw.double` and prints them.

float32: weighted minimax by Lawson's iteration over least squares, then rounded to float32.
float64: Chebyshev interpolation in 60 digits. Beside each stands its largest error, relative to
the function that the polynomial serves, in units of 2^-24 or 2^-53.

Run: python tests/reference/draw_polynomials.py
"""

from __future__ import annotations

from collections.abc import Callable

import mpmath as mp
import numpy as np

mp.mp.dps = 60
Real = Callable[[mp.mpf], mp.mpf]


def log_series(f: mp.mpf) -> mp.mpf:
    """(log(1 + f) - f + f²/2) / f³."""
    if abs(f) < mp.mpf("1e-15"):
        return mp.mpf(1) / 3 - f / 4
    return (mp.log1p(f) - f + f * f / 2) / f**3


def log_weight(f: mp.mpf) -> mp.mpf:
    """What an error of the series does to log(1 + f), relatively."""
    return f**3 / mp.log1p(f) if abs(f) > mp.mpf("1e-15") else f * f


def sine(t: mp.mpf) -> mp.mpf:
    return mp.sin(mp.pi / 2 * mp.sqrt(t)) / mp.sqrt(t) if t > 0 else mp.pi / 2


def cosine(t: mp.mpf) -> mp.mpf:
    return (mp.cos(mp.pi / 2 * mp.sqrt(t)) - 1) / t if t > 0 else -(mp.pi**2) / 8


def quantile(v: mp.mpf) -> mp.mpf:
    """z with P(|Z| > z) = q, where v = -log(q (2 - q))."""
    q = 1 - mp.sqrt(1 - mp.exp(-v))
    if q > mp.mpf("0.5"):
        return mp.sqrt(2) * mp.erfinv(1 - q)
    return mp.findroot(lambda z: mp.log(mp.erfc(z / mp.sqrt(2)) / q), mp.sqrt(v) * 1.1)


def centre(v: mp.mpf) -> mp.mpf:
    """z / x, with x = 1 - q = sqrt(1 - exp(-v))."""
    if v < mp.mpf("1e-25"):
        return mp.sqrt(mp.pi / 2)
    return quantile(v) / mp.sqrt(1 - mp.exp(-v))


def minimax(f: Real, low: float, high: float, terms: int, weight: Real, nodes: int = 400):
    """Coefficients and the largest weighted error of a near-minimax polynomial."""
    k = np.arange(nodes)
    unit = np.cos(np.pi * (k + 0.5) / nodes)
    x = [mp.mpf((low + high) / 2 + (high - low) / 2 * u) for u in unit]
    y = np.array([float(f(v)) for v in x])
    w = np.array([float(abs(weight(v))) for v in x])
    basis, lawson = np.polynomial.chebyshev.chebvander(unit, terms - 1), np.ones(nodes) / nodes
    best = (np.inf, np.zeros(terms))
    for _ in range(60):
        root = np.sqrt(lawson) * w
        fitted, *_ = np.linalg.lstsq(basis * root[:, None], y * root, rcond=None)
        error = np.abs((basis @ fitted - y) * w)
        best = min(best, (error.max(), fitted), key=lambda pair: pair[0])
        lawson = lawson * error / (lawson * error).sum()
    series = np.polynomial.Chebyshev(best[1], domain=[low, high])
    return series.convert(kind=np.polynomial.Polynomial).coef.astype(np.float32), best[0] * 2**24


def interpolated(f: Real, low: float, high: float, terms: int, weight: Real):
    """Coefficients of the polynomial through the Chebyshev nodes, and its largest error."""
    a, b = mp.mpf(low), mp.mpf(high)
    at = [
        (a + b) / 2 + (b - a) / 2 * mp.cos(mp.pi * (k + mp.mpf(1) / 2) / terms)
        for k in range(terms)
    ]
    matrix = mp.matrix([[x**j for j in range(terms)] for x in at])
    found = mp.lu_solve(matrix, mp.matrix([f(x) for x in at]))
    probes = [a + (b - a) * k / 200 for k in range(201)]
    error = max(abs((mp.polyval(list(found)[::-1], x) - f(x)) * weight(x)) for x in probes)
    return [float(c) for c in found], float(error * 2**53)


def show(name: str, result: tuple[object, float]) -> None:
    coefficients, error = result
    print(f"{name} = (  # {error:.2f}")
    for c in coefficients:  # type: ignore[attr-defined]
        print(f"    {float(c)!r},")
    print(")")


def main() -> None:
    shift, one = mp.mpf("3.625"), lambda _: mp.mpf(1)
    show("LOG", minimax(log_series, -1 / 3, 1 / 3, 7, log_weight))
    show("SIN", minimax(sine, 0.0, 0.25, 4, one))
    show("COS", minimax(cosine, 0.0, 0.25, 3, lambda t: t))
    show("CENTRE", minimax(centre, 0.0, 5.0, 10, lambda v: 1 / centre(v)))
    tail = minimax(
        lambda s: quantile((s + shift) ** 2),
        5**0.5 - 0.01 - 3.625,
        26**0.5 - 3.625,
        10,
        lambda s: 1 / (s + shift),
        120,
    )
    show("TAIL", tail)
    show("LOG64", interpolated(log_series, -1 / 3, 1 / 3, 20, log_weight))
    show("SIN64", interpolated(sine, 0.0, 0.25, 8, one))
    show("COS64", interpolated(cosine, 0.0, 0.25, 8, lambda t: t))
    show("CENTRE64", interpolated(centre, 0.0, 5.0, 23, lambda v: 1 / centre(v)))
    shift = mp.mpf("4.25")
    show(
        "TAIL64",
        interpolated(
            lambda s: quantile((s + shift) ** 2), -2.02, 2.02, 31, lambda s: 1 / (s + shift)
        ),
    )


if __name__ == "__main__":
    main()
