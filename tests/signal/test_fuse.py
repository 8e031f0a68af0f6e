"""Fusion: what is one activation, what is a product, what stays a step of a layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fanin
from fanin.errors import ArgumentError
from fanin.signal.fuse import Fusion, fuse
from fanin.signal.graph import from_dict, to_dict
from fanin.torch.tracing.trace import trace

X = np.linspace(-4, 4, 33)


class Model(nn.Module):
    def __init__(self, forward: Callable[[Model, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 16)
        self.scale, self.slope = nn.Parameter(torch.ones(8)), nn.Parameter(torch.ones(()))
        self.prelu, self.written = nn.PReLU(), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.written(self, x)


def fused(forward: Callable[[Model, Tensor], Tensor]) -> Fusion:
    return fuse(trace(Model(forward), fanin.spec((4, 8))))


# Activations as users write them, with torch's own function where it has one.
BY_HAND: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "mish": (lambda h: h * torch.tanh(F.softplus(h)), F.mish),
    "silu": (lambda h: h * torch.sigmoid(h), F.silu),
    "gelu_tanh": (
        lambda h: 0.5 * h * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (h + 0.044715 * h**3))),
        partial(F.gelu, approximate="tanh"),
    ),
    "hardswish": (lambda h: h * (h + 3).clamp(0, 6) / 6, F.hardswish),
    "leaky_relu": (lambda h: torch.where(h > 0, h, 0.01 * h), F.leaky_relu),
    "square": (lambda h: h * h, torch.square),
    "relu squared": (lambda h: F.relu(h) ** 2, lambda h: F.relu(h).square()),
    "sine": (lambda h: torch.sin(30 * h), lambda h: torch.sin(30 * h)),
    "snake": (lambda h: h + torch.sin(h) ** 2, lambda h: h + (1 - torch.cos(2 * h)) / 2),
    "masked": (lambda h: h * (h > 0), F.relu),
    "in place": (lambda h: h.mul(2).relu_().add_(1), lambda h: 1 + F.relu(2 * h)),
    "half precision": (lambda h: torch.tanh(h.half()).float(), torch.tanh),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_an_activation_by_hand_is_one_function(name: str) -> None:
    by_hand, same = BY_HAND[name]
    (f,) = fused(lambda m, x: m.b(by_hand(m.a(x)))).activations
    x = torch.tensor(X, requires_grad=True)
    y = same(x)
    np.testing.assert_allclose(f(X), y.detach().numpy(), rtol=1e-12, atol=1e-14)
    (slope,) = torch.autograd.grad(y.sum(), x)
    away = np.abs(X) > 0.01  # at a kink any slope between the sides is right
    away &= np.abs(np.abs(X) - 3) > 0.01
    np.testing.assert_allclose(f.derivative(X)[away], slope.numpy()[away], rtol=1e-9, atol=1e-12)


MODULES = [
    *(nn.CELU, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh),
    *(nn.LeakyReLU, nn.LogSigmoid, nn.Mish, nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid),
    *(nn.Softplus, nn.Softshrink, nn.Softsign, nn.Tanh, nn.Tanhshrink),
]


@pytest.mark.parametrize("kind", MODULES)
def test_every_activation_of_torch_is_one_function(kind: type[nn.Module]) -> None:
    (f,) = fused(lambda m, x: m.b(kind()(m.a(x)))).activations
    np.testing.assert_allclose(f(X), kind()(torch.tensor(X)).numpy(), rtol=1e-13, atol=1e-15)
    assert f.operands == ()


def test_a_registered_function_is_known_by_its_values() -> None:
    (f,) = fused(lambda m, x: m.b(BY_HAND["mish"][0](m.a(x)))).activations
    assert f.name == "mish"
    assert str(f) == "(x * tanh(softplus(x, 20)))"
    (sine,) = fused(lambda m, x: m.b(torch.sin(30 * m.a(x)))).activations
    assert sine.name is None
    assert not sine.trivial


def test_steps_of_layers_end_an_activation() -> None:
    fusion = fused(lambda m, x: x + m.scale * F.relu(m.a(x) + m.scale))
    assert [str(f) for f in fusion.activations] == ["relu(x)"]
    steps = fused(lambda m, x: m.b(m.a(x) * m.slope + torch.arange(8.0)))
    assert steps.activations == ()


def test_parameters_stay_inside_where_the_function_needs_them() -> None:
    (swish,) = fused(
        lambda m, x: (lambda h: m.b(h * torch.sigmoid(m.slope * h)))(m.a(x))
    ).activations
    assert len(swish.operands) == 1
    np.testing.assert_allclose(swish(X, np.array(2.0)), X / (1 + np.exp(-2 * X)), rtol=1e-13)
    step = 1e-6
    numeric = (swish(X + step, np.array(2.0)) - swish(X - step, np.array(2.0))) / (2 * step)
    np.testing.assert_allclose(swish.derivative(X, np.array(2.0)), numeric, atol=1e-8)
    (prelu,) = fused(lambda m, x: m.b(m.prelu(m.a(x)))).activations
    assert prelu(np.array([-2.0, 3.0]), np.array([0.25])).tolist() == [-0.5, 3.0]
    with pytest.raises(ArgumentError, match="expected the source and 1 operands, got 0 operands"):
        prelu(X)


def test_an_elementwise_function_of_a_parameter() -> None:
    fusion = fused(lambda m, x: m.a(x) * -torch.exp(m.scale))
    (decay,) = fusion.activations
    assert fusion.graph.values[decay.source].name == "scale"
    np.testing.assert_allclose(decay(X), -np.exp(X))


def test_several_readers_of_one_source() -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        h = m.a(x)
        return m.a(F.relu(h)) + m.b(torch.tanh(F.relu(h) + 1)) + h.exp().sum(-1, keepdim=True)

    assert [str(f) for f in fused(forward).activations] == [
        "relu(x)",
        "tanh((relu(x) + 1))",
        "exp(x)",
    ]


def test_a_reduced_value_is_another_source() -> None:
    fusion = fused(lambda m, x: (lambda h: h * torch.sigmoid(h.mean(-1, keepdim=True)))(m.a(x)))
    assert [str(f) for f in fusion.activations] == ["sigmoid(x)"]
    assert not fusion.products[0].independent


def test_random_operations_end_an_activation() -> None:
    fusion = fused(lambda m, x: m.b(F.dropout(F.relu(m.a(x)), 0.1) * 2))
    assert [str(f) for f in fusion.activations] == ["relu(x)", "(x * 2)"]


GLU: dict[str, tuple[Callable[[Model, Tensor], Tensor], str, bool]] = {
    "SwiGLU": (lambda m, x: m.b(F.silu(m.a(x)) * m.b(x)), "(silu(x)) * (y)", True),
    "GEGLU": (
        lambda m, x: (lambda u, v: m.b(u * F.gelu(v)))(*m.c(x).chunk(2, -1)),
        "(x) * (gelu(y))",
        True,
    ),
    "slices": (
        lambda m, x: (lambda h: m.b(h[:, :8] * torch.sigmoid(h[:, 8:])))(m.c(x)),
        "(x) * (sigmoid(y))",
        True,
    ),
    "same weights": (lambda m, x: m.b(m.a(x) * torch.tanh(m.a(x))), "(x) * (tanh(y))", False),
    "a gate on the input": (lambda m, x: x * torch.sigmoid(m.a(x)), "(x) * (sigmoid(y))", False),
}


@pytest.mark.parametrize("name", GLU)
def test_products_of_two_sources(name: str) -> None:
    forward, text, independent = GLU[name]
    (product,) = fused(forward).products
    assert str(product) == text
    assert product.independent is independent
    np.testing.assert_allclose(product.left(X) * 0 + product.right(0.0 * X), product.right(0 * X))


def test_every_value_has_its_function() -> None:
    fusion = fused(lambda m, x: m.b(torch.exp(-(m.a(x) ** 2))))
    texts = [str(fusion.function(v)) for v in fusion.graph.values if v.kind == "produced"]
    assert texts == ["x", "(x ** 2)", "neg((x ** 2))", "exp(neg((x ** 2)))", "x"]
    assert fusion.function(fusion.graph.outputs[0]).trivial


def test_a_graph_from_a_file_keeps_formulas_and_says_that_it_cannot_run() -> None:
    graph = trace(Model(lambda m, x: m.b(torch.tanh(m.a(x)))), fanin.spec((4, 8)))
    (f,) = fuse(from_dict(to_dict(graph))).activations
    assert str(f) == "tanh(x)"
    with pytest.raises(ArgumentError) as caught:
        f(X)
    assert str(caught.value) == (
        "tanh(x): expected a graph from a trace, got one read from a file, whose operations cannot "
        "run"
    )
