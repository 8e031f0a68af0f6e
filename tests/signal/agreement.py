"""Predicted states beside measured ones, for one model: the harness behind the coverage table.

Weights are drawn from N(0, scale / fan_in); the traced graph is run on them as torch operations, so
that each value of the graph is measured, forward and backward, and compared with its prediction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from fanin.signal.graph import Graph, Node
from fanin.signal.propagate import Signal, backward, propagate
from fanin.signal.state import Given
from fanin.torch.trace import trace

SEEDS = 5


@dataclass
class Agreement:
    """One model's comparison: (predicted, measured mean, its standard error, description) rows."""

    name: str
    signal: Signal
    forward: list[tuple[float, float, float, str]] = field(default_factory=list)
    weights: list[tuple[float, float, float, str]] = field(default_factory=list)
    output_gap: float = 0.0

    def within(self, rows: str = "forward", share: float = 0.10, errors: float = 4.0) -> float:
        """Share of rows within `share` or `errors` standard errors."""
        good = [
            abs(p - m) <= max(share * m, errors * e) for p, m, e, _ in getattr(self, rows)
        ]
        return float(np.mean(good)) if good else 1.0

    def factor(self, rows: str = "forward", limit: float = 1.5) -> float:
        """Share of rows within a factor."""
        good = [
            max(p, m) <= limit * min(p, m) or abs(p - m) <= 4 * e
            for p, m, e, _ in getattr(self, rows)
        ]
        return float(np.mean(good)) if good else 1.0

    def __str__(self) -> str:
        kinds = [s.how.split(" ")[0].rstrip(":") for s in self.signal.states.values()]
        how = ", ".join(f"{k} {kinds.count(k)}" for k in sorted(set(kinds)))
        return (
            f"{self.name:18s} {len(self.forward):5d} values: {self.within():7.2%} within 10%, "
            f"{self.factor():7.2%} within x1.5; {len(self.weights):3d} weight gradients: "
            f"{self.factor('weights'):7.2%} within x1.5  [{how}]"
        )

    def worst(self, rows: str = "forward", count: int = 12) -> str:
        """The rows in execution order that miss 10% (or the factor), first ones first."""
        limit = 0.10 if rows == "forward" else 0.5
        bad = [r for r in getattr(self, rows) if abs(r[0] - r[1]) > max(limit * r[1], 4 * r[2])]
        return "\n".join(
            f"  predicted {p:.4g} measured {m:.4g} ± {e:.2g}: {d}" for p, m, e, d in bad[:count]
        )


