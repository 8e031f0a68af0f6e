"""Causal averages: which rows gather which columns, forwards and backwards."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.signal.simulation import simulate
from torch import Tensor, nn

from fanin.signal.propagate import propagate
from fanin.signal.spec import Spec
from fanin.signal.table import Table
from fanin.signal.transfer.causal import averaged, returned
from fanin.torch.tracing.trace import trace

N = 6
MEANS = np.tril(np.ones((N, N))) / np.arange(1, N + 1.0)[:, None]  # row i averages up to i
WEIGHTS = Table.measured(MEANS, profiles=(0,))
SAME, APART = 2.0, 0.5  # second moment of an element, of two in different rows
ROWS = np.full((N, N), APART) + (SAME - APART) * np.eye(N)


def rows() -> Table:
    """An array [rows, features] of independent features."""
    independent = Table.iid((N, 3), 0.0, SAME - APART)
    return Table(independent.dims, independent.mean, independent.pairs + _alike())


def _alike() -> np.ndarray:
    pairs = np.zeros((2, 2, 1, 1))
    pairs[:, 0] = APART
    return pairs


def of_one_feature(table: Table) -> np.ndarray:
    """E[x_i x_i'] of two rows and the same feature."""
    (a,) = table.axes((0,))
    return np.asarray(table.unfolded((a,)).pairs[:, 0, :, 0])


def test_rows_average_what_came_before() -> None:
    found = of_one_feature(averaged(WEIGHTS, rows()))
    np.testing.assert_allclose(found, MEANS @ ROWS @ MEANS.T, rtol=1e-12)


def test_columns_gather_from_the_rows_that_see_them() -> None:
    found = of_one_feature(returned(WEIGHTS, rows()))
    np.testing.assert_allclose(found, MEANS.T @ ROWS @ MEANS, rtol=1e-12)


class Block(nn.Module):
    """x + 2 w causal attention of x, with small logits."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(32, 32, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = 0.05 * self.q(x), self.k(x), self.v(x)
        return x + 2 * self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True))


class ByHand(Block):
    """The same, written with products of matrices."""

    def forward(self, x: Tensor) -> Tensor:
        logits = 0.05 / 32**0.5 * self.q(x) @ self.k(x).transpose(1, 2)
        hidden = x.new_ones(x.shape[1], x.shape[1]).triu(1).bool()
        return x + 2 * self.o(logits.masked_fill(hidden, -1e9).softmax(-1) @ self.v(x))


@pytest.mark.parametrize("block", [Block, ByHand])
def test_early_positions_get_more_of_the_gradient(block: type[Block]) -> None:
    model = nn.Sequential(*(block() for _ in range(3)))
    found = simulate(model, (4, 32, 32), draws=60)
    for name, _ in model.named_parameters():
        if name.endswith(("v.weight", "o.weight")):
            assert found.gradient(name).agrees(), name


MASKS: dict[str, Callable[[Tensor], Tensor]] = {
    "new_ones": lambda z: z.new_ones(z.shape[-2:]).triu(1).bool(),
    "ones_like": lambda z: torch.ones_like(z[0]).triu(1).bool(),
    "ones": lambda z: torch.triu(torch.ones(z.shape[-2:]), 1) == 1,
    "new_full": lambda z: z.new_full(z.shape[-2:], -1e9).triu(1) < 0,
    "places": lambda z: torch.arange(z.shape[-1]) > torch.arange(z.shape[-2])[:, None],
}


@pytest.mark.parametrize("name", MASKS)
def test_a_causal_mask_is_seen_however_it_is_made(name: str) -> None:
    class Weights(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z = x @ x.transpose(1, 2)
            return z.masked_fill(MASKS[name](z), float("-inf")).softmax(-1)

    graph = trace(Weights(), Spec((2, 6, 8)))
    assert propagate(graph, {})[graph.outputs[0]].causal
