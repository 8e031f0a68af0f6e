"""Recurrent cells in the mean field: the process of one unit, integrated in law.

The pre-activations of a unit, over steps and over two samples, are jointly Gaussian. Their
covariance is that of the input times the input weights, plus that of the states so far times the
recurrent weights, which are the same at every step. So the law of step t follows from the steps
before it: independent units are drawn step by step, each conditional on its own past, and the
second moments of their states give the covariance of the next step. The gradient that arrives at a
state is Gaussian in the same way, and goes back through the units that were drawn.

Two samples a and b are kept as their modes (a + b)/sqrt 2 and (a - b)/sqrt 2, uncorrelated by
symmetry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

# Groups of units, each a mean field of its own; units of a group; units times steps that are used
# where there are few steps; numbers that are kept at most.
_GROUPS, _UNITS, _VISITS, _NUMBERS = 4, 512, 1 << 14, 1 << 23
_SINGULAR = 1e-8  # below this share of its variance a step adds nothing new to those before it


@dataclass(frozen=True)
class Cell:
    """One step of a unit.

    Args:
        inputs, hidden: for each pre-activation the block of rows of the input weights (of the
            recurrent weights) that it reads, None if it reads none.
        odd: whether a change of sign of this pre-activation, together with the others marked and
            the old state, changes the sign of the new state; all their signs are drawn evenly.
        states: number of states a unit keeps; the first is its output.
        step: (pre-activations, old states) -> new states.
        back: (pre-activations, old states, new states, gradient of these) -> the gradients of the
            pre-activations and of the old states along the unit itself.
    """

    inputs: tuple[int | None, ...]
    hidden: tuple[int | None, ...]
    odd: tuple[bool, ...]
    states: int
    step: Callable[[Array, Array], Array]
    back: Callable[[Array, Array, Array, Array], tuple[Array, Array]]


def _lstm(pre: Array, old: Array) -> Array:
    """c' = f c + i g, h' = o tanh(c')."""
    i, f, o = expit(pre[0]), expit(pre[1]), expit(pre[3])
    c = f * old[1] + i * np.tanh(pre[2])
    return np.stack([o * np.tanh(c), c])


def _lstm_back(pre: Array, old: Array, new: Array, d: Array) -> tuple[Array, Array]:
    """Gradients of the four gates' pre-activations, and of c."""
    i, f, g, o = expit(pre[0]), expit(pre[1]), np.tanh(pre[2]), expit(pre[3])
    t = np.tanh(new[1])
    c = d[1] + d[0] * o * (1 - t * t)
    gates = c * g * i * (1 - i), c * old[1] * f * (1 - f), c * i * (1 - g * g)
    return np.stack([*gates, d[0] * t * o * (1 - o)]), np.stack([np.zeros_like(c), c * f])


def _gru(pre: Array, old: Array) -> Array:
    """h' = (1 - z) tanh(x + r y) + z h, with y the recurrent part."""
    r, z = expit(pre[0]), expit(pre[1])
    return np.asarray((1 - z) * np.tanh(pre[2] + r * pre[3]) + z * old)


def _gru_back(pre: Array, old: Array, _: Array, d: Array) -> tuple[Array, Array]:
    """Gradients of both gates' pre-activations, of the two parts of the candidate, and of h."""
    r, z = expit(pre[0]), expit(pre[1])
    n = np.tanh(pre[2] + r * pre[3])
    slope = d[0] * (1 - z) * (1 - n * n)
    update = d[0] * (old[0] - n) * z * (1 - z)
    return np.stack([slope * pre[3] * r * (1 - r), update, slope, slope * r]), d * z


def _tanh_back(_: Array, old: Array, new: Array, d: Array) -> tuple[Array, Array]:
    """Gradient of the pre-activation of a tanh unit."""
    return d * (1 - new * new), np.zeros_like(old)


def _relu_back(pre: Array, old: Array, _: Array, d: Array) -> tuple[Array, Array]:
    """Gradient of the pre-activation of a ReLU unit."""
    return d * (pre > 0), np.zeros_like(old)


_ALL = (0, 1, 2, 3)
CELLS = {
    "lstm": Cell(_ALL, _ALL, (False, False, True, False), 2, _lstm, _lstm_back),
    "gru": Cell((0, 1, 2, None), (0, 1, None, 2), (False, False, True, True), 1, _gru, _gru_back),
    "rnn_tanh": Cell((0,), (0,), (True,), 1, lambda pre, _: np.tanh(pre), _tanh_back),
    "rnn_relu": Cell((0,), (0,), (True,), 1, lambda pre, _: np.maximum(pre, 0.0), _relu_back),
}


class Walk:
    """Gaussian processes of many units, drawn step by step from a covariance that grows.

    The Cholesky factor is extended by a row a step; its inverse is kept for that.
    """

    def __init__(self, noise: Array) -> None:
        """`noise`: independent N(0, 1) numbers [..., steps, units]."""
        self.noise, self.step = noise, 0
        self.inverse = np.zeros((*noise.shape[:-2], noise.shape[-2], noise.shape[-2]))

    def next(self, row: Array) -> Array:
        """The next step [..., units], whose covariances with those so far and itself are `row`."""
        t = self.step
        inverse = self.inverse[..., :t, :t]
        along = (inverse @ row[..., :t, None])[..., 0]
        left = row[..., t] - (along * along).sum(-1)
        pivot = np.sqrt(np.where(left > _SINGULAR * row[..., t], left, 0.0))
        scale = np.divide(1.0, pivot, out=np.zeros_like(pivot), where=pivot > 0)
        self.inverse[..., t, :t] = -scale[..., None] * (along[..., None, :] @ inverse)[..., 0, :]
        self.inverse[..., t, t] = scale
        self.step += 1
        factor = np.concatenate([along, pivot[..., None]], -1)
        return np.asarray((factor[..., None, :] @ self.noise[..., : t + 1, :])[..., 0, :])


@dataclass(frozen=True)
class Units:
    """Second moments of a layer of units over steps, by modes of two samples.

    Args:
        count: number of units.
        mean: E[h_t] [steps].
        gram: E[h_t h_s] of one unit [mode, steps, steps].
        apart: the same of two different units.
    """

    count: int
    mean: Array
    gram: Array
    apart: Array


@dataclass(frozen=True)
class Weights:
    """What the weights of a layer in one direction make of second moments, by pre-activation.

    Args:
        inputs, hidden: E[w^2] and E[w w'] of two weights of a row [pre-activation, 2].
        bias: mean and variance [pre-activation, 2].
    """

    inputs: Array
    hidden: Array
    bias: Array

    def driven(self, x: Units) -> Array:
        """Covariance of the pre-activations without the recurrent part [pre-activation, mode, ...].

        A bias is the same in both samples and at every step.
        """
        same, other = (self.inputs[:, i, None, None, None] for i in (0, 1))
        whole = x.count * (same * x.gram + (x.count - 1) * other * x.apart)
        whole[:, 0] += 2 * self.bias[:, 1, None, None]
        return np.asarray(whole)


@dataclass(frozen=True)
class Path:
    """Units that were drawn: [step, ..., group, sample, unit].

    Args:
        pre: pre-activations [step, pre-activation, ...].
        states: states [step + 1, state, ...], the initial one first.
    """

    cell: Cell
    weights: Weights
    pre: Array
    states: Array

    def units(self, count: int, state: int = 0) -> Units:
        """The moments of a state after each step, for a layer of so many units."""
        return self._moments(self.states[1:, state], count)

    def before(self, count: int) -> Units:
        """The moments of the states that each step reads."""
        return self._moments(self.states[:-1, 0], count)

    @staticmethod
    def _moments(x: Array, count: int) -> Units:
        steps = len(x)
        mean = x.reshape(steps, -1).mean(1)
        modes = _turned(x)
        gram = np.stack([_gram(modes[:, :, m].reshape(steps, -1)) for m in (0, 1)])
        apart = np.stack([2 * np.outer(mean, mean), np.zeros((steps, steps))])
        return Units(count, mean, gram, apart)

    @property
    def error(self) -> float:
        """Relative standard error of the second moment of the output, from the groups."""
        levels = (self.states[1:, 0] ** 2).mean(axis=(0, 2, 3))
        return float(levels.std(ddof=1) / len(levels) ** 0.5 / max(levels.mean(), 1e-300))


def _turned(x: Array) -> Array:
    """Two samples, next to last axis, as their modes; or back."""
    a, b = x[..., 0, :], x[..., 1, :]
    return np.asarray(np.stack([a + b, a - b], -2) / np.sqrt(2))


def _gram(x: Array) -> Array:
    """Mean products of rows."""
    return np.asarray(x @ x.T / x.shape[-1])


def _noise(shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    """N(0, 1) numbers [..., steps, units], of unit second moments exactly where units suffice."""
    x = generator.standard_normal(shape)
    if shape[-2] * 2 > shape[-1]:
        return x
    q = np.linalg.qr(np.swapaxes(x, -1, -2))[0]
    return np.asarray(np.swapaxes(q, -1, -2) * np.sqrt(shape[-1]))


def _mirrored(noise: Array, odd: Array) -> Array:
    """Noise [..., mode, steps, units] four times: as it is, and with what is odd turned round.

    Minus the noise changes the sign of both samples, swapped modes that of one if the two are
    uncorrelated: then means and covariances that vanish by symmetry vanish exactly.
    """
    swapped = np.where(odd, np.flip(noise, -3), noise)
    sign = np.where(odd, -1.0, 1.0)
    return np.concatenate([noise, sign * noise, swapped, sign * swapped], -1)


def run(
    cell: Cell,
    weights: Weights,
    x: Units,
    fan_in: int,
    start: Array,
    generator: np.random.Generator,
) -> Path:
    """Draw units of a recurrent layer over all steps.

    Args:
        cell, weights: the layer.
        x: what it reads.
        fan_in: number of states that the recurrent weights read.
        start: of each initial state the mean and the variances of the two modes [state, 3].
        generator: the source of the draws.
    """
    drive, (p, t) = weights.driven(x), (len(cell.odd), len(x.mean))
    most = _NUMBERS // (_GROUPS * p * 2 * t)
    quarter = max(min(max(_UNITS, _VISITS // t), most) // 4, 32)
    noise = _noise((p, _GROUPS, 2, t, quarter), generator)
    odd = np.reshape(cell.odd, (p, 1, 1, 1, 1))
    walk = Walk(_mirrored(noise, odd))
    begin = _noise((_GROUPS, 2 * cell.states, quarter), generator)
    begin = np.moveaxis(begin.reshape(_GROUPS, cell.states, 2, 1, quarter), 1, 0)
    begin = _mirrored(begin, np.ones((), dtype=bool))[..., 0, :] * np.sqrt(start[:, None, 1:, None])
    states = [_turned(begin) + start[:, :1, None, None]]
    same, other = (fan_in * weights.hidden[:, i] for i in (0, 1))
    units = 4 * quarter
    kept = np.zeros((_GROUPS, 2, t, units))
    means = np.zeros((_GROUPS, t))
    pre = []
    for s in range(t):
        kept[:, :, s] = _turned(states[-1][0])
        means[:, s] = states[-1][0].mean(axis=(1, 2))
        row = (kept[:, :, : s + 1] @ kept[:, :, s, :, None])[..., 0] / units
        row = drive[:, None, :, s, : s + 1] + same[:, None, None, None] * row
        apart = 2 * (fan_in - 1) * means[:, : s + 1] * means[:, s, None]
        row[:, :, 0] += other[:, None, None] * apart
        pre.append(_turned(walk.next(row)) + weights.bias[:, :1, None, None])
        states.append(cell.step(pre[-1], states[-1]))
    return Path(cell, weights, np.stack(pre), np.stack(states))


@dataclass(frozen=True)
class Slopes:
    """Second moments of the gradient, by modes of two samples.

    Args:
        pre: of the pre-activations [pre-activation, mode, steps, steps].
        start: of the initial states [state, mode].
    """

    pre: Array
    start: Array


def back(
    path: Path, arriving: Array, last: Array, fan_out: int, generator: np.random.Generator
) -> Slopes:
    """Send a gradient back through the units that were drawn.

    Args:
        path: the units.
        arriving: second moments of the gradient in the output [mode, steps, steps].
        last: of the gradient in the last states besides [state, mode].
        fan_out: number of units whose pre-activations a state reaches.
        generator: the source of the draws.
    """
    t, p, groups, _, units = path.pre.shape
    reach = fan_out * path.weights.hidden[:, 0, None, None, None]
    noise = _noise((groups, 2, t + 1, units), generator)
    walk = Walk(np.concatenate([noise, np.flip(noise, 1)], -1))  # see `_mirrored`
    outside = np.zeros((2, t + 1, t + 1))
    outside[:, :t, :t] = arriving[:, ::-1, ::-1]
    outside[:, 0, 0] += last[0]
    along = _noise((groups, 2 * len(last), units), generator).reshape(groups, -1, 2, units)
    along = np.moveaxis(np.concatenate([along, np.flip(along, 2)], -1), 1, 0)
    along = _turned(along * np.sqrt(last[:, None, :, None]))
    along[0] = 0.0  # drawn with the output
    kept = np.zeros((p, groups, 2, t, 2 * units))
    for s in range(t + 1):
        row = np.broadcast_to(outside[:, s, : s + 1], (groups, 2, s + 1)).copy()
        if s:
            met = (kept[:, :, :, :s] @ kept[:, :, :, s - 1, :, None])[..., 0] / (2 * units)
            row[..., 1:] += (reach * met).sum(0)
        along[0] += _turned(walk.next(row))
        if s < t:
            drawn = path.pre[t - 1 - s], path.states[t - 1 - s], path.states[t - s]
            gates, old, new = (np.concatenate([x, x], -1) for x in drawn)
            pre, along = path.cell.back(gates, old, new, along)
            kept[:, :, :, s] = _turned(pre)
    gram = (kept @ np.swapaxes(kept, -1, -2)).mean(1) / (2 * units)
    return Slopes(gram[..., ::-1, ::-1], (_turned(along) ** 2).mean(axis=(1, 3)))
