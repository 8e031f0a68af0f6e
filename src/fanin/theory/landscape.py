"""Where a function is smooth and where it breaks, found by looking at its values.

The real line is covered by panels on which the function is a polynomial to rounding error. A panel
that no halving resolves holds a break; the break is located from the smooth pieces on both sides, the
panels are laid again with the breaks as their ends, and each break is judged by its one-sided limits.

What values at finitely many points cannot show is not found: a spike far narrower than its distance
from zero and from every other feature.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.polynomial import legendre

from fanin.theory.quadrature import EPS, ORDER, TO_COEFFICIENTS, Panels, tail

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from numpy import ndarray

    Array = Float[ndarray, "*shape"]
    Points = Float[ndarray, "points"]
    Function = Callable[[Array], Array]

# Ends of the first panels. The odd factor keeps every halving away from the constants people write.
_OUTER = 0.8346268416740732 * 2.0 ** np.arange(25)
_ENDS = np.concatenate([-_OUTER[::-1], [0.0], _OUTER])
_PROBES = 2.0 ** -np.arange(1.0, 41.0)

_RESOLVED = 1e-12  # unresolved part relative to the largest value on the panel
_NOTHING = 1e-40  # values below this are zero
_NOISE = 1e-8  # below this a part that halving does not reduce is rounding noise
_NARROW = 2.0**-22  # half width of a panel relative to its centre, at which a break is suspected
_BUDGET = 600  # panels that are halved at once, those nearest to zero first
_LEVELS = 64


class Breakpoint(NamedTuple):
    """A point where the function or its slope jumps.

    Args:
        location: where.
        kind: "jump" of the value, or "kink" of the slope.
        change: how much the value (jump) or the slope (kink) grows from left to right.
    """

    location: float
    kind: str
    change: float


class Landscape(NamedTuple):
    """A cover of the line by panels with the Legendre coefficients of the function on each.

    Args:
        ends: ends of the panels, sorted; zero and every breakpoint are among them.
        coefficients: one row for each panel.
        unresolved: for each panel, the part its interpolant does not hold.
        breakpoints: kinks and jumps, sorted.
        slopes: the slope left and right of zero.
    """

    ends: Points
    coefficients: Float[ndarray, "panels order"]
    unresolved: Points
    breakpoints: tuple[Breakpoint, ...]
    slopes: tuple[float, float]

    def derivative(self, x: Points) -> Points:
        """The slope of the interpolants."""
        which = np.clip(np.searchsorted(self.ends, x, side="right") - 1, 0, len(self.ends) - 2)
        half = np.diff(self.ends)[which] / 2
        t = np.clip((x - self.ends[which]) / half - 1, -1, 1)
        slopes = legendre.legder(self.coefficients, axis=1)[which]
        return np.einsum("pk,pk->p", legendre.legvander(t, ORDER - 2), slopes) / half


def survey(f: Function) -> Landscape:
    """Finds the smooth pieces of a function and its breaks."""
    with np.errstate(all="ignore"):
        _, suspects = _refine(f, _ENDS)
        candidates = _locate(f, suspects)
        panels, _ = _refine(f, np.union1d(_ENDS, candidates), narrow=1e-5)
        return _judge(f, panels, candidates)


def _refine(f: Function, ends: Points, narrow: float = _NARROW) -> tuple[Panels, Panels]:
    """Halves panels until they are resolved; returns all panels, and those too narrow to go on."""
    panels = Panels.between(ends[:-1], ends[1:])
    before = np.full(len(panels.half), np.inf)
    done: list[Panels] = []
    stuck: list[Panels] = []
    for _ in range(_LEVELS):
        values = f(panels.nodes)
        size, part = np.abs(values).max(axis=1), tail(values)
        rough = (part > _RESOLVED * np.maximum(size, _NOTHING)) | _hides_something(
            f, panels, values
        )
        rough &= np.isfinite(values).all(axis=1) & ~_is_noise(part, before, size, rough)
        tiny = rough & (panels.half < np.maximum(narrow * np.abs(panels.centre), 2.0**-60))
        stuck.append(_take(panels, tiny))
        rough &= ~tiny
        if rough.sum() > _BUDGET:
            far = np.argsort(np.where(rough, np.abs(panels.centre), np.inf))[_BUDGET:]
            rough[far] = False
        done.append(_take(panels, ~rough))
        if not rough.any():
            break
        before = np.tile(part[rough], 2)
        panels = panels.halved(rough)
    return _joined(done), _joined(stuck)


def _take(panels: Panels, which: Bool[ndarray, "panels"]) -> Panels:
    return Panels(panels.centre[which], panels.half[which])


def _joined(parts: list[Panels]) -> Panels:
    """Panels from several lists, from left to right."""
    centre = np.concatenate([part.centre for part in parts])
    half = np.concatenate([part.half for part in parts])
    order = np.argsort(centre)
    return Panels(centre[order], half[order])


def _hides_something(f: Function, panels: Panels, values: Array) -> Bool[ndarray, "panels"]:
    """Whether a panel that ends at zero differs from its interpolant very near to zero."""
    result = np.zeros(len(panels.half), dtype=bool)
    for i in np.flatnonzero(np.abs(np.abs(panels.centre) - panels.half) <= 0):
        t = np.sign(panels.centre[i]) * (2 * _PROBES - 1)
        inner = f(panels.centre[i] + panels.half[i] * t)
        held = legendre.legval(t, TO_COEFFICIENTS @ values[i])
        # The interpolant at the end of its panel carries more noise than inside.
        result[i] = bool((np.abs(inner - held) > 1e-10 * np.abs(values[i]).max()).any())
    return result


def _is_noise(
    part: Points, before: Points, size: Points, rough: Bool[ndarray, "panels"]
) -> Bool[ndarray, "panels"]:
    """Both halves of a panel are as unresolved as it was, at a small level: that is rounding."""
    if not np.isfinite(before).all():
        return np.zeros_like(rough)
    stays = rough & (part > before / 4) & (part < _NOISE * size)
    return stays & np.roll(stays, len(part) // 2)


def _locate(f: Function, suspects: Panels) -> Points:
    """The breaks inside the suspected cells, from the smooth pieces to their left and right."""
    if not len(suspects.half):
        return np.zeros(0)
    left, right = suspects.centre - suspects.half, suspects.centre + suspects.half
    fresh = np.concatenate([[True], left[1:] > right[:-1] + 1e-3 * suspects.half[1:]])
    a, b = left[fresh], right[np.concatenate([fresh[1:], [True]])]
    w = b - a
    pieces = [_Piece.through(f, a, -8 * w), _Piece.through(f, b, 8 * w)]

    def gap(x: Points) -> Points:
        return pieces[1](x) - pieces[0](x)

    crosses = gap(a) * gap(b) <= 0
    low, high = a.copy(), b.copy()
    for _ in range(60):
        middle = (low + high) / 2
        values = f(middle)
        nearer_left = np.abs(values - pieces[0](middle)) < np.abs(values - pieces[1](middle))
        goes_right = np.where(crosses, gap(middle) * gap(a) > 0, nearer_left)
        low, high = np.where(goes_right, middle, low), np.where(goes_right, high, middle)
    return np.array([_written(x, y) for x, y in zip(low, high, strict=True)])


class _Piece(NamedTuple):
    """The parabola through three points of a smooth piece, one at its end."""

    end: Points
    step: Points
    values: Float[ndarray, "three points"]

    @classmethod
    def through(cls, f: Function, end: Points, step: Points) -> _Piece:
        return cls(end, step, f(end + step * np.arange(3.0)[:, None]))

    def __call__(self, x: Points) -> Points:
        t, (v0, v1, v2) = (x - self.end) / self.step, self.values
        return v0 + t * (v1 - v0 + (t - 1) / 2 * (v2 - 2 * v1 + v0))


def _written(low: float, high: float) -> float:
    """The shortest decimal number between two neighbours, since breaks are constants in a source."""
    middle = (low + high) / 2
    for digits in range(1, 14):
        short = float(f"{middle:.{digits}g}")
        if abs(short - middle) <= 16 * EPS * abs(middle) + (high - low):
            return short
    return float(middle)


def _chopped(coefficients: Array, size: Points) -> Array:
    """The series up to its last coefficient above rounding, since a slope multiplies noise."""
    above = np.abs(coefficients) > 32 * EPS * size[:, None]
    last = ORDER - above[:, ::-1].argmax(axis=1)
    return np.where(np.arange(ORDER) < last[:, None], coefficients, 0.0)


def _judge(f: Function, panels: Panels, candidates: Points) -> Landscape:
    """Looks at the one-sided limits at zero and at every candidate."""
    ends = np.concatenate([panels.centre - panels.half, panels.centre[-1:] + panels.half[-1:]])
    values = f(panels.nodes)
    finite = np.isfinite(values).all(axis=1, keepdims=True)
    values = np.where(finite, values, 0.0)
    size = np.abs(values).max(axis=1)
    coefficients = _chopped(values @ TO_COEFFICIENTS.T, size)
    k = np.arange(ORDER)
    sign = (-1.0) ** k
    low_value, high_value = coefficients @ sign, coefficients.sum(axis=1)
    low_slope = coefficients @ (-sign * k * (k + 1) / 2) / panels.half
    high_slope = coefficients @ (k * (k + 1) / 2) / panels.half
    found = []
    for point in np.union1d(candidates, [0.0]):
        right = int(np.abs(ends[:-1] - point).argmin())
        left = right - 1
        level = size[left] + size[right]
        jump = low_value[right] - high_value[left]
        kink = low_slope[right] - high_slope[left]
        steep = size[left] / panels.half[left] + size[right] / panels.half[right]
        if abs(jump) > 1e-9 * level:
            found.append(Breakpoint(float(point), "jump", float(jump)))
        elif abs(kink) > 1e-9 * steep + 1e-7 * (abs(low_slope[right]) + abs(high_slope[left])):
            found.append(Breakpoint(float(point), "kink", float(kink)))
    zero = int(np.abs(ends).argmin())
    return Landscape(
        ends,
        coefficients,
        tail(values),
        tuple(found),
        (float(high_slope[zero - 1]), float(low_slope[zero])),
    )
