"""How nonlinear a stretch is as a whole: the slope of its correlation map at 1, from the graph.

If every activation has the slope x there, a chain of L layers has x^L. Side by side, the slope of a
sum or a concatenation is the mean of its parts' slopes, weighted by their share of the variance:
parts of a sum are taken as equally large, parts of a concatenation as large as they are wide; in a
residual sum of n branches the skip counts n and the branch 1, as they are scaled. A norm, an
attention, a product of two signals (of slope 2 at least, whatever its factors do) and an input
start anew at 1. The largest slope over all subnetworks is then that from such a start to some
value, since no slope is below 1; it is the network-wide maximum of deep kernel shaping (Martens et
al. 2021), read from the graph.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property
from typing import NamedTuple

from scipy.optimize import brentq

from fanin.planning.flow import MERGES, Flow
from fanin.planning.streams import Join
from fanin.signal.fuse import Function
from fanin.signal.graph import Node

_AFFINE = frozenset({"add", "sub", "rsub", "neg", "mul", "div", "_to_copy", "clone", "detach"})


class _Step(NamedTuple):
    """How the slope at a value follows: sum of share * slope, times x if an activation acts."""

    value: int
    parts: tuple[tuple[int, float], ...]
    active: bool = False


class Slopes:
    """The slopes of the correlation map at every value of a graph, for a slope x of activations."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow

    def __call__(self, x: float) -> dict[int, float]:
        """The slope at every value that follows from others; 1 elsewhere."""
        slopes: dict[int, float] = {}
        for step in self._steps:
            behind = sum(share * slopes.get(i, 1.0) for i, share in step.parts)
            slopes[step.value] = behind * x if step.active else behind
        return slopes

    def depth(self, values: Iterable[int], zeta: float = 1.5) -> float:
        """The number of layers of a chain that uses a budget up at the same slope x.

        Args:
            values: the ends of subnetworks that count.
            zeta: the budget.

        Returns:
            ln zeta / ln x at the x for which the largest slope at these values is zeta; 0 where
            no activation acts, and never between 0 and 1.
        """
        ends = list(values)

        def excess(t: float) -> float:
            slopes = self(math.exp(t))
            return math.log(max(slopes.get(i, 1.0) for i in ends) / zeta)

        top = math.log(zeta)
        if not ends or excess(top) <= -top * (1 - 1e-12):
            return 0.0
        if excess(top) <= 0:
            return 1.0
        found: float = top / brentq(excess, 0.0, top, xtol=1e-14, rtol=1e-13)
        whole = round(found)
        return float(whole) if abs(found - whole) < 1e-6 else found

    @cached_property
    def _steps(self) -> tuple[_Step, ...]:
        graph = self.flow.graph
        made = (self._step(node, i) for node in graph.nodes for i in node.outputs)
        return tuple(step for step in made if step is not None)

    @cached_property
    def _read(self) -> dict[int, int | None]:
        """For the output of each matrix the value that it multiplies."""
        uses = (u for found in self.flow.uses.values() for u in found)
        return {u.output: u.data for u in uses if u.kind == "matrix"}

    @cached_property
    def _joins(self) -> dict[int, Join]:
        """The residual sums by the value that they make."""
        return {join.node.outputs[0]: join for join in self.flow.streams.joins}

    def _step(self, node: Node, value: int) -> _Step | None:
        """The rule for one value; None where it starts anew."""
        flow = self.flow
        if not flow.graph.values[value].varying or flow.starts_anew(value):
            return None
        if value in flow.matrices:
            data = self._read.get(value)
            return None if data is None else _Step(value, ((data, 1.0),))
        if (join := self._joins.get(value)) is not None:
            n = flow.streams.branches(join.stream)
            return _Step(value, ((join.skip, n / (n + 1)), (join.branch, 1 / (n + 1))))
        function = flow.function(value)
        if not function.trivial:
            return _Step(value, ((function.source, 1.0),), not _is_affine(function))
        operands = flow.data(node)
        if len(operands) > 1 and node.name not in MERGES:
            return None
        sizes = [flow.graph.values[i].size if node.name == "cat" else 1 for i in operands]
        total = sum(sizes)
        parts = zip(operands, sizes, strict=True)
        return _Step(value, tuple((i, size / total) for i, size in parts)) if total else None


def _is_affine(function: Function) -> bool:
    """Whether a fused function only shifts and scales what it reads."""
    inside = {function.source, *(i for n in function.nodes for i in n.outputs)}
    return all(
        n.name in _AFFINE
        and (n.name not in ("mul", "div") or sum(i in inside for i in n.inputs) < 2)
        for n in function.nodes
    )
