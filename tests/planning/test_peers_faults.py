"""What other initializers get wrong on whole models, and that `init_` gets it right.

Faults that show in one layer or one draw are tested beside the code that is right there;
`ELSEWHERE` says where, and that those tests exist is tested here.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.planning import networks as net
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fanin
from fanin import draw
from fanin.planning.recipes import MuP

ROOT = Path(__file__).parents[2]
ELSEWHERE = {
    # AnyInit
    "an unknown pointwise operation is the identity": (
        "signal/test_transfer_peers.py::test_unknown_activations_are_integrated"
        "_and_not_passed_through"
    ),
    "concatenation is not weighted by size": (
        "signal/test_transfer_peers.py::test_concatenation_weighs_by_size"
    ),
    "a weight norm makes the measured variance another one": (
        "torch/test_apply.py::test_the_effective_weight_has_the_planned_std"
    ),
    "control flow on data drops skips and activations": (
        "torch/test_trace.py::test_control_flow_on_weights_falls_back_to_real_tensors_and_says_why"
    ),
    "a model on meta is left as it is, silently": (
        "torch/test_apply.py::test_meta_and_placeholders_are_errors"
    ),
    "sharded models are an error": (
        "planning/test_recipes.py::test_mup_passes_it_after_fully_shard_too"
    ),
    "the global generator is used or ignored": (
        "torch/test_apply.py::test_values_depend_on_names_and_not_on_order"
    ),
    # LSUV
    "deep sigmoid networks lose their inputs": (
        "torch/test_apply_training.py::test_twenty_sigmoid_layers_train"
    ),
    "models with several inputs do not run": (
        "torch/test_apply.py::test_special_tensors_stay_bit_identical_and_are_listed"
    ),
    # AutoInit
    "dropout drops the mean": (
        "signal/test_transfer_peers.py::test_dropout_raises_the_second_moment_and_keeps_the_mean"
    ),
    "zero padding is reckoned as dropout": (
        "signal/test_transfer_peers.py::test_zero_padding_counts_the_taps_inside"
    ),
    "global maxima in two and three dimensions are missing": (
        "signal/test_transfer_peers.py::test_maxima_are_order_statistics"
    ),
    "softmax has its layer's input variance": (
        "signal/test_transfer_peers.py::test_softmax_spreads_by_the_variance_within_rows"
    ),
    "an orthogonal matrix that is not square has another variance": (
        "draw/test_orthogonal.py::test_the_second_moment_can_be_kept_for_every_shape"
    ),
    "an orthogonal depthwise kernel has another variance": (
        "draw/test_orthogonal.py::test_groups_and_experts_are_matrices_of_their_own"
    ),
    # mup
    "sharding loses the attributes on tensors": (
        "planning/test_recipes.py::test_mup_passes_it_after_fully_shard_too"
    ),
    # torch
    "transposed convolutions have the wrong fan": (
        "torch/test_init.py::test_transposed_convolutions_with_a_linear_gain"
    ),
    "stacked experts count as taps": (
        "torch/test_init.py::test_stacked_experts_fused_projections_and_gates"
    ),
    "groups are not in fan_out": "torch/test_init.py::test_fan_out_of_a_grouped_convolution",
    "a truncated normal has 0.88 of the std": (
        "torch/test_init.py::test_a_truncated_normal_has_the_std_that_was_asked"
    ),
    "orthogonal matrices not in bfloat16": (
        "torch/test_init.py::test_orthogonal_in_every_type_and_shape"
    ),
    "gains of six activations": "torch/test_init.py::test_any_activation_has_a_gain",
    "writing to meta or through a parametrization does nothing": (
        "torch/test_init.py::test_what_cannot_hold_values_is_refused"
    ),
    "every rank holds the same shard": "torch/test_shard.py::test_shards_differ_across_ranks",
    "no reset_parameters, so memory is left over": (
        "torch/test_materialize.py::test_nothing_is_left_over_from_memory"
    ),
}


@pytest.mark.parametrize("fault", ELSEWHERE)
def test_it_is_tested_elsewhere(fault: str) -> None:
    path, _, name = ELSEWHERE[fault].partition("::")
    assert re.search(rf"^def {name}\(", (ROOT / "tests" / path).read_text(), re.MULTILINE)


def outputs(model: nn.Module, x: object, kind: type[nn.Module] = nn.Linear) -> dict[str, float]:
    """The mean square of what each call of such a layer gives, in order."""
    found: dict[str, float] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda _m, _x, y: found.update({f"{name}#{len(found)}": y.pow(2).mean().item()})

    hooks = [
        m.register_forward_hook(note(n)) for n, m in model.named_modules() if isinstance(m, kind)
    ]
    with torch.no_grad():
        model(*x) if isinstance(x, tuple) else model(x)
    for hook in hooks:
        hook.remove()
    return found


class Elementwise(nn.Module):
    """A function that no one registered."""

    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x)


# --- AnyInit -------------------------------------------------------------------------------------


def deep(f: Callable[[Tensor], Tensor], depth: int = 30, width: int = 256) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), Elementwise(f)]
    return nn.Sequential(*layers[:-1])


def both_ways(model: nn.Sequential) -> tuple[float, float, float]:
    """q_out / q_in, the first weight gradient over the last, the cosine of independent outputs."""
    generator = torch.Generator().manual_seed(10_000)
    x, r = (torch.randn(512, 256, generator=generator) for _ in range(2))
    y = model(x)
    (y * r).mean().backward()
    first, last = (model[i].weight.grad.norm().item() for i in (0, -1))
    cosine = F.cosine_similarity(y[:256], y[256:], dim=1, eps=1e-30).mean().item()
    return (y.pow(2).mean() / x.pow(2).mean()).item(), first / last, cosine


@pytest.mark.parametrize(
    "f", [torch.tanh, torch.sigmoid, F.softplus, torch.sin], ids=lambda f: f.__name__
)
def test_signal_gradient_and_distance_hold_over_thirty_layers(f: Callable[..., Tensor]) -> None:
    """Others: sigmoid 2e-6 and softplus 3e-7 of the gradient, cosine 1; tanh 40, sin 80."""
    model = deep(f)
    fanin.init_(model, fanin.spec((512, 256)))
    q, gradient, cosine = both_ways(model)
    assert 0.5 < q < 2
    assert 1 / 20 < gradient < 20
    assert abs(cosine) < 0.2


@pytest.mark.parametrize(
    "f",
    [F.silu, F.hardswish, F.gelu, lambda x: x * torch.tanh(F.softplus(x)), lambda x: x * x],
    ids=["silu", "hardswish", "gelu", "mish by hand", "square"],
)
def test_expansive_and_unregistered_functions_do_not_drift(f: Callable[..., Tensor]) -> None:
    """Others: SiLU x11 to x600, Hardswish x57 to x4100, mish by hand 2e-13, the square a NaN."""
    model = deep(f)
    fanin.init_(model, fanin.spec((512, 256)))
    assert 0.5 < both_ways(model)[0] < 2


def test_a_norm_written_out_is_no_product_of_branches() -> None:
    """Others: the gates' scales fall to 0.779, 0.037, 0.000, and twelve blocks are an error."""
    model = nn.Sequential(*[net.Block() for _ in range(12)])
    plan = fanin.plan(model, fanin.spec((2, 16, 64)))
    gates = [plan[f"{i}.w1.weight"].std * 8 for i in range(12)]
    assert gates == pytest.approx([1.0] * 12, rel=0.05)


