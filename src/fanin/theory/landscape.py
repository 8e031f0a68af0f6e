"""Where a function is smooth and where it breaks, found by looking at its values.

The real line is covered by panels on which the function is a polynomial to rounding error. A panel
that no halving resolves holds a break; the break is located from the smooth pieces on both sides,
the panels are laid again with the breaks among their ends, and each break is judged by its
one-sided limits.

What values at finitely many points cannot show is not found: a spike far narrower than its distance
from zero and from every other feature.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.polynomial import legendre

from fanin.theory.quadrature import (
    EPS,
    NODES,
    NOISE,
    ORDER,
    TO_COEFFICIENTS,
    Panels,
    fitted,
    is_noise,
    slopes_at,
    tail,
)

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from numpy import ndarray

    Array = Float[ndarray, "*shape"]
    Points = Float[ndarray, "points"]
    Indices = Int[ndarray, "points"]
    Triples = Float[ndarray, "3 points"]
    Series = Float[ndarray, "panels order"]
    Mask = Bool[ndarray, "panels"]
    Function = Callable[[Array], Array]

# Ends of the first panels, up to 1.4e7. The odd factor keeps them, and the middle of every halving,
# away from the constants that people write.
_OUTER = 0.8346268416740732 * 2.0 ** np.arange(25)
_FIRST_ENDS = np.concatenate([-_OUTER[::-1], [0.0], _OUTER])
_TOWARDS_ZERO = 2.0 ** -np.arange(1.0, 41.0)
# From the values on a panel that ends at zero to its interpolant there.
_HELD_RIGHT, _HELD_LEFT = (
    legendre.legvander(sign * (2 * _TOWARDS_ZERO - 1), ORDER - 1) @ TO_COEFFICIENTS
    for sign in (1.0, -1.0)
)

_RESOLVED = 1e-12  # unresolved part relative to the largest value on the panel
_NOTHING = 1e-40  # values below this are as good as zero
_NARROW = 2.0**-22  # half width of a panel relative to its centre, at which a break is suspected
_SLOW = 64  # halving takes less than this off a kink, and far more off a smooth function
_BUDGET = 128  # panels that are halved at once, those nearest to zero first
_LEVELS = 64
_SEARCHES = 4
_LAYINGS = 2
_UNEVEN = 0.61, 0.37
_JUMP, _KINK = 1e-9, 1e-7  # relative sizes of a jump and of a kink that count
_LOCAL_WIDTHS = 4.0 ** -np.arange(6)
_ROUGH_SLOPE = 1e-6  # relative error of a slope that asks for panels of its own


class Breakpoint(NamedTuple):
    """A point where a function or its slope jumps.

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
        series: the coefficients, one row for each panel.
        slope_series: the coefficients of the interpolants' slopes.
        slope_error: a bound on the error of the slope of each panel's interpolant.
        breakpoints: kinks and jumps, sorted.
        slopes: the slope left and right of zero.
    """

    ends: Points
    series: Series
    slope_series: Series
    slope_error: Points
    breakpoints: tuple[Breakpoint, ...]
    slopes: tuple[float, float]

    @property
    def centres(self) -> Points:
        """The centres of the panels."""
        result: Points = (self.ends[1:] + self.ends[:-1]) / 2
        return result

    def panel(self, x: Points) -> Indices:
        """The index of the panel that holds each point; the outer ones reach to infinity."""
        which = np.searchsorted(self.ends, x, side="right") - 1
        return np.clip(which, 0, len(self.series) - 1)

    def interpolated(self, x: Points) -> Points:
        """The slope of the interpolants."""
        which = self.panel(x)
        half = (self.ends[which + 1] - self.ends[which]) / 2
        t = np.clip((x - self.ends[which]) / half - 1, -1, 1)
        basis = legendre.legvander(t, ORDER - 2)
        slope: Points = np.einsum("pk,pk->p", basis, self.slope_series[which])
        return slope

    def slope(self, f: Function, x: Points) -> tuple[Points, Points]:
        """The slope of the function at points x, and a bound on its error.

        Where the panels do not resolve the function, which far from zero may be, panels of several
        widths are laid around each point.
        """
        slope, error = self.interpolated(x), self.slope_error[self.panel(x)]
        for width in _LOCAL_WIDTHS:
            bad = np.flatnonzero(~(error <= _ROUGH_SLOPE * np.abs(slope)))
            series, bound = fitted(f(x[bad, None] + width * NODES))
            better = bound / width < error[bad]
            bad, series, bound = bad[better], series[better], bound[better]
            slope[bad] = slopes_at(np.zeros((len(bad), 1)), series)[:, 0] / width
            error[bad] = bound / width
        return slope, error


def survey(f: Function) -> Landscape:
    """Finds the smooth pieces of a function and its breaks."""
    with np.errstate(all="ignore"):
        panels, suspects = _refined(f, Panels.between(_FIRST_ENDS), _NARROW)
        candidates = _located(f, Panels.joined([suspects, *_hidden(f, panels)]))
        for _ in range(_LAYINGS if len(candidates) else 0):
            panels = _relaid(f, panels, candidates)
            before, candidates = candidates, _Seams.of(f, panels).sharpened(candidates)
            if np.array_equal(before, candidates):
                break
        return _judged(f, panels, candidates)


def _relaid(f: Function, panels: Panels, breaks: Points) -> Panels:
    """The panels with breaks among their ends; where the first ends hold none they stay."""
    ends = Panels.between(np.union1d(_FIRST_ENDS, breaks))
    cells = np.searchsorted(_FIRST_ENDS, breaks)
    broken, again = (np.isin(np.searchsorted(_FIRST_ENDS, p.centre), cells) for p in (panels, ends))
    # Breaks are ends now, so nothing should need narrow panels; what does is left as it is.
    laid, _ = _refined(f, ends.chosen(again), 1e-5)
    return Panels.joined([panels.chosen(~broken), laid])


def _hidden(f: Function, panels: Panels) -> list[Panels]:
    """Suspects between the last node of a panel and the first node of the next."""
    found = []
    for _ in range(_SEARCHES):
        seams = _Seams.of(f, panels)
        odd = (seams.jumps | seams.kinks) & seams.resolved & (seams.at != 0)
        if not odd.any():
            break
        half = panels.half
        panels = Panels(seams.at - _UNEVEN[0] * half[:-1], seams.at + _UNEVEN[1] * half[1:]).chosen(
            odd
        )
        panels, suspects = _refined(f, panels, _NARROW)
        found.append(suspects)
    return found


def _refined(f: Function, panels: Panels, narrow: float) -> tuple[Panels, Panels]:
    """Halves panels until they are resolved; returns all panels, and those too narrow to go on."""
    before = np.full(len(panels.half), np.inf)
    done: list[Panels] = []
    stuck: list[Panels] = []
    for _ in range(_LEVELS):
        values = f(panels.nodes)
        high, low, part = values.max(axis=1), values.min(axis=1), tail(values)
        size, finite = np.maximum(high, -low), np.isfinite(high) & np.isfinite(low)
        # The rounding of x shows in the values by their slope.
        noise = 32 * EPS * np.abs(panels.centre) * (high - low) / panels.half
        least = _RESOLVED * np.maximum(size, _NOTHING) + noise
        rough = finite & (part > least) & ~is_noise(part, before, size)
        # A kink fades as its panel shrinks; it is caught before it is too faint to be seen.
        faint = rough & (part > before / _SLOW) & (part < _SLOW * least)
        for i in np.flatnonzero(finite & ~rough & (np.abs(panels.centre) == panels.half)):
            # At its end an interpolant carries more noise than inside.
            noise_at_end = 10 * part[i] + 64 * EPS * size[i]
            rough[i] = _hides(f, panels.centre[i], values[i], noise_at_end)
        narrow_now = panels.half < np.maximum(narrow * np.abs(panels.centre), 2.0**-45)
        tiny = rough & (faint | narrow_now)
        stuck.append(panels.chosen(tiny))
        rough &= ~tiny
        if rough.sum() > _BUDGET:
            far = np.argsort(np.where(rough, np.abs(panels.centre), np.inf))[_BUDGET:]
            rough[far] = False
        done.append(panels.chosen(~rough))
        if not rough.any():
            break
        before = np.concatenate([part[rough]] * 2)
        panels = panels.chosen(rough).halved()
    return Panels.joined(done), Panels.joined(stuck)


def _hides(f: Function, centre: float, values: Points, noise: float) -> bool:
    """Whether a panel that ends at zero differs from its interpolant very near to zero."""
    held = (_HELD_RIGHT if centre > 0 else _HELD_LEFT) @ values
    gap = np.abs(f(2 * centre * _TOWARDS_ZERO) - held)
    return bool((gap > noise).any())


def _located(f: Function, suspects: Panels) -> Points:
    """The breaks inside the suspected cells, from the smooth pieces to their left and right."""
    if not len(suspects.half):
        return np.zeros(0)
    apart = suspects.left[1:] > suspects.right[:-1] + 1e-3 * suspects.half[1:]
    a, b = suspects.left[np.append(True, apart)], suspects.right[np.append(apart, True)]
    # Close to a break rounding limits the pieces, farther away their curvature does.
    step = np.where(b - a < 1e-5 * np.abs(a + b), 8.0, 1.0) * (b - a)
    before, after = _Piece.through(f, a, -step), _Piece.through(f, b, step)

    def gap(x: Points) -> Points:
        result: Points = after(x) - before(x)
        return result

    # At a kink the pieces cross; at a jump they do not, and the values tell the side.
    at_a, at_b = gap(a), gap(b)
    crosses, sign = at_a * at_b <= 0, np.sign(at_a)
    low, high = a, b
    for _ in range(60):
        middle = (low + high) / 2
        on_left = gap(middle) * sign > 0
        if not crosses.all():
            values = f(middle)
            near = np.abs(values - before(middle)) < np.abs(values - after(middle))
            on_left = np.where(crosses, on_left, near)
        if ((middle == low) | (middle == high)).all():
            break
        low, high = np.where(on_left, middle, low), np.where(on_left, high, middle)
    found = (low + high) / 2
    # Where only the second derivative jumps, the pieces touch: their gap has its vertex there.
    bend = at_a + at_b - 2 * gap((a + b) / 2)
    vertex = (a + b) / 2 - (b - a) * (at_b - at_a) / (4 * bend)
    touches = ~crosses & (np.abs(gap(vertex)) < 1e-2 * (np.abs(at_a) + np.abs(at_b)))
    found = np.where(touches & (vertex > a) & (vertex < b), vertex, found)
    return np.array([_written(x) for x in found[np.abs(found) > 2.0**-40]])


class _Piece(NamedTuple):
    """The parabola through three points of a smooth piece, the first one at its end."""

    end: Points
    step: Points
    values: Triples

    @classmethod
    def through(cls, f: Function, end: Points, step: Points) -> _Piece:
        return cls(end, step, f(end + step * np.arange(3.0)[:, None]))

    def __call__(self, x: Points) -> Points:
        t, (v0, v1, v2) = (x - self.end) / self.step, self.values
        result: Points = v0 + t * (v1 - v0 + (t - 1) / 2 * (v2 - 2 * v1 + v0))
        return result


def _written(x: float) -> float:
    """The shortest decimal number within rounding of x, since breaks are constants in a source."""
    for digits in range(1, 11):
        short = float(f"{x:.{digits}g}")
        if abs(short - x) <= 32 * EPS * abs(x):
            return short
    return float(x)


class _Seams(NamedTuple):
    """How the interpolants of neighbouring panels fit together.

    Args:
        at: the end that both panels share.
        half: the half width of the smaller panel.
        jump, kink, bend: what value, slope and second derivative gain from left to right.
        noise: how much of the jump is rounding.
        slopes: on both sides.
        jumps, kinks: whether the gain is more than what both panels leave open.
        resolved: whether both panels are resolved, up to noise.
    """

    at: Points
    half: Points
    jump: Points
    kink: Points
    bend: Points
    noise: Points
    slopes: tuple[Points, Points]
    jumps: Mask
    kinks: Mask
    resolved: Mask

    @classmethod
    def of(cls, f: Function, panels: Panels) -> _Seams:
        values = f(panels.nodes)
        size, part = np.abs(values).max(axis=1), tail(values)
        series, doubt = fitted(values)
        k = np.arange(ORDER)
        steep = k * (k + 1) / 2
        last, first = series.sum(axis=1)[:-1], (series @ (-1.0) ** k)[1:]
        left = (series @ steep / panels.half)[:-1]
        right = (series @ (-steep * (-1.0) ** k) / panels.half)[1:]
        jump, kink = first - last, right - left
        bent = series @ (steep * (k - 1) * (k + 2) / 4 * (-1.0) ** k) / panels.half**2
        bend = bent[1:] - (series @ (steep * (k - 1) * (k + 2) / 4) / panels.half**2)[:-1]

        def both(x: Points) -> Points:
            result: Points = x[:-1] + x[1:]
            return result

        least = _KINK * (np.abs(left) + np.abs(right))
        return cls(
            panels.ends[1:-1],
            np.minimum(panels.half[1:], panels.half[:-1]),
            jump,
            kink,
            bend,
            both(2 * part + _RESOLVED * size),
            (left, right),
            np.abs(jump) > both(10 * part + _JUMP * size),
            np.abs(kink) > 2 * both(doubt / panels.half) + least,
            both((part > NOISE * size).astype(float)) == 0,
        )

    def sharpened(self, candidates: Points) -> Points:
        """The candidates moved to where the interpolants cross, or touch if only f'' jumps."""
        right = np.clip(np.searchsorted(self.at, candidates), 1, len(self.at) - 1)
        which = right - (candidates - self.at[right - 1] <= self.at[right] - candidates)
        near = 1e-3 * self.half
        cross, touch = -self.jump / self.kink, -self.kink / self.bend
        depth = np.abs(self.jump - self.kink**2 / (2 * self.bend))
        touches = (np.abs(touch) < near) & (depth < self.noise)
        crosses = (np.abs(cross) < near) & self.kinks
        shift = np.where(touches, touch, np.where(crosses, cross, 0.0))[which]
        moved = zip(candidates, shift, strict=True)
        return np.array([_written(x + d) if d else x for x, d in moved])


def _judged(f: Function, panels: Panels, candidates: Points) -> Landscape:
    """Fits the panels and looks at the one-sided limits at zero and at every candidate."""
    values = f(panels.nodes)
    values = np.where(np.isfinite(values).all(axis=1, keepdims=True), values, 0.0)
    series, slope_error = fitted(values)
    seams = _Seams.of(f, panels)
    found = []
    for point in np.union1d(candidates, [0.0]):
        i = int(np.abs(seams.at - point).argmin())
        if seams.jumps[i]:
            found.append(Breakpoint(float(point), "jump", float(seams.jump[i])))
        elif seams.kinks[i]:
            found.append(Breakpoint(float(point), "kink", float(seams.kink[i])))
    zero = int(np.abs(seams.at).argmin())
    slopes = float(seams.slopes[0][zero]), float(seams.slopes[1][zero])
    steep = legendre.legder(series, axis=-1) / panels.half[:, None]
    return Landscape(panels.ends, series, steep, slope_error / panels.half, tuple(found), slopes)
