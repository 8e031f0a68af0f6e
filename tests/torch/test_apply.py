"""Plans into memory: through parametrizations, once, by name, completely or not at all."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.planning import networks as net
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import fanin
from fanin import draw
from fanin.errors import NotCoveredError, PlanError, UninitializedError
from fanin.planning.plan import Plan, Row, Stack
from fanin.torch.apply import apply_


def message(call: object, kind: type[Exception]) -> str:
    with pytest.raises(kind) as caught:
        call()  # type: ignore[operator]
    return str(caught.value)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: t.detach().clone() for name, t in tensors.items()}


def same(model: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    """Names of the tensors that are bit-identical."""
    return {name for name, t in state(model).items() if torch.equal(t, before[name])}


# --- what is written -----------------------------------------------------------------------------


def test_every_planned_tensor_has_its_planned_moments() -> None:
    model = net.resnet(3, norm=False, width=32)
    plan = fanin.init_(model, fanin.spec((2, 3, 12, 12)), seed=3)
    for name, tensor in model.named_parameters():
        row, n = plan[name], tensor.numel()
        assert row.std is not None
        assert tensor.std(unbiased=False).item() == pytest.approx(row.std, rel=4.5 / (2 * n) ** 0.5)


def test_a_centred_bias_uses_the_weights_as_stored() -> None:
    model = net.mlp(20, nn.Sigmoid()).to(torch.bfloat16)
    x = torch.randn(32, 20, dtype=torch.bfloat16)
    plan = fanin.init_(model, x)
    centre = plan["4.bias"].centre
    assert centre is not None
    expected = plan["4.bias"].mean - centre.mean * model[4].weight.double().sum(1)
    torch.testing.assert_close(model[4].bias.double(), expected, rtol=2**-8, atol=1e-6)


def test_values_depend_on_names_and_not_on_order() -> None:
    """Acceptance: {a, b} and {a, extra, b} hold the same a and b; the random state is untouched."""

    class Chain(nn.Module):
        def __init__(self, *names: str) -> None:
            super().__init__()
            for name in names:
                self.add_module(name, nn.Linear(16, 16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.children():
                x = layer(x)
            return x

    one, two = Chain("a", "b"), Chain("a", "extra", "b")
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    for model in (one, two):
        fanin.init_(model, fanin.spec((2, 16)), "lecun", seed=5)
    assert torch.equal(one.a.weight, two.a.weight)
    assert torch.equal(one.b.weight, two.b.weight)
    assert not torch.equal(two.a.weight, two.extra.weight)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]
    first = one.a.weight.clone()
    fanin.init_(one, fanin.spec((2, 16)), "lecun", seed=6)
    assert not torch.equal(one.a.weight, first)


def test_a_tied_tensor_is_written_once() -> None:
    model = net.Tied()
    plan = fanin.init_(model, fanin.spec((2, 5), "int64", high=500))
    assert model.head.weight is model.embedding.weight
    assert model.head.weight.std().item() == pytest.approx(plan["head.weight"].std, rel=0.02)
    assert [row.path for row in plan if row.rule == "tied head"] == ["embedding.weight"]


def test_a_saved_plan_writes_the_same_bytes(tmp_path: Path) -> None:
    one, two = net.mlp(4, nn.GELU()), net.mlp(4, nn.GELU())
    plan = fanin.init_(one, fanin.spec((4, 20)), "shaped", seed=9)
    loaded = fanin.load_plan(plan.save(tmp_path / "plan.yaml"))
    fanin.apply_(two, loaded, seed=9)
    assert same(two, state(one)) == set(state(one))


def test_a_plan_made_on_meta_writes_into_memory() -> None:
    with torch.device("meta"):
        abstract = net.mlp(3, nn.GELU())
    plan = fanin.plan(abstract, fanin.spec((4, 20)))
    assert all(p.is_meta for p in abstract.parameters())
    one, two = net.mlp(3, nn.GELU()), net.mlp(3, nn.GELU())
    apply_(one, plan, 1)
    fanin.init_(two, fanin.spec((4, 20)), seed=1)
    assert same(two, state(one)) == set(state(one))


def test_planning_touches_nothing() -> None:
    model = net.resnet(2, norm=True).train()
    before, rng = state(model), torch.get_rng_state()
    fanin.plan(model, torch.randn(2, 3, 8, 8, generator=torch.Generator()))
    assert same(model, before) == set(before)
    assert torch.equal(torch.get_rng_state(), rng)
    assert model.training


# --- parametrizations, lazy modules --------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(
    "wrap",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
    ],
)
def test_the_effective_weight_has_the_planned_std(wrap: object) -> None:
    """Acceptance: after `init_`, and after a forward pass."""
    torch.manual_seed(0)
    layers = [wrap(nn.Linear(256, 128)), nn.ReLU(), wrap(nn.Linear(128, 64)), nn.ReLU()]  # type: ignore[operator]
    model, x = nn.Sequential(*layers, nn.Linear(64, 4)), torch.randn(8, 256)
    plan = fanin.init_(model, x)
    for _ in range(2):
        for i in (0, 2):
            row = plan[f"{i}.weight"]
            assert row.kind == "parametrized"
            assert model[i].weight.std().item() == pytest.approx(row.std, rel=0.02)
        model(x)
    kept = plan.left_alone
    assert all(name in kept or plan[name].values for name, _ in model.named_parameters())


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_a_kept_parametrized_weight_counts_as_what_it_computes(wrap: object) -> None:
    """What follows it is planned for the size of its signal, and nothing of it is touched."""
    torch.manual_seed(0)
    model = nn.Sequential(wrap(nn.Linear(64, 64)), nn.Tanh(), nn.Linear(64, 8))  # type: ignore[operator]
    originals = model[0].parametrizations.weight
    with torch.no_grad():
        next(originals.parameters()).mul_(30)  # the size of a weight norm; a spectral norm has none
    x, before = torch.randn(512, 64), state(model)
    plan = fanin.plan(model, x, {"0.*": "keep", "*": "second_moment"})
    assert same(model, before) == set(before)
    assert not plan["0.weight"].values
    hidden = model.eval()[:2](x)
    wanted = (64 * hidden.detach().square().mean()) ** -0.5
    assert plan["2.weight"].std == pytest.approx(wanted.item(), rel=0.05)
    assert fanin.init_(model, x, {"0.*": "keep", "*": "second_moment"})["2.weight"].std
    assert same(model, before) >= {name for name in before if name.startswith("0.")}


def test_lazy_modules_are_written_at_their_first_forward() -> None:
    model = nn.Sequential(nn.LazyConv1d(32, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10))
    x = torch.randn(4, 8, 20)
    plan = fanin.init_(model, x, seed=2)
    assert isinstance(model[0], nn.LazyConv1d)
    model(x)
    ready = nn.Sequential(nn.Conv1d(8, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10))
    fanin.init_(ready, x, seed=2)
    assert same(model, state(ready)) == {"0.weight", "0.bias", "3.weight", "3.bias"}
    assert model[3].in_features == 576
    trained = model[0].weight.detach().clone().add_(1)
    model[0].weight.data.copy_(trained)
    model(x)
    assert torch.equal(model[0].weight, trained)
    assert plan["3.weight"].shape == (10, 576)


# --- what is left alone --------------------------------------------------------------------------


def test_special_tensors_stay_bit_identical_and_are_listed() -> None:
    """Acceptance: step sizes, decay rates and skip of a state space; LayerScale; adaLN-zero."""
    cases = (
        (
            net.StateSpace(),
            fanin.spec((2, 6, 16)),
            {"A_log", "D", "dt_proj.weight", "dt_proj.bias"},
        ),
        (net.Scaled(torch.full((16,), 1e-4)), fanin.spec((2, 16)), {"scale"}),
        (net.Scaled(torch.zeros(())), fanin.spec((2, 16)), {"scale"}),
        (
            net.Modulated(),
            (fanin.spec((2, 16)), fanin.spec((2, 16))),
            {"modulation.weight", "modulation.bias"},
        ),
    )
    for model, x, special in cases:
        before = state(model)
        plan = fanin.init_(model, x)
        assert set(plan.left_alone) == special
        assert special <= same(model, before)
    assert plan.left_alone["modulation.weight"] == "all zero: the model's own zero start"


def test_marks_and_types_are_respected() -> None:
    model = net.mlp(2, nn.ReLU())
    model[0].weight._no_reinit = True
    model[2].weight._is_hf_initialized = True
    model.register_parameter("codes", nn.Parameter(torch.ones(3, dtype=torch.int8), False))
    before = state(model)
    plan = fanin.init_(model, fanin.spec((4, 20)))
    assert plan.left_alone == {
        "codes": "a tensor of int8 cannot be drawn",
        "0.weight": "marked _no_reinit",
        "2.weight": "marked _is_hf_initialized: loaded from a checkpoint",
    }
    assert set(plan.left_alone) <= same(model, before)


def test_a_norm_that_starts_at_zero_and_a_prior_in_the_head_stay() -> None:
    model = net.resnet(2, norm=True)
    nn.init.zeros_(model[1].n2.weight)
    nn.init.constant_(model[5].bias, -4.6)
    plan = fanin.init_(model, fanin.spec((2, 3, 8, 8)))
    assert plan.left_alone["1.n2.weight"] == "the model set it to 0"
    assert plan.left_alone["5.bias"] == "the model set it to -4.6"
    assert not model[1].n2.weight.any()


def test_memory_that_was_only_cleared_is_no_wish() -> None:
    model = net.mlp(2, nn.ReLU())
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    fanin.init_(model, fanin.spec((4, 20)))
    assert all(layer.weight.std() > 0 for layer in (model[0], model[2], model[4]))


# --- only what is missing ------------------------------------------------------------------------


@pytest.mark.parametrize("told", [True, False])
def test_loaded_tensors_stay_bit_identical(told: bool) -> None:
    """Acceptance: a checkpoint of half of the modules."""
    source, model = net.mlp(3, nn.ReLU()), net.mlp(3, nn.ReLU())
    part = {k: v for k, v in source.state_dict().items() if k.startswith(("0.", "2."))}
    missing = model.load_state_dict(part, strict=False).missing_keys
    before = state(model)
    plan = fanin.init_(model, fanin.spec((4, 20)), only_missing=missing if told else True)
    assert same(model, before) == set(part)
    assert set(plan.left_alone) == set(part)
    assert plan["4.weight"].values is not None


def test_loaded_tensors_that_were_assigned_stay_too() -> None:
    source, model = net.mlp(3, nn.ReLU()), net.mlp(3, nn.ReLU())
    part = {k: v.clone() for k, v in source.state_dict().items() if k.startswith("0.")}
    model.load_state_dict(part, strict=False, assign=True)
    before = state(model)
    fanin.init_(model, fanin.spec((4, 20)), only_missing=True)
    assert same(model, before) == set(part)


class Loaded(nn.Module):
    """Layers whose resets write more than their own parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.old = nn.utils.spectral_norm(nn.Linear(16, 16))
        self.new = parametrizations.weight_norm(nn.Linear(16, 16))
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)[:, None]
        return self.head(self.new(self.old(self.attention(x, x, x)[0])))


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
@pytest.mark.parametrize("told", [True, False])
def test_what_is_loaded_stays_wherever_a_reset_or_a_parametrization_reaches(told: bool) -> None:
    """Statistics of a norm, a child's bias, a cached weight, what a weight is computed from."""
    torch.manual_seed(0)
    model, missing = Loaded(), ["head.weight", "head.bias"]
    loaded = {
        k: torch.rand_like(v) + 0.5 if v.is_floating_point() else v + 7
        for k, v in model.state_dict().items()
        if k not in missing
    }
    model.load_state_dict(loaded, strict=False)
    before = state(model)
    rng = torch.get_rng_state()
    plan = fanin.init_(model, fanin.spec((4, 16)), only_missing=missing if told else True)
    assert torch.equal(torch.get_rng_state(), rng)
    assert same(model, before) == set(loaded)
    assert plan["head.weight"].values is not None