def fan_in(weight: torch.Tensor, module: nn.Module) -> int:
    """Terms that reach one output, by the layer's kind (the harness's own plain count)."""
    if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d)):
        stride = int(np.prod(module.stride))
        return max(weight.shape[0] // module.groups * weight[0, 0].numel() // stride, 1)
    if isinstance(module, nn.Embedding):
        return weight.shape[1]
    if type(module).__name__ == "Conv1D":
        return weight.shape[0]
    return int(weight[0].numel())


def draw(model: nn.Module, seed: int, scale: float) -> dict[str, Any]:
    """Draw matrices and kernels in place; return the statement of every parameter and buffer."""
    generator = torch.Generator().manual_seed(seed)
    statements: dict[str, Any] = {}
    owners = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        owner = owners[name.rpartition(".")[0]] if "." in name else model
        if parameter.ndim >= 2 and not getattr(parameter, "_kept", False):
            variance = scale / fan_in(parameter, owner)
            with torch.no_grad():
                parameter.normal_(0.0, variance**0.5, generator=generator)
            statements[name] = Given(variance=variance)
        else:
            statements[name] = parameter.detach().double().numpy()
    for name, buffer in model.named_buffers():
        statements[name] = buffer.detach().cpu().numpy()
    return statements


def replayed(node: Node, tensors: list[torch.Tensor]) -> tuple[Any, ...]:
    """A node's operation on torch tensors, without changing them."""
    replay = node.kernel
    tensors = [t.clone() for t in tensors] if replay.written else tensors
    waiting = iter(tensors)

    def filled(template: Any) -> Any:
        if type(template).__name__ == "Slot":
            return next(waiting)
        if isinstance(template, (tuple, list)):
            return [filled(t) for t in template]
        return template

    try:
        result = replay.function(**{k: filled(a) for k, a in replay.arguments.items()})
    except NotImplementedError:  # no kernel for this type here: an operation on integers
        results = node.kernel(*(t.detach().numpy() for t in tensors))
        return tuple(torch.from_numpy(np.asarray(r)).to(tensors[0].dtype) for r in results)
    if replay.written:
        return tuple(tensors[i] for i in replay.written)
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def run(
    graph: Graph, model: nn.Module, inputs: list[torch.Tensor], seed: int
) -> tuple[dict[int, float], dict[int, float], list[torch.Tensor]]:
    """Second moments of every value and of every gradient, on the model's present weights."""
    torch.manual_seed(seed)
    tensors: dict[int, torch.Tensor] = {}
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    waiting = iter(inputs)
    for value in graph.values:
        if value.kind == "input":
            tensors[value.index] = next(waiting)
        elif value.kind in ("parameter", "buffer"):
            tensor = named[value.name].detach().clone()
            tensors[value.index] = (
                tensor.requires_grad_() if value.kind == "parameter" else tensor
            )
        elif value.kind == "constant":
            tensors[value.index] = torch.from_numpy(np.array(value.data)).to(
                getattr(torch, value.dtype)
            )
    for node in graph.nodes:
        results = replayed(node, [tensors[i] for i in node.inputs])
        for index, result in zip(node.outputs, results, strict=True):
            tensors[index] = result
            if result.requires_grad and not result.is_leaf:
                result.retain_grad()
    outputs = [tensors[i] for i in graph.outputs]
    loss = torch.zeros(())
    for y in outputs:
        if y.is_floating_point() and y.requires_grad:
            loss = loss + (y if y.numel() == 1 else y * torch.randn_like(y)).sum()
    if loss.requires_grad:
        loss.backward()
    square = {}
    for i, t in tensors.items():
        if t.is_floating_point() and t.numel():
            square[i] = float(t.detach().double().pow(2).mean())
    grads = {
        i: float(t.grad.double().pow(2).mean()) for i, t in tensors.items()
        if t.is_floating_point() and t.grad is not None
    }  # fmt: skip
    return square, grads, outputs


def agreement(
    name: str,
    build: Callable[[], nn.Module],
    inputs: tuple[Any, ...] | dict[str, Any],
    scale: float = 1.0,
    seeds: int = SEEDS,
) -> Agreement:
    """Compare prediction and measurement on one model."""
    torch.manual_seed(0)
    model = build()
    graph = trace(model, inputs)
    signal = backward(propagate(graph, draw(model, 0, scale)))
    found = Agreement(name, signal)
    runs = []
    given = list(inputs.values()) if isinstance(inputs, dict) else list(inputs)
    for seed in range(seeds):
        draw(model, seed, scale)
        square, grads, outputs = run(graph, model, given, seed)
        runs.append((square, grads))
        if seed == 0 and not any(n.random for n in graph.nodes):
            found.output_gap = _gap(model, inputs, outputs)
    for value in graph.values:
        if value.kind != "produced" or not value.floating or not value.varying:
            continue
        rows = np.array([r[0].get(value.index, np.nan) for r in runs])
        if not np.isfinite(rows).all() or rows.mean() == 0 or rows.mean() > 1e30:
            continue
        node = graph.nodes[value.producer]
        found.forward.append(_row(signal.states[value.index].second_moment, rows, f"{node}"[:160]))
    for p in graph.parameters:
        if p.kind == "parameter" and p.value is not None and len(p.shape) >= 2:
            rows = np.array([r[1].get(p.value, np.nan) for r in runs])
            if np.isfinite(rows).all() and rows.mean() > 0:
                found.weights.append(_row(signal.gradient(p.name), rows, p.name))
    return found


def _row(predicted: float, rows: np.ndarray, text: str) -> tuple[float, float, float, str]:
    """A prediction beside the mean and the standard error over seeds."""
    error = float(rows.std(ddof=1) / np.sqrt(len(rows))) if len(rows) > 1 else 0.0
    return predicted, float(rows.mean()), error, text


def _gap(model: nn.Module, inputs: Any, outputs: list[torch.Tensor]) -> float:
    """How far the graph's run is from the model's own, relative."""
    with torch.no_grad():
        real = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    while not isinstance(real, torch.Tensor):
        real = next(iter(real.values() if hasattr(real, "values") else real))
    mine = outputs[0].detach()
    return float((real - mine).norm() / real.norm()) if mine.shape == real.shape else float("nan")
