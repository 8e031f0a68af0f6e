"""A measurement as the rules look at it: levels of depth, branches, how far chance goes."""

from __future__ import annotations

import functools
import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fanin.torch.probing.measurement import Layer, Measurement

LOST = 20 * math.log(2)
"""2^-10 in root mean square, the resolution of half precision, as a log ratio of squares."""
TRAINABLE = 6.0
"""Networks train to a depth of about six depth scales: e^-6 of a second moment is what is left."""
DEVIATIONS = 4.0
"""Standard errors beyond which chance is no explanation."""
KURTOSIS = 5.0
"""Variance of the log second moment that one layer of width n adds: at most 5/n (ReLU)."""
INPUT = -1
"""Stands for the model's input where the index of a row does for others."""
INSIDE = ("pow", "square", "exp")
"""Operations of which norms and softmaxes written by hand are made."""
LINEAR = ("linear", "embedding", "recurrent", "attention")


@dataclass(frozen=True)
class Branch:
    """A residual branch: what was added to the stream, and the weights on its way.

    Args:
        add: the row where it joins.
        skip: the row of the stream that it left; None where that is the model's input.
        end: the row that was added to the stream.
        rows: the branch's rows in order of execution.
    """

    add: Layer
    skip: Layer | None
    end: Layer
    rows: tuple[Layer, ...]

    @functools.cached_property
    def linears(self) -> tuple[Layer, ...]:
        """Rows with weights, first to last."""
        return tuple(row for row in self.rows if row.kind in LINEAR and row.weights)


