"""Weight and bias together: the paper's rule, centring and shaping, on real layers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fanin.errors import ArgumentError, NotCoveredError
from fanin.torch import init


def message(call: object, kind: type[Exception]) -> str:
    with pytest.raises(kind) as caught:
        call()  # type: ignore[operator]
    return str(caught.value)


def variance_times(weight: torch.Tensor, fan: float) -> float:
    return (weight.double().pow(2).mean() * fan).item()


@pytest.mark.parametrize(
    ("name", "value"),
    [("sigmoid", 12.8), ("tanh", 1.0), ("softplus", 2.701875684), ("gelu", 4.0), ("relu", 2.0)],
)
@pytest.mark.parametrize("function", [init.kumar_normal_, init.kumar_uniform_])
def test_the_paper_rule(function: object, name: str, value: float) -> None:
    torch.manual_seed(0)
    layer = function(nn.Linear(500, 500), name)  # type: ignore[operator]
    spread = 4.5 * math.sqrt(2 / 250_000) * value
    assert variance_times(layer.weight, 500) == pytest.approx(value, abs=spread)
    assert not layer.bias.any()


def test_the_paper_does_not_cover_selu() -> None:
    with pytest.raises(NotCoveredError, match="selu"):
        init.kumar_normal_(nn.Linear(3, 3), "selu")


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(300, 200),
        nn.Conv1d(100, 200, 3),
        nn.ConvTranspose1d(100, 60, 4, stride=2, groups=2),
    ],
    ids=["linear", "conv", "transposed"],
)
def test_centring_cancels_the_mean_of_a_sigmoid(layer: nn.Module) -> None:
    """A constant input of 1/2 gives 0 at every unit, on the mean over the phases of a stride."""
    torch.manual_seed(0)
    assert init.centred_(layer, "sigmoid") is layer
    fan = {nn.Linear: 300, nn.Conv1d: 300, nn.ConvTranspose1d: 100}[type(layer)]
    assert variance_times(layer.weight, fan) == pytest.approx(23.052610, rel=0.05)
    shape = (1, 300) if isinstance(layer, nn.Linear) else (1, 100, 20)
    with torch.no_grad():
        y = layer(torch.full(shape, 0.5))
    y = y if isinstance(layer, nn.Linear) else y[..., 8:12].mean(-1)
    assert y.abs().max() < 1e-4


def test_first_and_last_layers_of_a_centred_network() -> None:
    torch.manual_seed(0)
    first = init.centred_(nn.Linear(400, 400), "sigmoid", position="first")
    assert variance_times(first.weight, 400) == pytest.approx(1.0, rel=0.02)
    assert not first.bias.any()
    last = init.centred_(nn.Linear(400, 10), "sigmoid", position="last")
    assert torch.allclose(last.bias, -0.5 * last.weight.sum(1), atol=1e-5)


def test_a_shaped_network_keeps_signal_and_distance_over_fifty_layers() -> None:
    """Correlation of two inputs and the variance about beta, at width 512 and depth 50."""
    torch.manual_seed(0)
    layers = [nn.Linear(512, 512) for _ in range(50)]
    for i, layer in enumerate(layers):
        init.shaped_(layer, "sigmoid", depth=50, position="first" if i == 0 else "hidden")
    x = torch.randn(2, 512)
    with torch.no_grad():
        for i, layer in enumerate(layers):
            x = layer(x if i == 0 else torch.sigmoid(x))
    deviation = x - x.mean()
    variance = deviation.pow(2).mean().item()
    start = variance_times(layers[0].weight, 512)
    assert 0.5 < variance / start < 2.0
    cosine = (deviation[0] @ deviation[1] / deviation[0].norm() / deviation[1].norm()).item()
    assert abs(cosine) < 0.5


def test_a_weight_with_its_bias_as_tensors() -> None:
    weight, bias = torch.empty(20, 30), torch.empty(20)
    g = torch.Generator().manual_seed(0)
    assert init.shaped_(weight, "tanh", 10, generator=g, bias=bias) is weight
    layer = nn.Linear(30, 20)
    init.shaped_(layer, "tanh", 10, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer.bias.detach(), bias)


def test_a_parametrized_layer_gets_the_bias_of_its_effective_weight() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(64, 32))
    init.centred_(layer, "sigmoid")
    torch.testing.assert_close(layer.bias, -0.5 * layer.weight.sum(1))


def test_what_the_rules_refuse() -> None:
    assert message(
        lambda: init.centred_(nn.Linear(3, 3, bias=False), "sigmoid"), NotCoveredError
    ) == ("centred_: expected a bias to carry the mean, got none; give the layer a bias")
    assert message(lambda: init.shaped_(nn.LSTM(2, 2), "tanh", 3), NotCoveredError) == (
        "shaped_(LSTM): expected a layer with one weight, got the weights weight_ih_l0, "
        "weight_hh_l0; let fanin.init_ plan it"
    )
    bad = "middle"
    assert (
        message(
            lambda: init.centred_(nn.Linear(3, 3), "tanh", position=bad),  # type: ignore[arg-type]
            ArgumentError,
        )
        == "position: expected 'first', 'hidden' or 'last', got 'middle'"
    )
