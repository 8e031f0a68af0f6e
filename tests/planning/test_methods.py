"""What `rule=` takes: names, recipes, distributions, patterns; and what it refuses."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import yaml
from tests.planning import networks as net
from torch import nn

import fanin
from fanin import draw
from fanin.errors import ArgumentTypeError, PlanError, UnknownNameError
from fanin.planning.methods import method, names
from fanin.planning.recipes import GPT2


class Twelve(nn.Module):
    """Blocks with two projections of one name."""

    def __init__(self, blocks: int = 12, width: int = 16) -> None:
        super().__init__()
        self.h = nn.ModuleList()
        for _ in range(blocks):
            attn = nn.ModuleDict({"c_proj": nn.Linear(width, width, bias=False)})
            mlp = nn.ModuleDict({"c_proj": nn.Linear(width, width, bias=False)})
            self.h.append(nn.ModuleDict({"attn": attn, "mlp": mlp}))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.h:
            x = x + block["attn"]["c_proj"](x)
            x = x + block["mlp"]["c_proj"](x)
        return x


X = fanin.spec((4, 16))
DEPTH = draw.Normal(0.0, 0.02 / 24**0.5)


def message(call: object, kind: type[Exception]) -> str:
    with pytest.raises(kind) as caught:
        call()  # type: ignore[operator]
    return str(caught.value)


def test_a_pattern_that_matches_nothing_is_an_error_with_the_glob_that_would() -> None:
    """Acceptance: an exact name where a glob was meant; with the glob std 0.00408 within 2%."""
    assert message(lambda: fanin.plan(Twelve(), X, {"c_proj.weight": DEPTH}), PlanError) == (
        "rule 'c_proj.weight': expected a pattern that matches, got 0 of 24 tensors; did you mean "
        "'*.c_proj.weight'?"
    )
    model = Twelve(width=64)
    plan = fanin.init_(model, fanin.spec((4, 64)), {"*.c_proj.weight": DEPTH})
    weights = torch.cat([p.flatten() for p in model.parameters()])
    assert weights.std().item() == pytest.approx(0.00408, rel=0.02)
    assert all(row.rule == "given" for row in plan)


def test_the_first_match_wins_and_every_pattern_must_be_reached() -> None:
    rule = {"h.0.*": "keep", "*.attn.*": draw.Constant(1.0), "*": draw.Constant(0.0)}
    plan = fanin.plan(Twelve(2), X, rule)
    assert plan["h.0.attn.c_proj.weight"].values is None
    assert plan["h.1.attn.c_proj.weight"].mean == 1.0
    assert plan["h.1.mlp.c_proj.weight"].mean == 0.0
    assert message(lambda: fanin.plan(Twelve(2), X, {"*": 0.0, "*.attn.*": 1.0}), PlanError) == (
        "rule '*.attn.*': expected a pattern that is reached, got all 2 of its tensors taken by "
        "'*'; put the narrower pattern first"
    )


def test_what_no_pattern_matches_is_left_alone() -> None:
    plan = fanin.plan(Twelve(2), X, {"h.0.*": "lecun"})
    assert plan["h.0.mlp.c_proj.weight"].std is not None
    assert plan.left_alone == {
        "h.1.attn.c_proj.weight": "no pattern matches",
        "h.1.mlp.c_proj.weight": "no pattern matches",
    }


def test_a_bias_follows_a_weight_whose_rule_needs_it() -> None:
    model = net.mlp(3, nn.Sigmoid())
    plan = fanin.plan(model, fanin.spec((4, 20)), {"*.weight": "centred"})
    assert plan["2.bias"].centre is not None
    assert plan["0.bias"].values is None


@pytest.mark.parametrize(
    "rule",
    [
        GPT2(std=0.01),
        partial(GPT2, std=0.01),
        {"recipe": "gpt2", "std": 0.01},
        yaml.safe_load("{recipe: gpt2, std: 0.01}"),
    ],
    ids=["value", "partial", "dict", "yaml"],
)
def test_one_recipe_in_every_spelling_is_one_plan(rule: object) -> None:
    plan = fanin.plan(Twelve(2), X, rule)
    assert plan.rule == "gpt2(std=0.01)"
    assert plan == fanin.plan(Twelve(2), X, {"*": {"recipe": "gpt2", "std": 0.01}}) or (
        plan.rows == fanin.plan(Twelve(2), X, {"*": rule}).rows
    )


def test_distributions_in_every_spelling() -> None:
    for rule in (draw.Normal(0.0, 0.5), {"kind": "normal", "std": 0.5}):
        assert fanin.plan(Twelve(1), X, rule)["h.0.mlp.c_proj.weight"].std == 0.5
    assert fanin.plan(Twelve(1), X, 0.25)["h.0.mlp.c_proj.weight"].mean == 0.25


def test_unknown_names_and_parameters() -> None:
    assert message(lambda: method("kaiming"), UnknownNameError).startswith(
        "rule: expected the name of a rule or recipe, got 'kaiming'; try "
    )
    assert "'shaped'" in message(lambda: method("shapd"), UnknownNameError)
    assert message(lambda: method({"recipe": "gpt2", "sdt": 0.1}), PlanError) == (
        "recipe 'gpt2': expected parameters std, got 'sdt'"
    )
    assert message(lambda: method({"recipe": "rezero", "sdt": 0.1}), PlanError) == (
        "recipe 'rezero': expected no parameters, got 'sdt'"
    )
    assert message(lambda: method(None), ArgumentTypeError) == (
        "rule: expected a name, a distribution, a recipe, or a mapping of patterns to these, got "
        "None"
    )
    assert message(lambda: method({}), ArgumentTypeError) == (
        "rule: expected a mapping with text as keys, got {}"
    )
    assert message(lambda: method({"kind": "normal", "sdt": 1.0}), PlanError) == (
        "rule: expected keys mean, std, got 'sdt'"
    )
    assert len(set(names())) == len(names())


def test_what_is_no_model() -> None:
    assert message(lambda: fanin.plan(torch.ones(3), X), ArgumentTypeError).startswith(
        "plan(model): expected a torch.nn.Module, got tensor"
    )
