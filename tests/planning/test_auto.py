"""`auto` and the rules by name: right numbers per weight, right rule per stretch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.planning import networks as net
from tests.zoo import entry
from torch import nn

import fanin
from fanin import draw
from fanin.errors import ArgumentError, NotCoveredError
from fanin.planning.plan import Centre, Plan
from fanin.planning.verdict import judge
from fanin.theory import rules
from fanin.theory.activation import activation
from fanin.torch.writing.centring import centre_


def planned(model: nn.Module, inputs: object, rule: object = "auto") -> Plan:
    return fanin.plan(model, inputs, rule)


def scaled(plan: Plan, path: str) -> float:
    """Variance times fan-in of a weight."""
    row = plan[path]
    assert row.std is not None
    assert row.fan_in is not None
    return row.std**2 * row.fan_in


# --- rules by name -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "f", "first", "hidden"),
    [
        ("he", nn.ReLU(), 1.0, 2.0),
        ("he", nn.LeakyReLU(0.2), 1.0, 2 / 1.04),
        ("lecun", nn.Tanh(), 1.0, 1.0),
        ("kumar", nn.Sigmoid(), 1.0, 12.8),
        ("second_moment", nn.Tanh(), 1.0, 2.536175433),
        ("second_moment", nn.Mish(), 1.0, 1.48684758**2),
        ("backward", nn.GELU(), 1.0, 2.193699904),
        ("centred", nn.Sigmoid(), 1.0, 23.052610),
    ],
)
def test_a_rule_by_name(rule: str, f: nn.Module, first: float, hidden: float) -> None:
    plan = planned(net.mlp(2, f), fanin.spec((8, 20)), rule)
    assert scaled(plan, "0.weight") == pytest.approx(first, rel=1e-6)
    expected = hidden * 64 / plan["2.weight"].fan_in  # square, so every fan is the same
    assert scaled(plan, "2.weight") == pytest.approx(expected, rel=2e-4)


def test_xavier_counts_both_fans() -> None:
    plan = planned(net.mlp(2, nn.Tanh()), fanin.spec((8, 20)), "xavier")
    assert plan["0.weight"].std == pytest.approx(math.sqrt(2 / 84))


def test_a_rule_that_does_not_cover_names_the_weight() -> None:
    with pytest.raises(NotCoveredError, match=r"plan\(2.weight\)"):
        planned(net.mlp(2, nn.SELU()), fanin.spec((8, 20)), "kumar")


def test_shaped_by_name_is_the_theory_of_that_depth() -> None:
    plan = planned(net.mlp(30, nn.GELU()), fanin.spec((8, 20)), "shaped")
    rule = rules.get("shaped")("gelu", depth=30, width=64)
    assert scaled(plan, "2.weight") == pytest.approx(rule.weight_variance_times_fan_in, rel=1e-9)
    assert scaled(plan, "0.weight") == pytest.approx(rule.operating_point.variance, rel=1e-9)
    bias = plan["2.bias"]
    assert bias.values == draw.Constant(rule.bias)
    assert bias.centre is not None
    assert (bias.centre.weight, bias.centre.mean) == ("2.weight", rule.centre)
    assert plan["0.bias"].centre is None
    assert plan["0.bias"].mean == pytest.approx(rule.bias)
    assert plan["60.bias"].mean == 0.0


def test_critical_draws_biases() -> None:
    parameters = {"criterion": "edge_of_chaos", "bias_variance": 0.09}
    rule = rules.get("critical")("tanh", **parameters)
    plan = planned(net.mlp(3, nn.Tanh()), fanin.spec((8, 20)), {"rule": "critical", **parameters})
    assert scaled(plan, "2.weight") == pytest.approx(rule.weight_variance_times_fan_in, rel=1e-9)
    assert scaled(plan, "2.weight") == pytest.approx(1.9476546317)  # the published edge of chaos
    assert plan["2.bias"].std == pytest.approx(0.3)
    assert plan["6.bias"].std == 0.0


def test_unlike_activations_hand_over_their_operating_points() -> None:
    model = nn.Sequential(
        nn.Linear(20, 64), nn.GELU(), nn.Linear(64, 64), nn.Sigmoid(), nn.Linear(64, 9)
    )
    plan = planned(model, fanin.spec((8, 20)), {"rule": "shaped", "depth": 20})
    gelu, sigmoid = (rules.get("shaped")(f, depth=20, width=64) for f in ("gelu", "sigmoid"))
    expected = sigmoid.operating_point.variance / float(gelu.moments.variance)
    assert scaled(plan, "2.weight") == pytest.approx(expected, rel=1e-9)
    assert plan["2.bias"].mean == pytest.approx(sigmoid.bias)
    assert plan["2.bias"].centre is not None
    assert plan["2.bias"].centre.mean == pytest.approx(gelu.centre)


# --- auto: plain stretches -----------------------------------------------------------------------


def test_the_verdict_is_what_the_maps_do() -> None:
    """Against iterating the closed correlation map of ReLU (Cho and Saul 2009) and its slopes."""
    c = 0.0
    for _ in range(4):
        c = (math.sqrt(1 - c * c) + (math.pi - math.acos(c)) * c) / math.pi
    found = judge(rules.get("he")("relu"), activation("relu"), 4)
    assert found.distance == pytest.approx(1 - c, abs=2e-3)
    assert (found.signal, found.gradient) == pytest.approx((1.0, 1.0))
    shaped = judge(rules.get("shaped")("relu", depth=50), activation("relu"), 50)
    assert shaped.gradient == pytest.approx(1.5, rel=1e-6)
    assert shaped.holds


@pytest.mark.parametrize(
    ("depth", "f", "rule"),
    [
        (2, nn.ReLU(), "second_moment"),
        (30, nn.ReLU(), "shaped"),
        (3, nn.Tanh(), "second_moment"),
        (40, nn.Tanh(), "shaped"),
        (20, nn.Sigmoid(), "shaped"),
        (50, nn.SiLU(), "shaped"),
    ],
)
def test_the_rule_of_a_plain_stretch(depth: int, f: nn.Module, rule: str) -> None:
    plan = planned(net.mlp(depth, f), fanin.spec((8, 20)))
    assert [s.rule for s in plan.stretches] == [rule]
    assert plan.stretches[0].weights[0] == "0.weight"
    assert f"{depth} nonlinear layers" in plan.stretches[0].reason


def test_without_biases_nothing_is_shaped() -> None:
    layers = [m for _ in range(30) for m in (nn.Linear(32, 32, bias=False), nn.GELU())]
    plan = planned(nn.Sequential(*layers), fanin.spec((4, 32)))
    assert plan.stretches[0].rule == "second_moment"
    assert "0.weight has no bias to shape with" in plan.stretches[0].reason


def test_fans_count_the_taps_inside() -> None:
    plan = planned(plain_convolutions(4, nn.ReLU(), 8), fanin.spec((2, 3, 10, 10)))
    assert plan["2.weight"].fan_in == pytest.approx(8 * (28 / 10) ** 2)


def test_real_inputs_are_measured() -> None:
    x = 3.0 + torch.randn(64, 20, generator=torch.Generator().manual_seed(0))
    plan = planned(net.mlp(2, nn.ReLU()), x)
    assert scaled(plan, "0.weight") == pytest.approx(1 / x.pow(2).mean().item(), rel=1e-5)
    assert not any("N(0, 1)" in note for note in plan.notes)


# --- auto: what is written does what was planned -------------------------------------------------


def moments_of(model: nn.Module, x: object, kinds: tuple[type[nn.Module], ...]) -> dict[str, float]:
    """Mean square of what each layer of some kinds makes."""
    found: dict[str, float] = {}
    handles = [
        m.register_forward_hook(
            lambda _m, _x, y, name=name: found.__setitem__(name, y.pow(2).mean().item())
        )
        for name, m in model.named_modules()
        if isinstance(m, kinds)
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found


def test_second_moments_of_a_perceptron_are_one() -> None:
    torch.manual_seed(0)
    model, x = net.mlp(4, nn.GELU(), 512, 256, 10), torch.randn(128, 256)
    runs = []
    for seed in range(4):
        fanin.init_(model, x, "second_moment", seed=seed)
        runs.append(list(moments_of(model, x, (nn.Linear,)).values()))
    mean, error = np.mean(runs, 0), np.std(runs, 0, ddof=1) / 2
    assert np.all(np.abs(mean - 1) < 4 * error + 0.03)


def test_a_residual_stream_grows_by_less_than_two() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(*[net.Block() for _ in range(16)]), torch.randn(4, 16, 64)
    plan = fanin.init_(model, x)
    with torch.no_grad():
        assert model(x).pow(2).mean().sqrt() < 2 * x.pow(2).mean().sqrt()
    ends = [plan[f"{i}.{n}.weight"] for i in range(16) for n in ("o", "w2")]
    assert all("1/sqrt(32)" in row.reason for row in ends)
    assert "1/sqrt" not in plan["3.w3.weight"].reason
    assert [s.kind for s in plan.stretches] == ["residual"]


def test_branches_without_norm_are_scaled_and_with_norm_are_not() -> None:
    x = fanin.spec((4, 3, 12, 12))
    plain, normed = (planned(net.resnet(4, norm=n), x) for n in (False, True))
    ratio = scaled(plain, "1.c2.weight") / scaled(normed, "1.c2.weight")
    assert ratio == pytest.approx(1 / 4, rel=0.1)
    assert "a norm sets its scale" in normed["1.c2.weight"].reason


@pytest.mark.parametrize("words", [500, 5000])
@pytest.mark.parametrize("residual", [False, True])
def test_the_loss_of_a_tied_head_starts_near_the_logarithm(words: int, residual: bool) -> None:
    """Also where the stream keeps the row of the token that it stands for, which the head finds."""
    torch.manual_seed(0)
    model, x = net.Tied(words, 256, residual), torch.randint(0, words, (8, 32))
    plan = fanin.init_(model, x)
    with torch.no_grad():
        loss = F.cross_entropy(model(x).flatten(0, 1), torch.randint(0, words, (256,))).item()
    assert math.log(words) < loss < math.log(words) + 0.5
    assert plan["embedding.weight"].std == pytest.approx(math.log(words) / 256)


@pytest.mark.parametrize("model", [net.mlp(3, nn.ReLU()), net.mlp(30, nn.Sigmoid())])
def test_the_loss_of_a_classifier_starts_within_one_half(model: nn.Module) -> None:
    """Over seeds E[logsumexp] of ten independent N(0, 1) is 2.7: the logarithm and 0.4."""
    torch.manual_seed(0)
    x, y = torch.randn(512, 20), torch.randint(0, 10, (512,))
    losses = []
    for seed in range(8):
        fanin.init_(model, x, seed=seed)
        with torch.no_grad():
            losses.append(F.cross_entropy(model(x), y).item())
    assert math.log(10) < np.mean(losses) < math.log(10) + 0.5


def test_an_embedding_has_unit_rows_after_the_models_own_factor() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(50, 64), nn.Linear(64, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.table(x) * 8.0)

    plan = planned(Scaled(), fanin.spec((2, 7), "int64", high=50))
    assert plan["table.weight"].std == 1 / 8


def test_recurrent_layers_gate_by_gate() -> None:
    plan = planned(nn.LSTM(64, 32), fanin.spec((5, 3, 64)))
    assert plan["weight_ih_l0"].std == pytest.approx(1 / 8)
    assert plan["weight_hh_l0"].values == draw.Orthogonal(1.0, groups=4, keep="second_moment")
    assert plan["bias_ih_l0"].mean == 0.25
    assert plan["bias_hh_l0"].mean == 0.0


def test_every_tensor_has_one_row_and_a_reason() -> None:
    for model, x in (
        (net.StateSpace(), fanin.spec((2, 5, 16))),
        (net.resnet(3, norm=True), fanin.spec((2, 3, 12, 12))),
        (net.Tied(), fanin.spec((2, 5), "int64", high=500)),
    ):
        plan = planned(model, x)
        named = {n for n, _ in model.named_parameters()} | {n for n, _ in model.named_buffers()}
        assert {row.path for row in plan} == named
        assert len(plan) == len(named)
        assert all(row.reason for row in plan)
        assert all(row.exactness for row in plan if row.values is not None)


def test_pooling_inside_a_centred_stretch_is_reckoned_with() -> None:
    """The mean that a bias takes out behind max pooling is that of the pooled activations."""
    torch.manual_seed(0)

    def layer(before: int) -> list[nn.Module]:
        return [nn.Conv2d(before, 64, 3), nn.Sigmoid()]

    steps = [*layer(3), *layer(64), *layer(64), nn.MaxPool2d(2), *layer(64)]
    model, x = nn.Sequential(*steps), torch.randn(16, 3, 16, 16)
    plan = fanin.init_(model, x, "centred")
    with torch.no_grad():
        pooled = model[:7](x)
        made = model[:8](x)
    centre = plan["7.bias"].centre
    assert centre is not None
    assert centre.mean == pytest.approx(pooled.mean().item(), rel=0.03)
    assert centre.mean > 0.55
    assert made.var().item() == pytest.approx(1.0, rel=0.2)  # the last layer is a head


def test_an_operation_that_has_no_rule_is_assumed_and_noted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from fanin.signal import propagate

    step = propagate.step

    def failing(graph: object, node: object, states: object) -> object:
        if node.name == "gelu":  # type: ignore[attr-defined]
            raise RuntimeError("no such rule")
        return step(graph, node, states)  # type: ignore[arg-type]

    monkeypatch.setattr(propagate, "step", failing)
    plan = planned(
        nn.Sequential(net.feed_forward(8), nn.ReLU(), nn.Linear(8, 3)), fanin.spec((2, 8))
    )
    assert plan.notes[0] == "aten.gelu.default in 0.1, taken as N(0, 1): no such rule"
    assert plan["0.2.weight"].exactness == "assumed: N(0, 1)"
    assert plan["0.2.weight"].std == pytest.approx(1 / 32**0.5)


def test_circular_padding_is_planned() -> None:
    conv = nn.Conv1d(2, 4, 3, padding=1, padding_mode="circular")
    plan = planned(
        nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(20, 3)), fanin.spec((2, 2, 5))
    )
    assert plan["0.weight"].fan_in == 6
    assert all(row.std is not None and math.isfinite(row.std) for row in plan)


# --- convolutions -----------------------------------------------------------------------------


def plain_convolutions(depth: int, f: nn.Module, channels: int = 32, **options: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1), f]
    for _ in range(depth - 1):
        layers += [nn.Conv2d(channels, channels, 3, padding=1, **options), f]
    return nn.Sequential(*layers)


def test_padded_convolutions_take_the_mean_out_by_themselves() -> None:
    """Inputs of a unit sum to zero at every tap; the bias is beta alone, the draw as large."""
    model = plain_convolutions(20, nn.ReLU())
    plan = fanin.init_(model, fanin.spec((2, 3, 10, 10)))
    assert plan.stretches[0].rule == "shaped"
    row, weight = plan["20.weight"], model.get_parameter("20.weight").detach()
    assert row.centre is not None
    assert row.centre.weight == row.path
    assert row.reason.endswith("its inputs sum to zero")
    assert weight.double().sum(1).abs().max() < 1e-6
    assert weight.std().item() == pytest.approx(row.std, rel=0.03)
    assert plan["20.bias"].centre is None
    assert model.get_parameter("20.bias").unique().numel() == 1
    assert plan["0.weight"].centre is None  # reads the image
    assert "zero sums" in str(plan)


@pytest.mark.parametrize("f", [nn.ReLU(), nn.Sigmoid(), nn.Softplus()])
def test_the_variance_holds_at_padded_borders(f: nn.Module) -> None:
    """Mean over positions of the pre-activations' variance over s^2, 24 layers, 3 seeds."""
    model, x = plain_convolutions(24, f), torch.randn(4, 3, 10, 10)
    found = []
    for seed in range(3):
        plan = fanin.init_(model, x, seed=seed)
        first = plan["0.weight"]
        assert first.std is not None
        assert first.fan_in is not None
        beta, s2 = plan["2.bias"].mean, first.std**2 * first.fan_in
        with torch.no_grad():
            z = model[:45](x)
        found.append((z - beta).square().mean((0, 1)) / s2)
    over = torch.stack(found).mean(0)
    assert 0.6 < over.mean() < 1.6
    assert over.max() < 3  # a bias leaves 4 to 16 at the corners of such a network


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Identity()])
def test_pools_and_strides_between_padded_convolutions(pool: nn.Module) -> None:
    """Variance about beta over s^2 of every layer, means over positions and 2 seeds."""
    stride = 2 if isinstance(pool, nn.Identity) else 1
    layers: list[nn.Module] = []
    for i in range(10):
        step = stride if i in (3, 6) else 1
        layers += [nn.Conv2d(3 if i == 0 else 48, 48, 3, padding=1, stride=step), nn.Sigmoid()]
        layers += [pool] if i in (3, 6) else []
    model, x = nn.Sequential(*layers), torch.randn(8, 3, 16, 16)
    found: dict[int, list[float]] = {}
    for seed in range(2):
        plan = fanin.init_(model, x, "shaped", seed=seed)
        first = plan["0.weight"]
        assert first.std is not None
        assert first.fan_in is not None
        beta, y = plan["2.bias"].mean, x
        for i, layer in enumerate(model[:-2]):  # without the head
            y = layer(y).detach()
            if isinstance(layer, nn.Conv2d):
                over = (y - beta).square().mean().item() / (first.std**2 * first.fan_in)
                found.setdefault(i, []).append(over)
    assert all(0.6 < np.mean(over) < 1.6 for over in found.values())


