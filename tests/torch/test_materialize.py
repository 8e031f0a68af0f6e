"""`materialize_`: every tensor of a meta model gets its value, or the call says which do not."""

from __future__ import annotations

import copy
import io
import itertools
import json
import pickle
import random
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

import fanin
from fanin import draw
from fanin.errors import (
    ArgumentError,
    ArgumentTypeError,
    NotCoveredError,
    PlanError,
    UninitializedError,
)
from fanin.planning.plan import Centre, Plan, Row, Stack
from fanin.planning.store import from_dict, to_dict
from fanin.torch.adapters import InitMethod, ParamInitFn, add_reset_parameters_
from fanin.torch.apply import apply_, plan
from fanin.torch.writing import progress as bar
from fanin.torch.writing.materialize import materialize_
from fanin.torch.writing.rebuild import rebuilt
from fanin.torch.writing.write import write_

POISON = 7.7


class RMSNorm(nn.Module):
    """As in many code bases: ones, and an epsilon under another name."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.variance_epsilon = eps


class Rotary(nn.Module):
    """A table that is not in the state dict; its arguments are remembered."""

    def __init__(self, dim: int, base: float = 10000.0) -> None:
        super().__init__()
        self.dim, self.base = dim, base
        table = base ** -(torch.arange(0, dim, 2) / dim)
        self.register_buffer("inv_freq", table, persistent=False)


class Forgetful(nn.Module):
    """The same table, of arguments that nobody remembers."""

    def __init__(self, dim: int, base: float = 10000.0) -> None:
        super().__init__()
        table = base ** -(torch.arange(0, dim, 2) / dim)
        self.register_buffer("inv_freq", table, persistent=False)


class LayerScale(nn.Module):
    """Its value is an argument that is not kept."""

    def __init__(self, dim: int, init_values: float = 1e-5) -> None:
        super().__init__()
        self.gamma = nn.Parameter(init_values * torch.ones(dim))


class Net(nn.Module):
    """What is forgotten by others: in_proj, a norm, a table, running statistics, a tie."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.attention = nn.MultiheadAttention(16, 4)
        self.norm = RMSNorm(16, eps=1e-5)
        self.rotary = Rotary(8, base=500.0)
        self.batch_norm = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.embed.weight


