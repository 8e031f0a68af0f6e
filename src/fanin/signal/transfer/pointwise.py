"""Elementwise operations: functions of one Gaussian, sums, products, and the rest by sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fanin.signal.copula import summed
from fanin.signal.draws import meet
from fanin.signal.fixed import is_fixed, with_fixed
from fanin.signal.joint import measured, sample
from fanin.signal.nodes import Once
from fanin.signal.slices import joined, scaled, together
from fanin.signal.state import (
    ASSUMED,
    CLOSED,
    QUADRATURE,
    State,
    Varied,
    applied,
    integrate,
    law,
)
from fanin.signal.table import Table, add, align, paired, product
from fanin.signal.transfer.call import (
    Call,
    Term,
    amplitude,
    broadcast,
    forward,
    reduced_to,
    total,
)
from fanin.signal.transfer.gate import is_gated, onward
from fanin.signal.transfer.mask import masked
from fanin.signal.transfer.sampled import joint, sampled
from fanin.signal.transfer.size import size_of_sum, sized
from fanin.signal.twins import sum_of_runs

if TYPE_CHECKING:
    from fanin.signal.state import Function


@dataclass(frozen=True)
class Affine:
    """x -> scale x + shift."""

    scale: float
    shift: float

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.scale * x + self.shift


def affine(state: State, scale: float, shift: float, token: object) -> State:
    """The state of scale x + shift: moments exact, and the Gaussian behind it kept."""
    latent, inner, source, exact = law(state)
    if inner is None or isinstance(inner, Affine):
        first = inner or Affine(1.0, 0.0)
        function: Function = Affine(scale * first.scale, scale * first.shift + shift)
    else:
        function = Once(lambda z: scale * inner(z) + shift, [inner])
    return replace(
        state, table=state.table * scale + shift, how=CLOSED, token=token, latent=latent,
        slices=scaled(state.slices, Table.constant(state.shape, scale)),
        function=function, source=source, gaussian=exact, data=None, allowed=None,
        nonnegative=shift >= 0 and (state.nonnegative if scale >= 0 else state.nonpositive),
        nonpositive=shift <= 0 and (state.nonpositive if scale >= 0 else state.nonnegative),
    )  # fmt: skip


def linear_in_z(state: State) -> bool:
    """Whether the state is Gaussian itself, not a nonlinear function of a Gaussian."""
    return state.function is None or isinstance(state.function, Affine)


def pointwise(call: Call) -> State:
    """Any elementwise operation."""
    shape = call.shape
    name = call.node.name
    if (found := masked(call)) is not None:
        return found
    states = [broadcast(s, shape) for s in call.operands]
    numbers = {i: v for i, s in enumerate(states) if (v := s.value) is not None}
    varying = [i for i in range(len(states)) if i not in numbers]
    if not varying:
        return State(_computed(call, numbers, shape), CLOSED, call.token(), roots=call.roots)
    if len(varying) == 1:
        return _of_one(call, states[varying[0]], varying[0], numbers)
    if name in ("add", "sub", "rsub") and len(states) == 2:
        found = _centring(call, states) or _jointly(call, states, varying, numbers)
        return found or _with_fixed(call, states) or _sum(call, states)
    if name in ("mul", "div") and len(states) == 2 and call.node.get("rounding_mode") is None:
        found = _normalising(call, states) or _jointly(call, states, varying, numbers)
        return found or _with_fixed(call, states) or _product(call, states)
    found = _jointly(call, states, varying, numbers)
    if found is not None:
        return found
    if name == "where" and states[0].data is not None:
        return _chosen(call, states)
    return _drawn(call, states)


def _run(call: Call, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The node's operation on arrays."""
    assert call.node.kernel is not None
    with np.errstate(all="ignore"):
        return np.asarray(call.node.kernel(*_typed(call, arrays))[0], dtype=np.float64)


