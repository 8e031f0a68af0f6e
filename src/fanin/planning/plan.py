"""The plan as a value: one row for each parameter and buffer, and how it prints and compares."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from fanin import draw
from fanin.errors import ArgumentTypeError, PlanError
from fanin.planning.names import near

Kind = Literal["parameter", "buffer", "parametrized"]
LEFT_ALONE = "left alone"


@dataclass(frozen=True)
class Stack:
    """Distributions for consecutive blocks of a tensor's first axis, such as the gates of an LSTM.

    Args:
        blocks: for each block its number of rows and its distribution.
    """

    blocks: tuple[tuple[int, draw.Distribution], ...]


@dataclass(frozen=True)
class Mirrored:
    """A tensor whose entries along some axes come in pairs of opposite sign.

    *Definition*: along an axis of `pairs` with span n, consecutive blocks of n entries pair up:
    block 2k + 1 is minus block 2k. What is drawn is a tensor of half the size along each such axis.

    Args:
        values: what the half is drawn from.
        pairs: for each mirrored axis its number and its span.
        coherence: how much more variance the pairs give an output than independent weights would:
            E[(x - x')^2] / (2 Var x) over the pairs of inputs (x, x').

    Example:
        >>> Mirrored(draw.Normal(), ((0, 1), (1, 1))).half((4, 6))
        (2, 3)
    """

    values: draw.Distribution
    pairs: tuple[tuple[int, int], ...]
    coherence: float = 1.0

    def half(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of what is drawn."""
        halved = {axis for axis, _ in self.pairs}
        return tuple(n // 2 if axis in halved else n for axis, n in enumerate(shape))

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of this shape is made of such pairs."""
        axes = [axis for axis, _ in self.pairs]
        inside = all(0 <= axis < len(shape) for axis in axes) and len(set(axes)) == len(axes)
        return inside and all(n > 0 and shape[axis] % (2 * n) == 0 for axis, n in self.pairs)


Values = draw.Distribution | Stack | Mirrored


@dataclass(frozen=True)
class Centre:
    """What cancels the mean of what a layer reads: a part of its bias, or sums of weights at zero.

    *Definition*: of a bias, b_i = (drawn value)_i - mean * sum_j W_ij, the sum over the weight as
    stored. Of a weight itself (`weight` is the row's own path), at every tap t the n inputs of a
    unit sum to zero: W_ijt = (n/(n-1))^(1/2) (drawn_ijt - sum_k drawn_ikt / n). That takes a mean
    out also where taps fall on zero padding, which a bias cannot. Where the inputs are several
    activations side by side, the sum over each part is zero, n its size: that takes each part's
    own mean out. A bias then is b_i = (drawn value)_i - sum_p mean_p sum_(j in p) W_ij.

    Args:
        weight: path of W.
        mean: m, the mean of one element of what the layer reads.
        axes: meaning of the axes of W, words of `in`, `out`, `tap`, `expert`.
        groups: groups of channels in W.
        shared_by: neighbouring positions that share the taps of a transposed convolution.
        parts: how many inputs each part has, in order; empty where all have one mean.
        means: the mean of each part.
    """

    weight: str
    mean: float
    axes: str = "out in"
    groups: int = 1
    shared_by: int = 1
    parts: tuple[int, ...] = ()
    means: tuple[float, ...] = ()


@dataclass(frozen=True)
class Row:
    """What one parameter or buffer gets, and why.

    Args:
        path: its first name in the model.
        shape: the whole (unsharded) shape.
        role: what it does in the network: "hidden", "branch end", "head", "bias", ....
        rule: the rule that decided, or "left alone".
        reason: one line.
        values: the distribution that is drawn; None where it is left alone.
        names: every name that reaches a tied tensor.
        kind: "parameter", "buffer", or "parametrized" for a weight computed from others.
        dtype: as the model holds it.
        fan_in: terms in one output; None where it has no meaning.
        fan_out: outputs that one input enters.
        counted: how the fans were counted.
        centre: what a bias subtracts beside its drawn value, or that a weight's sums are zero.
        exactness: how the numbers were obtained: "closed form", "quadrature", "sampled",
            "assumed"; empty where no number was needed.
        lr: factor on the learning rate that the rule asks for.
    """

    path: str
    shape: tuple[int, ...]
    role: str
    rule: str
    reason: str
    values: Values | None = None
    names: tuple[str, ...] = ()
    kind: Kind = "parameter"
    dtype: str = "float32"
    fan_in: float | None = None
    fan_out: float | None = None
    counted: str = ""
    centre: Centre | None = None
    exactness: str = ""
    lr: float = 1.0

    @property
    def mean(self) -> float | None:
        """Mean of an element; None where it is left alone."""
        return None if self.values is None else moments(self.values, self.shape)[0]

    @property
    def std(self) -> float | None:
        """Standard deviation of an element; None where it is left alone."""
        return None if self.values is None else moments(self.values, self.shape)[1]


@dataclass(frozen=True)
class Stretch:
    """A run of weights that were decided together.

    Args:
        weights: their paths, in the order of the signal.
        kind: "plain" without norm or skip, "residual", "gated", "attention", "recurrent".
        rule: the rule that was chosen.
        reason: why that one, in one sentence.
    """

    weights: tuple[str, ...]
    kind: str
    rule: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """What every parameter of a model gets before the first step, as a value.

    A plan names tensors by path and full shape, so it applies to the same model on any device and
    under any sharding.

    Args:
        rows: one for each parameter and buffer, in the model's order.
        rule: what was asked for.
        stretches: what `auto` chose, where it chose.
        notes: what the reader must know: fallbacks, assumptions about inputs.
        stream: version of the random streams that the plan is drawn with.
        seed: what it was drawn with; None until it has been written.

    Example:
        >>> row = Row("fc.weight", (2, 4), "hidden", "lecun", "reads the input",
        ...           draw.Normal(0.0, 0.5), fan_in=4, fan_out=2)
        >>> print(Plan((row,), rule="lecun").table(width=72))
        path       shape  role    fans   rule   values     why
        fc.weight  2x4    hidden  4 > 2  lecun  N(0, 0.5)  reads the input
    """

    rows: tuple[Row, ...]
    rule: str
    stretches: tuple[Stretch, ...] = ()
    notes: tuple[str, ...] = ()
    stream: int = draw.STREAM_VERSION
    seed: int | None = None

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, path: str) -> Row:
        """The row of a parameter or buffer, by any of its names."""
        for row in self.rows:
            if path == row.path or path in row.names:
                return row
        known = [name for row in self.rows for name in (row.path, *row.names)]
        raise PlanError(f"plan[{path!r}]", expected="a path of the plan", fix=near(path, known))

    @property
    def left_alone(self) -> dict[str, str]:
        """Path and reason of everything that is not written."""
        return {row.path: row.reason for row in self.rows if row.values is None}

    @property
    def lr_multipliers(self) -> dict[str, float]:
        """For each parameter the factor on its learning rate."""
        return {row.path: row.lr for row in self.rows if row.kind != "buffer"}

    def diff(self, other: Plan) -> Diff:
        """What differs in `other`: rows added, removed, changed."""
        if not isinstance(other, Plan):
            raise ArgumentTypeError(
                "plan.diff(other)",
                expected="a Plan",
                got=type(other).__name__,
                fix="read a file with fanin.load_plan",
            )
        mine, theirs = ({row.path: row for row in plan.rows} for plan in (self, other))
        changed = {
            path: {
                f.name: (getattr(row, f.name), getattr(theirs[path], f.name))
                for f in fields(Row)
                if getattr(row, f.name) != getattr(theirs[path], f.name)
            }
            for path, row in mine.items()
            if path in theirs and row != theirs[path]
        }
        return Diff(
            added=tuple(p for p in theirs if p not in mine),
            removed=tuple(p for p in mine if p not in theirs),
            changed=changed,
        )

    def save(self, path: str | Path) -> Path:
        """Write the plan as YAML (.yaml, .yml) or JSON (.json); see `fanin.planning.store`."""
        from fanin.planning.store import save

        return save(self, path)

    def table(self, width: int | None = None, *, every_row: bool = False) -> str:
        """The plan as text no wider than `width` (the terminal's); alike rows share a line."""
        from fanin.planning.table import table

        return table(self, width, every_row=every_row)

    def __str__(self) -> str:
        return self.table()


@dataclass(frozen=True)
class Diff:
    """What differs between two plans; empty (and false) where nothing does.

    Args:
        added: paths only in the second.
        removed: paths only in the first.
        changed: for each path the fields that differ, as (first, second).
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: Mapping[str, Mapping[str, tuple[object, object]]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    def __str__(self) -> str:
        lines = [f"- {path}" for path in self.removed] + [f"+ {path}" for path in self.added]
        for path, values in self.changed.items():
            lines.append(f"~ {path}")
            lines += [f"    {name}: {a} > {b}" for name, (a, b) in values.items()]
        return "\n".join(lines) or "no difference"


def moments(values: Values, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and standard deviation of one element of a tensor drawn so."""
    if isinstance(values, Stack):
        total = sum(rows for rows, _ in values.blocks)
        parts = [(rows / total, *moments(d, (rows, *shape[1:]))) for rows, d in values.blocks]
        mean = sum(share * m for share, m, _ in parts)
        second = sum(share * (m * m + s * s) for share, m, s in parts)
        return mean, math.sqrt(max(0.0, second - mean * mean))
    if isinstance(values, Mirrored):
        mean, std = moments(values.values, values.half(shape))
        return 0.0, math.hypot(mean, std)
    if isinstance(values, draw.Constant):
        return values.value, 0.0
    if isinstance(values, draw.Rademacher):
        return 0.0, values.scale
    if isinstance(values, draw.Orthogonal | draw.DeltaOrthogonal):
        return 0.0, _orthogonal_std(values, shape)
    return values.mean, values.std


def effective(values: Values, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and std of independent weights that would give an output the same mean and variance."""
    mean, std = moments(values, shape)
    return mean, std * math.sqrt(values.coherence) if isinstance(values, Mirrored) else std


def _orthogonal_std(
    values: draw.Orthogonal | draw.DeltaOrthogonal, shape: tuple[int, ...]
) -> float:
    """Root mean square of an element: gain / sqrt(the longer side of each matrix)."""
    start = values.batch_dims if isinstance(values, draw.Orthogonal) else 0
    if len(shape) < start + 2:
        raise PlanError("moments", expected=f"a matrix behind {start} axes", got=f"shape {shape}")
    rows, columns = shape[start] // values.groups, math.prod(shape[start + 1 :])
    if isinstance(values, draw.DeltaOrthogonal):  # all but one tap are zero
        taps = math.prod(shape[2:])
        columns //= taps
        return _side(values.keep, values.gain, rows, columns) / math.sqrt(taps)
    return _side(values.keep, values.gain, rows, columns)


def _side(keep: str, gain: float, rows: int, columns: int) -> float:
    return gain / math.sqrt(columns if keep == "second_moment" else max(rows, columns))