def on_meta(make: type[nn.Module], *arguments: object) -> nn.Module:
    with torch.device("meta"):
        return make(*arguments)


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not written holds 7.7."""
    plain = torch.empty_like

    def empty_like(tensor: torch.Tensor, **options: object) -> torch.Tensor:
        new = plain(tensor, **options)
        return new if new.is_meta else new.fill_(POISON)

    monkeypatch.setattr(torch, "empty_like", empty_like)


def test_nothing_is_left_over_from_memory() -> None:
    before = torch.get_rng_state()
    model = on_meta(Net)
    done = materialize_(model, plan={"attention.in_proj_weight": draw.Normal(std=0.25)})
    tensors = [*model.parameters(), *model.buffers()]
    assert not any(t.is_meta or (t == POISON).any() for t in tensors)
    assert all(t.isfinite().all() for t in tensors)
    assert set(done.sources) == {n for n, _ in (*model.named_parameters(), *model.named_buffers())}
    assert model.attention.in_proj_weight.std().item() == pytest.approx(0.25, rel=0.05)
    assert (model.norm.weight == 1).all()
    assert torch.equal(model.rotary.inv_freq, Rotary(8, 500.0).inv_freq)
    assert (model.batch_norm.running_var == 1).all()
    assert model.batch_norm.num_batches_tracked == 0
    assert torch.equal(torch.get_rng_state(), before)
    assert done.sources["norm.weight"] == "RMSNorm.__init__"
    assert done.sources["attention.in_proj_bias"] == "MultiheadAttention._reset_parameters"
    assert str(done).splitlines()[0].split() == ["embed.weight", "Linear.reset_parameters"] or (
        str(done).splitlines()[0].split() == ["embed.weight", "Embedding.reset_parameters"]
    )


def test_tied_tensors_stay_tied_and_parameters_keep_what_hangs_on_them() -> None:
    model = on_meta(Net)
    model.embed.weight._is_special = True
    model.norm.weight.requires_grad_(False)
    materialize_(model)
    assert model.head.weight is model.embed.weight
    assert model.embed.weight._is_special
    assert not model.norm.weight.requires_grad


def test_torchs_own_distributions_come_from_streams_by_name() -> None:
    small = on_meta(nn.Sequential, nn.Linear(64, 32))
    with torch.device("meta"):
        small = nn.Sequential(nn.Linear(64, 32))
        longer = nn.Sequential(nn.Linear(64, 32), nn.LayerNorm(32), nn.Linear(32, 8))
    materialize_(small, seed=5)
    materialize_(longer, seed=5)
    assert torch.equal(small[0].weight, longer[0].weight)
    limit = 64**-0.5
    expected = write_(torch.empty(32, 64), draw.Uniform(-limit, limit), seed=5, name="0.weight")
    assert torch.equal(small[0].weight, expected)


@pytest.mark.parametrize("maker", [Forgetful, LayerScale])
def test_what_cannot_be_known_is_an_error_and_the_model_stays_as_it_was(maker: type) -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4), maker(8))
    tensors = [*model.parameters(), *model.buffers()]
    with pytest.raises(UninitializedError) as error:
        materialize_(model)
    name = {"Forgetful": "1.inv_freq", "LayerScale": "1.gamma"}[maker.__name__]
    assert str(error.value) == (
        f"materialize_(model): expected a value for every tensor, got none for 1: {name} of "
        f"{maker.__name__}; name them in the plan, or give their class a reset_parameters method"
    )
    now = [*model.parameters(), *model.buffers()]
    assert all(a is b for a, b in zip(tensors, now, strict=True))


def test_a_plan_can_name_what_cannot_be_known() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4), LayerScale(8))
    materialize_(model, plan={"1.gamma": draw.Constant(1e-4)})
    assert (model[1].gamma == 1e-4).all()


def test_rebuilding_depends_on_nothing_that_is_not_remembered() -> None:
    assert set(rebuilt(RMSNorm(4, eps=1e-3))) == {"weight"}
    assert set(rebuilt(Rotary(8, 77.0))) == {"inv_freq"}
    for forgetful in (Forgetful(8), LayerScale(8), nn.Linear(3, 2), nn.Sequential(nn.ReLU())):
        assert rebuilt(forgetful) == {}


def test_a_plan_gives_what_apply_gives() -> None:
    def make() -> nn.Module:
        layers = [nn.Linear(20, 30), nn.Sigmoid(), nn.Linear(30, 30), nn.Sigmoid()]
        return nn.Sequential(*layers, nn.LSTM(30, 8))

    made = plan(make(), torch.zeros(5, 3, 20), rule="centred")
    assert any(row.centre is not None for row in made)
    real = make()
    apply_(real, made, seed=9)
    with torch.device("meta"):
        deferred = make()
    materialize_(deferred, plan=made, seed=9)
    written = {row.path for row in made if row.values is not None}
    assert written
    for name, tensor in deferred.named_parameters():
        assert name not in written or torch.equal(tensor, real.get_parameter(name)), name


def test_stacks_and_centres_of_a_plan() -> None:
    stack = Stack(((2, draw.Normal()), (4, draw.Constant(1.0))))
    rows = (
        Row("weight", (6, 5), "hidden", "r", "", stack),
        Row("bias", (6,), "bias", "r", "", draw.Constant(0.5), centre=Centre("weight", 2.0)),
    )
    layer = on_meta(nn.Linear, 5, 6)
    materialize_(layer, plan=Plan(rows, rule="r"))
    assert torch.allclose(layer.bias, 0.5 - 2 * layer.weight.sum(1))
    assert (layer.weight[2:] == 1).all()


def test_wrappers_do_not_change_names() -> None:
    plain, wrapped = on_meta(nn.Linear, 6, 5), nn.Module()
    wrapped.module = on_meta(nn.Linear, 6, 5)
    materialize_(plain, plan={"weight": draw.Normal()})
    materialize_(wrapped, plan={"weight": draw.Normal()})
    assert torch.equal(plain.weight, wrapped.module.weight)


def test_stages_are_renamed_to_the_whole_models_names() -> None:
    with torch.device("meta"):
        whole = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
        stage = nn.Sequential(nn.Linear(4, 4))
    materialize_(whole, seed=2)
    materialize_(stage, seed=2, rename=lambda name: name.replace("0.", "2.", 1))
    assert torch.equal(stage[0].weight, whole[2].weight)


def test_what_has_memory_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 3), on_meta(nn.Linear, 3, 3))
    before = model[0].weight.clone()
    materialize_(model, plan={"*.weight": draw.Constant(2.0)})
    assert torch.equal(model[0].weight, before)
    assert (model[1].weight == 2).all()


class Odd(nn.Module):
    """Draws numbers of a kind that has no stream."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3))

    def reset_parameters(self) -> None:
        self.weight.exponential_()