def test_a_model_on_meta_gets_the_same_kernels() -> None:
    here, there = plain_convolutions(12, nn.Sigmoid(), 8), torch.device("meta")
    plan = fanin.init_(here, fanin.spec((2, 3, 8, 8)), seed=3)
    with there:
        model = plain_convolutions(12, nn.Sigmoid(), 8)
    fanin.materialize_(model, "cpu", plan, seed=3)
    assert plan["6.weight"].centre is not None
    for name, tensor in here.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_grouped_kernels_sum_to_zero_group_by_group() -> None:
    model = plain_convolutions(12, nn.Sigmoid(), 16, groups=1)
    grouped = nn.Sequential(*model, *plain_convolutions(4, nn.Sigmoid(), 16, groups=4)[2:])
    plan = fanin.init_(grouped, fanin.spec((2, 3, 8, 8)), "shaped")
    row, weight = plan["26.weight"], grouped.get_parameter("26.weight").detach().double()
    assert weight.shape == (16, 4, 3, 3)
    assert weight.sum(1).abs().max() < 1e-6
    assert weight.square().mean().sqrt().item() == pytest.approx(row.std, rel=0.1)


def test_transposed_kernels_keep_groups_apart() -> None:
    weight = torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(0))
    centre_(weight, Centre("w", 0.5, "in out tap", groups=2), None)
    sums = weight.unflatten(0, (2, 3)).sum(1)
    assert sums.abs().max() < 1e-6
    assert weight.sum(0).abs().max() < 1e-6


