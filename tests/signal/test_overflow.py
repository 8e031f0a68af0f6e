"""Signals that run away: past float64 they are a finding, not a warning or a NaN."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fanin
from fanin.errors import DivergentError
from fanin.signal.state import integrate
from fanin.signal.table import Table
from fanin.torch.probing.measure import measure
from fanin.torch.probing.predict import predict


class Square(nn.Module):
    """x^2."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x


def squares(depth: int = 40, width: int = 32) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [m for _ in range(depth) for m in (nn.Linear(width, width), Square())]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def test_a_square_beyond_float64_is_refused_and_one_within_is_not() -> None:
    table, _ = integrate(np.square, Table.iid((4, 8), 0.0, 1e150))
    assert table.second_moment == pytest.approx(3e300, rel=1e-8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DivergentError) as caught:
            integrate(np.square, Table.iid((4, 8), 0.0, 1e160))
    assert str(caught.value) == (
        "the signal: expected E[f^2] within float64, got E[z^2] = 1e+160 in front of f; "
        "start from weights that hold the variance"
    )


def test_a_plan_notes_where_a_layer_that_it_leaves_alone_lets_the_signal_run_away() -> None:
    model = squares()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        plan = fanin.plan(model, fanin.spec((8, 32)), {"20.weight": "keep", "*": "auto"})
    said = "taken as N(0, 1): the signal: expected E[f^2] within float64, got E[z^2] = "
    assert any(said in note for note in plan.notes)
    stds = [row.std for row in plan.rows if row.std is not None and row.role != "bias"]
    assert all(math.isfinite(std) and std > 0 for std in stds)


def test_a_prediction_says_why_there_is_none() -> None:
    model, x = squares(), torch.randn(16, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for module in model:
            if isinstance(module, nn.Linear):
                module.weight.normal_(0.0, (4 / 32) ** 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        found = predict(model, x, measure(model, x), None)
    assert found.notes[-1].startswith("no prediction: the signal: expected E[f^2] within float64")
    assert all(row.predicted is None for row in found.layers)
