"""Statistics of the draws at 10^8 elements, as z-scores against the exact distribution.

Run: python -m benchmarks.draw_statistics [elements] [--write]   (minutes at the default 10^8)
With --write the table goes to benchmarks/results/, with the date, the machine and the versions.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from benchmarks.record import record
from scipy import special, stats

from fanin import draw

CHUNK = 2**22
LAGS = (1, 2, 3, 4, 5, 8, 64, 256, 1024, 2048)
TAILS = (3.0, 4.0, 4.5, 5.0, 5.5)
CELLS = 4096  # equal probability; for chi-square and the Kolmogorov-Smirnov distance


@dataclass
class Sums:
    """What is added up over the chunks of one stream."""

    count: int = 0
    powers: np.ndarray = field(default_factory=lambda: np.zeros(6))
    cells: np.ndarray = field(default_factory=lambda: np.zeros(CELLS))
    beyond: np.ndarray = field(default_factory=lambda: np.zeros(len(TAILS)))
    lagged: np.ndarray = field(default_factory=lambda: np.zeros(len(LAGS)))
    squares: np.ndarray = field(default_factory=lambda: np.zeros(len(LAGS)))
    crossed: float = 0.0


def chunks(distribution: draw.Distribution, name: str, total: int) -> Iterator[np.ndarray]:
    """A stream in float64, a chunk at a time."""
    for first in range(0, total, CHUNK):
        last = min(first + CHUNK, total)
        out = np.empty(last - first, np.float32)
        index = (slice(first, last),)
        yield draw.fill(
            out, distribution, seed=20261123, name=name, shape=(total,), index=index
        ).astype(np.float64)


def gather(distribution: draw.Distribution, cdf: Callable, total: int) -> Sums:
    """All sums of one distribution, standardised to variance 1."""
    sums = Sums()
    pairs = zip(chunks(distribution, "a", total), chunks(distribution, "b", total), strict=True)
    for x, other in pairs:
        sums.count += len(x)
        sums.powers += [float((x**k).sum()) for k in range(1, 7)]
        at = np.minimum((cdf(x) * CELLS).astype(np.int64), CELLS - 1)
        sums.cells += np.bincount(at, minlength=CELLS)
        sums.beyond += [(np.abs(x) > t).sum() for t in TAILS]
        sums.lagged += [float(x[:-k] @ x[k:]) for k in LAGS]
        y = x * x - 1
        sums.squares += [float(y[:-k] @ y[k:]) for k in LAGS]
        sums.crossed += float(x @ other)
    return sums


def scores(distribution: draw.Distribution, exact: Callable, cdf: Callable, total: int) -> dict:
    """z-scores by name; `exact(k)` is the k-th moment of the standardised distribution."""
    sums = gather(distribution, cdf, total)
    n = sums.count
    found = {
        f"moment {k}": (sums.powers[k - 1] / n - exact(k))
        / math.sqrt((exact(2 * k) - exact(k) ** 2) / n)
        for k in range(1, 7)
        if exact(2 * k) > exact(k) ** 2
    }
    spread = exact(4) - 1
    for i, lag in enumerate(LAGS):
        found[f"autocorrelation {lag}"] = sums.lagged[i] / math.sqrt(n)
        if spread > 0:
            found[f"autocorrelation {lag} of squares"] = sums.squares[i] / (spread * math.sqrt(n))
    found["correlation with another name"] = sums.crossed / math.sqrt(n)
    if isinstance(distribution, draw.Normal):
        for t, count in zip(TAILS, sums.beyond, strict=True):
            expected = n * math.erfc(t / math.sqrt(2))
            found[f"tail beyond {t} sigma"] = (count - expected) / math.sqrt(expected)
    if not isinstance(distribution, draw.Rademacher):
        expected = n / CELLS
        chi = float(((sums.cells - expected) ** 2 / expected).sum())
        found[f"chi-square, {CELLS} cells"] = (chi - CELLS + 1) / math.sqrt(2 * CELLS)
        steps = np.arange(1, CELLS + 1) / CELLS
        distance = float(np.abs(sums.cells.cumsum() / n - steps).max())
        p = max(float(stats.kstwobign.sf(distance * math.sqrt(n))), 1e-300)
        found["Kolmogorov-Smirnov"] = float(stats.norm.isf(p))
    return found


def cases() -> dict[str, tuple[draw.Distribution, Callable, Callable]]:
    """Distributions of variance 1, with their exact moments and distribution functions."""
    cut = draw.TruncatedNormal(bound=2.0)
    law = stats.truncnorm(-2, 2, scale=cut.scale)
    root = math.sqrt(3)
    even = lambda f: lambda k: 0.0 if k % 2 else f(k)  # noqa: E731
    return {
        "normal": (
            draw.Normal(),
            even(lambda k: float(np.prod(np.arange(k - 1, 0, -2)))),
            stats.norm.cdf,
        ),
        "uniform": (
            draw.Uniform(-root, root),
            even(lambda k: root**k / (k + 1)),
            stats.uniform(-root, 2 * root).cdf,
        ),
        "truncated normal": (
            cut,
            even(lambda k: float(law.moment(k))),
            lambda x: (special.ndtr(x / cut.scale) - special.ndtr(-2)) / special.erf(math.sqrt(2)),
        ),
        "rademacher": (draw.Rademacher(), even(lambda k: 1.0), lambda x: (x > 0) * 0.5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("elements", nargs="?", type=float, default=1e8)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    total = int(asked.elements)
    lines = ["| statistic | " + " | ".join(cases()) + " |", "|---" * (len(cases()) + 1) + "|"]
    columns = [scores(*case, total) for case in cases().values()]
    for name in columns[0]:
        cells = [f"{c[name]:+.2f}" if name in c else "" for c in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    worst = max(abs(z) for c in columns for z in c.values())
    count = sum(len(c) for c in columns)
    lines.append(f"\n{count} scores, the largest {worst:.2f}.")
    record("draw-statistics", f"z-scores of {total:.3g} draws of variance 1", lines, asked.write)


if __name__ == "__main__":
    main()
