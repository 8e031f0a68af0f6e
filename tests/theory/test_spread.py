"""Growth of deviations from few sets of nodes, against the moments of each point by itself."""

from __future__ import annotations

import pytest

from fanin.theory.activation import activation
from fanin.theory.gaussian import moments
from fanin.theory.rules.layer import deviation_slope
from fanin.theory.spread import Spreads


@pytest.mark.parametrize("f", ["tanh", "relu", "gelu", "hardswish", "exp", "softplus", "x^3"])
@pytest.mark.parametrize("mean", [0.0, -0.7])
def test_one_set_of_nodes_serves_nearby_variances(f: str, mean: float) -> None:
    act = activation(f)
    at = Spreads(act, mean)
    for s in (0.5, 0.55, 0.46, 0.3, 1.5):  # the last two need nodes of their own
        m = moments(act, mean, s * s)
        chi = s * s * m.derivative_second_moment / m.variance
        slope = s * s * deviation_slope(act, m, mean, s * s, float(m.mean)) / m.variance
        found = at(s)
        assert found.chi == pytest.approx(chi, rel=1e-12)
        assert found.slope == pytest.approx(slope, rel=1e-10, abs=1e-12)


def test_a_constant_has_no_growth() -> None:
    assert Spreads(activation(lambda x: 0 * x + 2), 0.3)(1.0) == (0.0, 0.0)
