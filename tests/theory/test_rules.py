"""Every rule on every activation, and each rule against its definition."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fanin.errors import (
    ArgumentError,
    NoSolutionError,
    NotCoveredError,
    UnknownNameError,
)
from fanin.theory import rules
from fanin.theory.activation import names
from fanin.theory.maps import variance_map

TABLE = json.loads((Path(__file__).parents[1] / "reference" / "rules.json").read_text())
PARAMETERS = {"shaped": {"depth": 20}, "mirrored": {"depth": 20}}
JUMPS = {"hardshrink", "sign", "step"}
KINKED_OR_FLAT_AT_ZERO = {
    *("abs", "cos", "gaussian", "leaky_relu", "penalized_tanh", "prelu", "relu6", "relu^2"),
    *("rrelu", "selu", "sinc", "softshrink", "square", "tanhshrink", "x^3"),
}
HOMOGENEOUS = {"abs", "identity", "leaky_relu", "prelu", "relu", "rrelu", "threshold"}
REFUSED = {
    "kumar": KINKED_OR_FLAT_AT_ZERO | JUMPS,
    "he": set(names()) - HOMOGENEOUS,
    "backward": JUMPS,
    "shaped": JUMPS,
    "mirrored": JUMPS,
    "critical": {
        *("sigmoid", "hardsigmoid", "logsigmoid", "softplus", "squareplus", "exp"),
        *("square", "relu^2", "x^3", "tanhshrink", "cos", "sinc", "gaussian", "selu"),
        "penalized_tanh",
        *JUMPS,
    },
}
SCALE_RULES = ("second_moment", "backward", "centred")


@pytest.mark.parametrize("f", TABLE["scale_rules"])
@pytest.mark.parametrize("rule", SCALE_RULES)
def test_scale_rules_against_mpmath(f: str, rule: str) -> None:
    expected = TABLE["scale_rules"][f]
    layer = rules.get(rule)(f)
    assert layer.weight_variance_times_fan_in == pytest.approx(float(expected[rule]), rel=1e-12)
    assert layer.moments.mean == pytest.approx(float(expected["mean"]), abs=1e-13)
    if rule != "backward":
        assert layer.is_fixed_point
        assert layer.slope == pytest.approx(float(expected[f"{rule}_slope"]), abs=1e-11)
    else:
        assert layer.chi == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize(
    ("f", "expected"),
    [
        ("tanh", 1.0),
        ("elu", 1.0),
        ("sin", 1.0),
        ("softsign", 1.0),
        ("sigmoid", 12.8),
        ("softplus", 2.701875684263364),
        ("mish", 25 / 9),
        ("gelu", 4.0),
        ("silu", 4.0),
        ("erf", math.pi / 4),
        ("celu(2)", 1.0),
        ("relu", 2.0),
    ],
)
def test_the_rule_of_the_paper(f: str, expected: float) -> None:
    layer = rules.kumar(f)
    assert layer.weight_variance_times_fan_in == pytest.approx(expected, rel=1e-14)
    assert (layer.bias, layer.centre, layer.bias_variance) == (0.0, 0.0, 0.0)
    assert layer.first().weight_variance_times_fan_in == layer.weight_variance_times_fan_in
    assert layer.last().weight_variance_times_fan_in == layer.weight_variance_times_fan_in


def test_where_the_paper_leads_sigmoid() -> None:
    layer = rules.kumar("sigmoid")
    assert layer.operating_point.variance == pytest.approx(4.534976094589609, rel=1e-10)
    assert layer.moments.variance == pytest.approx(0.104295007389813, rel=1e-10)
    assert layer.chi == pytest.approx(0.3538098538796377, rel=1e-10)


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (
            "leaky_relu(0.2)",
            "kumar(leaky_relu(0.2)): expected an activation that is differentiable at 0, or ReLU, "
            "got slope 0.2 on the left of 0 and 1 on the right; "
            "use 'he', which takes any pair of slopes",
        ),
        (
            "selu",
            "kumar(selu): expected an activation that is differentiable at 0, or ReLU, "
            "got slope 1.7581 on the left of 0 and 1.0507 on the right; "
            "use 'second_moment' or 'shaped', which need no slope at 0",
        ),
        (
            "square",
            "kumar(square): expected a slope at 0 other than 0, got g'(0) = 0, for which the "
            "paper's variance is infinite; "
            "use 'second_moment' or 'shaped', which need no slope at 0",
        ),
    ],
)
def test_what_the_paper_does_not_cover(f: str, message: str) -> None:
    with pytest.raises(NotCoveredError) as error:
        rules.kumar(f)
    assert str(error.value) == message


@pytest.mark.parametrize("f", ["prelu", "elu(2)", "abs", "step", "hardshrink", "relu^2", "cos"])
def test_kumar_refuses_kinks_jumps_and_flat_spots_at_zero(f: str) -> None:
    with pytest.raises(NotCoveredError):
        rules.kumar(f)


@pytest.mark.parametrize(("a", "gain"), [(0.01, 1.414142856997835), (0.2, 1.386750490563073)])
def test_he_takes_any_slope(a: float, gain: float) -> None:
    layer = rules.he(f"leaky_relu({a})", fan="fan_out")
    assert layer.std(fan_in=1, fan_out=4) == pytest.approx(gain / 2, rel=1e-12)
    assert layer.stable is None
    two_sided = rules.he(lambda x: 3.0 * x * (x > 0) - x * (x < 0))
    assert two_sided.weight_variance_times_fan_in == pytest.approx(2 / 10, rel=1e-8)


def test_he_refuses_what_is_not_homogeneous() -> None:
    with pytest.raises(NotCoveredError) as error:
        rules.he("gelu")
    assert str(error.value) == (
        "he(gelu): expected an activation made of two straight lines that meet at 0, "
        "got homogeneity None; use 'second_moment', which is 'he' for any activation"
    )
    with pytest.raises(ArgumentError, match="expected 'fan_in' or 'fan_out', got 'fan_avg'"):
        rules.he("relu", fan="fan_avg")  # type: ignore[arg-type]


def test_xavier_averages_the_fans() -> None:
    layer = rules.xavier("tanh")
    assert layer.std(fan_in=300, fan_out=500) == pytest.approx(math.sqrt(2 / 800), rel=1e-15)
    with pytest.raises(ArgumentError) as error:
        layer.std(fan_in=300)
    assert str(error.value) == (
        "std(fan_out): expected a number of at least 1, "
        "because rule 'xavier' uses fan_avg, got None"
    )
    assert rules.lecun("tanh").std(fan_in=25) == 0.2


def test_layers_at_the_ends_of_a_network() -> None:
    layer = rules.centred("sigmoid", variance=0.25)
    first, last = layer.first(), layer.last()
    assert first.weight_variance_times_fan_in == 0.25
    assert (first.centre, first.role) == (0.0, "first")
    assert last.weight_variance_times_fan_in == pytest.approx(1 / layer.moments.variance)
    assert (last.centre, last.bias, last.role) == (layer.centre, 0.0, "last")


def test_backward_refuses_jumps() -> None:
    with pytest.raises(NotCoveredError, match="expected an activation without jumps"):
        rules.backward("step")


def test_critical_prefers_a_point_that_holds() -> None:
    gelu = rules.critical("gelu")
    assert gelu.operating_point.variance == pytest.approx((3 + math.sqrt(17)) / 2)
    assert gelu.notes == ("The fixed point q = 3.56155 is half-stable.",)
    silu = rules.critical("silu", criterion="edge_of_chaos", bias_variance=0.04)
    assert silu.stable is False
    assert silu.notes == ("The fixed point q = 0.689453 is unstable.",)
    tanh = rules.critical("tanh")
    assert tanh.notes[0] == (
        "The fixed point is q = 0: the variance falls to 0 as a power of the depth."
    )
    assert not tanh.is_fixed_point


def test_critical_checks_its_arguments() -> None:
    with pytest.raises(ArgumentError) as error:
        rules.critical("tanh", bias_variance=0.05)
    assert str(error.value) == (
        "critical(bias_variance): expected no bias variance, because the criterion "
        "'susceptibility' determines it, got 0.05; leave it out, or use criterion='edge_of_chaos'"
    )
    with pytest.raises(ArgumentError, match="expected 'susceptibility' or 'edge_of_chaos'"):
        rules.critical("tanh", criterion="chaos")  # type: ignore[arg-type]
    with pytest.raises(NoSolutionError):
        rules.critical("softplus")


def test_a_rule_says_how_exact_it_is() -> None:
    assert rules.second_moment("relu").exactness == "closed form"
    assert rules.kumar("gelu").exactness == "closed form"
    assert rules.second_moment("mish").exactness == "quadrature"


def test_unknown_rules_are_listed() -> None:
    with pytest.raises(UnknownNameError) as error:
        rules.get("centered")
    assert str(error.value) == "rule: expected a known rule, got 'centered'; try 'centred'"
    assert set(rules.names()) <= set(rules.__all__)


def test_rules_print_what_they_say() -> None:
    assert str(rules.centred("sigmoid")) == (
        "centred for sigmoid\n"
        "  weights   variance 23.0526101 / fan_in\n"
        "  bias      -0.5 * row sum of the weights\n"
        "  signal    pre-activation of mean 0, variance 1\n"
        "  maps      variance slope 0.719201, gradient chi 1.03359"
    )
    text = str(rules.critical("gelu").first())
    assert text.splitlines()[0] == "critical for gelu, first layer"
    assert "  bias      N(0, 0.172922391)" in text.splitlines()


@pytest.mark.parametrize("rule", rules.names())
@pytest.mark.parametrize("f", names())
def test_every_rule_on_every_activation(rule: str, f: str) -> None:
    """A layer with finite, consistent numbers, or an error of fanin that says what to do."""
    try:
        layer = rules.get(rule)(f, **PARAMETERS.get(rule, {}))
    except (NotCoveredError, NoSolutionError):
        assert f in REFUSED.get(rule, ()), "a rule refused what it used to cover"
        return
    assert f not in REFUSED.get(rule, ()), "a rule accepted what it cannot cover"
    assert (layer.rule, layer.activation) == (rule, f)
    assert 0 < layer.weight_variance_times_fan_in < math.inf
    assert layer.bias_variance >= 0
    mean, variance = layer.operating_point
    assert mean == layer.bias
    assert 0 < variance < math.inf
    assert math.isfinite(layer.centre + layer.slope + layer.bias)
    assert layer.chi >= 0
    assert layer.std(100, 100) == pytest.approx(layer.std(400, 400) * 2)
    for end in (layer.first(), layer, layer.last()):
        assert end.weight_variance_times_fan_in > 0
        assert pickle.loads(pickle.dumps(end)) == end
        assert f in str(end)
    independent = rule != "mirrored"  # of pairs each unit counts twice, see test_mirrored
    if independent and layer.is_fixed_point and layer.bias == 0 and layer.centre == 0:
        back = variance_map(f, variance, layer.weight_variance_times_fan_in, layer.bias_variance)
        assert back == pytest.approx(variance, rel=1e-7)


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(["tanh", "sigmoid", "gelu", "softplus"]),
    st.sampled_from(SCALE_RULES),
    st.floats(0.1, 10.0),
)
def test_scaling_the_activation_scales_the_weights_back(f: str, rule: str, a: float) -> None:
    """W and a f are seen together only, so W / a with a f is the same network."""
    from fanin.theory.activation import activation

    act = activation(f)
    plain, scaled = rules.get(rule)(f), rules.get(rule)(lambda x: -a * act(x))
    assert scaled.weight_variance_times_fan_in * a**2 == pytest.approx(
        plain.weight_variance_times_fan_in, rel=1e-9
    )
    assert scaled.centre == pytest.approx(-a * plain.centre, abs=1e-10 * a)
    assert (scaled.slope, scaled.chi) == pytest.approx((plain.slope, plain.chi), rel=1e-7)


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(["tanh", "gelu"]), st.floats(0.2, 5.0))
def test_stretching_the_input_moves_the_operating_point_only(f: str, k: float) -> None:
    """f(k x) at variance q is f at variance k^2 q."""
    from fanin.theory.activation import activation

    act = activation(f)
    plain = rules.centred(f, variance=k * k)
    stretched = rules.centred(lambda x: act(k * x), variance=1.0)
    assert stretched.weight_variance_times_fan_in * k**2 == pytest.approx(
        plain.weight_variance_times_fan_in, rel=1e-9
    )
    assert (stretched.slope, stretched.chi) == pytest.approx((plain.slope, plain.chi), rel=1e-7)
