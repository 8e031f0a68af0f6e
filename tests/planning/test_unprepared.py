"""Models that no one prepared for a plan: derivatives inside, graphs, casts, kept matrices."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import fanin

TANH = 1.59253742  # 1 / sqrt(E[tanh(z)^2])


class Residual(nn.Module):
    """The residual of a differential equation: u_t + u u_x - u_xx / 100."""

    def __init__(self) -> None:
        super().__init__()
        self.u = nn.Sequential(
            nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_(True)
        u = self.u(x)
        u_x, u_t = torch.autograd.grad(u.sum(), x, create_graph=True)[0].unbind(1)
        u_xx = torch.autograd.grad(u_x.sum(), x, create_graph=True)[0][:, 0]
        return u_t + u[:, 0] * u_x - 0.01 * u_xx


def test_a_bias_that_an_operation_reads_first() -> None:
    """A model that differentiates in its forward pass runs addmm(bias, x, weight)."""
    plan = fanin.plan(Residual(), fanin.spec((16, 2)))
    assert len(plan) == 6
    assert plan["u.0.weight"].std == pytest.approx(2**-0.5)
    assert plan["u.2.weight"].std == pytest.approx(TANH / 8, rel=1e-6)


class Graph(nn.Module):
    """Nodes that sum what arrives along edges."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.arriving = nn.Linear(16, 32), nn.Linear(16, 32)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        sums = torch.zeros_like(x).index_add(0, edges[1], torch.relu(x)[edges[0]])
        return self.own(x) + self.arriving(sums)


def test_rows_that_are_added_at_places_drawn() -> None:
    """E edges into N nodes: E[sum^2] = E/N E[r^2] + E(E - 1)/N^2 E[r]^2, r the ReLU of N(0, 1)."""
    nodes, edges = 256, 1024
    inputs = fanin.spec((nodes, 16)), fanin.spec((2, edges), "int64", high=nodes)
    plan = fanin.plan(Graph(), inputs)
    second = edges / nodes / 2 + edges * (edges - 1) / nodes**2 / (2 * math.pi)
    assert not any("taken as" in note for note in plan.notes)
    assert plan["own.weight"].std == pytest.approx(1 / 4)
    assert plan["arriving.weight"].std == pytest.approx(1 / math.sqrt(16 * second), rel=2e-5)


class Looked(nn.Module):
    """Entries of a table at places that are an input."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(10.0))
        self.layer = nn.Linear(64, 32)

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        return self.layer(x * self.table.take(places))


def test_integers_of_a_spec_are_drawn_within_their_range() -> None:
    """The mean square of 0..9 is 28.5; what is drawn beyond them cannot be an index."""
    inputs = fanin.spec((8, 64)), fanin.spec((8, 64), "int64", high=10)
    plan = fanin.plan(Looked(), inputs)
    assert not any("taken as" in note for note in plan.notes)
    assert plan["layer.weight"].std == pytest.approx(1 / math.sqrt(64 * 28.5), rel=0.02)


class Routed(nn.Module):
    """Experts that get the tokens which a router sends them, however many there are."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.head = nn.Linear(64, 4), nn.Linear(64, 5)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 64)) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        weights, places = self.router(x).softmax(-1).topk(2, -1)
        y = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            token, slot = torch.where(places == i)
            y.index_add_(0, token, expert(x[token]) * weights[token, slot, None])
        return self.head(x + y)


def test_a_number_of_tokens_that_depends_on_them() -> None:
    torch.manual_seed(0)
    model, x = Routed(), torch.randn(512, 64)
    plan = fanin.init_(model, x)
    read: list[float] = []
    model.head.register_forward_pre_hook(lambda _m, a: read.append(a[0].pow(2).mean().item()))
    model(x)
    assert not any("taken as" in note for note in plan.notes)
    assert "1 branch; " in plan.stretches[0].reason
    assert "where 4 end side by side they share it" in plan.stretches[0].reason
    assert plan["head.weight"].std == pytest.approx(1 / math.sqrt(64 * read[0]), rel=0.03)


class Behind(nn.Module):
    """A layer behind a matrix that is left as it is, and is read through a view or a cast."""

    def __init__(self, kept: nn.Parameter) -> None:
        super().__init__()
        self.kept, self.layer = kept, nn.Linear(64, 64)

    def read(self) -> Tensor:
        return self.kept.t()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x @ self.read())