def test_other_random_numbers_of_a_module_depend_on_the_seed_alone() -> None:
    models = [on_meta(Odd) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        torch.rand(3)
        materialize_(model, seed=seed)
    assert torch.equal(models[0].weight, models[1].weight)
    assert not torch.equal(models[0].weight, models[2].weight)


def test_requests_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ArgumentTypeError, match=r"materialize_\(model\): expected an nn.Module"):
        materialize_(3)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError) as error:
        materialize_(nn.Linear(2, 2))
    assert str(error.value) == (
        "materialize_(model): expected a model with tensors on the meta device, "
        "got one whose tensors all have memory; use fanin.init_ to initialise it"
    )
    with pytest.raises(PlanError) as error:
        materialize_(on_meta(nn.Linear, 2, 2), plan={"wieght": draw.Normal()})
    assert str(error.value) == (
        "materialize_(plan={'wieght': ...}): expected a name or pattern of the model's tensors, "
        "got 0 of 2 tensors matched; did you mean 'weight'?"
    )
    with pytest.raises(ArgumentTypeError, match="a Plan, distributions by name, or None, got int"):
        materialize_(on_meta(nn.Linear, 2, 2), plan=3)  # type: ignore[arg-type]
    with pytest.raises(UninitializedError) as error:
        materialize_(on_meta(nn.LazyLinear, 3))
    assert str(error.value) == (
        "materialize_(weight): expected a tensor with a shape, got a lazy one of LazyLinear; "
        "run one forward pass first"
    )


@pytest.mark.parametrize("device", ["meta", "nowhere"])
def test_a_device_without_memory_is_refused(device: str) -> None:
    with pytest.raises(ArgumentError) as error:
        materialize_(on_meta(nn.Linear, 2, 2), device)
    assert str(error.value) == (
        f"materialize_(device): expected a device with memory, as 'cpu', got '{device}'"
    )


class Placeholder(nn.Parameter):
    ds_shape = (4, 3)


def test_zeros_placeholders_are_refused() -> None:
    layer = on_meta(nn.Linear, 3, 4)
    layer.weight = Placeholder(torch.empty(0))
    with pytest.raises(UninitializedError) as error:
        materialize_(layer)
    assert str(error.value) == (
        "materialize_(weight): expected a tensor of shape (4, 3), got ZeRO-3's placeholder of "
        "shape (0,); gather it first: with deepspeed.zero.GatheredParameters(parameter)"
    )


PLAN = {"0.weight": draw.Normal(std=0.5)}


def whole(seed: int = 4) -> nn.Module:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5))
    materialize_(model, plan=PLAN, seed=seed)
    return model


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_param_init_fn_fills_module_by_module() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5))
    init = ParamInitFn(model, PLAN, seed=4)
    for module in model.modules():
        init(module)
    assert same(model, whole())
    with pytest.raises(ArgumentTypeError, match="a module of the model that the function was made"):
        init(nn.Linear(2, 2))


def test_reset_parameters_follows_the_plan() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5))
    add_reset_parameters_(model, PLAN, seed=4)
    model.to_empty(device="cpu")
    for module in model:
        module.reset_parameters()
    assert same(model, whole())


def test_init_method_takes_one_tensor_and_never_repeats_itself() -> None:
    init = pickle.loads(pickle.dumps(InitMethod(draw.Normal(std=0.02), seed=3)))
    first, second = init(torch.empty(50)), init(torch.empty(50))
    assert not (first == second).any()
    again = InitMethod(draw.Normal(std=0.02), seed=3)
    assert torch.equal(again(torch.empty(50)), first)
    named = init.named("h.0.weight")
    assert torch.equal(named(torch.empty(50)), copy.copy(named)(torch.empty(50)))


def parametrized(how: str) -> nn.Module:
    """A layer without memory whose weight is computed."""
    parts = nn.utils.parametrizations
    wrap = {
        "weight norm": parts.weight_norm,
        "spectral norm": parts.spectral_norm,
        "weight norm by hooks": nn.utils.weight_norm,
        "spectral norm by hooks": nn.utils.spectral_norm,
        "orthogonal": parts.orthogonal,
    }[how]
    old = how == "weight norm by hooks"
    with torch.device("meta"), pytest.warns(FutureWarning) if old else nullcontext():
        return nn.Sequential(wrap(nn.Linear(6, 5)))