def test_depthwise_kernels_are_centred_by_the_bias_and_say_so() -> None:
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1), nn.Softplus()]
    for _ in range(12):
        layers += [nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Softplus()]
        layers += [nn.Conv2d(16, 16, 1), nn.Softplus()]
    plan = planned(nn.Sequential(*layers), fanin.spec((2, 3, 8, 8)))
    assert plan.stretches[0].rule == "shaped"
    assert "at the border 2.weight, of one channel a unit, lets the mean in" in (
        plan.stretches[0].reason
    )
    assert plan["2.weight"].centre is None
    assert plan["2.bias"].centre is not None


def test_few_weights_a_unit_are_shaped_too_since_a_typical_product_is_far_below_the_mean() -> None:
    def sizes(rule: str) -> list[float]:
        found = []
        for seed in range(3):
            layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU()]
            for _ in range(20):
                layers += [nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU()]
                layers += [nn.Conv2d(16, 16, 1), nn.ReLU()]
            model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 64, 10))
            x = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
            fanin.init_(model, x, rule, seed=seed)
            found.append(model(x).square().mean().item())
        return found

    assert 0.2 < min(sizes("auto")) <= max(sizes("auto")) < 5
    assert max(sizes("second_moment")) < 0.1


def test_without_biases_rows_that_sum_to_zero_centre() -> None:
    layers = [m for _ in range(12) for m in (nn.Linear(64, 64, bias=False), nn.Sigmoid())]
    model = nn.Sequential(*layers)
    plan = fanin.init_(model, fanin.spec((4, 64)))
    assert plan.stretches[0].rule == "centred"
    assert model.get_parameter("4.weight").detach().double().sum(1).abs().max() < 1e-5