def _typed(call: Call, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Draws of integer and boolean operands as integers and booleans."""
    values = [call.graph.values[i] for i in call.node.inputs]
    return [
        a if v.floating else a > 0.5 if v.dtype == "bool" else np.rint(a).astype(v.dtype)
        for a, v in zip(arrays, values, strict=True)
    ]


def _computed(call: Call, numbers: dict[int, float], shape: Sequence[int]) -> Table:
    """The result of constants alone."""
    values = [np.asarray(numbers[i], dtype=float) for i in range(len(numbers))]
    return Table.constant(shape, float(_run(call, values)))


def _of_one(call: Call, state: State, place: int, numbers: dict[int, float]) -> State:
    """A function of one tensor; the other operands are numbers."""

    def function(x: np.ndarray) -> np.ndarray:
        arrays = [np.asarray(numbers.get(i, 0.0)) for i in range(len(numbers) + 1)]
        arrays[place] = x
        return _run(call, arrays)

    if call.node.name in ("add", "sub", "rsub", "mul", "div", "neg"):
        points = function(np.array([0.0, 1.0, 2.0]))
        if not points.any():
            return State(Table.constant(call.shape, 0.0), CLOSED, call.token())
        if np.isfinite(points).all() and call.node.get("rounding_mode") is None:
            return affine(state, float(points[1] - points[0]), float(points[0]), call.token())
    found = applied(state, function, call.token())
    if call.graph.values[call.node.inputs[place]].complex:
        found = replace(found, how=f"{ASSUMED}: real numbers")
    if not state.size or not call.output().floating:
        return found

    def slope(x: np.ndarray) -> np.ndarray:
        shape = np.shape(x)
        arrays = [np.full(shape, numbers.get(i, 0.0)) for i in range(len(numbers) + 1)]
        arrays[place] = x
        return _derivative(call, arrays, place)

    return sized(state, found, slope)


def _jointly(
    call: Call, states: Sequence[State], varying: Sequence[int], numbers: dict[int, float]
) -> State | None:
    """A function of several tensors that are functions of one Gaussian."""
    laws = [law(states[i]) for i in varying]
    latent, _, source, exact = laws[0]
    if any(other[2] != source for other in laws[1:]):
        return None
    joint = _joint(call, states, varying, numbers)
    table, total = integrate(joint, latent)
    how = QUADRATURE if exact and total else f"{ASSUMED}: Gaussian"
    return State(table, how, call.token(), latent, joint, source, exact, roots=call.roots)


def _joint(
    call: Call, states: Sequence[State], varying: Sequence[int], numbers: dict[int, float]
) -> Callable[[np.ndarray], np.ndarray]:
    """The operation as a function of the one Gaussian z."""

    parts = [law(states[i])[1] for i in varying]
    return Once(lambda z: _run(call, _operands(states, varying, numbers, z)), parts)


def _operands(
    states: Sequence[State],
    varying: Sequence[int],
    numbers: dict[int, float],
    z: np.ndarray,
) -> list[np.ndarray]:
    """What the operation reads where the Gaussian behind its operands is z."""
    arrays = []
    for i, state in enumerate(states):
        function = law(state)[1] if i in varying else None
        value = (function(z) if function else z) if i in varying else np.full_like(z, numbers[i])
        arrays.append(np.broadcast_to(value, z.shape))
    return arrays


def _with_fixed(call: Call, states: Sequence[State]) -> State | None:
    """A function of a Gaussian with a fixed tensor that has a profile."""
    for order in (slice(None), slice(None, None, -1)):
        x, fixed = states[order]
        if not linear_in_z(x) and _lawful(x) and is_fixed(fixed, x):
            return with_fixed(x, fixed, lambda *both, o=order: _run(call, both[o]), call.token())
    return None


# --- sums and products ---------------------------------------------------------------------------


def _scales(call: Call) -> tuple[float, float]:
    """The factors of the two operands of an addition."""
    alpha = float(call.node.get("alpha") or 1.0)
    return {"add": (1.0, alpha), "sub": (1.0, -alpha), "rsub": (-alpha, 1.0)}[call.node.name]


def _sum(call: Call, states: Sequence[State]) -> State:
    """a x + b y of different sources."""
    x, y = states
    a, b = _scales(call)
    laid, _ = align(x.table, y.table)
    cross = together(x.slices, y.slices, laid)
    if cross is None and (alike_runs := sum_of_runs(call, x, y, a, b)) is not None:
        return alike_runs
    table = add(laid * a, y.table, b, None if cross is None else a * cross)
    pairs = (x, y), (y, x)
    alike = any(_plain(s) and (_plain(t) or is_fixed(t, s)) for s, t in pairs)
    how = CLOSED
    if x.roots & y.roots and _varies(x) and _varies(y) and cross is None:
        if meet(call) and joint(call):
            return sampled(call)[0]
        how = f"{ASSUMED}: uncorrelated operands"
    keeps = x.nonnegative and y.nonnegative and a >= 0 and b >= 0
    slices = joined(x.slices, y.slices, a, b) if cross is not None else None
    state = State(table, how, call.token(), gaussian=alike, nonnegative=keeps, roots=call.roots,
                  slices=slices, size=size_of_sum(x, y, a, b, table.second_moment),
                  reach=min(x.reach, y.reach))  # fmt: skip
    if alike or x.roots & y.roots or not (_lawful(x) and _lawful(y)) or not table.variance > 0:
        return state
    latent, function = summed(x, y, a, b, table)
    return replace(state, latent=latent, function=function, source=("law", call.token()))


def _plain(state: State) -> bool:
    """Whether a state is a Gaussian by derivation."""
    return state.gaussian and linear_in_z(state)


def _lawful(state: State) -> bool:
    """Whether the law of one element is known, and the same for all."""
    known = state.latent is not None or state.gaussian
    return known and not isinstance(state.latent, Varied)


def _varies(state: State, share: float = 1e-3) -> bool:
    """Whether an operand's variance is more than a small share of its squared mean."""
    return state.table.variance > share * max(state.mean**2, 1e-300)


def _centring(call: Call, states: Sequence[State]) -> State | None:
    """x minus its own average over some axes, written out."""
    x, y = states
    if call.node.name != "sub" or y.average is None or y.average.squared:
        return None
    if x.token not in y.average.tokens:
        return None
    table = x.table.centred(_averaged_dims(x.table, call.operands[1].table))
    return State(
        table, CLOSED, ("centred", x.token), gaussian=x.gaussian and linear_in_z(x), roots=x.roots
    )


def _averaged_dims(x: Table, average: Table) -> tuple[int, ...]:
    """The dimensions that an average of x has lost."""
    return tuple(d for d, f in enumerate(average.dims) if not f and x.dims[d])


def _normalising(call: Call, states: Sequence[State]) -> State | None:
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


def _product(call: Call, states: Sequence[State]) -> State:
    """x y (or x / y) of different sources, as if independent."""
    x, y = states
    how = CLOSED
    common = x.roots & y.roots or (call.node.name == "div" and meet(call))
    dependent = bool(common) and _varies(x) and _varies(y)
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
        not _varies(one, 1e-2) and (not _varies(s) or (s.gaussian and linear_in_z(s)))
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
        ((one.size, one.reach) for one, s in ((x, y), (y, x)) if not _varies(s, 1e-2)),
        default=(0.0, 0.0),
    )
    return State(table, how, call.token(), gaussian=gaussian, nonnegative=same, nonpositive=other,
                 roots=roots, slices=slices, size=size, reach=reach)  # fmt: skip


