"""The drop-in initializers: torch's calls, right scales, no silent no-op."""

from __future__ import annotations

import copy
import functools
import inspect
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from fanin.errors import ArgumentError, ArgumentTypeError, NotCoveredError, UninitializedError
from fanin.torch import init

SHARED = [
    "normal_",
    "uniform_",
    "trunc_normal_",
    "orthogonal_",
    "constant_",
    "zeros_",
    "ones_",
    "kaiming_normal_",
    "kaiming_uniform_",
    "xavier_normal_",
    "xavier_uniform_",
    "calculate_gain",
]
SCALED = [
    "kaiming_normal_",
    "kaiming_uniform_",
    "xavier_normal_",
    "xavier_uniform_",
    "lecun_normal_",
]
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def message(call: object, kind: type[Exception]) -> str:
    with pytest.raises(kind) as caught:
        call()  # type: ignore[operator]
    return str(caught.value)


def within(values: torch.Tensor, std: float, k: float = 4.5) -> bool:
    """Whether mean and variance are those of N(0, std^2), within k standard errors."""
    x = values.double().flatten() / std
    n = x.numel()
    spread = (x.pow(4).mean() - 1).clamp_min(1e-9).sqrt() / n**0.5
    return bool(x.mean().abs() < k / n**0.5 and (x.pow(2).mean() - 1).abs() < k * spread)


# --- a drop-in ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHARED)
def test_arguments_have_the_names_and_defaults_of_torch(name: str) -> None:
    ours = inspect.signature(getattr(init, name)).parameters.values()
    theirs = inspect.signature(getattr(nn.init, name)).parameters.values()
    mine = [(p.name, p.default) for p in ours if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert mine == [(p.name, p.default) for p in theirs]


@pytest.mark.parametrize("name", [*SCALED, "normal_", "uniform_", "trunc_normal_", "orthogonal_"])
def test_the_tensor_comes_back_filled_and_follows_the_seed(name: str) -> None:
    function = getattr(init, name)
    weight = nn.Parameter(torch.full((6, 8), math.nan))
    torch.manual_seed(3)
    assert function(weight) is weight
    assert weight.isfinite().all()
    assert weight.requires_grad
    assert weight.is_leaf
    second = function(torch.empty(6, 8))
    assert not torch.equal(weight, second)
    torch.manual_seed(3)
    assert torch.equal(function(torch.empty(6, 8)), weight)
    one = function(torch.empty(6, 8), generator=torch.Generator().manual_seed(7))
    two = function(torch.empty(6, 8), generator=torch.Generator().manual_seed(7))
    assert torch.equal(one, two)


def test_a_generator_leaves_the_global_one_alone() -> None:
    state = torch.get_rng_state()
    init.normal_(torch.empty(5), generator=torch.Generator().manual_seed(0))
    init.zeros_(torch.empty(5))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", [*SHARED[:-1], "lecun_normal_", "kumar_normal_", "shaped_"])
def test_initializers_pickle_copy_and_print(name: str) -> None:
    function = getattr(init, name)
    assert pickle.loads(pickle.dumps(function)) is function
    assert copy.deepcopy(function) is function
    partial = functools.partial(function, std=0.5)
    assert repr(partial) == f"functools.partial(fanin.torch.init.{name}, std=0.5)"
    assert pickle.loads(pickle.dumps(partial)).keywords == {"std": 0.5}


def test_a_strided_view_is_filled_in_place() -> None:
    weight = nn.Parameter(torch.zeros(6, 8))
    init.ones_(weight[1:3, ::2])
    assert weight.sum() == 8
    assert weight[1, 0] == weight[2, 6] == 1


# --- scales -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
def test_scales_of_each_initializer(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = torch.empty(300, 400, dtype=dtype)
    assert within(init.normal_(weight, std=0.3), 0.3)
    assert within(init.uniform_(weight, -0.6, 0.6), 0.6 / 3**0.5)
    assert within(init.kaiming_normal_(weight, nonlinearity="relu"), (2 / 400) ** 0.5)
    assert within(init.kaiming_uniform_(weight, a=5**0.5), (1 / 1200) ** 0.5)
    assert within(init.kaiming_normal_(weight, 0.2, "fan_out"), (2 / 1.04 / 300) ** 0.5)
    assert within(init.xavier_normal_(weight, 2.0), 2 * (2 / 700) ** 0.5)
    assert within(init.xavier_uniform_(weight), (2 / 700) ** 0.5)
    assert within(init.lecun_normal_(weight), 1 / 20)
    assert within(init.lecun_uniform_(weight), 1 / 20)


@pytest.mark.parametrize(
    ("nonlinearity", "gain"),
    [("linear", 1.0), ("gelu", 1.533530441), ("silu", 1.676532470), (torch.sin, 1.52086662)],
)
def test_any_activation_has_a_gain(nonlinearity: object, gain: float) -> None:
    torch.manual_seed(1)
    weight = init.kaiming_normal_(torch.empty(400, 400), nonlinearity=nonlinearity)
    assert within(weight, gain / 20)
    assert init.calculate_gain(nonlinearity) == pytest.approx(gain, rel=1e-8)


def test_fan_out_keeps_the_gradient() -> None:
    """1 / sqrt(E[f'^2]), not 1 / sqrt(E[f^2]): they differ for GELU."""
    torch.manual_seed(1)
    weight = init.kaiming_normal_(torch.empty(400, 100), mode="fan_out", nonlinearity="gelu")
    assert within(weight, 1.48111441 / 20)


def test_torch_names_for_leaky_relu() -> None:
    assert init.calculate_gain("leaky_relu") == pytest.approx((2 / 1.0001) ** 0.5, rel=1e-12)
    assert init.calculate_gain("leaky_relu", 0.2) == pytest.approx((2 / 1.04) ** 0.5, rel=1e-12)
    assert init.calculate_gain("conv_transpose3d") == 1.0


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_truncated_normal_has_the_std_that_was_asked(dtype: torch.dtype) -> None:
    """Acceptance: std 0.02 with bounds of 2 sigma, 2000 x 2000."""
    draw = functools.partial(init.trunc_normal_, std=0.02)
    weight = draw(torch.empty(2000, 2000, dtype=dtype), generator=torch.Generator().manual_seed(5))
    assert (weight.double().std() / 0.02 - 1).abs() < 0.005
    sigma = 0.02 / 0.8796256610342398
    assert weight.double().abs().max() <= 2 * sigma * (1 + torch.finfo(dtype).eps)
    full = draw(torch.empty(2000, 2000), generator=torch.Generator().manual_seed(5))
    if dtype is torch.float64:  # drawn with digits of its own
        torch.testing.assert_close(weight.float(), full, rtol=1e-5, atol=1e-7)
    else:
        assert torch.equal(weight, full.to(dtype))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(64, 64), (96, 32), (32, 96), (64, 8, 3, 3)])