def test_a_network_of_high_frequency_is_pointed_to_its_recipe() -> None:
    for w0, told in ((1.0, False), (30.0, True)):
        plan = fanin.plan(net.Siren(width=64, w0=w0), fanin.spec((64, 2)))
        reasons = " ".join(stretch.reason for stretch in plan.stretches)
        assert ("rule 'siren'" in reasons) is told


class _Gate(nn.Module):
    """A channel gate fed by the average over positions of what it gates."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(16)
        self.squeeze, self.excite = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        gate = self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True))))
        return self.head((y * torch.sigmoid(gate)).mean((2, 3)))


def test_an_average_of_independent_positions_is_not_made_up_for() -> None:
    plan = fanin.plan(_Gate(), fanin.spec((4, 16, 32, 32)))
    # 1/1024 of the variance is left, 1/10 is counted: 16 std^2 0.1 = 1; eps of the norm: 1e-5
    np.testing.assert_allclose(plan["squeeze.weight"].std, math.sqrt(10 / 16), rtol=1e-5)
    np.testing.assert_allclose(plan["excite.weight"].std, math.sqrt(2 / 16), rtol=1e-5)


@pytest.mark.parametrize("f", [nn.Sigmoid, nn.GELU, nn.ReLU])
def test_orthogonal_draws_keep_the_signal_of_a_shaped_network(f: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = net.mlp(50, f(), 128, 128, 128)
    x = torch.randn(256, 128)
    plan = fanin.init_(model, x, rule={"rule": "shaped", "draws": "orthogonal"}, seed=0)
    values = plan["2.weight"].values
    assert isinstance(values, draw.Orthogonal)
    assert plan.rule == "shaped(draws='orthogonal')"
    weight = model[2].weight.detach().double()
    one = torch.eye(128, dtype=torch.float64) * values.gain**2
    assert (weight.T @ weight - one).abs().max() < 2e-6 * values.gain**2
    y = model(x)
    y.mul(torch.randn_like(y)).sum().backward()
    first, last = (model[i].weight.grad.square().mean() for i in (2, 96))
    assert 0.5 < y.square().mean() < 2
    assert 0.5 < first / last < 2


def test_kernels_are_orthogonal_by_group() -> None:
    layers = [nn.Conv2d(3, 16, 3), nn.SiLU(), nn.Conv2d(16, 16, 3, groups=2), nn.SiLU()]
    model = nn.Sequential(*layers, nn.Conv2d(16, 4, 3))
    plan = fanin.plan(model, fanin.spec((2, 3, 9, 9)), rule={"rule": "auto", "draws": "orthogonal"})
    values = plan["2.weight"].values
    assert isinstance(values, draw.Orthogonal)
    assert values.groups == 2
    normal = fanin.plan(model, fanin.spec((2, 3, 9, 9)))["2.weight"].std
    assert plan["2.weight"].std == pytest.approx(normal, rel=1e-12)


def test_a_draw_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ArgumentError) as error:
        fanin.plan(nn.Linear(2, 2), fanin.spec((2, 2)), rule={"rule": "auto", "draws": "normals"})
    assert str(error.value) == "rule draws: expected one of normal, orthogonal, got 'normals'"


def test_a_transposed_convolution_takes_the_mean_out_at_every_tap() -> None:
    """Each of its outputs sees one of the 2 x 2 taps here, so no bias could."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3)]
    for _ in range(3):
        layers += [nn.ReLU(), nn.ConvTranspose2d(64, 64, 2, stride=2)]
    model = nn.Sequential(*layers)
    x = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    plan = fanin.init_(model, x, rule="centred", seed=0)
    centre = plan["2.weight"].centre
    assert centre is not None
    assert centre.weight == "2.weight"
    weight = model[2].weight.detach()
    assert weight.sum(0).abs().max() < 1e-4 * weight.abs().max()
    second = model[:5](x).square().mean().item()
    assert second == pytest.approx(1.0, rel=0.2)