def _chosen(call: Call, states: Sequence[State]) -> State:
    """where(condition, x, y) with a known condition, independent of x and y."""
    condition, x, y = states
    c = condition.table
    rest = c * -1.0 + 1.0
    first, second = product(c, x.table), product(rest, y.table)
    one, _ = paired(c.mean, c)
    laid = align(first, second)[0].dims == c.dims
    cross = (one - c.pairs) * x.mean * y.mean if laid else None  # E[c_i (1 - c_j)] E[x] E[y]
    return State(add(first, second, cross=cross), CLOSED, call.token(), roots=call.roots)


def _small(table: Table) -> Table:
    """The same table with short axes: an elementwise operation does not know their length."""
    flat = table.flat()
    return Table(tuple(tuple(min(n, 6) for n in dim) for dim in flat.dims), flat.mean, flat.pairs)


_DRAWS = 64


def _drawn(call: Call, states: Sequence[State]) -> State:
    """Operands drawn from their states, the operation run on them, the result measured."""
    arrays, factors = _draw(call, states)
    result = np.nan_to_num(_run(call, arrays))
    squares = (result**2).reshape(_DRAWS, -1).mean(1)
    average = measured(result)
    table = Table(factors.dims, average.mean, average.pairs)
    error = float(np.std(squares) / np.sqrt(_DRAWS) / max(np.mean(squares), 1e-300))
    return State(table, f"sampled ± {error:.1%}", call.token(), roots=call.roots)


