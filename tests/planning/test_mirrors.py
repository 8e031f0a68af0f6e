"""Mirrored pairs in real networks: which axes pair up, what is written, where it is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from tests.planning import networks as net
from torch import Tensor, nn

import fanin
from fanin import draw
from fanin.errors import NotCoveredError, PlanError
from fanin.planning.plan import Mirrored, effective, moments
from fanin.planning.store import from_dict, to_dict, values_from_dict
from fanin.theory import rules
from fanin.torch.apply import apply_
from fanin.torch.probing.measure import measure
from fanin.torch.probing.predict import predict
from fanin.torch.writing.write import _write_mirrored, write_


class Square(nn.Module):
    """x^2."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x


class Convolutions(nn.Module):
    """Padded kernels on 6 x 6 maps, then a linear layer on all of it."""

    def __init__(self, depth: int = 40, channels: int = 12) -> None:
        super().__init__()
        sizes = [3, *[channels] * depth]
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(sizes)
        )
        self.head = nn.Linear(channels * 36, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).square()
        return self.head(x.flatten(1))


def opposite(weight: Tensor, axis: int, span: int = 1) -> bool:
    """Whether neighbouring blocks along an axis are each other's negatives."""
    first, second = weight.unflatten(axis, (-1, 2, span)).unbind(axis + 1)
    return torch.equal(first, -second)


def test_a_deep_network_of_squares_is_linear_in_its_pairs() -> None:
    """Outputs are affine in the input: second differences vanish, unlike with independent units."""
    model = net.mlp(60, Square(), width=64)
    plan = fanin.init_(model, fanin.spec((64, 20)))
    assert plan.stretches[0].rule == "mirrored"
    assert "the mean would outweigh the signal" in plan.stretches[0].reason
    state = model.state_dict()
    assert opposite(state["0.weight"], 0)
    assert not opposite(state["0.weight"], 1)
    assert opposite(state["2.weight"], 0)
    assert opposite(state["2.weight"], 1)
    assert opposite(state["120.weight"], 1)
    assert not opposite(state["120.weight"], 0)
    with torch.no_grad():
        g = torch.Generator().manual_seed(0)
        x, d = torch.randn(256, 20, generator=g), torch.randn(20, generator=g)
        model.double()
        left, middle, right = (model((x + t * d).double()) for t in (-1.0, 0.0, 1.0))
    assert (left - 2 * middle + right).abs().max() < 1e-4 * (right - left).abs().mean()
    assert middle.square().mean().item() == pytest.approx(1.0, rel=0.5)  # 10 outputs


def test_the_signal_is_what_the_plan_expects_at_every_layer() -> None:
    model = net.mlp(60, Square(), width=64)
    x = torch.randn(256, 20, generator=torch.Generator().manual_seed(1))
    plan = fanin.init_(model, x, seed=3)
    found = predict(model, x, measure(model, x), plan)
    pairs = [(row.second_moment, row.predicted) for row in found.layers]
    assert sum(p is not None for _, p in pairs) > 100
    assert all(p is None or 0.8 < q / p < 1.25 for q, p in pairs[:-1])


def test_kernels_of_one_tap_do_at_borders_what_they_do_elsewhere() -> None:
    model = Convolutions()
    assert fanin.plan(model, fanin.spec((8, 3, 6, 6))).stretches[0].rule == "shaped"
    plan = fanin.init_(model, fanin.spec((8, 3, 6, 6)), "mirrored")
    row = plan["layers.7.weight"].values
    assert isinstance(row, Mirrored)
    assert isinstance(row.values, draw.DeltaOrthogonal)
    weight = model.layers[7].weight.detach()
    assert opposite(weight, 0)
    assert opposite(weight, 1)
    assert weight.abs().sum((0, 1)).count_nonzero() == 1
    assert opposite(model.head.weight.detach(), 1, span=36)
    with torch.no_grad():
        x = torch.randn(256, 3, 6, 6, generator=torch.Generator().manual_seed(0))
        first = model.layers[0](x)
        z = first
        for layer in list(model.layers)[1:]:
            z = layer(z.square())
        beta = plan["layers.7.bias"].mean
        assert beta is not None
        before, after = ((v - beta).square().mean((0, 1)) for v in (first, z))
        torch.testing.assert_close(after, before, rtol=0.02, atol=0.0)  # position by position
        assert 0.3 < model.head(z.square().flatten(1)).square().mean() < 3


