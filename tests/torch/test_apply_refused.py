"""What plans refuse, before anything is written, and what they take though it is unusual."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.planning import networks as net
from torch import Tensor, nn

import fanin
from fanin import draw
from fanin.errors import (
    ArgumentError,
    ArgumentTypeError,
    DataError,
    FaninError,
    PlanError,
    TraceError,
)
from fanin.planning.plan import Centre, Mirrored, Plan, Row
from fanin.torch.writing.undo import Undo

X = torch.randn(8, 20, generator=torch.Generator().manual_seed(0))


def refused(call: Callable[[], object], model: nn.Module, kind: type[FaninError]) -> str:
    """The message of the error, after which the model is as it was."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(kind) as caught:
        call()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name
    return str(caught.value)


def changed(value: float) -> Tensor:
    x = X.clone()
    x[2, 3] = value
    return x


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_inputs_that_are_no_numbers(value: float) -> None:
    model = net.mlp(2, nn.ReLU())
    for inputs, where in ((changed(value), "inputs"), ((changed(value),), "inputs[0]")):
        assert refused(lambda i=inputs: fanin.init_(model, i), model, ArgumentError) == (
            f"{where}: expected finite numbers, got 1 of 160 that are nan or inf; clean them, or "
            "give a fanin.spec in their place"
        )


def test_a_batch_without_samples() -> None:
    model = net.mlp(2, nn.ReLU())
    assert refused(lambda: fanin.plan(model, X[:0]), model, ArgumentError) == (
        "inputs: expected at least one sample, got shape (0, 20)"
    )


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return (q @ k.transpose(1, 2) / 4 + mask).softmax(-1) @ v


def test_minus_infinity_is_a_mask() -> None:
    mask = torch.full((5, 5), float("-inf")).triu(1)
    plan = fanin.plan(Masked(), (torch.randn(2, 5, 16), mask))
    assert plan["qkv.weight"].std is not None


def test_names_that_forward_does_not_take() -> None:
    model = net.mlp(2, nn.ReLU())
    text = refused(lambda: fanin.init_(model, {"z": X}), model, TraceError)
    assert text.endswith("forward has no argument 'z', so that it got the whole dict")


def test_arguments_of_a_wrong_kind(tmp_path: Path) -> None:
    model = net.mlp(2, nn.ReLU())
    plan = fanin.plan(model, X)
    calls: dict[str, Callable[[], object]] = {
        "apply_(plan): expected a Plan, got str; make one with fanin.plan, or read a file with "
        "fanin.load_plan": lambda: fanin.apply_(model, "plan.json"),  # type: ignore[arg-type]
        "plan.diff(other): expected a Plan, got str; read a file with fanin.load_plan": lambda: (
            plan.diff("plan.json")
        ),  # type: ignore[arg-type]
        "only_missing: expected True, False, or a list of names, got '0.weight'": lambda: (
            fanin.init_(model, X, only_missing="0.weight")
        ),
        "only_missing: expected True, False, or a list of names, got None": lambda: fanin.init_(
            model,
            X,
            only_missing=None,  # type: ignore[arg-type]
        ),
        "plan.save(path): expected a path, got NoneType": lambda: plan.save(None),  # type: ignore[arg-type]
        "load_plan(path): expected a path, got int": lambda: fanin.load_plan(3),  # type: ignore[arg-type]
    }
    for expected, call in calls.items():
        assert refused(call, model, ArgumentTypeError) == expected
    text = refused(lambda: fanin.init_(model, X, nn.init.kaiming_normal_), model, ArgumentTypeError)
    assert text.startswith("rule: expected a name, a distribution, a recipe, or what makes one")
    assert "'kaiming_normal_'" in text


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    model = net.mlp(2, nn.ReLU())
    plan = fanin.plan(model, X)
    (tmp_path / "folder.json").mkdir()
    for path in (tmp_path / "none" / "plan.json", tmp_path / "folder.json"):
        text = refused(lambda p=path: plan.save(p), model, DataError)
        assert text.startswith(f"{path}: expected a file that can be written, got ")
    text = refused(lambda: fanin.load_plan(tmp_path / "folder.json"), model, DataError)
    assert text.endswith("expected a file that can be read, got Is a directory")


def test_a_parameter_whose_elements_share_memory() -> None:
    model = net.mlp(2, nn.ReLU())
    model[2].weight = nn.Parameter(torch.randn(1, 64).expand(64, 64))
    text = refused(lambda: fanin.init_(model, X), model, ArgumentTypeError)
    assert text == (
        "apply_: 2.weight: expected a tensor with memory of its own for every element, got an "
        "expanded one; write into a copy"
    )


