"""What the theory expects at each measured row: the two sweeps of the signal graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from fanin.errors import FaninError
from fanin.planning.parts import taken_out
from fanin.planning.plan import Centre, Plan, Stack, effective
from fanin.signal.graph import Graph, Node
from fanin.signal.propagate import Signal, backward, leaf, propagate, step
from fanin.signal.spec import Spec
from fanin.signal.state import Given, State, Statement
from fanin.signal.table import Table, add
from fanin.torch.calling import unwrap
from fanin.torch.probing.measurement import Layer, Measurement
from fanin.torch.tracing.trace import trace

_SAME = {
    "conv": "convolution",
    "matmul": "mm",
    "iadd": "add",
    "radd": "add",
    "multiply": "mul",
    "imul": "mul",
    "rmul": "mul",
}


def predict(
    model: nn.Module, inputs: Any, measured: Measurement, plan: Plan | None = None
) -> Measurement:
    """The measurement with `predicted` and `predicted_gradient` where the theory speaks.

    *Definition*: second moments propagate from the inputs' through the traced graph, with weights
    independent of the mean and variance that the plan states, or that the model's matrices have;
    vectors enter with their values. Gradients start from the measured one at the outputs.

    Args:
        model: the one that was measured.
        inputs: what it was measured with.
        measured: by `measure`.
        plan: states the weights; the model's own are taken where it does not.

    Returns:
        The same measurement with predictions, or with a note that says why there are none.
    """
    inner, _ = unwrap(model)
    try:
        graph = trace(inner, inputs)
        stated, centres = _statements(inner, plan)
        signal = swept(graph, stated, _given(graph, inputs), centres)
        pairs = _pairs(graph, measured)
        signal = backward(signal, _cotangents(graph, measured, pairs))
    except FaninError as error:
        note = f"no prediction: {error}"
        return replace(measured, notes=(*measured.notes, note))
    layers = tuple(_with(row, pairs.get(row.index), signal) for row in measured.layers)
    return replace(measured, layers=layers)


def _statements(
    model: nn.Module, plan: Plan | None
) -> tuple[dict[str, Statement], dict[str, Centre]]:
    """What is assumed of each tensor, and the means that biases take out of what weights read."""
    stated: dict[str, Statement] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        values = tensor.detach().float() if tensor.is_floating_point() else tensor.detach()
        if isinstance(tensor, nn.Parameter) and tensor.dim() > 1 and tensor.is_floating_point():
            variance, mean = torch.var_mean(values)
            stated[name] = Given(0.0 if mean**2 < variance else float(mean), float(variance))
        else:
            stated[name] = values.cpu().numpy()
    centres: dict[str, Centre] = {}
    for row in plan.rows if plan is not None else ():
        if row.values is not None and not isinstance(row.values, Stack):
            mean, std = effective(row.values, row.shape)
            stated[row.path] = Given(mean, std**2, "independent" if std else "constant")
        if row.centre is not None:
            centres[row.centre.weight] = row.centre
    return stated, centres


def _given(graph: Graph, inputs: Any) -> dict[str, Any]:
    """Inputs by the graph's names for them."""
    leaves = [i for i in tree_leaves(inputs) if isinstance(i, torch.Tensor | Spec)]
    given: dict[str, Any] = {}
    for index, found in zip(graph.inputs, leaves, strict=False):
        value = graph.values[index]
        if isinstance(found, Spec):
            given[value.name] = found
        elif value.data is None:
            plain = found.detach().cpu()
            given[value.name] = (plain.float() if plain.is_floating_point() else plain).numpy()
    return given


def swept(
    graph: Graph,
    stated: Mapping[str, Statement],
    given: Mapping[str, Any],
    centres: Mapping[str, Centre],
) -> Signal:
    """The sweep; where a bias is centred, its weight reads the deviation from the mean."""
    if not centres:
        return propagate(graph, stated, given)
    leaves = (v for v in graph.values if v.kind != "produced")
    states = {v.index: leaf(graph, v, stated, given) for v in leaves}
    for node in graph.nodes:
        read = [graph.parameter(graph.origin(i)) for i in node.inputs]
        weights = [p for p in read if p is not None and p.name in centres]
        seen = states
        if weights and not node.view:
            state, centre = states[node.inputs[0]], centres[weights[0].name]
            axis = len(state.shape) - (len(weights[0].shape) - 1)
            shift = taken_out(state.shape, axis, centre.mean, centre.parts, centre.means)
            table = add(state.table, shift)
            centred = State(table, state.how, ("centred", state.token), roots=state.roots)
            seen = {**states, node.inputs[0]: centred}
        states.update(zip(node.outputs, step(graph, node, seen), strict=True))
    return Signal(graph, states)


def _pairs(graph: Graph, measured: Measurement) -> dict[int, int]:
    """For each row the value of the graph that it measured: same module, operation and shape."""
    waiting: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if node.outputs and not node.view:
            waiting.setdefault(node.path, []).append(node)
    pairs = {}
    for row in measured.layers:
        nodes = waiting.get(_path(row), [])
        found = next((n for n in nodes if _fits(graph, n, row)), None)
        if found is not None:
            pairs[row.index] = found.outputs[0]
            del nodes[: nodes.index(found) + 1]
    return pairs


def _path(row: Layer) -> str:
    """The module that a row's name stands for."""
    base = row.name.partition("#")[0]
    return base.rpartition(":")[0] if ":" in base else "" if base == row.operation else base


def _fits(graph: Graph, node: Node, row: Layer) -> bool:
    operation = row.operation.rstrip("123d") if "conv" in row.operation else row.operation
    kind = "conv" if operation.startswith("conv") else operation
    name = node.op.removeprefix("aten.").partition(".")[0].strip("_")
    same = name in (operation, kind, _SAME.get(kind, kind)) or name.startswith(operation)
    return same and graph.values[node.outputs[0]].shape == row.shape


def _cotangents(
    graph: Graph, measured: Measurement, pairs: Mapping[int, int]
) -> dict[int, Table | float]:
    """The measured gradient at the outputs that took part; none at the others."""
    ends: dict[int, Table | float] = {i: 0.0 for i in graph.outputs if graph.values[i].floating}
    for index in measured.outputs:
        gradient = measured.layers[index].gradient
        value = pairs.get(index)
        same = [i for i in ends if value is not None and graph.origin(i) == graph.origin(value)]
        for end in same:
            ends[end] = gradient or 0.0
    return ends


def _with(row: Layer, value: int | None, signal: Signal) -> Layer:
    """A row with its predictions."""
    if value is None:
        return row
    gradient = signal.gradient(value)
    return replace(row, predicted=signal[value].second_moment, predicted_gradient=gradient or None)