def test_orthogonal_in_every_type_and_shape(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    weight = init.orthogonal_(torch.empty(shape, dtype=dtype), gain=1.5).double().flatten(1)
    rows, columns = weight.shape
    product = weight @ weight.T if rows <= columns else weight.T @ weight
    eps = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps * 16)
    assert (product / 2.25 - torch.eye(min(rows, columns))).abs().max() < 4 * eps


def test_orthogonal_treats_gates_and_groups_as_matrices() -> None:
    for weight, blocks in (
        (init.orthogonal_(nn.LSTM(8, 16)).weight_hh_l0, 4),
        (init.orthogonal_(nn.Conv2d(32, 32, 3, groups=8)).weight.flatten(1), 8),
    ):
        for block in weight.detach().chunk(blocks):
            assert torch.allclose(block @ block.T, torch.eye(len(block)), atol=1e-5)


# --- faults of torch.nn.init that are not repeated ------------------------------------------------


def forward_ratio(layer: nn.Module, *, rectified: bool) -> float:
    """Mean square of the output over that of normal numbers, far from the border."""
    x = torch.randn(4, layer.in_channels, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = layer(torch.relu(x) if rectified else x) - layer.bias.reshape(-1, 1, 1)
    return (y[:, :, 4:-4, 4:-4].pow(2).mean() / x.pow(2).mean()).item()


@pytest.mark.parametrize("channels", [(64, 64, 1), (64, 256, 1), (256, 64, 1), (64, 64, 4)])
def test_transposed_convolutions_after_relu(channels: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(*channels[:2], 4, stride=2, padding=1, groups=channels[2])
    init.kaiming_normal_(layer, nonlinearity="relu")
    assert forward_ratio(layer, rectified=True) == pytest.approx(1.0, abs=0.12)


@pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose2d(32, 64, 4, stride=2, padding=1),
        nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1),
        nn.ConvTranspose2d(128, 16, 2, stride=2),
    ],
    ids=["32-64", "64-32", "128-16"],
)
def test_transposed_convolutions_with_a_linear_gain(layer: nn.Module) -> None:
    """Acceptance: output variance 1.00 within 0.05; torch has 0.12, 0.49, 2.05."""
    torch.manual_seed(2)
    init.kaiming_normal_(layer, nonlinearity="linear")
    assert forward_ratio(layer, rectified=False) == pytest.approx(1.0, abs=0.05)


