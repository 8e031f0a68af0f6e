"""Small networks drawn and run many times: what every prediction is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from fanin.signal.graph import Graph
from fanin.signal.propagate import Signal, backward, propagate
from fanin.signal.spec import Spec
from fanin.signal.state import Given, Statement
from fanin.torch.tracing.trace import trace


@dataclass(frozen=True)
class Number:
    """A second moment: predicted, the mean of the simulated ones, and its standard error."""

    predicted: float
    measured: float
    error: float

    def agrees(self, errors: float = 4.0, share: float = 0.0) -> bool:
        """Within so many standard errors, or within a stated share of the measured number."""
        return abs(self.predicted - self.measured) <= max(
            errors * self.error, share * self.measured
        )


@dataclass(frozen=True)
class Simulation:
    """A network's prediction beside its simulation.

    Args:
        graph: the traced network.
        signal: the prediction.
        squares: mean square of each value, one a draw.
        slopes: mean square of the gradient in each value, one a draw.
    """

    graph: Graph
    signal: Signal
    squares: Mapping[int, np.ndarray]
    slopes: Mapping[int, np.ndarray]

    def last(self, name: str) -> int:
        """The value that the last operation of this name made first."""
        return [n.outputs[0] for n in self.graph.nodes if n.name == name][-1]

    def forward(self, name: str) -> Number:
        """The second moment of what the last operation of this name made."""
        index = self.last(name)
        return _number(self.signal[index].second_moment, self.squares[index])

    def gradient(self, parameter: str) -> Number:
        """The second moment of a parameter's gradient."""
        found = self.graph.parameter(parameter)
        assert found is not None
        assert found.value is not None
        return _number(self.signal.gradient(parameter), self.slopes[found.value])


def _number(predicted: float, draws: np.ndarray) -> Number:
    return Number(predicted, float(draws.mean()), float(draws.std(ddof=1) / len(draws) ** 0.5))


def simulate(
    model: nn.Module,
    *shapes: tuple[int, ...] | torch.Tensor,
    draws: int = 40,
    scale: float = 1.0,
    variances: Mapping[str, float] | None = None,
) -> Simulation:
    """Predict for weights from N(0, scale / fan_in) and N(0, 1) inputs, and simulate both.

    Vectors (biases, gains) keep their values. A tensor in place of a shape is a fixed input.
    """
    inputs = tuple(torch.randn(s) if isinstance(s, tuple) else s for s in shapes)
    graph = trace(model, tuple(Spec(s) if isinstance(s, tuple) else s for s in shapes))
    spread = {
        n: (variances or {}).get(n, scale / p[0].numel())
        for n, p in model.named_parameters()
        if p.ndim > 1
    }
    statements: dict[str, Statement] = {
        n: Given(variance=spread[n]) if n in spread else p.detach().numpy()
        for n, p in [*model.named_parameters(), *model.named_buffers()]
    }
    fixed = {
        graph.values[i].name: x.numpy()
        for i, x, s in zip(graph.inputs, inputs, shapes, strict=True)
        if isinstance(s, torch.Tensor)
    }
    signal = backward(propagate(graph, statements, fixed))
    generator = torch.Generator().manual_seed(1)
    runs = []
    for seed in range(draws):
        torch.manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in spread:
                    parameter.normal_(0.0, spread[name] ** 0.5, generator=generator)
        given = [torch.randn(s) if isinstance(s, tuple) else s for s in shapes]
        runs.append(_run(graph, model, given))
    squares, slopes = ({i: np.array([r[k][i] for r in runs]) for i in runs[0][k]} for k in range(2))
    return Simulation(graph, signal, squares, slopes)


def _run(
    graph: Graph, model: nn.Module, inputs: list[torch.Tensor]
) -> tuple[dict[int, float], dict[int, float]]:
    """Mean squares of every value and of every gradient in one run of the graph."""
    held: dict[str, Any] = dict(model.named_parameters()) | dict(model.named_buffers())
    tensors: dict[int, torch.Tensor] = dict(zip(graph.inputs, inputs, strict=True))
    for value in graph.values:
        if value.kind in ("parameter", "buffer"):
            tensors[value.index] = held[value.name].detach().clone()
            if value.kind == "parameter":
                tensors[value.index].requires_grad_()
        elif value.kind == "constant":
            tensors[value.index] = torch.from_numpy(np.array(value.data))
    for node in graph.nodes:
        results = node.kernel.on_tensors(*(tensors[i] for i in node.inputs))
        for index, result in zip(node.outputs, results, strict=True):
            tensors[index] = result
            if result.requires_grad:
                result.retain_grad()
    ends = [tensors[i] for i in graph.outputs if tensors[i].requires_grad]
    torch.autograd.backward(ends, [torch.randn_like(y) if y.dim() else None for y in ends])

    def square(tensor: torch.Tensor) -> float:
        return float(tensor.detach().double().pow(2).mean())

    real = {i: t for i, t in tensors.items() if t.is_floating_point() and t.numel()}
    slopes = {i: square(t.grad) for i, t in real.items() if t.grad is not None}
    return {i: square(t) for i, t in real.items()}, slopes