def test_old_values_go_back_where_one_of_them_cannot() -> None:
    back: list[int] = []

    def fails() -> None:
        raise RuntimeError("no")

    undo = Undo(8)
    for put_back in (lambda: back.append(0), fails, lambda: back.append(2)):
        with undo.writing(lambda p=put_back: p, must=False, may_fail=False):
            pass
    with pytest.raises(RuntimeError, match="no"):
        undo.__exit__(ValueError, ValueError("while it was written"), None)  # type: ignore[arg-type]
    assert back == [2, 0]


@pytest.mark.parametrize(
    ("centre", "got"),
    [
        (Centre("nope", 0.5), "expected the weight nope that it centres, got none"),
        (Centre("0.forward", 0.5), "expected the weight 0.forward that it centres, got none"),
        (Centre("4.weight", 0.5), "expected a centre that fits 4.weight of shape (10, 64)"),
        (Centre("2.weight", 0.5, "foo bar"), "expected a centre that fits 2.weight"),
        (
            Centre("2.weight", 0.5, parts=(1, 2), means=(0.0, 0.0)),
            "expected a centre that fits 2.weight",
        ),
    ],
)
def test_a_centre_of_another_layer(centre: Centre, got: str) -> None:
    model = net.mlp(2, nn.ReLU())
    plan = fanin.plan(model, X)
    rows = tuple(replace(r, centre=centre) if r.path == "2.bias" else r for r in plan)
    text = refused(lambda: fanin.apply_(model, replace(plan, rows=rows)), model, PlanError)
    assert text.startswith(f"apply_: 2.bias: {got}")


@pytest.mark.parametrize(
    "values",
    [
        draw.Orthogonal(1.0, batch_dims=1),
        *(
            Mirrored(draw.Normal(), pairs)
            for pairs in (((0, 0),), ((-1, 1),), ((0, -1),), ((2, 1),), ((0, 1), (0, 1)))
        ),
    ],
    ids=repr,
)
def test_distributions_that_do_not_fit(values: object) -> None:
    layer = nn.Linear(4, 4, bias=False)
    row = Row("weight", (4, 4), "hidden", "given", "", values)  # type: ignore[arg-type]
    assert refused(lambda: fanin.apply_(layer, Plan((row,), "")), layer, PlanError).startswith(
        "apply_: weight: expected a "
    )


# --- what is unusual ------------------------------------------------------------------------------


class Empty(nn.Module):
    """A layer without inputs, which torch allows."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.none = nn.Linear(0, 8)
        self.layer = nn.Linear(20, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.none(x[:, :0])


def test_a_matrix_without_elements_is_left_alone() -> None:
    plan = fanin.init_(Empty(), X)
    assert plan.left_alone == {"none.weight": "a tensor without elements cannot be drawn"}


class Mixed(nn.Module):
    """A part in another precision, as in mixed training."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(20, 64), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            h = torch.relu(self.first(x))
        return self.second(h.float())


def test_autocast_around_a_layer_changes_nothing_in_its_plan() -> None:
    plan = fanin.plan(Mixed(), fanin.spec((8, 20)))
    assert plan["first.weight"].std == pytest.approx(20**-0.5)
    assert plan["second.weight"].std == pytest.approx((64 * 0.5) ** -0.5)
    with torch.autocast("cpu", torch.bfloat16):
        around = fanin.plan(Mixed(), fanin.spec((8, 20)))
    assert around["first.weight"].std == pytest.approx(20**-0.5)


class Function(nn.Module):
    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.f, self.first, self.head = f, nn.Linear(20, 20), nn.Linear(20, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.f(self.first(x)))


@pytest.mark.parametrize(
    "f",
    [torch.reciprocal, torch.log, torch.rsqrt, lambda x: x**-2],
    ids=["reciprocal", "log", "rsqrt", "power"],
)
def test_functions_that_no_rule_can_judge_still_have_a_plan(f: Callable[..., Tensor]) -> None:
    plan = fanin.plan(Function(f), X)
    assert all(row.std is not None for row in plan)
    assert plan.stretches[0].reason.startswith("no rule can judge it: activation ")


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_a_scripted_model_gets_the_same_values() -> None:
    plain, scripted = net.mlp(2, nn.ReLU()), torch.jit.script(net.mlp(2, nn.ReLU()))
    fanin.init_(plain, X)
    fanin.init_(scripted, X)
    assert torch.equal(plain(X), scripted(X))
