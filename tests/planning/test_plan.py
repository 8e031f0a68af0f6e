"""The plan as a value: moments of its rows, look-up, comparison, and a table that fits."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fanin import draw
from fanin.errors import PlanError
from fanin.planning.plan import Centre, Diff, Plan, Row, Stack, Stretch, moments
from fanin.planning.table import describe

WHOLE = (
    draw.Normal(0.3, 0.7),
    draw.Uniform(-1.0, 2.0),
    draw.TruncatedNormal(0.1, 0.5, 2.0),
    draw.Rademacher(0.4),
    draw.Constant(-0.25),
    draw.Orthogonal(1.5),
    draw.Orthogonal(1.5, groups=4),
    draw.Orthogonal(1.5, keep="second_moment"),
)


@pytest.mark.parametrize("values", WHOLE, ids=repr)
@pytest.mark.parametrize("shape", [(240, 80), (80, 240)])
def test_mean_and_std_are_those_of_what_is_drawn(
    values: draw.Distribution, shape: tuple[int, int]
) -> None:
    drawn = draw.fill(np.empty(shape), values, seed=3, name="w")
    mean, std = moments(values, shape)
    n = drawn.size
    assert drawn.mean() == pytest.approx(mean, abs=4.5 * max(std, 1e-9) / math.sqrt(n))
    assert drawn.std() == pytest.approx(std, rel=4.5 / math.sqrt(n), abs=1e-12)


def test_a_delta_orthogonal_kernel_counts_its_zeros() -> None:
    shape = (16, 8, 3, 3)
    drawn = draw.fill(np.empty(shape), draw.DeltaOrthogonal(2.0), seed=0, name="w")
    assert moments(draw.DeltaOrthogonal(2.0), shape)[1] == pytest.approx(
        math.sqrt((drawn**2).mean()), rel=1e-5
    )


def test_a_stack_mixes_its_blocks() -> None:
    stack = Stack(((1, draw.Constant(1.0)), (3, draw.Constant(0.0))))
    assert moments(stack, (4, 2)) == pytest.approx((0.25, math.sqrt(0.1875)))


ROW = Row("h.0.fc.weight", (8, 4), "hidden", "he", "reads relu", draw.Normal(0.0, 0.5), fan_in=4)
KEPT = Row("h.0.scale", (8,), "gate", "left alone", "a gate", names=("alias",))


def test_rows_are_found_by_every_name() -> None:
    plan = Plan((ROW, KEPT), "he")
    assert plan["alias"] is KEPT
    assert plan["h.0.fc.weight"].std == 0.5
    assert KEPT.std is None
    assert plan.left_alone == {"h.0.scale": "a gate"}
    assert plan.lr_multipliers == {"h.0.fc.weight": 1.0, "h.0.scale": 1.0}
    with pytest.raises(PlanError) as caught:
        plan["fc.weight"]
    assert str(caught.value) == (
        "plan['fc.weight']: expected a path of the plan; did you mean '*.fc.weight'?"
    )


def test_the_difference_of_two_plans() -> None:
    plan = Plan((ROW, KEPT), "he")
    assert not plan.diff(plan)
    assert str(plan.diff(plan)) == "no difference"
    other = Plan(
        (replace(ROW, values=draw.Normal(0.0, 0.25), rule="lecun"), replace(KEPT, path="new")),
        "lecun",
    )
    diff = plan.diff(other)
    assert diff == Diff(
        added=("new",),
        removed=("h.0.scale",),
        changed={
            "h.0.fc.weight": {
                "rule": ("he", "lecun"),
                "values": (draw.Normal(0.0, 0.5), draw.Normal(0.0, 0.25)),
            }
        },
    )
    assert str(diff) == (
        "- h.0.scale\n+ new\n~ h.0.fc.weight\n    rule: he > lecun\n"
        "    values: Normal(mean=0.0, std=0.5) > Normal(mean=0.0, std=0.25)"
    )


def big_plan() -> Plan:
    rows = [replace(ROW, path=f"model.layers.{i}.mlp.fc_with_a_long_name.weight") for i in range(9)]
    rows += [replace(KEPT, path=f"model.layers.{i}.gate", reason="x" * 90) for i in range(9)]
    stretch = Stretch(tuple(r.path for r in rows[:9]), "residual", "second_moment", "y" * 200)
    return Plan((*rows, ROW, KEPT), "auto", (stretch,), ("z" * 300,))


@settings(max_examples=30)
@given(st.integers(60, 220))
def test_the_table_fits_the_width(width: int) -> None:
    assert max(map(len, big_plan().table(width).splitlines())) <= width


def test_a_narrow_terminal_gets_paths_and_reasons_in_full() -> None:
    row = replace(ROW, path="model.layers.0.self_attn.q_proj.weight", fan_out=8, reason="why " * 20)
    kept = replace(KEPT, reason="a reason that takes more than one line of eighty " * 2)
    assert Plan((row, kept), "he").table(60).splitlines() == [
        "model.layers.0.self_attn.q_proj.weight             N(0, 0.5)",
        "    8x4, hidden, fans 4 > 8, he: why why why why why why why",
        "      why why why why why why why why why why why why why",
        "",
        "left alone: 1 tensor",
        "  a reason that takes more than one line of eighty a reason",
        "    that takes more than one line of eighty",
        "    h.0.scale  8",
    ]


def test_rows_alike_but_for_their_layer_share_a_line() -> None:
    text = big_plan().table(200)
    assert "model.layers.*.mlp.fc_with_a_long_name.weight x9" in text
    assert "left alone: 10 tensors" in text
    every = big_plan().table(200, every_row=True)
    assert "model.layers.7.mlp.fc_with_a_long_name.weight" in every


def test_other_numbers_of_such_rows_become_ranges() -> None:
    stds, levels = (0.5, 0.125, 0.25), (1.0, 1.5, 2.0)
    rows = [
        replace(ROW, path=f"h.{i}.fc.weight", values=draw.Normal(0.0, std), fan_in=50257.0,
                fan_out=float(8 + i), reason=f"with h.{i}.n.weight, E[x^2] = {level:g}, 1/sqrt(24)")
        for i, std, level in zip((0, 10, 2), stds, levels, strict=True)
    ]  # fmt: skip
    other = replace(rows[0], path="h.3.fc.weight", shape=(8, 5))
    bias = [replace(ROW, path=f"h.{i}.b", values=draw.Constant(-i / 4)) for i in (1, 2)]
    assert Plan((*rows, other, *bias), "he").table(160).splitlines()[1:] == [
        "h.*.fc.weight x3  8x4    hidden  50257 > 8..18  he    N(0, 0.125..0.5)  "
        "with h.*.n.weight, E[x^2] = 1..2, 1/sqrt(24)",
        "h.3.fc.weight     8x5    hidden  50257 > 8      he    N(0, 0.5)         "
        "with h.0.n.weight, E[x^2] = 1, 1/sqrt(24)",
        "h.*.b x2          8x4    hidden  4 > 0          he    -0.5..-0.25       reads relu",
    ]


def test_the_table_says_what_is_drawn() -> None:
    stack = Stack(((2, draw.Constant(0.0)), (2, draw.Constant(1.0)), (4, draw.Constant(0.0))))
    shown = {
        "N(0, 0.5)": draw.Normal(0.0, 0.5),
        "U(-1, 1)": draw.Uniform(-1.0, 1.0),
        "TN(0, 0.02; 2σ)": draw.TruncatedNormal(0.0, 0.02),
        "±0.5": draw.Rademacher(0.5),
        "orthogonal 1.5": draw.Orthogonal(1.5),
        "delta-orthogonal 2": draw.DeltaOrthogonal(2.0),
        "0 | 1 | 0": stack,
    }
    assert {describe(values): values for values in shown.values()} == shown
    bias = replace(ROW, path="b", values=draw.Constant(0.25), centre=Centre("w", 0.5), lr=0.125)
    line = Plan((bias,), "shaped").table(120).splitlines()[1]
    assert "0.25 - 0.5 sum W" in line
    assert "he, lr x0.125" in line
