"""`fanin.gain`: the table that users expect, and a float that explains itself."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fanin
from fanin.errors import ArgumentTypeError, UnknownNameError
from fanin.theory import rules
from fanin.theory.activation import activation

F = nn.functional

# name, callable, module, RMS gain, centred gain, backward gain, E[f], slope, stable
ROWS: list[tuple[Any, ...]] = [
    ("relu", F.relu, nn.ReLU(), 1.41421356, 1.71285855, 1.41421356, 0.398942, 1.0000, None),
    ("relu6", F.relu6, nn.ReLU6(), 1.41421357, 1.71285855, 1.41421356, 0.398942, 1.0000, None),
    (
        "leaky_relu(0.01)",
        F.leaky_relu,
        nn.LeakyReLU(),
        *(1.41414286, 1.70483163, 1.41414286, 0.394953, 1.0000, None),
    ),
    ("gelu", F.gelu, nn.GELU(), 1.53353044, 1.70092624, 1.48111441, 0.282095, 1.1441, False),
    (
        "gelu(tanh)",
        lambda x: F.gelu(x, approximate="tanh"),
        nn.GELU(approximate="tanh"),
        *(1.53358052, 1.70091656, 1.48116806, 0.282039, 1.1443, False),
    ),
    ("silu", F.silu, nn.SiLU(), 1.67653247, 1.78718722, 1.62332026, 0.206621, 1.1726, False),
    ("mish", F.mish, nn.Mish(), 1.48684758, 1.59202538, 1.44475523, 0.240404, 1.0763, False),
    ("elu", F.elu, nn.ELU(), 1.24519830, 1.27084342, 1.22342856, 0.160521, 0.8910, True),
    ("celu", F.celu, nn.CELU(), 1.24519830, 1.27084342, 1.22342856, 0.160521, 0.8910, True),
    ("selu", F.selu, nn.SELU(), 1.00000000, 1.00000000, 0.96602578, 0.0, 0.7826, True),
    ("tanh", torch.tanh, nn.Tanh(), 1.59253742, 1.59253742, 1.46741359, 0.0, 0.4611, True),
    (
        "sigmoid",
        torch.sigmoid,
        nn.Sigmoid(),
        *(1.84622855, 4.80131337, 4.72264609, 0.500000, 0.1063, True),
    ),
    (
        "softplus",
        F.softplus,
        nn.Softplus(),
        *(1.04186684, 1.91912598, 1.84622855, 0.806059, 0.4921, True),
    ),
    (
        "softsign",
        F.softsign,
        nn.Softsign(),
        *(2.33753336, 2.33753336, 2.09578061, 0.0, 0.4767, True),
    ),
    (
        "hardswish",
        F.hardswish,
        nn.Hardswish(),
        *(1.73665721, 1.81387147, 1.67007637, 0.166217, 1.2239, False),
    ),
    (
        "relu^2",
        lambda x: F.relu(x) ** 2,
        None,
        *(0.81649658, 0.89442719, 0.70710678, 0.500000, 2.0000, False),
    ),
    ("sin", np.sin, None, 1.52086662, 1.52086662, 1.32725060, 0.0, 0.3130, True),
    (
        "sin(30)",
        lambda x: torch.sin(30 * x),
        None,
        *(1.41421356, 1.41421356, 0.04714045, 0.0, 0.0, True),
    ),
    (
        "tanhshrink",
        F.tanhshrink,
        nn.Tanhshrink(),
        *(2.33836753, 2.33836753, 1.98813882, 0.0, 1.8262, False),
    ),
]
FORMS = [
    pytest.param(form, row[3:], id=f"{row[0]}-{kind}")
    for row in ROWS
    for kind, form in zip(("name", "callable", "module"), row[:3], strict=True)
    if form is not None
]


@pytest.mark.parametrize(("f", "expected"), FORMS)
def test_the_table_of_gains(f: Any, expected: tuple[Any, ...]) -> None:
    forward, centred, backward, mean, slope, stable = expected
    g = fanin.gain(f)
    assert g == pytest.approx(forward, rel=1e-8)
    assert (g.forward, g.centred) == pytest.approx((forward, centred), rel=1e-8)
    assert g.backward == pytest.approx(backward, rel=1e-6)
    assert g.mean == pytest.approx(mean, abs=6e-7)
    assert g.slope == pytest.approx(slope, abs=6e-5)
    assert g.stable is stable


@pytest.mark.parametrize(
    "f", [lambda x: x * torch.tanh(F.softplus(x)), lambda x: x * np.tanh(np.log1p(np.exp(x)))]
)
def test_an_activation_written_by_hand(f: Callable[..., Any]) -> None:
    assert fanin.gain(f) == pytest.approx(fanin.gain("mish"), rel=1e-10)


def test_an_unknown_name_lists_its_neighbours() -> None:
    with pytest.raises(UnknownNameError, match="expected a known name, got 'gelo'; try 'gelu'"):
        fanin.gain("gelo")
    with pytest.raises(UnknownNameError, match="expected a known rule, got 'kumr'; try 'kumar'"):
        fanin.gain("gelu", "kumr")


@pytest.mark.parametrize(
    ("rule", "parameters", "takes", "got"),
    [
        ("shaped", {}, "the parameters depth, zeta=1.5, width=inf, variance_slope=None", "none"),
        (
            "shaped",
            {"dept": 3},
            "the parameters depth, zeta=1.5, width=inf, variance_slope=None",
            "dept=3",
        ),
        ("he", {"depth": 3}, "the parameters fan='fan_in'", "depth=3"),
    ],
)
def test_parameters_that_a_rule_does_not_take(
    rule: str, parameters: dict[str, int], takes: str, got: str
) -> None:
    with pytest.raises(ArgumentTypeError) as error:
        fanin.gain("gelu", rule, **parameters)
    assert str(error.value) == f"rule {rule!r}: expected {takes}, got {got}"


def test_a_gain_is_a_float() -> None:
    g = fanin.gain("gelu")
    assert repr(g) == repr(float(g))
    assert f"{g}" == repr(float(g))
    assert f"{g:.3f}" == "1.534"
    assert json.dumps(g) == repr(float(g))
    assert g / math.sqrt(4) == float(g) / 2
    for twin in (pickle.loads(pickle.dumps(g)), copy.copy(g), copy.deepcopy(g)):
        assert twin == g
        assert (twin.slope, twin.advice, twin.layer) == (g.slope, g.advice, g.layer)


def test_a_gain_explains_itself() -> None:
    assert str(fanin.gain("gelu")) == (
        "gain 1.53353044 for gelu by rule 'second_moment' (std = gain / sqrt(fan_in))\n"
        "  forward   1.53353044   keeps E[y^2] at N(0, 1)\n"
        "  centred   1.70092624   keeps it with the mean 0.282095 removed\n"
        "  backward  1.48111441   keeps squared gradients\n"
        "  at        mean 0, variance 1: does not hold, slope 1.14406, chi 1.07203\n"
        "  advice    The fixed point repels: a deviation of the variance grows by 1.144 a layer, "
        "tenfold in 18 layers; in deep plain networks use rule 'shaped'."
    )


@pytest.mark.parametrize(
    ("f", "rule", "words"),
    [
        ("sigmoid", "second_moment", "Inputs become alike (chi = 0.153), because f has a mean"),
        ("sigmoid", "centred", "Signal and gradient hold;"),
        ("silu", "second_moment", "The fixed point repels"),
        ("tanh", "second_moment", "Squared gradients grow by 1.178 a layer, tenfold in 15 layers"),
        ("tanh", "kumar", "The variance does not stay at 1, a layer makes it 0.3943"),
        ("relu", "he", "Signal and gradient hold, but nothing pulls the variance back"),
        ("step", "second_moment", "f jumps: no scale of the weights keeps gradients"),
    ],
)
def test_advice(f: str, rule: str, words: str) -> None:
    assert fanin.gain(f, rule).advice.startswith(words)


def test_rules_and_their_parameters_pass_through() -> None:
    g = fanin.gain("sigmoid", rule="shaped", depth=50)
    layer = rules.shaped("sigmoid", depth=50)
    assert g == math.sqrt(layer.weight_variance_times_fan_in)
    assert g.layer == layer
    assert (g.slope, g.chi, g.stable) == (layer.slope, layer.chi, layer.stable)
    assert g.forward == fanin.gain("sigmoid").forward


def test_plain_values_survive_json() -> None:
    for f in ("sigmoid", "step"):
        facts = json.loads(json.dumps(fanin.gain(f, "centred").to_dict(), allow_nan=False))
        assert facts["centre"] == pytest.approx(0.5)
        assert facts["operating_point"] == {"mean": 0.0, "variance": 1.0}


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(["tanh", "gelu", "softplus", "hardswish"]),
    st.floats(0.05, 20.0),
    st.booleans(),
    st.booleans(),
)
def test_gains_scale_as_one_over_the_activation(
    f: str, a: float, negative: bool, mirrored: bool
) -> None:
    act, sign = activation(f), -1.0 if mirrored else 1.0
    factor = -a if negative else a
    g, scaled = fanin.gain(f), fanin.gain(lambda x: factor * act(sign * x))
    assert float(scaled) * a == pytest.approx(float(g), rel=1e-9)
    assert scaled.centred * a == pytest.approx(g.centred, rel=1e-9)
    assert scaled.backward * a == pytest.approx(g.backward, rel=1e-8)
    assert scaled.mean == pytest.approx(factor * g.mean, abs=1e-9 * a)
    assert scaled.slope == pytest.approx(g.slope, rel=1e-7)
