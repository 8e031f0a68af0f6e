"""Units without a slope: dead at every sample, or saturated at most."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import numpy as np
from scipy import special

from fanin.report.findings import CHECKS, Finding, rule
from fanin.report.view import DEVIATIONS, TRAINABLE, View, listed
from fanin.torch.probing.measurement import Layer
from fanin.torch.probing.slope import COLUMNS, SAMPLES

ALIKE = 0.1
"""Distance of inputs below which the share of units that are silent by chance nears 1/2."""


@rule(CHECKS, "CHK107", "saturated-units")
def saturated(view: View) -> Iterator[Finding]:
    """Bounded activations that work on their flat tails."""
    rows = [row for row in view.trunk if row.saturated is not None]
    bad = [row for row in rows if (row.saturated or 0.0) > 0.5]
    if not bad:
        return
    lost = -math.fsum(math.log(max(1 - (row.saturated or 0.0), 1e-300)) for row in bad)
    first = bad[0]
    reads = math.sqrt(max(_input_of(view, first), 0.0))
    yield saturated.finding(
        "FAIL" if lost > TRAINABLE or len(bad) > len(rows) / 2 else "WARN",
        first.name,
        f"{first.operation} reads values of root mean square {reads:.3g} and is flat for most of "
        "them, so hardly a gradient passes.",
        f"{first.saturated:.0%} of the values have a slope below 1% of the largest, in "
        f"{len(bad)} of {len(rows)} such layers",
        f"fanin.init_(model, inputs)  # or weights with gain {_gain_text(first.operation)}",
    )


def _input_of(view: View, row: Layer) -> float:
    """The second moment of what an activation reads."""
    return max((view.layers[p].second_moment for p in row.parents), default=0.0)


def _gain_text(operation: str) -> str:
    return f'fanin.gain("{operation}")'


@rule(CHECKS, "CHK106", "dead-units")
def dead(view: View) -> Iterator[Finding]:
    """Units without a slope at every sample, beyond what correlated inputs explain."""
    rows = [row for row in view.trunk if row.dead and row not in _saturated(view)]
    bad = [row for row in rows if (row.dead or 0.0) > _allowed(view, row)]
    if not bad:
        return
    alive = math.fsum(math.log(max(1 - (row.dead or 0.0), 1e-300)) for row in bad)
    first = max(bad, key=lambda row: row.dead or 0.0)
    closed = first.dead == 1
    yield dead.finding(
        "FAIL" if closed or -alive > TRAINABLE else "WARN",
        first.name,
        f"Units of {first.operation} have no slope at any sample, so neither signal nor gradient "
        "passes them.",
        f"{first.dead:.0%} of {first.width} units dead, where at most {_allowed(view, first):.0%} "
        f"is chance; {len(bad)} layers: {listed([row.name for row in bad])}",
        "fanin.init_(model, inputs)  # and look at the bias in front of it",
    )


def _saturated(view: View) -> list[Layer]:
    return [row for row in view.trunk if (row.saturated or 0.0) > 0.5]


def _allowed(view: View, row: Layer) -> float:
    """Share of dead units that correlated inputs and a sample of units explain.

    With pre-activations N(0, q) that have correlation c between samples, a rectifier's unit is
    silent at n samples with probability E[Phi(-Z sqrt(c / (1 - c)))^n]; several positions of one
    sample only lower it. 1 - c is known to a relative standard error of sqrt(2 / (n - 1)), and
    the share to that of the units seen; `DEVIATIONS` of both are allowed.
    Where inputs nearly coincide (c > 0.9) the share climbs to its bound of 1/2 within the error
    of c, and the bound is what is allowed.
    """
    n = min(view.batch, SAMPLES)
    before = view.layers[row.parents[0]] if row.parents else row
    if before.distance is None or n < 2:
        return 0.5
    distance = before.distance / (1 + DEVIATIONS * math.sqrt(2 / (n - 1)))
    chance = 0.5 if distance < ALIKE else silent_by_chance(max(1 - distance, 0.0), n)
    units = max(min(row.width, COLUMNS), 1)
    return chance + DEVIATIONS * math.sqrt(max(chance * (1 - chance), 1 / units) / units)


def silent_by_chance(correlation: float, samples: int) -> float:
    r"""Probability that a centred Gaussian is negative at all samples.

    *Definition*: E[Phi(-Z sqrt(c / (1 - c)))^n], c = `correlation`, n = `samples`.

    Example:
        >>> silent_by_chance(0.0, 3)
        0.125
        >>> round(silent_by_chance(0.5, 2), 6)  # 1/4 + arcsin(1/2) / (2 pi)
        0.333333
    """
    if correlation >= 1:
        return 0.5
    z, density = _normal()
    below = special.ndtr(-math.sqrt(correlation / (1 - correlation)) * z)
    return float(round(density @ below**samples, 12))


@functools.cache
def _normal() -> tuple[np.ndarray, np.ndarray]:
    """Nodes on +-9 and weights with which sums are integrals over N(0, 1)."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    z = 9.0 * nodes
    return z, 9.0 * weights * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
