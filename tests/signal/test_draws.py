"""Joint draws: kept from one operation to the next, and what a loop written out costs by it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.signal.counting import runs
from tests.signal.simulation import simulate
from torch import Tensor, nn

import fanin
from fanin.signal.draws import Draws, draws, run
from fanin.signal.joint import measured, sample
from fanin.signal.propagate import propagate
from fanin.signal.state import Given
from fanin.signal.table import Table
from fanin.signal.transfer.call import Call
from fanin.torch.tracing.trace import trace


class Averaged(nn.Module):
    """s_t = sum_(u <= t) e^k_u v_u / sum_(u <= t) e^k_u, step by step with a running maximum."""

    def __init__(self, width: int, steps: int) -> None:
        super().__init__()
        self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        keys, values = self.key(x), self.value(x)
        above, below, top = (torch.zeros_like(keys[:, 0]) for _ in range(3))
        made = []
        for t in range(self.steps):
            high = torch.maximum(top, keys[:, t])
            old, new = torch.exp(top - high), torch.exp(keys[:, t] - high)
            above, below, top = old * above + new * values[:, t], old * below + new, high
            made.append(above / below)
        return torch.stack(made, 1)


class Recurrent(nn.Module):
    """h <- tanh(W x_t + U h), step by step."""

    def __init__(self, width: int, steps: int) -> None:
        super().__init__()
        self.inner, self.outer = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros_like(x[:, 0])
        for t in range(self.steps):
            h = torch.tanh(self.inner(x[:, t]) + self.outer(h))
        return h


@pytest.mark.parametrize("kind", [Averaged, Recurrent])
def test_the_work_for_a_loop_grows_with_its_steps(
    kind: type[Averaged] | type[Recurrent], monkeypatch: pytest.MonkeyPatch
) -> None:
    few, more, most = (
        runs(kind(8, n), fanin.spec((3, n, 8)), monkeypatch, back=False) for n in (6, 12, 24)
    )
    assert most - more <= 2.2 * (more - few)


def test_an_average_step_by_step() -> None:
    torch.manual_seed(0)
    found = simulate(Averaged(24, 5), (8, 5, 24), draws=40)
    quotients = [n.outputs[0] for n in found.graph.nodes if n.name == "div"]
    for index in quotients:
        predicted, seen = found.signal[index].second_moment, found.squares[index]
        error = np.hypot(seen.std(ddof=1) / len(seen) ** 0.5, 0.03 * seen.mean())
        assert abs(predicted - seen.mean()) <= 4 * error
    first, last = (found.signal[i].second_moment for i in (quotients[0], quotients[-1]))
    assert last < 0.6 * first  # of five values


def _call() -> Call:
    graph = trace(Averaged(8, 3), fanin.spec((4, 3, 8)))
    given = {p.name: Given(variance=1 / 8) for p in graph.parameters}
    signal = propagate(graph, given)
    return Call(graph.nodes[-1], graph, signal.states)


def test_a_value_is_drawn_once() -> None:
    call = _call()
    kept, index = draws(call.graph), call.node.inputs[-1]
    first = kept.values(call, index, 16)
    assert kept.values(call, index, 16) is first
    assert np.shape(first) == (16, 4, 8)
    assert draws(call.graph) is kept
    other = _call()
    assert draws(other.graph) is not kept
    assert draws(other.graph).values(other, index, 16) == pytest.approx(first)


def test_what_was_asked_for_longest_ago_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fanin.signal.draws._KEPT", 10)
    kept = Draws()
    for key, size in (("a", 6), ("b", 4), ("a", 5), ("c", 4)):
        kept._keep(key, None, np.zeros(size))
    assert list(kept._kept) == ["a", "c"]
    assert kept._size == 9


def test_a_mask_is_drawn_as_a_mask() -> None:
    class Where(nn.Module):
        def forward(self, mask: Tensor, x: Tensor) -> Tensor:
            return torch.where(mask, x, 2 * x)

    graph = trace(Where(), (fanin.spec((4, 50), "bool"), fanin.spec((4, 50))))
    signal = propagate(graph, {})
    call = Call(graph.nodes[-1], graph, signal.states)
    drawn = np.asarray(draws(graph).values(call, graph.inputs[0], 16))
    assert drawn.dtype == bool
    assert 0.2 < drawn.mean() < 0.8


def test_draws_are_joint() -> None:
    """A quotient is what its own draws of numerator and denominator say."""
    call = _call()
    kept, node = draws(call.graph), call.graph.producer(call.node.inputs[-1])
    assert node is not None
    above, below = (kept.values(call, i, 16) for i in node.inputs)
    quotient = kept.values(call, node.outputs[0], 16)
    assert quotient == pytest.approx(np.asarray(above) / np.asarray(below))


def test_draws_at_once_are_those_one_by_one() -> None:
    graph = trace(Averaged(8, 3), fanin.spec((4, 3, 8)))
    generator = np.random.default_rng(0)
    for node in graph.nodes:
        stacks = [generator.random((5, *graph.values[i].shape)) for i in node.inputs]
        together = run(node, stacks, 5)[0]
        for place in range(5):
            assert node.kernel is not None
            alone = node.kernel(*(s[place] for s in stacks))[0]
            assert together[place] == pytest.approx(alone)


def test_what_is_measured_of_drawn_tables() -> None:
    """Averages over so many draws, within four standard errors of the table drawn from."""
    table = Table.iid((6, 5), 0.5, 2.0)
    drawn = sample(table, np.random.default_rng(0), 4000)
    assert drawn.shape == (4000, 6, 5)
    found = measured(drawn)
    assert found.dims == table.dims
    error = 4 * 2.0**0.5 * table.variance / (4000 * 30) ** 0.5
    assert found.second_moment == pytest.approx(2.0, abs=2 * error)
    assert found.covariance(0) == pytest.approx(0.25, abs=error)
    one = measured(drawn[:1].repeat(2, 0))
    assert one.pairs == pytest.approx(Table.measured(drawn[0]).pairs)