def _draw(call: Call, states: Sequence[State]) -> tuple[list[np.ndarray], Table]:
    """Draws of the operands on short axes, one after the other, and the table of their factors."""
    factors = states[0].table
    for s in states[1:]:
        factors, _ = align(factors, s.table)
    generator, arrays = call.generator(), []
    for state in states:
        latent, function, _, _ = law(state)
        if isinstance(latent, Varied):  # its function takes the whole axis, which is not drawn
            latent, function = state.table, None
        laid, _ = align(state.table, factors)
        small = _small(align(latent, laid)[0])
        x = sample(small, generator, _DRAWS).reshape(_DRAWS, *small.factors)
        arrays.append(x if function is None else np.asarray(function(x)))
    return arrays, factors


# --- backward ------------------------------------------------------------------------------------


def pointwise_back(call: Call, terms: Sequence[Term]) -> Iterator[tuple[int, Term]]:
    """The gradient times the slope in each operand."""
    shape = call.shape
    own = call.operands
    states = [broadcast(s, shape) for s in own]
    numbers = {i: v for i, s in enumerate(states) if (v := s.value) is not None}
    varying = [i for i in range(len(states)) if i not in numbers]
    if call.states[call.node.outputs[0]].token == ("centred", own[0].token):
        dims = _averaged_dims(own[0].table, own[1].table)
        yield call.node.inputs[0], Term(call.node.index, total(terms).centred(dims))
        return
    if call.node.name == "where" and call.states[call.node.outputs[0]].allowed is not None:
        whole = reduced_to(total(terms), own[1].shape)  # what is hidden has no gradient already
        yield call.node.inputs[1], Term(call.node.index, whole)
        return
    for place, index in enumerate(call.node.inputs):
        if not call.graph.values[index].floating:
            continue
        wide = states[place].table.shape != own[place].shape
        for term in _multiplied(call, terms, states, varying, numbers, place):
            if wide:
                table = reduced_to(term.resolved(), own[place].shape)
                term = Term((call.node.index, place, term.root), table)
            yield index, term


def _multiplied(
    call: Call,
    terms: Sequence[Term],
    states: Sequence[State],
    varying: Sequence[int],
    numbers: dict[int, float],
    place: int,
) -> Iterator[Term]:
    """Each part of the arriving gradient times d result / d operand."""
    name = call.node.name
    if name in ("add", "sub", "rsub"):
        scale = _scales(call)[place] if len(states) == 2 else 1.0
        for term in terms:
            yield _along(call, replace(term, table=term.table * scale), states, place)
        return
    laws = [law(states[i]) for i in varying]
    if laws and all(other[2] == laws[0][2] for other in laws[1:]):
        latent, source = laws[0][0], laws[0][2]
        slope = Once(
            lambda z: _derivative(call, _operands(states, varying, numbers, z), place),
            [law(states[i])[1] for i in varying],
        )
        for term in terms:
            if term.slope is not None and term.source == source:
                yield term.times(slope)
            else:
                arriving = (
                    term
                    if term.slope is None
                    else Term((call.node.index, term.root), term.resolved())
                )
                yield replace(arriving, slope=slope, latent=latent, source=source)
        return
    factor = _slope(call, states, place)
    for term in terms:
        if name == "mul" and (found := _to_gate(call, term, states, place)) is not None:
            yield found
            continue
        yield Term((call.node.index, place, term.root), product(term.resolved(), factor))