class Taken(nn.Module):
    """Channels in another order between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(60))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).square().unflatten(1, (2, 16)).transpose(1, 2).flatten(1)
        return x


@pytest.mark.parametrize(
    "model",
    [net.mlp(60, Square(), width=63), Taken()],
    ids=["an odd number of units", "units in another order"],
)
def test_units_that_cannot_be_paired_are_shaped(model: nn.Module) -> None:
    inputs = fanin.spec((8, 20 if isinstance(model, nn.Sequential) else 32))
    assert fanin.plan(model, inputs).stretches[0].rule == "shaped"
    with pytest.raises(NotCoveredError) as caught:
        fanin.plan(model, inputs, "mirrored")
    assert str(caught.value).partition("): ")[2] == (
        "expected linear layers or convolutions with biases and even numbers of units, each "
        "reading a function of the one in front, got a stretch whose units cannot be put in "
        "pairs; use 'shaped'"
    )


@pytest.mark.parametrize("f", [nn.ReLU(), nn.GELU(), nn.Tanh(), nn.Softplus()], ids=str)
def test_small_means_stay_with_independent_weights(f: nn.Module) -> None:
    """That of softplus is 5.8 deviations, that of the squares above more than 40."""
    model = net.mlp(100, f, width=64)
    assert fanin.plan(model, fanin.spec((8, 20))).stretches[0].rule == "shaped"


@pytest.mark.parametrize("f", [nn.Sigmoid, nn.GELU, nn.Softplus])
def test_as_asked(f: Callable[[], nn.Module]) -> None:
    """The second moment about beta is that of the operating point, layer by layer."""
    model = net.mlp(20, f(), width=64)
    plan = fanin.init_(model, fanin.spec((8, 20)), {"rule": "mirrored", "zeta": 1.3})
    assert plan.rule == "mirrored(zeta=1.3)"
    beta, variance = rules.mirrored(f(), 20, 1.3).operating_point
    z = torch.randn(512, 20, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for layer in list(model)[:-1]:
            z = layer(z)
            if isinstance(layer, nn.Linear):
                assert (z - beta).square().mean().item() == pytest.approx(variance, rel=0.35)


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize(
    "pattern",
    ["20.weight", "0.weight", "40.weight", "20.bias"],
    ids=["middle", "first", "head", "bias"],
)
def test_a_stretch_with_a_tensor_that_is_left_alone_is_shaped(pattern: str, asked: bool) -> None:
    """Pairs end at a layer that has none: what reads it would get half of the variance."""
    model = net.mlp(20, nn.Sigmoid(), width=64) if asked else net.mlp(60, Square(), width=64)
    pattern = "120.weight" if pattern == "40.weight" and not asked else pattern
    rest = "mirrored" if asked else "auto"
    plan = fanin.plan(model, fanin.spec((8, 20)), {pattern: "keep", "*": rest})
    assert plan[pattern].values is None
    assert plan.stretches[0].rule == "shaped"
    assert not any(isinstance(row.values, Mirrored) for row in plan.rows)
    if asked:
        assert plan.stretches[0].reason.endswith(
            f"; without pairs, since {pattern} is not drawn in them"
        )


def test_the_neighbour_of_a_kept_layer_has_the_intended_variance() -> None:
    """A layer made by the same plan and then kept: the next one's output varies as planned."""
    model = net.mlp(20, nn.Sigmoid(), width=256)
    fanin.init_(model, fanin.spec((8, 20)), {"rule": "shaped"})
    plan = fanin.init_(
        model, fanin.spec((8, 20)), {"20.*": "keep", "*": {"rule": "mirrored"}}, seed=1
    )
    beta, variance = rules.shaped("sigmoid", 20, width=256).operating_point
    z = torch.randn(512, 20, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for layer in model[:23]:
            z = layer(z)
    assert plan["22.weight"].rule == "shaped"
    assert (z - beta).square().mean().item() == pytest.approx(variance, rel=0.2)


# --- the value ------------------------------------------------------------------------------------


VALUES = Mirrored(draw.Normal(0.0, 0.5), ((0, 1), (1, 3)), 1.5)


def test_any_block_is_a_part_of_the_whole() -> None:
    whole = write_(torch.empty(6, 12), VALUES, seed=5, name="w")
    assert opposite(whole, 0)
    assert opposite(whole, 1, span=3)
    for rows, columns in ((slice(1, 4), slice(2, 11)), (slice(5, 6), slice(0, 12))):
        part = torch.empty(whole[rows, columns].shape)
        _write_mirrored(part, VALUES, 5, "w", (6, 12), (rows, columns))
        assert torch.equal(part, whole[rows, columns])
    half = write_(torch.empty(3, 6), VALUES.values, seed=5, name="w")
    assert torch.equal(whole[::2][:, [0, 1, 2, 6, 7, 8]], half)
    narrow = write_(torch.empty(6, 12, dtype=torch.bfloat16), VALUES, seed=5, name="w")
    assert torch.equal(narrow, whole.bfloat16())


def test_moments_are_those_of_the_half() -> None:
    assert moments(VALUES, (6, 12)) == (0.0, 0.5)
    assert effective(VALUES, (6, 12)) == (0.0, 0.5 * 1.5**0.5)
    orthogonal = Mirrored(draw.Orthogonal(2.0), ((0, 1), (1, 1)))
    assert moments(orthogonal, (8, 8)) == (0.0, 1.0)


def test_plans_are_stored() -> None:
    plan = fanin.plan(net.mlp(60, Square()), fanin.spec((8, 20)))
    assert from_dict(to_dict(plan)) == plan
    assert "±orthogonal 0.5" in plan.table(width=140)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"kind": "mirrored", "values": {"kind": "normal"}, "pairs": [[0, 1.5]]},
            "w: expected values, pairs of integers and a coherence, got [(0, 1.5)]",
        ),
        (
            {"kind": "mirrored", "values": {"kind": "stack", "blocks": []}, "pairs": [[0, 1]]},
            "w.values: expected a distribution, got Stack",
        ),
    ],
)
def test_stored_pairs_are_checked(content: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError) as caught:
        values_from_dict(content, "w")
    assert str(caught.value) == message


def test_a_shape_that_has_no_pairs() -> None:
    model = nn.Linear(3, 4)
    plan = fanin.plan(
        model, fanin.spec((2, 3)), {"weight": Mirrored(draw.Normal(), ((1, 1),)), "bias": 0.0}
    )
    with pytest.raises(PlanError, match=r"expected a shape of pairs along \(\(1, 1\),\), got"):
        apply_(model, plan)
    with pytest.raises(ValueError, match=r"write_\(w\): expected pairs along"):
        write_(torch.empty(4, 3), Mirrored(draw.Normal(), ((1, 1),)), seed=0, name="w")