def test_fan_out_of_a_grouped_convolution() -> None:
    """Acceptance: std 0.471; and the gradient of an 8-group convolution keeps its size."""
    torch.manual_seed(0)
    depthwise = nn.Conv2d(64, 64, 3, groups=64)
    init.kaiming_normal_(depthwise, mode="fan_out", nonlinearity="relu")
    assert within(depthwise.weight, (2 / 9) ** 0.5)
    grouped = nn.Conv2d(64, 64, 3, groups=8, bias=False)
    init.kaiming_normal_(grouped, mode="fan_out", nonlinearity="linear")
    x = torch.randn(8, 64, 24, 24, requires_grad=True)
    y = grouped(x)
    y.backward(torch.randn_like(y))
    assert x.grad is not None
    assert x.grad[:, :, 4:-4, 4:-4].pow(2).mean().item() == pytest.approx(1.0, abs=0.15)


def test_stacked_experts_fused_projections_and_gates() -> None:
    """Acceptance: 0.0625 an expert; 1/sqrt(d) a projection; gates apart; per-block Xavier."""
    torch.manual_seed(0)
    experts = torch.empty(8, 256, 512)
    init.kaiming_normal_(experts, nonlinearity="linear", axes="expert in out")
    assert within(experts, 0.0625)
    fused = init.lecun_normal_(torch.empty(768, 256))
    assert within(fused, 0.0625)
    assert within(init.xavier_normal_(fused, splits=3), 0.0625)
    lstm = init.xavier_normal_(nn.LSTM(300, 100))
    assert within(lstm.weight_ih_l0, (2 / 400) ** 0.5)
    assert within(lstm.weight_hh_l0, 0.1)
    attention = init.xavier_uniform_(nn.MultiheadAttention(256, 4))
    assert within(attention.in_proj_weight, 0.0625)
    assert within(attention.out_proj.weight, 0.0625)


def test_uneven_splits_have_their_own_fans() -> None:
    torch.manual_seed(0)
    weight = init.xavier_normal_(torch.empty(512 + 128, 512), splits=(512, 128))
    assert within(weight[:512], (2 / 1024) ** 0.5)
    assert within(weight[512:], (2 / 640) ** 0.5)


def test_a_parametrized_weight_is_written_through() -> None:
    torch.manual_seed(0)
    layer = parametrizations.weight_norm(nn.Linear(64, 64))
    assert init.constant_(layer, 5.0) is layer
    assert torch.allclose(layer.weight, torch.full((64, 64), 5.0))
    init.kaiming_normal_(layer, nonlinearity="relu")
    assert within(layer.weight, (2 / 64) ** 0.5)
    layer(torch.randn(3, 64))
    assert within(layer.weight, (2 / 64) ** 0.5)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_the_old_weight_norm_is_written_through() -> None:
    layer = nn.utils.weight_norm(nn.Linear(64, 64))
    init.constant_(layer, 5.0)
    layer(torch.randn(3, 64))
    assert torch.allclose(layer.weight, torch.full((64, 64), 5.0))