def test_a_plan_knows_the_time_steps_that_it_leaves_alone() -> None:
    """They are read through a view; taken as zero, they would make the scan ten times as large."""
    pytest.importorskip("transformers")
    zoo = entry("Mamba-style")
    model = zoo.build(True)
    plan = fanin.init_(model, zoo.inputs(True))
    row = plan["backbone.layers.0.mixer.out_proj.weight"]
    given = float(row.reason.split("E[x^2] = ")[1].split(";")[0])
    layer = model.get_submodule("backbone.layers.0.mixer.out_proj")
    seen: list[float] = []
    layer.register_forward_pre_hook(lambda _, x: seen.append(float(x[0].square().mean())))
    for seed in range(6):
        fanin.apply_(model, plan, seed=seed)
        with torch.no_grad():
            model(torch.randint(0, 64, (8, 8), generator=torch.Generator().manual_seed(seed)))
    assert 0.5 < given / np.mean(seen) < 2  # a width of 32 spreads


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_padding_by_elements_is_seen_through(mode: str) -> None:
    """A stretch of padded convolutions is one, whatever the padding."""
    layers = [nn.Conv2d(8, 8, 3, padding=1, padding_mode=mode) for _ in range(20)]
    model = nn.Sequential(*(part for layer in layers for part in (layer, nn.Sigmoid())))
    plan = fanin.init_(model, fanin.spec((16, 8, 6, 6)), seed=0)
    assert [(s.rule, len(s.weights)) for s in plan.stretches] == [("shaped", 20)]
    made = model[:-1](torch.randn(64, 8, 6, 6, generator=torch.Generator().manual_seed(0)))
    assert made.var(0).mean().item() > 0.1 * made.var().item()  # inputs are told apart


@pytest.mark.parametrize(("width", "drawn"), [(128, draw.Orthogonal), (512, draw.Normal)])
def test_matrices_are_orthogonal_where_a_stretch_is_deep_for_its_width(
    width: int, drawn: type[draw.Distribution]
) -> None:
    """2L/N of 50 layers is 0.78 at 128 units and 0.2 at 512; the mean square is the same."""
    layers = [part for _ in range(50) for part in (nn.Linear(width, width), nn.GELU())]
    model = nn.Sequential(*layers, nn.Linear(width, 10))
    plan = fanin.plan(model, fanin.spec((64, width)))
    asked = fanin.plan(model, fanin.spec((64, width)), {"rule": "auto", "draws": "normal"})
    assert plan.stretches[0].rule == "shaped"
    for row in plan.rows[:-2:2]:
        assert isinstance(row.values, drawn)
        assert isinstance(asked[row.path].values, draw.Normal)
        assert row.std == pytest.approx(asked[row.path].std, rel=1e-9)