HOW = ["weight norm", "spectral norm", "weight norm by hooks", "spectral norm by hooks"]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("plan", [None, {"0.weight": draw.Normal(std=0.5)}])
def test_computed_weights_are_drawn_and_assigned(how: str, plan: object) -> None:
    model, limit = parametrized(how), 6**-0.5
    done = materialize_(model, plan=plan, seed=3)
    values = plan["0.weight"] if plan else draw.Uniform(-limit, limit)
    asked = write_(torch.empty(5, 6), values, seed=3, name="0.weight")
    model.eval()
    if "spectral" in how:
        asked /= torch.linalg.matrix_norm(asked, 2)
    x = torch.eye(6)
    torch.testing.assert_close(model(x) - model[0].bias, asked.T, rtol=2e-3, atol=2e-5)
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    assert set(done.sources) == set(tensors)
    assert all(t.isfinite().all() for t in tensors.values())
    source = str(values) if plan else "Linear.reset_parameters"
    kind = {"w": "WeightNorm", "s": "SpectralNorm"}[how[0]]
    kind = kind if "hooks" in how else f"_{kind}"
    below = {s for name, s in done.sources.items() if name != "0.bias"}
    assert below == {f"{source}, as 0.weight through {kind}"}


def test_computed_weights_follow_inputs_as_init_does() -> None:
    made = materialize_(model := parametrized("weight norm"), inputs=fanin.spec((4, 6)), seed=2)
    real = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 5)))
    fanin.init_(real, fanin.spec((4, 6)), seed=2)
    assert torch.equal(real[0].weight, model[0].weight)
    assert made.seed == 2


def test_the_originals_of_a_computed_weight_can_be_named_themselves() -> None:
    model = parametrized("weight norm")
    below = "0.parametrizations.weight.original"
    materialize_(model, plan={below + "0": draw.Constant(2.0), below + "1": draw.Normal()})
    assert torch.allclose(model[0].weight.norm(dim=1), torch.tensor(2.0))


def test_a_weight_that_cannot_be_computed_on_meta_is_an_error_that_says_why() -> None:
    model = parametrized("orthogonal")
    with pytest.raises(NotCoveredError) as error:
        materialize_(model)
    assert str(error.value) == (
        "materialize_(0.weight): expected _Orthogonal to compute the weight on the meta device, "
        "got TypeError: unsupported operand type(s) for @: 'NoneType' and 'Tensor'; "
        "parametrize the layer after materialize_"
    )
    assert model[0].bias.is_meta


@pytest.mark.parametrize("first", ["layer", "parts"])
def test_param_init_fn_fills_computed_weights(first: str) -> None:
    model, other = parametrized("weight norm"), parametrized("weight norm")
    materialize_(other, seed=4)
    init = ParamInitFn(model, seed=4)
    modules = list(model.modules())
    for module in modules if first == "layer" else reversed(modules):
        init(module)
    assert same(model, other)


def test_inputs_make_the_plan() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    real = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    made = fanin.init_(real, fanin.spec((4, 6)), rule="he", seed=8)
    done = materialize_(model, inputs=fanin.spec((4, 6)), rule="he", seed=8)
    assert same(model, real)
    assert done.seed == made.seed == 8
    with pytest.raises(ArgumentError) as error:
        materialize_(model, plan=made, inputs=fanin.spec((4, 6)))
    assert str(error.value).startswith("materialize_(model): expected a model with tensors on")
    with pytest.raises(ArgumentError) as error:
        materialize_(on_meta(nn.Linear, 6, 5), plan=made, inputs=fanin.spec((4, 6)))
    assert str(error.value) == (
        "materialize_(plan, inputs): expected one of the two, got a plan and inputs"
    )