def test_a_parametrization_that_changes_the_value_is_an_error_and_keeps_the_old_one() -> None:
    layer = parametrizations.spectral_norm(nn.Linear(8, 8))
    old = {k: v.clone() for k, v in layer.state_dict().items()}
    text = message(lambda: init.constant_(layer, 5.0), NotCoveredError)
    assert text == (
        "ParametrizedLinear.weight: expected a parametrization that can take any value, got one "
        "that made the norm 1 of 40; let fanin.init_ plan it, or initialise before parametrizing"
    )
    assert torch.equal(
        layer.parametrizations.weight.original, old["parametrizations.weight.original"]
    )


# --- refusals --------------------------------------------------------------------------------


def test_what_cannot_hold_values_is_refused() -> None:
    expected = "normal_: expected a floating-point tensor in memory, got "
    normal = init.normal_
    assert message(lambda: normal(torch.empty(3, device="meta")), UninitializedError) == (
        expected + "a tensor on the meta device; use to_empty() first"
    )
    assert message(lambda: normal(torch.zeros(3, dtype=torch.int8)), ArgumentTypeError) == (
        expected + "a tensor of int8"
    )
    assert message(lambda: normal(torch.zeros(3, dtype=torch.cfloat)), ArgumentTypeError) == (
        expected + "a tensor of complex64"
    )
    quantised = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    assert message(lambda: normal(quantised), ArgumentTypeError) == expected + "a quantised tensor"
    assert message(lambda: normal(torch.empty(0)), UninitializedError) == (
        expected + "a tensor without elements"
    )
    placeholder = nn.Parameter(torch.empty(0))
    placeholder.ds_shape = (4, 4)
    assert message(lambda: normal(placeholder), UninitializedError) == (
        expected + "a ZeRO placeholder without elements; gather it first "
        "(deepspeed.zero.GatheredParameters)"
    )
    lazy = nn.LazyLinear(3).weight
    assert message(lambda: normal(lazy), UninitializedError) == (
        expected + "a lazy parameter without a shape; run one forward pass first"
    )
    computed = parametrizations.weight_norm(nn.Linear(4, 4)).weight
    assert message(lambda: normal(computed), ArgumentTypeError) == (
        expected + "the result of a computation, not a parameter; pass the layer, so that its "
        "parametrization is written through"
    )
    assert message(lambda: normal([1.0]), ArgumentTypeError) == (
        "normal_: expected a tensor or a layer, got list"
    )


def test_a_refused_layer_is_left_as_it_was() -> None:
    layer = nn.LSTM(2, 3)
    layer.weight_hh_l0 = nn.Parameter(torch.zeros(12, 3, device="meta"))
    before = layer.weight_ih_l0.clone()
    state = torch.get_rng_state()
    text = message(lambda: init.lecun_normal_(layer), UninitializedError)
    assert text.startswith("lecun_normal_(LSTM.weight_hh_l0): expected a floating-point tensor")
    assert torch.equal(layer.weight_ih_l0, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_arguments_outside_their_domain() -> None:
    weight = torch.empty(4, 4)
    assert message(lambda: init.kaiming_normal_(weight, mode="fan_avg"), ArgumentError) == (
        "mode: expected 'fan_in' or 'fan_out', got 'fan_avg'"
    )
    assert message(
        lambda: init.kaiming_normal_(weight, 0.1, nonlinearity="relu"), ArgumentError
    ) == ("a: expected 0 with relu, got 0.1; use 'leaky_relu'")
    assert message(
        lambda: init.trunc_normal_(weight, std=0.02, a=-0.04, b=0.04), ArgumentError
    ) == (
        "trunc_normal_(a, b): expected bounds in sigmas, a = -b with b >= 1, got a=-0.04, b=0.04; "
        "divide bounds in units of the weight by std"
    )
    assert message(lambda: init.lecun_normal_(weight, axis="in out"), ArgumentTypeError) == (
        "lecun_normal_: expected keywords axes, splits, size, got axis"
    )
    assert message(lambda: init.lecun_normal_(nn.LSTM(2, 2), splits=2), ArgumentError) == (
        "axes, splits of LSTM: expected a layer with one weight, got the weights weight_ih_l0, "
        "weight_hh_l0; pass one of its tensors"
    )
    with pytest.raises(ValueError, match="silu"):
        init.kaiming_normal_(weight, nonlinearity="silo")
    with pytest.raises(ValueError, match="std"):
        init.normal_(weight, std=-1.0)
