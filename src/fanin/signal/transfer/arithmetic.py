"""Sums and products of tensors that are no functions of one Gaussian, and choices between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fanin.signal.copula import summed
from fanin.signal.draws import meet
from fanin.signal.fixed import is_fixed
from fanin.signal.slices import joined, scaled, together
from fanin.signal.state import ASSUMED, CLOSED, State, applied, integrate, law
from fanin.signal.table import Table, add, align, paired, product
from fanin.signal.transfer.call import Call, amplitude
from fanin.signal.transfer.laws import lawful, linear_in_z, varies
from fanin.signal.transfer.sampled import joint, sampled
from fanin.signal.transfer.size import size_of_sum
from fanin.signal.twins import sum_of_runs


def addends(call: Call) -> tuple[float, float]:
    """The factors of the two operands of an addition."""
    alpha = float(call.node.get("alpha") or 1.0)
    return {"add": (1.0, alpha), "sub": (1.0, -alpha), "rsub": (-alpha, 1.0)}[call.node.name]


def sum_of(call: Call, states: Sequence[State]) -> State:
    """a x + b y of different sources."""
    x, y = states
    a, b = addends(call)
    laid, _ = align(x.table, y.table)
    cross = together(x.slices, y.slices, laid)
    if cross is None and (alike_runs := sum_of_runs(call, x, y, a, b)) is not None:
        return alike_runs
    table = add(laid * a, y.table, b, None if cross is None else a * cross)
    pairs = (x, y), (y, x)
    alike = any(_plain(s) and (_plain(t) or is_fixed(t, s)) for s, t in pairs)
    how = CLOSED
    if x.roots & y.roots and varies(x) and varies(y) and cross is None:
        if meet(call) and joint(call):
            return sampled(call)[0]
        how = f"{ASSUMED}: uncorrelated operands"
    keeps = x.nonnegative and y.nonnegative and a >= 0 and b >= 0
    slices = joined(x.slices, y.slices, a, b) if cross is not None else None
    state = State(table, how, call.token(), gaussian=alike, nonnegative=keeps, roots=call.roots,
                  slices=slices, size=size_of_sum(x, y, a, b, table.second_moment),
                  reach=min(x.reach, y.reach))  # fmt: skip
    if alike or x.roots & y.roots or not (lawful(x) and lawful(y)) or not table.variance > 0:
        return state
    latent, function = summed(x, y, a, b, table)
    return replace(state, latent=latent, function=function, source=("law", call.token()))


def _plain(state: State) -> bool:
    """Whether a state is a Gaussian by derivation."""
    return state.gaussian and linear_in_z(state)


def centring(call: Call, states: Sequence[State]) -> State | None:
    """x minus its own average over some axes, written out."""
    x, y = states
    if call.node.name != "sub" or y.average is None or y.average.squared:
        return None
    if x.token not in y.average.tokens:
        return None
    table = x.table.centred(averaged_dims(x.table, call.operands[1].table))
    return State(
        table, CLOSED, ("centred", x.token), gaussian=x.gaussian and linear_in_z(x), roots=x.roots
    )


def averaged_dims(x: Table, average: Table) -> tuple[int, ...]:
    """The dimensions that an average of x has lost."""
    return tuple(d for d, f in enumerate(average.dims) if not f and x.dims[d])


def normalising(call: Call, states: Sequence[State]) -> State | None:
    """x times a function of its own mean square, written out: the two are not independent.

    The factor is taken at the root mean square that makes E[x^2 r^2] exact where the average runs
    over many elements.
    """
    for x, r in ((states[0], states[1]), (states[1], states[0])):
        if (
            r.average is None
            or not r.average.squared
            or (call.node.name == "div" and r is states[0])
        ):
            continue
        if not ({x.token} & r.average.tokens):
            continue
        latent, inner, _, _ = law(r)
        power = 2.0 if call.node.name == "div" else -2.0

        def inverse(z: np.ndarray, inner: object = inner, power: float = power) -> np.ndarray:
            value = inner(z) if callable(inner) else z
            with np.errstate(all="ignore"):
                return np.asarray(np.abs(value) ** power)

        linear, _ = integrate(inverse, latent)
        level = 1.0 / np.sqrt(np.maximum(linear.mean, 1e-300))
        one, _ = align(x.table, r.table)
        factor = amplitude(one, level if level.ndim == len(one.factors) else level.mean())
        table = product(x.table, factor)
        gaussian = x.gaussian and linear_in_z(x)
        return State(table, CLOSED, call.token(), gaussian=gaussian, roots=x.roots)
    return None


def product_of(call: Call, states: Sequence[State]) -> State:
    """x y (or x / y) of different sources, as if independent."""
    x, y = states
    how = CLOSED
    common = x.roots & y.roots or (call.node.name == "div" and meet(call))
    dependent = bool(common) and varies(x) and varies(y)
    if dependent and (call.node.name == "div" or meet(call)) and joint(call):
        return sampled(call)[0]
    if call.node.name == "div":
        y = applied(y, lambda v: 1.0 / np.where(v == 0, np.nan, v), ("1/", y.token))
        how = y.how
    if dependent:
        how = f"{ASSUMED}: independent operands"
    table = product(x.table, y.table)
    # a Gaussian times what varies by less than a tenth of its size is Gaussian within 4%
    gaussian = any(
        not varies(one, 1e-2) and (not varies(s) or (s.gaussian and linear_in_z(s)))
        for one, s in ((x, y), (y, x))
    )
    zero = any(
        s.gaussian and linear_in_z(s) and abs(s.mean) < 1e-9 * s.second_moment**0.5 for s in (x, y)
    )
    roots = frozenset({call.token()}) if zero and not x.roots & y.roots else call.roots
    same = (x.nonnegative and y.nonnegative) or (x.nonpositive and y.nonpositive)
    other = (x.nonnegative and y.nonpositive) or (x.nonpositive and y.nonnegative)
    slices = scaled(x.slices, y.table) or scaled(y.slices, x.table)
    size, reach = max(
        ((one.size, one.reach) for one, s in ((x, y), (y, x)) if not varies(s, 1e-2)),
        default=(0.0, 0.0),
    )
    return State(table, how, call.token(), gaussian=gaussian, nonnegative=same, nonpositive=other,
                 roots=roots, slices=slices, size=size, reach=reach)  # fmt: skip


def chosen(call: Call, states: Sequence[State]) -> State:
    """where(condition, x, y) with a known condition, independent of x and y."""
    condition, x, y = states
    c = condition.table
    rest = c * -1.0 + 1.0
    first, second = product(c, x.table), product(rest, y.table)
    one, _ = paired(c.mean, c)
    laid = align(first, second)[0].dims == c.dims
    cross = (one - c.pairs) * x.mean * y.mean if laid else None  # E[c_i (1 - c_j)] E[x] E[y]
    return State(add(first, second, cross=cross), CLOSED, call.token(), roots=call.roots)