def test_seeds_come_from_a_generator_or_from_the_plan() -> None:
    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(6)

    x = fanin.spec((4, 6))
    a, b, c, d = (nn.Sequential(nn.Linear(6, 5)) for _ in range(4))
    before = torch.get_rng_state()
    made = fanin.init_(a, x, generator=generator())
    assert made.seed == int(torch.randint(2**63 - 1, (), generator=generator()))
    fanin.init_(b, x, seed=made.seed)
    fanin.apply_(c, made)
    deferred = on_meta(lambda: nn.Sequential(nn.Linear(6, 5)))
    assert materialize_(deferred, plan=made).seed == made.seed
    assert fanin.apply_(d, made, seed=1).seed == 1
    assert torch.equal(torch.get_rng_state(), before)
    assert same(a, b)
    assert same(a, c)
    assert same(a, deferred)
    assert not same(a, d)
    kept = from_dict(json.loads(json.dumps(to_dict(made))))
    assert kept.seed == made.seed
    assert kept.stream == draw.STREAM_VERSION
    for call in (
        lambda: fanin.init_(a, x, seed=1, generator=generator()),
        lambda: fanin.apply_(a, made, 1, generator=generator()),
        lambda: materialize_(on_meta(nn.Linear, 2, 2), seed=1, generator=generator()),
    ):
        with pytest.raises(ArgumentError, match="one of the two, got seed=1 and a generator"):
            call()
    with pytest.raises(ArgumentTypeError, match=r"init_\(generator\): expected a torch.Generator"):
        fanin.init_(a, x, generator=3)  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match=r"draw\(seed\): expected an integer, got float"):
        materialize_(on_meta(nn.Linear, 2, 2), seed=float("nan"))  # type: ignore[arg-type]


def test_parts_of_names_that_do_not_count_are_said() -> None:
    wrapped = nn.Module()
    wrapped.module = on_meta(nn.Linear, 6, 5)
    done = materialize_(wrapped)
    assert done.notes == ("names are those without a wrapper's parts: module.weight is weight",)
    assert str(done).endswith(f"note: {done.notes[0]}")
    assert materialize_(on_meta(nn.Linear, 6, 5)).notes == ()
    for model in (nn.DataParallel(nn.Linear(6, 5)), torch.compile(nn.Linear(6, 5))):
        for made in (fanin.plan(model, fanin.spec((4, 6))), fanin.init_(model, fanin.spec((4, 6)))):
            part = next(iter(model.state_dict())).split(".")[0]
            note = f"names are those without a wrapper's parts: {part}.weight is weight"
            assert made.notes[-1] == note


def test_no_global_random_state_is_touched() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    model, x = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), fanin.spec((4, 6))
    before = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
    fanin.init_(model, x)
    materialize_(on_meta(Net))
    after = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])


def test_long_fills_show_their_progress(monkeypatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(bar, "PATIENCE", -1.0)
    ticks = itertools.count()
    monkeypatch.setattr(bar.time, "monotonic", lambda: float(next(ticks)))
    shown = []
    for call in (
        lambda: materialize_(on_meta(nn.Linear, 6, 5), plan={"*": draw.Normal()}),
        lambda: fanin.init_(nn.Linear(6, 5), fanin.spec((4, 6))),
    ):
        monkeypatch.setattr(sys, "stderr", Terminal())
        call()
        shown.append(sys.stderr.getvalue())
    for text in shown:
        assert "drawing weights [" in text
        assert "100% of 35" in text


def test_what_is_loaded_stays_though_a_reset_would_write_it() -> None:
    """Statistics beside a missing weight, and the bias of a child that its parent zeroes."""
    with torch.device("meta"):
        model = nn.Sequential(nn.MultiheadAttention(16, 2), nn.BatchNorm1d(16))
    loaded = {
        "0.out_proj.bias": torch.full((16,), 3.0),
        "1.running_mean": torch.full((16,), 5.0),
        "1.num_batches_tracked": torch.tensor(7),
    }
    model.load_state_dict({k: v.clone() for k, v in loaded.items()}, strict=False, assign=True)
    sources = fanin.materialize_(model).sources
    assert not sources.keys() & loaded.keys()
    for name, tensor in model.state_dict().items():
        assert not tensor.is_meta
        assert name not in loaded or torch.equal(tensor, loaded[name])
    assert model[1].running_var.eq(1).all()


@pytest.mark.parametrize("order", [1, -1])
def test_a_parent_s_reset_leaves_what_the_plan_gives_a_child(order: int) -> None:
    """Frameworks go through the modules from either end."""
    with torch.device("meta"):
        model = nn.Sequential(nn.MultiheadAttention(16, 2))
    add_reset_parameters_(model, {"0.out_proj.bias": draw.Constant(3.0)})
    model.to_empty(device="cpu")
    for module in list(model.modules())[::order]:
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert model[0].out_proj.bias.eq(3.0).all()
    assert model[0].in_proj_bias.eq(0.0).all()