def test_marks_of_from_pretrained_decide_if_there_are_any() -> None:
    model = net.mlp(2, nn.ReLU())
    for name, parameter in model.named_parameters():
        parameter._is_hf_initialized = not name.startswith("4.")
    nn.init.normal_(model[4].weight)  # the library drew the new head once more
    before = state(model)
    fanin.init_(model, fanin.spec((4, 20)), only_missing=True)
    assert "4.weight" not in same(model, before)
    assert {"0.weight", "2.weight"} <= same(model, before)


def test_unknown_missing_names() -> None:
    with pytest.raises(
        ValueError, match=r"only_missing: .* got '4.wieght'; did you mean '4.weight'"
    ):
        fanin.init_(net.mlp(2, nn.ReLU()), fanin.spec((4, 20)), only_missing=["4.wieght"])


# --- all or nothing ------------------------------------------------------------------------------


def test_meta_and_placeholders_are_errors() -> None:
    with torch.device("meta"):
        abstract = net.mlp(2, nn.ReLU())
    assert message(lambda: fanin.init_(abstract, fanin.spec((4, 20))), UninitializedError) == (
        "init_: 0.weight: expected a floating-point tensor in memory, got a tensor on the meta "
        "device; use to_empty() first"
    )
    model = net.mlp(2, nn.ReLU())
    before = state(model)
    model[2].weight = nn.Parameter(torch.empty(0))
    model[2].weight.ds_shape = (64, 64)
    assert message(lambda: fanin.init_(model, fanin.spec((4, 20))), UninitializedError) == (
        "init_: 2.weight: expected a floating-point tensor in memory, got a ZeRO placeholder "
        "without elements; gather it first (deepspeed.zero.GatheredParameters)"
    )
    assert torch.equal(model[0].weight, before["0.weight"])


