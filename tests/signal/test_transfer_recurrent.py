"""Recurrent layers and cells: the mean field of a unit beside real layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.signal.simulation import Simulation, simulate
from torch import Tensor, nn

from fanin.signal.propagate import backward, propagate
from fanin.signal.recurrence import CELLS as UNITS
from fanin.signal.recurrence import Units, Walk, Weights, run
from fanin.signal.state import Given
from fanin.torch.tracing.trace import trace

KINDS = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "rnn_tanh": nn.RNN,
    "rnn_relu": lambda *a, **k: nn.RNN(*a, nonlinearity="relu", **k),
}


class Outputs(nn.Module):
    """A recurrent layer, or only its last step."""

    def __init__(self, layer: nn.Module, *, last: bool = False) -> None:
        super().__init__()
        self.layer, self.last = layer, last

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)[0]
        return y[:, -1] if self.last else y


def _agree(model: nn.Module, found: Simulation, name: str, share: float) -> None:
    """Signal and gradients within four standard errors, or the stated share for finite width."""
    assert found.forward(name).agrees(share=share)
    for parameter, _ in model.named_parameters():
        assert found.gradient(parameter).agrees(share=share), parameter


@pytest.mark.parametrize("name", KINDS)
def test_a_layer_over_steps(name: str) -> None:
    torch.manual_seed(0)
    model = Outputs(KINDS[name](48, 192, batch_first=True))
    found = simulate(model, (4, 20, 48), draws=6)
    _agree(model, found, name, 0.05)
    state = found.signal[found.last(name)]
    assert state.how.startswith("mean field ± ")
    assert not found.signal.doubts()


def test_fifty_steps_to_the_last_alone() -> None:
    torch.manual_seed(0)
    model = Outputs(nn.LSTM(32, 256, batch_first=True), last=True)
    found = simulate(model, (4, 50, 32), draws=5, scale=2.0)
    _agree(model, found, "lstm", 0.06)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_layers_in_both_directions(name: str) -> None:
    torch.manual_seed(0)
    model = Outputs(KINDS[name](48, 96, 2, batch_first=True, bidirectional=True), last=True)
    found = simulate(model, (4, 8, 48), draws=10, scale=1.5)
    _agree(model, found, name, 0.08)


def test_dropout_between_layers() -> None:
    torch.manual_seed(0)
    model = Outputs(nn.GRU(48, 128, 2, batch_first=True, dropout=0.5))
    found = simulate(model, (4, 8, 48), draws=10)
    _agree(model, found, "gru", 0.06)
    without = Outputs(nn.GRU(48, 128, 2, batch_first=True))
    calm = simulate(without, (4, 8, 48), draws=2)
    assert found.forward("gru").predicted > 1.2 * calm.forward("gru").predicted


class Finals(nn.Module):
    """The last states of a layer that starts from given ones."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(32, 128, 2)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        _, (last_h, last_c) = self.layer(x, (h, c))
        return last_h, last_c


def test_initial_and_last_states() -> None:
    torch.manual_seed(0)
    found = simulate(Finals(), (6, 8, 32), (2, 8, 128), (2, 8, 128), draws=12)
    for at in found.graph.nodes[-1].outputs:
        predicted, measured = found.signal[at].second_moment, found.squares[at].mean()
        assert predicted == pytest.approx(measured, rel=0.05)
    for name, _ in Finals().named_parameters():
        assert found.gradient(name).agrees(share=0.06), name


class Unrolled(nn.Module):
    """One step of a cell from a given state."""

    def __init__(self, cell: nn.Module, states: int) -> None:
        super().__init__()
        self.cell, self.states = cell, states

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Tensor:
        return self.cell(x, (h, c))[0] if self.states == 2 else self.cell(x, h + c)


CELLS = {
    "lstm_cell": (nn.LSTMCell, 2),
    "gru_cell": (nn.GRUCell, 1),
    "rnn_tanh_cell": (nn.RNNCell, 1),
    "rnn_relu_cell": (lambda n, h: nn.RNNCell(n, h, nonlinearity="relu"), 1),
}


@pytest.mark.parametrize("name", CELLS)
def test_cells(name: str) -> None:
    torch.manual_seed(0)
    make, states = CELLS[name]
    model = Unrolled(make(48, 128), states)
    found = simulate(model, (32, 48), (32, 128), (32, 128), draws=10)
    _agree(model, found, name, 0.04)
    slopes = found.signal.gradients
    for at in found.graph.inputs:
        if at in slopes and at in found.slopes:
            measured = found.slopes[at].mean()
            assert slopes[at].second_moment == pytest.approx(measured, rel=0.04)