def _along(call: Call, term: Term, states: Sequence[State], place: int) -> Term:
    """A part of the gradient of a sum that goes on along one operand's own Gaussian.

    Its table stays; where the operand is large, more (or less) of it arrives.
    """
    whole = call.states[call.node.outputs[0]]
    if len(states) != 2 or states[1 - place].value is not None:
        return term
    if term.slope is None or term.source != law(whole)[2]:
        return term
    x, y = states[place], states[1 - place]
    if law(x)[2] == term.source or (linear_in_z(x) and not is_gated(call, place)):
        return term
    scales = _scales(call)
    root, own = (call.node.index, place, term.root), (scales[place], scales[1 - place])
    return onward(term, root, whole, (x, y), own)


def _to_gate(call: Call, term: Term, states: Sequence[State], place: int) -> Term | None:
    """The gradient of a steady factor s of m = s y, where what arrives depends on m: y is m / E s.

    The sum over what the factor multiplies has a mean: a gate behind is open more often where y is
    large.
    """
    whole, gate = call.states[call.node.outputs[0]], states[place]
    _, function, source, _ = law(whole)
    if term.slope is None or term.source != source or not gate.mean or _varies(gate, 1e-2):
        return None
    factor = Affine(1 / gate.mean, 0.0)
    slope, inner = term.slope, function or Affine(1.0, 0.0)
    return replace(term, slope=_times(slope, lambda z: factor(inner(z))))


def _times(first: Function, second: Function) -> Function:
    """The product of two slopes."""
    return Once(lambda z: first(z) * second(z), [first, second])


def _slope(call: Call, states: Sequence[State], place: int) -> Table:
    """The table of d result / d operand for operands of different sources."""
    name = call.node.name
    if name == "mul" and len(states) == 2:
        return states[1 - place].table
    if name == "div" and len(states) == 2:
        inverse = applied(states[1], lambda v: 1.0 / np.where(v == 0, np.nan, v), "1/").table
        if place == 0:
            return inverse
        return product(states[0].table, product(inverse, inverse))
    if name == "where":
        c = states[0].table
        return c if place == 1 else c * -1.0 + 1.0
    return _drawn_slope(call, states, place)


def _derivative(call: Call, arrays: Sequence[np.ndarray], place: int) -> np.ndarray:
    """d result / d operand, element by element."""
    assert call.node.kernel is not None
    shape = np.broadcast_shapes(*(np.shape(a) for a in arrays))
    whole = [np.broadcast_to(a, shape) for a in arrays]
    found = call.node.kernel.vjp(_typed(call, whole), [np.broadcast_to(1.0, shape)])[place]
    if found is None:
        return np.zeros(shape)
    return found if np.isfinite(found).all() else np.nan_to_num(found)


def _drawn_slope(call: Call, states: Sequence[State], place: int) -> Table:
    """The slope's table from draws."""
    arrays, factors = _draw(call, states)
    average = measured(_derivative(call, arrays, place))
    return Table(factors.dims, average.mean, average.pairs)


# --- casts ---------------------------------------------------------------------------------------


@forward("_to_copy")
def _cast(call: Call) -> State:
    """The same numbers, but for what an integer or a truth value cuts off."""
    whole = call.output().floating or not call.graph.values[call.node.inputs[0]].floating
    return call.first if whole and call.output().dtype != "bool" else pointwise(call)