class Squared(nn.Module):
    """A parametrization without an inverse."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x


class Halved(nn.Module):
    """A parametrization whose inverse does not give the value back."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / 2

    def right_inverse(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize("kind", [Squared, Halved])
def test_a_parametrization_that_cannot_take_the_value_leaves_the_model_as_it_was(
    kind: type[nn.Module],
) -> None:
    model = net.mlp(2, nn.ReLU())
    parametrize.register_parametrization(model[4], "weight", kind())
    before = state(model)
    with pytest.raises(NotCoveredError, match=r"ParametrizedLinear.weight"):
        fanin.init_(model, fanin.spec((4, 20)))
    assert same(model, before) == set(before)


def test_a_plan_of_another_model_is_refused_before_anything_is_written() -> None:
    plan = fanin.plan(net.mlp(2, nn.ReLU()), fanin.spec((4, 20)))
    wide, deep = net.mlp(2, nn.ReLU(), width=32), net.mlp(3, nn.ReLU())
    for model, text in (
        (
            wide,
            "apply_: 0.weight: expected shape (64, 20), got (32, 20); make the plan from this "
            "model",
        ),
        (
            deep,
            "apply_: 6.bias: expected a row for every tensor of the model, got none for 2 of them; "
            "make the plan from this model",
        ),
    ):
        before = state(model)
        assert message(lambda model=model: apply_(model, plan), PlanError) == text
        assert same(model, before) == set(before)
    layer = nn.Linear(2, 2)
    rows = (
        Row("weight", (2, 2), "hidden", "given", "", draw.Normal()),
        Row("bias", (2,), "bias", "given", "", draw.Orthogonal()),
    )
    assert message(lambda: apply_(layer, Plan(rows, "")), PlanError) == (
        "apply_: bias: expected a matrix, got shape (2,)"
    )
    rows = (rows[0], Row("bias", (2,), "bias", "", "", Stack(((1, draw.Normal()),))))
    assert message(lambda: apply_(layer, Plan(rows, "")), PlanError) == (
        "apply_: bias: expected blocks of 2 rows, got 1"
    )
    rows = (rows[0], Row("bias", (2,), "bias", "", ""), Row("b", (1,), "", "", "", draw.Normal()))
    assert message(lambda: apply_(layer, Plan(rows, "")), PlanError) == (
        "apply_: b: expected a tensor of the model, got none"
    )


class Policy(nn.Module):
    """An actor and critic that returns what it acts by."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(17, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        self.mean, self.value = nn.Linear(64, 6), nn.Linear(64, 1)
        self.log_std = nn.Parameter(torch.zeros(6))

    def forward(self, x: torch.Tensor) -> tuple[torch.distributions.Distribution, torch.Tensor]:
        hidden = self.body(x)
        normal = torch.distributions.Normal(self.mean(hidden), self.log_std.exp())
        return torch.distributions.Independent(normal, 1), self.value(hidden)


def test_a_distribution_is_an_output() -> None:
    plan = fanin.plan(Policy(), torch.randn(32, 17), rule="ppo")
    assert (plan["mean.weight"].role, plan["value.weight"].role) == ("head", "head")
    assert plan["mean.weight"].values == draw.Orthogonal(0.01)
