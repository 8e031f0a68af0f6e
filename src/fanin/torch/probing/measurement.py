"""What one forward and one backward pass showed: values, without judgement."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Layer:
    """One tensor that a forward pass made, in order of execution, and the gradient it received.

    *Definition*: for n samples y_i of D values each, second_moment = mean y_id^2;
    spread = mean over d of the unbiased variance of y_id over i; distance = spread /
    second_moment = 1 - mean over pairs of <y_i, y_j> / (D second_moment), so that 0 means that
    all inputs give the same tensor; gradient = mean (dL/dy_id)^2 and gradient_sum = their sum.

    Args:
        index: place in the order of execution.
        name: module path, with `:operation` where the module does more than one thing, and
            `#2` from the second call on.
        module: class of the module.
        kind: linear, embedding, attention, recurrent, activation, norm, add or product.
        operation: the function that was called.
        shape: of the tensor.
        dtype: of the tensor.
        depth: weight layers on the longest path from the input.
        parents: indices of the rows that it was computed from.
        operands: of an add or a product, the parents of each operand; the input has none.
        weights: names of the parameters that entered.
        width: number of units.
        second_moment, mean, spread: see above; spread is None where no batch axis is left.
        nonfinite: whether a value is NaN or infinite.
        zero: whether every value is exactly 0.
        dead: share of units whose slope is below 1% of the activation's largest at every sample.
        saturated: share of values where the slope of an activation with flat tails is below 1%
            of its largest; None for others.
        gradient, gradient_sum: see above; None where no gradient arrived.
        slope: d log E[f^2] / d log variance of an activation at the measured input, or None.
        predicted: the second moment that a plan or trace expects, or None.
        predicted_gradient: the gradient's, or None.
    """

    index: int
    name: str
    module: str
    kind: str
    operation: str
    shape: tuple[int, ...]
    dtype: str
    depth: int
    parents: tuple[int, ...]
    operands: tuple[tuple[int, ...], ...] = ()
    weights: tuple[str, ...] = ()
    width: int = 1
    second_moment: float = 0.0
    mean: float = 0.0
    spread: float | None = None
    nonfinite: bool = False
    zero: bool = False
    dead: float | None = None
    saturated: float | None = None
    gradient: float | None = None
    gradient_sum: float | None = None
    slope: float | None = None
    predicted: float | None = None
    predicted_gradient: float | None = None

    @property
    def masked(self) -> bool:
        """Whether it is logits and their mask: a sum whose infinities are all negative."""
        return self.kind == "add" and self.nonfinite and self.mean == -math.inf

    @property
    def distance(self) -> float | None:
        """1 - the correlation of two inputs here; 0 where all inputs look alike."""
        if self.spread is None or self.second_moment == 0:
            return None
        return min(self.spread / self.second_moment, 2.0)

    @property
    def correlation(self) -> float | None:
        """Mean cosine between two different inputs."""
        return None if self.distance is None else 1 - self.distance


@dataclass(frozen=True)
class Weight:
    """One parameter: its values and the gradient that reached it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    trainable: bool
    mean: float
    second_moment: float
    nonfinite: bool
    equal_rows: bool
    """Whether all rows of a matrix are the same, though not all zero."""
    gradient: float | None
    """Mean square of the gradient; None where none arrived."""

    @property
    def std(self) -> float:
        """Standard deviation of the values."""
        return math.sqrt(max(self.second_moment - self.mean**2, 0.0))


@dataclass(frozen=True)
class Input:
    """One tensor that was given to the model."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    second_moment: float | None
    """None for integers."""
    spread: float | None
    """Variance over samples, as in `Layer`; None for integers and a single sample."""
    low: float
    high: float
    nonfinite: bool


@dataclass(frozen=True)
class Loss:
    """The loss at the start, and what a model that knows nothing would have."""

    value: float
    name: str
    expected: float | None = None
    meaning: str = ""
    """What `expected` is, in words."""
    standard_error: float = 0.0
    classes: int | None = None
    logit_second_moment: float | None = None


@dataclass(frozen=True)
class Measurement:
    """All that was measured in one forward and one backward pass.

    Args:
        model: class of the model.
        layers: in order of execution.
        weights: every parameter once.
        inputs: what the model was given.
        batch: number of samples.
        loss: the start loss, or None where a random cotangent stood for it.
        outputs: rows that the outputs were computed from.
        never_called: modules with parameters that took no part, by path.
        never_trains: zero weights that stay zero whatever the others do.
        notes: what was done to measure, in sentences.
    """

    model: str
    layers: tuple[Layer, ...]
    weights: Mapping[str, Weight]
    inputs: tuple[Input, ...]
    batch: int
    loss: Loss | None = None
    outputs: tuple[int, ...] = ()
    never_called: tuple[str, ...] = ()
    never_trains: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())