class Dequantised(Behind):
    def read(self) -> Tensor:
        return (self.kept.float() * 0.01).t()


def test_a_kept_matrix_counts_with_what_it_holds() -> None:
    """E[h^2] = |W|^2/64, so the layer behind it has std 1/|W|."""
    generator = torch.Generator().manual_seed(0)
    held = 5 * torch.randn(64, 64, generator=generator)
    plan = fanin.plan(
        Behind(nn.Parameter(held)), fanin.spec((16, 64)), {"kept": "keep", "*": "second_moment"}
    )
    assert plan["layer.weight"].std == pytest.approx(1 / held.norm().item(), rel=0.05)
    codes = torch.randint(-127, 128, (64, 64), generator=generator, dtype=torch.int8)
    plan = fanin.plan(Dequantised(nn.Parameter(codes, False)), fanin.spec((16, 64)))
    assert plan.left_alone == {"kept": "a tensor of int8 cannot be drawn"}
    assert plan["layer.weight"].std == pytest.approx(100 / codes.float().norm().item(), rel=0.05)


class Spectral(nn.Module):
    """A filter of complex numbers, which cannot be drawn and counts with both its parts."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.mix = nn.Parameter(torch.randn(33, 33, dtype=torch.cfloat, generator=generator))
        self.layer = nn.Linear(66, 4)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.fft.rfft(x, norm="ortho") @ self.mix
        return self.layer(torch.cat([z.real, z.imag], -1))


@pytest.mark.filterwarnings("error")
def test_a_kept_complex_matrix_counts_with_both_parts() -> None:
    """E|X_k|^2 = 1 of an orthonormal transform, so E|z|^2 = |M|^2/33, half of it in each part."""
    model = Spectral()
    plan = fanin.plan(model, fanin.spec((8, 64)))
    assert plan.left_alone == {"mix": "a tensor of complex64 cannot be drawn"}
    second = model.mix.detach().abs().pow(2).sum().item() / 33 / 2
    assert plan["layer.weight"].std == pytest.approx(1 / math.sqrt(66 * second), rel=0.01)


class Coded(nn.Module):
    """A fixed code of positions, as in Whisper's encoder, and a layer of random features."""

    def __init__(self) -> None:
        super().__init__()
        angle = torch.arange(12.0)[:, None] * 100.0 ** (-torch.arange(8.0) / 8)
        self.positions = nn.Parameter(torch.cat([angle.sin(), angle.cos()], 1), False)
        self.features = nn.Linear(16, 64).requires_grad_(False)
        self.head = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.features(x + self.positions)))


def test_what_is_not_trained() -> None:
    """A code for positions stays, since no training brings it back; what is drawn is said."""
    model, x = Coded(), fanin.spec((2, 12, 16))
    before = model.positions.detach().clone()
    plan = fanin.init_(model, x)
    assert torch.equal(model.positions, before)
    assert plan.left_alone == {
        "positions": "positions that are not trained: the model's own code for them"
    }
    assert plan["features.weight"].std == pytest.approx((16 * 1.5) ** -0.5, rel=1e-3)
    assert plan.notes[0] == (
        "drawn though requires_grad is False: features.weight; rule 'keep' for their names, or "
        "only_missing, would leave them as they are"
    )
    asked = fanin.plan(model, x, {"positions": 0.5, "features.*": "keep", "*": "auto"})
    assert asked["positions"].mean == 0.5
    assert not any("requires_grad" in note for note in asked.notes if "features" in note)


class Branches(nn.Module):
    """A DeepONet: the dot product of what two networks say."""

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.trunk = nn.Linear(50, 64), nn.Linear(8, 64)

    def forward(self, u: Tensor, y: Tensor) -> Tensor:
        return torch.einsum("bp,bnp->bn", self.branch(u), self.trunk(y))


def test_outputs_that_no_weight_holds_at_one_are_noted() -> None:
    """64 products of two numbers of variance 1; a head of its own would be of variance 1."""
    plan = fanin.plan(Branches(), (fanin.spec((4, 50)), fanin.spec((4, 30, 8))))
    assert plan.notes[0] == (
        "output 0: E[x^2] = 64 is expected at the start; divided by 8 it would be 1"
    )
    quiet = fanin.plan(nn.Sequential(nn.Linear(50, 64), nn.ReLU(), nn.Linear(64, 9)),
                       fanin.spec((4, 50)))  # fmt: skip
    assert not any(note.startswith("output") for note in quiet.notes)