def test_equal_samples_stay_equal_and_others_keep_their_distance() -> None:
    torch.manual_seed(0)
    model = Outputs(nn.GRU(16, 64, batch_first=True))
    graph = trace(model, (torch.zeros(8, 5, 16),))
    stated = {n: Given(variance=1 / p.shape[-1]) for n, p in model.named_parameters()}
    one = torch.randn(1, 5, 16).expand(8, 5, 16).numpy()
    other = torch.randn(8, 5, 16).numpy()
    for data, apart in ((one, False), (other, True)):
        signal = propagate(graph, stated, {graph.values[graph.inputs[0]].name: np.array(data)})
        state = signal[graph.outputs[0]]
        assert (state.covariance(0) < 0.95 * state.second_moment) == apart
        if apart:
            assert abs(state.covariance(0)) < 0.02 * state.second_moment
        else:
            assert state.covariance(0) == pytest.approx(state.second_moment, rel=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 2])
def test_short_sequences_and_single_samples(steps: int, batch: int) -> None:
    torch.manual_seed(0)
    model = Outputs(nn.LSTM(32, 96, bidirectional=True))  # steps first
    found = simulate(model, (steps, batch, 32), draws=20)
    _agree(model, found, "lstm", 0.08)
    profile = found.signal[found.last("lstm")].table.shape
    assert profile == (steps, batch, 192)


def test_two_sweeps_give_the_same_numbers() -> None:
    model = Outputs(nn.LSTM(8, 16))
    graph = trace(model, (torch.zeros(4, 3, 8),))
    stated = {n: Given(variance=0.1) for n, _ in model.named_parameters()}
    levels = [backward(propagate(graph, stated)).weight_gradients() for _ in range(2)]
    assert levels[0] == levels[1]


def test_a_walk_has_its_covariance() -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((5, 5))
    a[3] = a[1]  # a step that repeats another
    covariance = a @ a.T
    noise = np.linalg.qr(rng.standard_normal((200, 5)))[0].T * 200**0.5
    walk = Walk(noise)
    drawn = np.stack([walk.next(covariance[t, : t + 1]) for t in range(5)])
    np.testing.assert_allclose(drawn @ drawn.T / 200, covariance, atol=1e-8)
    np.testing.assert_allclose(drawn[3], drawn[1], atol=1e-8)


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_s_derivative_against_differences(name: str) -> None:
    cell, rng = UNITS[name], np.random.default_rng(0)
    pre = rng.standard_normal((len(cell.odd), 7))
    old, d = rng.standard_normal((2, cell.states, 7))
    found = cell.back(pre, old, cell.step(pre, old), d)
    step = 1e-6
    for which, start in enumerate((pre, old)):
        for i in range(len(start)):
            moved = np.zeros_like(start)
            moved[i] = step
            up, down = (
                cell.step(*((pre + s * moved, old) if which == 0 else (pre, old + s * moved)))
                for s in (1, -1)
            )
            slope = ((up - down) / (2 * step) * d).sum(0)
            np.testing.assert_allclose(found[which][i], slope, atol=1e-8)


def test_the_stated_error_is_that_of_other_draws() -> None:
    cell, steps = UNITS["gru"], 8
    matrix, bias = np.tile([1 / 64, 0.0], (4, 1)), np.zeros((4, 2))
    weights, eye = Weights(matrix, matrix, bias), np.eye(steps)
    x = Units(64, np.zeros(steps), np.stack([eye, eye]), np.zeros((2, steps, steps)))
    levels, said = [], []
    for seed in range(16):
        path = run(cell, weights, x, 64, np.zeros((1, 3)), np.random.default_rng(seed))
        levels.append(path.units(64).gram.trace(axis1=1, axis2=2).sum())
        said.append(path.error)
        assert abs(path.units(64).mean).max() < 1e-12  # exactly zero by symmetry
    spread = np.std(levels, ddof=1) / np.mean(levels)
    assert 0.5 < np.mean(said) / spread < 2.0


def test_projected_outputs_are_run_on_draws() -> None:
    torch.manual_seed(0)
    model = Outputs(nn.LSTM(32, 64, batch_first=True, proj_size=16))
    found = simulate(model, (8, 6, 32), draws=20)
    assert found.forward("lstm").agrees(share=0.08)
    assert [how.startswith("sampled ±") for _, how in found.signal.doubts()] == [True]


class Averaged(nn.Module):
    """The average over samples of a layer's outputs: one gradient reaches them all."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(48, 128)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0].mean(1)


def test_a_gradient_that_samples_share() -> None:
    torch.manual_seed(0)
    model = Averaged()
    found = simulate(model, torch.randn(6, 1, 48).expand(6, 8, 48).contiguous(), draws=12)
    _agree(model, found, "lstm", 0.06)