class PlainBranch(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


def test_thirty_two_residual_blocks_grow_by_less_than_two() -> None:
    """Others: 5.7 (AnyInit), 5.9 (LSUV) times; a last weight at 0.029 of its scale."""
    model, x = nn.Sequential(*[PlainBranch() for _ in range(32)]), torch.randn(256, 64)
    plan = fanin.init_(model, x)
    with torch.no_grad():
        growth = (model(x).pow(2).mean() / x.pow(2).mean()).sqrt().item()
    assert growth == pytest.approx(math.exp(0.5), rel=0.15)  # (1 + 1/32)^(32/2)
    ends = [plan[f"{i}.down.weight"].std for i in range(32)]
    assert max(ends) < 3 * min(ends)


def test_three_transposed_convolutions_in_a_row() -> None:
    """Others: output 0.44, 0.11, 0.013."""
    steps = [(nn.ConvTranspose2d(32, 32, 4, 2, 1), nn.ReLU()) for _ in range(3)]
    model = nn.Sequential(*[layer for step in steps for layer in step])
    x = torch.randn(8, 32, 6, 6)
    fanin.init_(model, x, "second_moment")
    found = list(outputs(model, x, nn.ConvTranspose2d).values())
    assert found == pytest.approx([1.0] * 3, rel=0.3)


def test_eight_features_beside_248() -> None:
    """Others: the layer behind reads 0.51 where 0.75 was predicted."""

    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.few, self.many = nn.Linear(64, 8), nn.Linear(64, 248)
            self.mixed, self.head = nn.Linear(256, 128), nn.Linear(128, 4)

        def forward(self, x: Tensor) -> Tensor:
            both = torch.cat([self.few(x), torch.relu(self.many(x))], 1)
            return self.head(torch.relu(self.mixed(both)))

    model, x = Beside(), torch.randn(512, 64)
    fanin.init_(model, x, "second_moment")
    assert outputs(model, x)["mixed#2"] == pytest.approx(1.0, rel=0.15)


# --- LSUV ----------------------------------------------------------------------------------------


class Everything(nn.Module):
    """What others skip: a table, a recurrence, a bilinear form, bare parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.memory = nn.Embedding(50, 32), nn.LSTM(32, 32, batch_first=True)
        self.gru = nn.GRU(32, 32, batch_first=True)
        self.pair = nn.Bilinear(32, 32, 16)
        self.bare = nn.Parameter(torch.full((16, 16), 7.0))
        self.separable = nn.Sequential(nn.Conv1d(16, 16, 3, groups=16), nn.Conv1d(16, 16, 1))
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.gru(self.memory(self.table(tokens))[0])[0]
        h = torch.relu(self.pair(h, h.flip(1)) @ self.bare)
        h = self.separable(h.transpose(1, 2)).transpose(1, 2)
        return self.head(self.attention(h, h, h, need_weights=False)[0].mean(1))


def test_nothing_is_skipped_or_passed_through() -> None:
    """Others leave LSTM, Embedding, Bilinear, bare parameters and attention untouched, silently."""
    torch.manual_seed(0)
    model, x = Everything(), torch.randint(50, (4, 12))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    plan = fanin.init_(model, x)
    assert not plan.left_alone
    for name, parameter in model.named_parameters():
        row = plan[name]
        assert not torch.equal(parameter, before[name]) or row.std == 0.0, name
        n = parameter.numel()
        assert parameter.std(unbiased=False).item() == pytest.approx(
            row.std, rel=5 / math.sqrt(2 * n), abs=1e-7
        )


class Backwards(nn.Module):
    """Layers that run in another order than they were registered."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.second, self.first = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.second(torch.relu(self.first(x)))))


def test_the_order_of_registration_does_not_count() -> None:
    """Others: the layer registered last is left at std 0.1 for an input of std 10."""
    model, x = Backwards(), 10 * torch.randn(512, 64)
    fanin.init_(model, x, "second_moment")
    assert list(outputs(model, x).values())[:2] == pytest.approx([1.0] * 2, rel=0.4)


def test_a_weight_that_is_used_twice() -> None:
    """Others: 0.47 at both uses, or 0.72."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.same = nn.Linear(256, 256), nn.Linear(256, 256)

        def forward(self, x: Tensor) -> Tensor:
            return self.same(torch.tanh(self.same(torch.tanh(self.stem(x)))))

    model, x = Twice(), torch.randn(512, 256)
    fanin.init_(model, x, "second_moment")
    found = outputs(model, x)
    assert len(found) == 3
    assert [found["same#1"], found["same#2"]] == pytest.approx([1.0] * 2, rel=0.25)


def test_a_branch_behind_a_zero_gate_is_not_blown_up() -> None:
    """Others: weights of 5e7."""
    model, x = net.Scaled(torch.zeros(())), torch.randn(64, 16)
    fanin.init_(model, x)
    assert max(p.abs().max().item() for p in model.parameters()) < 5


def test_the_square_fits_every_batch_and_not_one() -> None:
    model = deep(lambda x: x * x, depth=12)
    fanin.init_(model, fanin.spec((512, 256)))
    with torch.no_grad():
        sizes = [
            model(torch.randn(512, 256, generator=torch.Generator().manual_seed(s))).pow(2).mean()
            for s in range(3)
        ]
    assert max(sizes) < 2 * min(sizes)
    assert 0.3 < sizes[0] < 3


def test_bfloat16() -> None:
    model, x = net.mlp(4, nn.ReLU(), 256).bfloat16(), torch.randn(256, 20).bfloat16()
    fanin.init_(model, x, "second_moment")
    assert list(outputs(model, x).values())[:4] == pytest.approx([1.0] * 4, rel=0.4)


def test_weights_hardly_depend_on_the_batch() -> None:
    """Others: differences of 0.13 between two batches; here the noise is the same."""
    models = [net.mlp(6, nn.GELU(), 128, 64) for _ in range(2)]
    for seed, model in enumerate(models):
        x = torch.randn(256, 64, generator=torch.Generator().manual_seed(seed))
        fanin.init_(model, x, "second_moment")
    for one, two in zip(*(m.parameters() for m in models), strict=True):
        assert (one - two).abs().max() < 0.01


# --- AutoInit ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [2, 3])
def test_the_layer_behind_a_global_maximum(rank: int) -> None:
    """Others: it has variance 4.8."""
    convolution = (nn.Conv2d, nn.Conv3d)[rank - 2](16, 64, 1)
    pool = (nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)[rank - 2](1)
    behind = nn.Linear(64, 256)
    model = nn.Sequential(convolution, pool, nn.Flatten(), behind, nn.ReLU(), nn.Linear(256, 4))
    x = torch.randn(256, 16, *[4] * rank)
    fanin.init_(model, x, "second_moment")
    assert next(iter(outputs(model, x).values())) == pytest.approx(1.0, rel=0.2)


# --- mup -----------------------------------------------------------------------------------------


class Named(nn.Module):
    """Names that a strip of characters mutilates."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.module = nn.Linear(16, width)
        self.decoder, self.model = nn.Linear(width, width), nn.Linear(width, width)
        self.output = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.decoder(F.gelu(self.module(x))))
        return self.output(F.gelu(self.model(x)))


