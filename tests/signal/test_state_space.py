"""State-space layers: fixed time steps and decays, a scan written out, filters of few weights."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from tests.signal.simulation import Simulation, simulate
from torch import Tensor, nn
from torch.nn import functional as F

from fanin.signal.fixed import ordered, profiled, with_fixed
from fanin.signal.propagate import backward, propagate
from fanin.signal.scan import scans
from fanin.signal.spec import Spec
from fanin.signal.state import Given, Mixed, State, integrate
from fanin.signal.table import Table
from fanin.torch.tracing.trace import trace


class Scan(nn.Module):
    """h_t = exp(-dt_t exp(a)) h_(t-1) + dt_t b_t, with dt_t = softplus(v x_t + bias)."""

    def __init__(self, width: int, states: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width, bias=False)
        self.dt, self.b = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.bias = nn.Parameter(torch.linspace(-7.0, -1.0, width)[torch.randperm(width)])
        self.a = nn.Parameter(torch.arange(1.0, states + 1).log())

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        dt = F.softplus(self.dt(x).transpose(1, 2) + self.bias[:, None])
        decay = torch.exp(-dt[..., None] * self.a.exp())
        added = (dt * self.b(x).transpose(1, 2))[..., None].expand_as(decay)
        h = torch.zeros_like(added[:, :, 0])
        for t in range(x.shape[1]):
            h = decay[:, :, t] * h + added[:, :, t]
        return h


@pytest.fixture(scope="module")
def found() -> Simulation:
    torch.manual_seed(0)
    return simulate(
        Scan(160, 6), (6, 16, 160), draws=12, scale=2.0, variances={"dt.weight": 1 / 960}
    )


@pytest.mark.parametrize("name", ["softplus", "exp", "add"])
def test_a_scan_with_fixed_steps_and_decays(found: Simulation, name: str) -> None:
    assert found.forward(name).agrees(share=0.05)


@pytest.mark.parametrize("name", ["inner.weight", "dt.weight", "b.weight", "a"])
def test_gradients_of_a_scan(found: Simulation, name: str) -> None:
    assert found.gradient(name).agrees(share=0.25)


def test_a_scan_is_found_with_its_steps() -> None:
    graph = trace(Scan(8, 4), torch.randn(2, 5, 8))
    decayed, added = scans(graph).values()
    assert graph.producer(decayed.parent).name == "exp"
    assert (decayed.factors, added.factors) == (True, False)
    assert decayed.dim == added.dim == 2
    assert decayed.steps == added.steps
    assert len(decayed.steps) == 5
    assert all(a.after == b.before for a, b in pairwise(decayed.steps))


class Gated(nn.Module):
    """s_t = a_t s_(t-1) + b_t with a_t = sigmoid of next to nothing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate, self.b = (nn.Linear(width, width, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.sigmoid(self.gate(x)), self.b(x)
        s = torch.zeros_like(b[:, 0])
        for t in range(x.shape[1]):
            s = a[:, t] * s + b[:, t]
        return s


def test_what_gradients_of_slices_have_in_common() -> None:
    """With a = 1/2 and b of variance 1: E[g_t g_u] = 2^(t-u) G_u, E[s_t s_u] = 2^(t-u) S_t."""
    n = 5
    graph = trace(Gated(32), torch.randn(2, n, 32))
    given = {"gate.weight": Given(variance=1e-9), "b.weight": Given(variance=1 / 32)}
    signal = backward(propagate(graph, given, {graph.values[0].name: Spec((2, n, 32))}))
    by_hand = {True: 0.0, False: 0.0}
    for t in range(n):
        for u in range(t + 1, n):
            gradients = 0.5 ** (u - t) * 0.25 ** (n - 1 - u)
            state = sum(0.25**k for k in range(t))
            by_hand[True] += gradients * 0.5 ** (u - t) * state
            by_hand[False] += gradients
    assert len(scans(graph)) == 2
    for parent, scan in scans(graph).items():
        shared = signal.gradients[parent].covariance(1)
        assert shared == pytest.approx(by_hand[scan.factors] * 2 / (n * (n - 1)), rel=1e-6)


class Sums(nn.Module):
    """Slices of one tensor added up one by one, with a decay."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = (nn.Linear(128, 128, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        b = self.last(F.relu(self.first(x)))
        s = b[:, 0]
        for t in range(1, x.shape[1]):
            s = 0.9 * s + b[:, t]
        return s


def test_slices_of_one_tensor_are_correlated() -> None:
    torch.manual_seed(0)
    found = simulate(Sums(), (4, 10, 128), draws=30, scale=2.0)
    number = found.forward("add")
    assert number.agrees(share=0.02)
    alone = sum(0.81**k for k in range(10)) * found.signal[found.last("linear")].second_moment
    assert number.predicted > 2 * alone  # the cosine of two positions is 1 / pi


@pytest.mark.parametrize("terms", [4, 9])
def test_few_weights_make_no_gaussian(terms: int) -> None:
    """E[exp(z)^k] with z's variance q chi^2_n / n is (1 - k^2 q / n)^(-n/2)."""
    q, k = 0.25, 2
    plain = Table.iid((50, 70), 0.0, q)
    pairs = np.ones((2, 2, 1, 1))
    pairs[1] = 0.0  # rows have weights of their own
    latent = Mixed(plain.dims, plain.mean, plain.pairs, terms, Table(plain.dims, pairs[0], pairs))
    table, defined = integrate(np.exp, latent)

    def moment(square: float) -> float:
        return float((1 - square * q / terms) ** (-terms / 2))

    assert defined
    assert table.average == pytest.approx(moment(1), rel=1e-6)
    assert table.second_moment == pytest.approx(moment(k * k), rel=1e-4)
    assert table.pairs[0, 1].item() == pytest.approx(moment(2), rel=1e-5)
    assert table.pairs[1, 0].item() == pytest.approx(moment(1) ** 2, rel=1e-6)


def test_a_filter_of_few_weights() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(300, 300, 4, groups=300, bias=False), nn.Tanh())
    found = simulate(model, (6, 300, 20), draws=20, scale=4.0)
    state = found.signal[found.last("tanh")]
    assert found.forward("tanh").agrees()
    plain, _ = integrate(np.tanh, Table.iid((1000,), 0.0, 4.0))
    assert state.second_moment < 0.98 * plain.second_moment


def test_a_fixed_factor_element_by_element() -> None:
    """E[exp(a z)] = exp(a^2 / 2), for each a of its own."""
    factor = np.array([0.25, 0.5, 1.0])
    log = State(Table.iid((40, 3), 1.0, 2.0), token="x", latent=Table.iid((40, 3)), gaussian=True)
    fixed = State(profiled(factor), token="a")
    state = with_fixed(log, fixed, lambda z, a: np.exp(a * z), "y")
    assert state.table.mean.ravel() == pytest.approx(np.exp(factor**2 / 2), rel=1e-9)
    assert state.table.same.ravel() == pytest.approx(np.exp(2 * factor**2), rel=1e-9)


def test_long_fixed_vectors_are_kept_in_groups_of_equal_size() -> None:
    values = np.random.default_rng(0).normal(size=96)
    array = ordered(values)
    table = profiled(array)
    assert table.dims == ((8, 12),)
    assert table.mean.ravel() == pytest.approx(np.sort(values).reshape(8, 12).mean(1))
    assert table.second_moment == pytest.approx((values**2).mean())
    assert table.average == pytest.approx(values.mean())
    short = np.array([3.0, 1.0, 2.0])
    assert ordered(short) is short
    assert profiled(short).mean.tolist() == [3.0, 1.0, 2.0]
    assert profiled(np.outer(short, short)).mean.size == 1  # varies along two axes
    assert profiled(np.sort(np.random.default_rng(1).normal(size=37))).mean.size == 1  # a prime


class Gathered(nn.Module):
    """Rows added up by an index, as experts return their tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64, bias=False)
        self.register_buffer("index", torch.tensor([0, 2, 2, 3, 2, 0]))

    def forward(self, x: Tensor) -> Tensor:
        rows = F.relu(self.layer(x))
        return x[:5].index_add(0, self.index, rows, alpha=0.5)


def test_rows_added_by_an_index() -> None:
    torch.manual_seed(0)
    found = simulate(Gathered(), (6, 64), draws=60)
    assert found.forward("index_add").agrees(share=0.01)
    assert found.gradient("layer.weight").agrees()
    assert found.signal[found.last("index_add")].how == "closed form"
