"""The two sweeps: what they ask for, what they refuse, and what they say of each number."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fanin.errors import ArgumentError, NotCoveredError, UnknownNameError
from fanin.signal.graph import Graph
from fanin.signal.propagate import backward, propagate
from fanin.signal.spec import Spec
from fanin.signal.state import Given
from fanin.torch.tracing.trace import trace


def _linear(shape: tuple[int, ...] = (8, 16)) -> Graph:
    return trace(nn.Linear(16, 4, bias=False), Spec(shape))


def test_a_linear_layer_in_both_directions() -> None:
    signal = backward(propagate(_linear(), {"weight": Given(variance=0.25)}))
    output, weight = signal.graph.outputs[0], signal.graph.parameters[0]
    assert signal[output].second_moment == pytest.approx(16 * 0.25)
    assert signal[output].covariance(0) == 0  # two independent samples
    assert signal.gradient(signal.graph.inputs[0]) == pytest.approx(4 * 0.25)
    assert signal.gradient(weight.name) == pytest.approx(8)
    assert signal.weight_gradients() == {"weight": pytest.approx(8)}


def test_actual_weights_are_measured() -> None:
    weight = np.random.default_rng(0).standard_normal((4, 16))
    weight -= weight.mean(1, keepdims=True)  # rows that do not see a constant input
    signal = propagate(_linear(), {"weight": weight}, {"input": np.ones((8, 16))})
    assert signal[signal.graph.outputs[0]].second_moment == pytest.approx(0, abs=1e-12)


def test_inputs_are_measured_or_assumed() -> None:
    graph = _linear()
    name = graph.values[graph.inputs[0]].name
    given = propagate(graph, {"weight": Given(variance=1.0)}, {name: np.full((8, 16), 3.0)})
    assumed = propagate(graph, {"weight": Given(variance=1.0)})
    assert given[graph.outputs[0]].second_moment == pytest.approx(16 * 9)
    assert given[graph.outputs[0]].covariance(0) == pytest.approx(16 * 9)  # samples alike
    assert assumed[graph.inputs[0]].how == "assumed: N(0, 1)"


def test_cotangents_scale_gradients() -> None:
    signal = propagate(_linear(), {"weight": Given(variance=0.25)})
    output = signal.graph.outputs[0]
    assert backward(signal, {output: 4.0}).gradient("weight") == pytest.approx(32)


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cummax(x, 1).values


def test_an_operation_without_a_rule_is_sampled_and_reported() -> None:
    model = nn.Sequential(nn.Linear(16, 8, bias=False), Odd())
    signal = backward(propagate(trace(model, Spec((64, 16))), {"0.weight": Given(variance=1 / 16)}))
    ((node, how),) = signal.doubts()
    assert node.name == "cummax"
    assert how.startswith("sampled ± ")
    z = np.maximum.accumulate(np.random.default_rng(0).standard_normal((100_000, 8)), 1)
    found = signal[signal.graph.outputs[0]].second_moment
    assert found == pytest.approx((z**2).mean(), rel=0.1)
    assert signal.gradient("0.weight") > 0


def test_an_operation_that_cannot_be_run_is_an_error_with_its_name() -> None:
    graph = trace(nn.Sequential(nn.Linear(16, 8, bias=False), Odd()), Spec((64, 16)))
    nodes = tuple(replace(n, kernel=None) for n in graph.nodes)
    with pytest.raises(NotCoveredError) as caught:
        propagate(replace(graph, nodes=nodes), {"0.weight": Given(variance=1.0)})
    assert str(caught.value) == (
        "signal of aten.cummax.default in 1: expected an operation with a transfer rule, or one "
        "that can be run on samples, got no rule and no kernel; register a rule with "
        "fanin.signal.transfer.forward(name)"
    )


def test_a_parameter_without_a_statement_is_an_error() -> None:
    with pytest.raises(ArgumentError) as caught:
        propagate(_linear(), {})
    assert str(caught.value) == (
        "propagate(parameters): expected a statement for every parameter that an operation reads, "
        "got none for 'weight'; add parameters['weight'] = Given(mean, variance) or its array"
    )


def test_an_array_of_another_shape_is_an_error() -> None:
    with pytest.raises(ArgumentError) as caught:
        propagate(_linear(), {"weight": np.zeros((3, 16))})
    assert str(caught.value) == (
        "propagate(parameters['weight']): expected an array of shape (4, 16), got shape (3, 16)"
    )


def test_unknown_names_and_outputs_are_errors() -> None:
    signal = propagate(_linear(), {"weight": Given(variance=1.0)})
    with pytest.raises(UnknownNameError) as unknown:
        _ = signal["bias"]
    assert str(unknown.value) == (
        "Signal[name]: expected a parameter that an operation reads, got 'bias'"
    )
    with pytest.raises(ArgumentError) as caught:
        backward(signal, {0: 1.0})
    outputs = list(signal.graph.outputs)
    assert (
        str(caught.value) == f"backward(cotangents): expected indices of outputs, {outputs}, got 0"
    )


def test_paths_from_one_gradient_add_slopes() -> None:
    class Square(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x  # two paths of slope x each: 2 x, not sqrt(2) x

    model = nn.Sequential(nn.Linear(16, 16, bias=False), Square())
    signal = backward(propagate(trace(model, Spec((4, 16))), {"0.weight": Given(variance=1 / 16)}))
    made = signal.graph.nodes[0].outputs[0]
    assert signal.gradient(made) == pytest.approx(4.0, rel=1e-6)


def test_residual_branches_add_and_normalised_samples_lose_what_they_share() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm = nn.Linear(16, 32), nn.BatchNorm1d(32)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.layer(x))

    held = {"norm.weight": np.ones(32), "norm.bias": np.zeros(32)}
    held |= {"norm.running_mean": np.zeros(32), "norm.running_var": np.ones(32)}
    graph = trace(Shared(), Spec((8, 16)))
    given = {"layer.weight": Given(variance=1 / 16), "layer.bias": Given(variance=99.0), **held}
    signal = propagate(graph, {**given, "norm.num_batches_tracked": np.array(0)})
    before, after = signal[graph.nodes[0].outputs[0]], signal[graph.outputs[0]]
    assert before.second_moment == pytest.approx(100)
    assert before.covariance(0) == pytest.approx(99)
    assert after.second_moment == pytest.approx(1, rel=1e-4)
    assert after.covariance(0) == pytest.approx(-1 / 7, rel=1e-3)  # 8 samples that sum to zero