def narrow() -> MuP:
    with torch.device("meta"):
        return MuP(base=Named(64))


def test_mup_names_copies_and_second_calls() -> None:
    """Others: decoder becomes coder; copies and to_empty lose the widths; twice is an error."""
    model, x = Named(256), fanin.spec((8, 16))
    plan = fanin.plan(model, x, narrow())
    assert plan.lr_multipliers["decoder.weight"] == plan.lr_multipliers["model.weight"] == 1 / 4
    assert plan.lr_multipliers["output.weight"] == 1 / 4
    twin = copy.deepcopy(model)
    twin.to_empty(device="cpu")
    fanin.apply_(twin, plan, 3)
    again = fanin.init_(model, x, narrow(), seed=3)
    assert again.diff(plan).changed == {}
    assert torch.equal(twin.decoder.weight, model.decoder.weight)


def test_mup_at_the_base_width_says_so() -> None:
    """Others silently do nothing."""
    plan = fanin.plan(Named(64), fanin.spec((8, 16)), narrow())
    assert set(plan.lr_multipliers.values()) == {1.0}
    assert plan["decoder.weight"].reason == "as wide as in the base model"


def test_mup_of_convolutions_and_of_their_readout() -> None:
    """Others: a transposed convolution at 0.110, no readout that is a convolution."""

    def build(width: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(3, width, 3),
            nn.ConvTranspose2d(width, 2 * width, 4, 2, 1),
            nn.Conv2d(2 * width, 2, 1),
        )

    with torch.device("meta"):
        base = build(16)
    model, x = build(64), torch.randn(8, 3, 12, 12)
    plan = fanin.init_(model, x, MuP(base=base))
    assert plan.lr_multipliers["2.weight"] == 1 / 4
    assert plan["2.weight"].std == pytest.approx(128**-0.5 / 2)
    inside = next(iter(outputs(model, x, nn.ConvTranspose2d).values()))
    assert inside == pytest.approx(1.0, rel=0.25)


# --- torch ---------------------------------------------------------------------------------------


def test_packed_attention_counts_per_matrix() -> None:
    """torch: var * fan_in of in_proj is 0.50."""
    layer = nn.TransformerEncoderLayer(256, 4, 512, batch_first=True)
    plan = fanin.init_(layer, fanin.spec((2, 8, 256)), "lecun")
    weight = layer.self_attn.in_proj_weight
    assert plan["self_attn.in_proj_weight"].fan_in == 256
    for part in weight.chunk(3):
        assert part.var().item() * 256 == pytest.approx(1.0, rel=0.03)


def test_cloned_layers_do_not_start_equal() -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    assert torch.equal(model.layers[0].linear1.weight, model.layers[1].linear1.weight)
    fanin.init_(model, fanin.spec((2, 8, 32)))
    first, second, third = (layer.linear1.weight for layer in model.layers)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


def test_initializers_after_a_parametrization_are_not_lost() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(64, 64)), nn.ReLU())
    plan = fanin.init_(model, fanin.spec((4, 64)), {"0.weight": draw.Normal(0.0, 0.3)})
    assert model[0].weight.std().item() == pytest.approx(0.3, rel=0.05)
    assert plan["0.weight"].kind == "parametrized"
