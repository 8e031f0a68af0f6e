"""The slope of whole networks against compositions written by hand, and what shaping does."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from tests.planning import networks as net
from torch import Tensor, nn

import fanin
from fanin.planning.flow import Flow
from fanin.planning.roles import Scene
from fanin.planning.stretches import plain_stretches
from fanin.torch.tracing.trace import trace

X = 1.1


def scene_of(model: nn.Module, *shape: int) -> Scene:
    return Scene(Flow(trace(model, fanin.spec(shape))))


def at_outputs(scene: Scene, x: float = X) -> float:
    """The slope at the network's output."""
    return scene.slopes(x)[scene.graph.outputs[0]]


class Branches(nn.Module):
    """Chains of different length side by side, concatenated or added, and a head."""

    def __init__(self, lengths: tuple[int, ...], width: int = 16, blocks: int = 1) -> None:
        super().__init__()
        self.total, self.blocks = len(lengths) * width, nn.ModuleList()
        before = width
        for _ in range(blocks):
            chains = nn.ModuleList()
            for n in lengths:
                layers: list[nn.Module] = [nn.Linear(before, width), nn.Softplus()]
                for _ in range(n - 1):
                    layers += [nn.Linear(width, width), nn.Softplus()]
                chains.append(nn.Sequential(*layers))
            self.blocks.append(chains)
            before = self.total
        self.head = nn.Linear(before, 5)

    def forward(self, x: Tensor) -> Tensor:
        for chains in self.blocks:
            x = torch.cat([chain(x) for chain in chains], -1)
        return self.head(x)


class Odd(nn.Module):
    """A residual sum without norm, a gate and a sum of unlike ways, for the rules of slopes."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.a, self.b, self.c = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        match self.kind:
            case "gate":
                return torch.tanh(self.a(x)) * torch.sigmoid(self.b(x))
            case "sum":
                return torch.tanh(self.a(x)) + self.c(torch.tanh(torch.tanh(self.b(x))))
            case "square":
                h = self.a(x)
                return h * h
            case "affine":
                return self.b(2.0 * self.a(x) + 1.0)
            case "norm":
                h = nn.functional.layer_norm(torch.tanh(self.a(x)), (8,))
                return torch.tanh(self.b(h))
            case _:
                raise ValueError(self.kind)


@pytest.mark.parametrize(
    ("kind", "slope"),
    [
        ("gate", None),
        ("sum", (X + X) / 2),  # tanh of tanh is one function of what b makes
        ("square", X),
        ("affine", 1.0),
        ("norm", X),
    ],
)
def test_what_operations_do_to_slopes(kind: str, slope: float | None) -> None:
    scene = scene_of(Odd(kind), 4, 8)
    found = scene.slopes(X).get(scene.graph.outputs[0])
    assert found == (None if slope is None else pytest.approx(slope, rel=1e-12))


@pytest.mark.parametrize("depth", [1, 7, 60])
def test_a_chain_has_its_length(depth: int) -> None:
    scene = scene_of(net.mlp(depth, nn.Tanh()), 4, 20)
    assert at_outputs(scene) == pytest.approx(X**depth, rel=1e-12)
    assert scene.slopes.depth(scene.graph.outputs) == depth


@pytest.mark.parametrize(
    ("lengths", "blocks", "whole"),
    [
        ((1, 3), 1, lambda x: (x + x**3) / 2),
        ((1, 2, 4), 3, lambda x: ((x + x**2 + x**4) / 3) ** 3),
        ((2, 2), 5, lambda x: x**10),
    ],
)
def test_parallel_branches(
    lengths: tuple[int, ...], blocks: int, whole: Callable[[float], float]
) -> None:
    """A head reads the mean over branches; inside the last block the longest may be ahead."""
    scene = scene_of(Branches(lengths, blocks=blocks), 4, 16)
    assert at_outputs(scene) == pytest.approx(whole(X), rel=1e-12)
    (members,) = plain_stretches(scene)
    assert len(members) == blocks * sum(lengths) + 1
    reads = [w.use.data for w in members if w.use is not None and w.use.data is not None]
    longest = max(lengths) - 1  # what the last weight of the longest branch reads

    def largest(x: float) -> float:
        return max(whole(x), whole(x) ** ((blocks - 1) / blocks) * x**longest)

    x = brentq(lambda x: largest(x) - 1.5, 1.0, 1.5, xtol=1e-14)
    expected = math.log(1.5) / math.log(x)
    assert scene.slopes.depth(reads) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("blocks", "inside"), [(1, 1), (4, 2)])
def test_residual_sums_weigh_the_skip_by_the_number_of_branches(blocks: int, inside: int) -> None:
    """A plain chain of 3, n blocks x + f(x) of k activations, a plain chain of 2."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers = [m for _ in range(inside) for m in (nn.Tanh(), nn.Linear(8, 8))]
            self.branch = nn.Sequential(nn.Linear(8, 8), *layers)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.branch(x)

    chains = [[m for _ in range(n) for m in (nn.Linear(8, 8), nn.GELU())] for n in (3, 2)]
    model = nn.Sequential(*chains[0], *(Block() for _ in range(blocks)), *chains[1])
    trunk = ((blocks + X**inside) / (blocks + 1)) ** blocks
    assert at_outputs(scene_of(model, 4, 8)) == pytest.approx(X**5 * trunk, rel=1e-12)


def test_residual_networks_stay_with_second_moments() -> None:
    model = net.resnet(4, norm=False)
    plan = fanin.plan(model, fanin.spec((2, 3, 12, 12)))
    assert {s.kind for s in plan.stretches} == {"residual"}
    assert all(row.rule == "second_moment" for row in plan if "conv" in row.path)


def test_a_deep_network_of_parallel_branches_keeps_signal_and_gradient() -> None:
    """Softplus, 8 blocks of branches of 1 and 4 layers: geometric means of 3 seeds."""
    torch.manual_seed(0)
    model, x = Branches((1, 4), width=96, blocks=8), torch.randn(128, 96)
    found = []
    for seed in range(3):
        plan = fanin.init_(model, x, seed=seed)
        model.zero_grad()
        y = model(x)
        (y * torch.randn(y.shape)).sum().backward()
        first, last = (model.get_parameter(f"blocks.{i}.1.2.weight").grad for i in (0, 7))
        assert first is not None
        assert last is not None
        rows = y.detach()[:64], y.detach()[64:]
        cosine = torch.cosine_similarity(*rows, dim=1).mean().item()
        found.append((y.square().mean().item(), (first.norm() / last.norm()).item(), cosine))
    (stretch,) = plan.stretches
    assert stretch.rule == "shaped"
    signal, gradient = np.exp(np.log(np.array(found)[:, :2]).mean(0))
    assert 0.5 < signal < 2
    assert 0.3 < gradient < 3
    assert np.mean([c for *_, c in found]) < 0.9
    row = plan["blocks.3.0.0.weight"]
    assert row.reason.startswith("reads a mixture - ")
    assert plan["blocks.3.0.0.bias"].centre is not None


def test_where_shaping_has_nothing_to_say_auto_says_so() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(8, 8) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.sigmoid(self.a(x)) * self.b(x))

    plan = fanin.plan(nn.Sequential(*(Gated() for _ in range(12))), fanin.spec((4, 8)))
    assert plan["5.c.weight"].reason.startswith("reads a gated product, E[x^2]")
    assert "gated: shaping has nothing to say of products" in [s.reason for s in plan.stretches]
    residual = fanin.plan(net.resnet(4, norm=False), fanin.spec((2, 3, 12, 12)))
    assert residual.stretches[0].reason.endswith("the skip keeps what shaping would")
