"""Deviations of two positions' kernel from its mean, which gradients and inputs have in common."""

from __future__ import annotations

from collections.abc import Callable
from math import pi

import numpy as np
import pytest
import torch
from tests.signal.simulation import Simulation, simulate
from torch import Tensor, nn

from fanin.signal.deviation import Field, _moment, forward
from fanin.signal.table import Table

SPACE = 96
BOUND = 0.05 + 1 / 16  # one axis of taps, no fewer than 16 channels
FAR = range(6, SPACE, 14)  # no two of these places see one place of the input


def conv(inputs: int, outputs: int, taps: int = 3, step: int = 1) -> nn.Conv1d:
    """A convolution that keeps the places."""
    return nn.Conv1d(inputs, outputs, taps, padding=taps // 2 * step, dilation=step, bias=False)


def norm(width: int, scale: float = 1.0, shift: float = 0.0) -> nn.BatchNorm1d:
    """A batch norm with this gain and bias in all channels."""
    found = nn.BatchNorm1d(width)
    nn.init.constant_(found.weight, scale)
    nn.init.constant_(found.bias, shift)
    return found


class Mean(nn.Module):
    """The average over places."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(-1)


class Sum(nn.Module):
    """What several branches make of one tensor, added up."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        first, second = (branch(x) for branch in self.branches)
        return first + second


class Less(Sum):
    """The difference of two branches."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = (branch(x) for branch in self.branches)
        return first - second


class Gated(nn.Module):
    """A convolution, times a gate for each channel that a second input makes, and what follows."""

    def __init__(self, inputs: int, width: int, *after: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        self.first, self.gate = conv(inputs, width), nn.Linear(64, width, bias=False)
        self.after, self.scale = nn.Sequential(*after), scale

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        gate = torch.sigmoid(self.scale * self.gate(y)).unsqueeze(-1)
        return self.after(self.first(x) * gate)


# --- forward: the kernel itself ------------------------------------------------------------------


def measured(simulation: Simulation, model: nn.Module, shapes: list[tuple[int, ...]],
             wanted: Callable[[int], bool], draws: int) -> dict[int, np.ndarray]:  # fmt: skip
    """For each wanted value the variance of the kernel of far rows, one a draw.

    What a row has in common with all others is no deviation of a pair. Over n rows, with A the
    kernel less its mean and without its diagonal, the variance of a pair is that of an entry, less
    twice the covariance of two entries in one row, plus that of entries in no common row.
    """
    graph, held = simulation.graph, dict(model.named_parameters()) | dict(model.named_buffers())
    generator, kernels = torch.Generator().manual_seed(2), {}
    for seed in range(draws):
        torch.manual_seed(seed)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
        values = dict(zip(graph.inputs, map(torch.randn, shapes), strict=True))
        for value in graph.values:
            if value.kind in ("parameter", "buffer"):
                values[value.index] = held[value.name].detach()
            elif value.kind == "constant":
                values[value.index] = torch.from_numpy(np.array(value.data))
        for node in graph.nodes:
            results = node.kernel.on_tensors(*(values[i] for i in node.inputs))
            values.update(zip(node.outputs, results, strict=True))
        for index in filter(wanted, values):
            x = values[index][..., list(FAR)].double()
            gram = torch.einsum("nca,ncb->nab", x, x).numpy() / x.shape[1]
            kernels.setdefault(index, []).append(gram)
    apart = ~np.eye(len(FAR), dtype=bool)
    return {i: _pairs(np.stack(k), apart) for i, k in kernels.items()}


def _pairs(kernel: np.ndarray, apart: np.ndarray) -> np.ndarray:
    n = len(apart)
    a = (kernel - kernel[..., apart].mean()) * apart
    squares, rows = (a**2).sum((-1, -2)), a.sum(-1)
    beside = (rows**2).sum(-1) - squares
    nowhere = rows.sum(-1) ** 2 - 4 * beside - 2 * squares
    found = squares / (n * (n - 1)) - 2 * beside / (n * (n - 1) * (n - 2))
    return (found + nowhere / (n * (n - 1) * (n - 2) * (n - 3))).mean(-1)


def variance(field: Field) -> float:
    """The variance that a field over one axis says."""
    return sum(
        c * d * (1 + 2 * pi * (u + v)) ** -0.5
        for (source, u), c in field.items()
        for (other, v), d in field.items()
        if source == other
    )


KERNELS = {
    "convolutions": nn.Sequential(conv(16, 32), conv(32, 48, 5)),
    "one tap": nn.Sequential(conv(16, 32, 1), conv(32, 48, 1)),
    "dilated": nn.Sequential(conv(16, 32), conv(32, 48, 3, 2)),
    "activations": nn.Sequential(conv(16, 32), nn.ReLU(), conv(32, 48), nn.Tanh()),
    "norm": nn.Sequential(conv(16, 32), nn.ReLU(), conv(32, 48), norm(48, 2.0, 0.7)),
    "sum": nn.Sequential(conv(16, 32), Sum(nn.Identity(), conv(32, 32))),
    "difference": nn.Sequential(conv(16, 32), Less(nn.Identity(), conv(32, 32))),
    "residual": nn.Sequential(
        conv(16, 32), Sum(nn.Identity(), nn.Sequential(norm(32), nn.ReLU(), conv(32, 32)))
    ),
    "steady gate": Gated(16, 32, scale=0.1),
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_of_far_rows_deviate_as_fields_say(name: str) -> None:
    model = KERNELS[name]
    shapes = [(4, 16, SPACE)] + [(4, 64)] * (name == "steady gate")
    simulation = simulate(model, *shapes, draws=2)
    fields = forward(simulation.graph, simulation.signal.states)
    found = measured(simulation, model, shapes, fields.__contains__, 60)
    wide = [v.index for v in simulation.graph.values if v.varying and v.shape[2:] == (SPACE,)]
    assert sorted(fields) == wide
    for index, drawn in found.items():
        error = 4 * drawn.std(ddof=1) / len(drawn) ** 0.5
        bound = BOUND * drawn.mean()
        assert abs(variance(fields[index]) - drawn.mean()) <= max(error, bound), index


def test_taps_average_deviations_within_the_stated_share() -> None:
    """Weights of equal taps, one layer behind the other, against the sum of their squares."""
    for sizes in [(2,), (3,), (7,), (31,), (2, 2), (3, 3), (5, 11), (2, 5, 11), (3,) * 4]:
        weights = np.ones(1)
        for size in sizes:
            weights = np.convolve(weights, np.full(size, 1 / size))
        v = sum((size**2 - 1) / 12 for size in sizes)
        field = {(("input", 0), v): 1.0}
        assert variance(field) == pytest.approx((weights**2).sum(), rel=0.05), sizes


ELSEWHERE = {
    "groups": nn.Conv1d(32, 32, 3, padding=1, groups=4, bias=False),
    "stride": nn.Conv1d(32, 32, 3, stride=2, padding=1, bias=False),
    "transposed": nn.ConvTranspose1d(32, 32, 3, padding=1, bias=False),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_other_grids_and_groups_of_channels_start_anew(name: str) -> None:
    model = nn.Sequential(conv(16, 32), ELSEWHERE[name])
    simulation = simulate(model, (2, 16, SPACE), draws=1)
    (out,) = simulation.graph.outputs
    (key,) = forward(simulation.graph, simulation.signal.states)[out]
    assert key == (("made", simulation.graph.nodes[-1].index), 0.0)


@pytest.mark.parametrize("rho", [0.0, 0.4, 0.8])
def test_slopes_of_rows_that_are_alike_already(rho: float) -> None:
    """ReLU: E[f(u) f(v)] of arc-cosine, whose slope is E[f'(u) f'(v)] of arc-sine."""
    shape = (4, 8, 16)
    latent = Table.iid(shape)
    pairs = latent.pairs.copy()
    pairs[0, 0, 1] = rho
    latent = Table(latent.dims, latent.mean, pairs)
    open_ = 0.25 + np.arcsin(rho) / (2 * np.pi)
    both = (np.sqrt(1 - rho**2) + rho * (np.pi - np.arccos(rho))) / (2 * np.pi)
    assert _moment(lambda z: np.maximum(z, 0.0), latent) == pytest.approx((both, open_), rel=1e-3)
    steps = _moment(lambda z: (z > 0) * 1.0, latent)
    found = open_, 1 / (2 * np.pi * np.sqrt(1 - rho**2))
    assert steps == pytest.approx(found, abs=1e-2 * 0.5)  # jumps: of E[f^2]


def test_channels_with_variances_of_their_own_deviate_further() -> None:
    """A gate that differs between channels: D Var(d) is E[s^4] where E[s^2]^2 is taken."""
    model, shapes = Gated(16, 32), [(4, 16, SPACE), (4, 64)]
    simulation = simulate(model, *shapes, draws=2)
    out = simulation.graph.outputs[0]
    said = variance(forward(simulation.graph, simulation.signal.states)[out])
    drawn = measured(simulation, model, shapes, lambda i: i == out, 100)[out]
    gate = 1 / (1 + np.exp(-np.random.default_rng(0).standard_normal(100_000)))
    above = (gate**4).mean() / (gate**2).mean() ** 2
    error = 4 * drawn.std(ddof=1) / len(drawn) ** 0.5
    assert said - error <= drawn.mean() <= above * said * (1 + BOUND) + error
    assert drawn.mean() - error > said  # a part of it is missing


# --- backward: what kernels' gradients have more -------------------------------------------------

WIDTH = 48


def gated(*layers: nn.Module, inputs: int = 6) -> nn.Module:
    """A linear layer of few inputs, other layers, a gate and the average over places."""
    return nn.Sequential(conv(inputs, WIDTH), *layers, nn.ReLU(), Mean())


GRADIENTS = {
    "layers": gated(conv(WIDTH, WIDTH)),
    "dilated": gated(conv(WIDTH, WIDTH, 3, 2)),
    "two gates": gated(conv(WIDTH, WIDTH), nn.Tanh(), conv(WIDTH, WIDTH)),
    "norm": gated(norm(WIDTH, 2.0), conv(WIDTH, WIDTH)),
    "norm and gate": gated(conv(WIDTH, WIDTH), norm(WIDTH), nn.ReLU(), conv(WIDTH, WIDTH)),
    "skip": gated(Sum(nn.Identity(), conv(WIDTH, WIDTH)), conv(WIDTH, WIDTH)),
    "difference": gated(Less(nn.Identity(), conv(WIDTH, WIDTH)), conv(WIDTH, WIDTH)),
    "skip and gate": gated(Sum(conv(WIDTH, WIDTH), nn.Sequential(nn.ReLU(), conv(WIDTH, WIDTH)))),
    "gate for each channel": Gated(6, WIDTH, conv(WIDTH, WIDTH), nn.ReLU(), Mean()),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_share_deviations_with_inputs(name: str) -> None:
    """Without what they share, half of a gradient would be missing."""
    model = GRADIENTS[name]
    shapes = [(8, 6, 64)] + [(8, 64)] * ("channel" in name)
    found = simulate(model, *shapes, draws=80)
    for kernel, parameter in model.named_parameters():
        if parameter.ndim == 3:
            assert found.gradient(kernel).agrees(share=0.05), (kernel, found.gradient(kernel))


def test_rows_with_gradients_of_their_own_share_nothing() -> None:
    """Without an average, no gradient of two rows has a mean: a row alone is no pair."""
    found = simulate(
        nn.Sequential(conv(2, WIDTH, 1), conv(WIDTH, WIDTH, 1), nn.ReLU()), (8, 2, 64), draws=80
    )
    for kernel in ("0.weight", "1.weight"):
        assert found.gradient(kernel).agrees(), (kernel, found.gradient(kernel))


def test_a_norm_takes_what_gates_behind_it_have_opened() -> None:
    layers = [m for _ in range(3) for m in (conv(48, 48), norm(48), nn.ReLU())]
    model = nn.Sequential(conv(16, 48), *layers, Mean())
    found = simulate(model, (16, 16, 64), draws=40)
    for kernel, parameter in model.named_parameters():
        if parameter.ndim == 3:
            assert found.gradient(kernel).agrees(share=BOUND), (kernel, found.gradient(kernel))


def test_a_norm_of_known_statistics_takes_nothing() -> None:
    model = gated(norm(WIDTH).eval(), conv(WIDTH, WIDTH), norm(WIDTH).eval())
    found = simulate(model, (8, 6, 64), draws=80)
    for kernel in ("0.weight", "2.weight"):
        assert found.gradient(kernel).agrees(share=0.05), (kernel, found.gradient(kernel))


class Stream(nn.Module):
    """relu(x + s norm(conv(x))), block after block, s a gate for each channel of its own means."""

    def __init__(self, width: int, depth: int, squeeze: bool) -> None:
        super().__init__()
        self.first = conv(4, width)
        self.convs = nn.ModuleList(conv(width, width) for _ in range(depth))
        self.norms = nn.ModuleList(norm(width) for _ in range(depth))
        self.gates = nn.ModuleList(
            nn.Linear(width, width, bias=False) for _ in range(depth if squeeze else 0)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for place, (layer, normed) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = normed(layer(x))
            if self.gates:
                y = y * torch.sigmoid(self.gates[place](y.mean(-1))).unsqueeze(-1)
            x = torch.relu(x + y)
        return x.mean(-1)


@pytest.mark.parametrize(("depth", "squeeze"), [(1, False), (3, False), (3, True)])
def test_a_stream_that_gates_read_again_and_again(depth: int, squeeze: bool) -> None:
    model = Stream(32, depth, squeeze)
    found = simulate(model, (8, 4, 64), draws=60)
    for kernel, parameter in model.named_parameters():
        if parameter.ndim == 3:
            assert found.gradient(kernel).agrees(share=0.2), (kernel, found.gradient(kernel))


class _Averaged(nn.Module):
    """A linear filter, a layer with an activation, and an average over positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(self.first(x))).mean((2, 3))


@pytest.mark.parametrize("size", [8, 12])
def test_gradients_and_inputs_of_few_directions_deviate_alike(size: int) -> None:
    result = simulate(_Averaged(48), (2, 3, size, size), draws=100)
    for name in ("first.weight", "second.weight"):
        assert result.gradient(name).agrees()