class View:
    """Derived quantities of one measurement, each computed once."""

    def __init__(self, measurement: Measurement) -> None:
        self.measurement = measurement
        self.layers = measurement.layers
        self.weights = measurement.weights
        self.batch = measurement.batch

    @functools.cached_property
    def trunk(self) -> tuple[Layer, ...]:
        """The rows that the outputs were computed from, in order of execution."""
        wanted = set(self.measurement.outputs) or {row.index for row in self.layers[-1:]}
        for row in reversed(self.layers):
            if row.index in wanted:
                wanted.update(row.parents)
        return tuple(row for row in self.layers if row.index in wanted)

    @functools.cached_property
    def levels(self) -> dict[int, tuple[Layer, ...]]:
        """Rows of the trunk by depth, except what no weight precedes."""
        found: dict[int, list[Layer]] = {}
        for row in self.trunk:
            if row.depth > 0 and not self.inside(row):
                found.setdefault(row.depth, []).append(row)
        return {depth: tuple(found[depth]) for depth in sorted(found)}

    def inside(self, row: Layer) -> bool:
        """Whether a row is the inside of a norm or softmax by hand: squares that feed no weight."""
        return row.operation in INSIDE and "linear" not in self._readers.get(row.index, ())

    @functools.cached_property
    def _readers(self) -> dict[int, set[str]]:
        """The kinds of the rows of the trunk that read a row."""
        readers: dict[int, set[str]] = {}
        for row in self.trunk:
            for parent in row.parents:
                readers.setdefault(parent, set()).add(row.kind)
        return readers

    @functools.cached_property
    def hidden(self) -> tuple[int, ...]:
        """Depths before the output's: a head may have any scale without harm to what precedes."""
        return tuple(self.levels)[:-1]

    @functools.cached_property
    def fluctuation(self) -> float:
        """How far chance takes the log of a second moment over this depth and these widths."""
        widths = [max((r.width for r in self.levels[k]), default=1) for k in self.hidden]
        return DEVIATIONS * math.sqrt(sum(KURTOSIS / n for n in widths))

    @functools.cached_property
    def compares(self) -> bool:
        """Whether the batch tells inputs apart: two samples or more, and not all alike."""
        spreads = [i.spread for i in self.measurement.inputs if i.spread is not None]
        return self.batch > 1 and (not spreads or max(spreads) > 0)

    def signal(self, row: Layer) -> float:
        """What tells inputs apart at a row; the second moment where the batch cannot tell."""
        if self.compares and row.spread is not None:
            return row.spread
        return row.second_moment

    @functools.cached_property
    def input_signal(self) -> float:
        """The same of the inputs; of the first level where the inputs are integers."""
        real = [i for i in self.measurement.inputs if i.second_moment is not None]
        spreads = [i.spread for i in real if i.spread]
        if self.compares and spreads:
            return max(spreads)
        if real and not self.compares:
            return max(i.second_moment or 0.0 for i in real)
        first = next(iter(self.levels.values()), ())
        return max((self.signal(row) for row in first), default=1.0)

    def by_level(self, value: Callable[[Layer], float | None]) -> dict[int, float]:
        """The largest value on each hidden level: a side path may be small, the trunk may not."""
        found = {}
        for depth in self.hidden:
            numbers = [v for v in map(value, self.levels[depth]) if v is not None]
            if numbers:
                found[depth] = max(numbers)
        return found

    def name_at(self, depth: int) -> str:
        """The weight layer that opens a level."""
        rows = self.levels[depth]
        return next((r.name for r in rows if r.kind in LINEAR), rows[0].name)

    @functools.cached_property
    def depth(self) -> int:
        """Weight layers on the longest path."""
        return max(self.levels, default=0)

    @functools.cached_property
    def activations(self) -> str:
        """The activation that the trunk uses most, or an empty string."""
        skipped = ("pow", "square", "exp", "clamp", "cos")
        counted = Counter(
            r.operation for r in self.trunk if r.kind == "activation" and r.operation not in skipped
        )
        return counted.most_common(1)[0][0] if counted else ""

    def gain(self, row: Layer) -> float | None:
        """std * sqrt(fan_in) of the weight of a linear row, by what the operation sums."""
        matrices = [self.weights[w] for w in row.weights if len(self.weights[w].shape) >= 2]
        if not matrices or row.kind != "linear" or row.operation.startswith("conv_transpose"):
            return None
        shape = matrices[0].shape
        if row.operation in ("linear", "bilinear") or row.operation.startswith("conv"):
            fan_in = math.prod(shape[1:])
        else:
            fan_in = shape[-2]
        return matrices[0].std * math.sqrt(fan_in)

    @functools.cached_property
    def branches(self) -> tuple[Branch, ...]:
        """Every residual branch, in order of execution."""
        return tuple(b for b in map(self._branch, self.trunk) if b is not None)

    def _branch(self, add: Layer) -> Branch | None:
        if add.kind != "add" or any(len(rows) > 1 for rows in add.operands):
            return None
        start, end = sorted(rows[0] if rows else INPUT for rows in add.operands)
        if start == end:
            return None
        between = self._between(start, end)
        if start != INPUT and start not in between:
            return None
        rows = tuple(self.layers[i] for i in sorted(between - {start}))
        skip = None if start == INPUT else self.layers[start]
        return Branch(add, skip, self.layers[end], rows)

    def _between(self, start: int, end: int) -> set[int]:
        """Rows from which `end` was computed, back to `start`."""
        wanted, front = {end}, [end]
        while front:
            for parent in self.layers[front.pop()].parents:
                if parent >= start and parent not in wanted:
                    wanted.add(parent)
                    front.append(parent)
        return wanted

    @functools.cached_property
    def streams(self) -> tuple[tuple[Branch, ...], ...]:
        """Branches that join one stream one after the other, with no norm on the stream itself."""
        chains: list[list[Branch]] = []
        for branch in self.branches:
            source = branch.skip
            while source and source.kind == "activation" and len(source.parents) == 1:
                source = self.layers[source.parents[0]]
            home = next((c for c in chains if source and c[-1].add.index == source.index), None)
            if home is None:
                chains.append([branch])
            else:
                home.append(branch)
        return tuple(map(tuple, chains))


def first_persistent(values: dict[int, float], bad: Callable[[float], bool]) -> int | None:
    """The first depth from which every later one is bad; None if the last is not."""
    found = None
    for depth in reversed(tuple(values)):
        if not bad(values[depth]):
            break
        found = depth
    return found


def log_ratio(value: float, reference: float) -> float:
    """ln(value / reference), with the smallest normal double in the place of less."""
    tiny = sys.float_info.min  # denormals may be flushed to 0
    if not math.isfinite(value):
        return math.inf
    return math.log(max(value, tiny)) - math.log(max(reference, tiny))


def rms(log_of_squares: float) -> str:
    """A log ratio of second moments as a ratio of root mean squares, in short."""
    exponent = log_of_squares / 2
    if abs(exponent) > 700:
        return "0" if exponent < 0 else "inf"
    return f"{math.exp(exponent):.2g}"


def listed(names: Sequence[str], most: int = 3) -> str:
    """The first names, and how many more."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
