"""Plans on disk: what is written is what is read, and nothing else is accepted."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanin import draw
from fanin.errors import DataError, MissingDependencyError, PlanError
from fanin.planning import store
from fanin.planning.plan import Centre, Plan, Row, Stack, Stretch

FINITE = st.floats(-1e3, 1e3)
SPREAD = st.floats(0, 1e3)
DISTRIBUTIONS = st.one_of(
    st.builds(draw.Normal, FINITE, SPREAD),
    st.builds(lambda a, b: draw.Uniform(min(a, b), max(a, b)), FINITE, FINITE),
    st.builds(draw.TruncatedNormal, FINITE, SPREAD, st.floats(0.5, 5)),
    st.builds(draw.Rademacher, SPREAD),
    st.builds(draw.Constant, FINITE),
    st.builds(draw.Orthogonal, SPREAD, groups=st.integers(1, 4)),
    st.builds(draw.DeltaOrthogonal, SPREAD),
)
STACKS = st.builds(
    Stack, st.lists(st.tuples(st.integers(1, 8), DISTRIBUTIONS), min_size=1).map(tuple)
)
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=12)
ROWS = st.builds(
    Row,
    path=TEXT,
    shape=st.lists(st.integers(1, 9), max_size=3).map(tuple),
    role=st.just("hidden"),
    rule=TEXT,
    reason=TEXT,
    values=st.one_of(st.none(), DISTRIBUTIONS, STACKS),
    names=st.lists(TEXT, max_size=2).map(tuple),
    fan_in=st.one_of(st.none(), SPREAD),
    centre=st.one_of(st.none(), st.builds(Centre, TEXT, FINITE)),
    lr=st.floats(0.01, 10),
)
PLANS = st.builds(
    Plan,
    rows=st.lists(ROWS, max_size=3, unique_by=lambda row: row.path).map(tuple),
    rule=TEXT,
    stretches=st.lists(
        st.builds(Stretch, st.lists(TEXT, max_size=2).map(tuple), TEXT, TEXT, TEXT), max_size=2
    ).map(tuple),
    notes=st.lists(TEXT, max_size=2).map(tuple),
)


@given(PLANS)
def test_a_plan_survives_json(plan: Plan) -> None:
    assert store.from_dict(json.loads(json.dumps(store.to_dict(plan)))) == plan


@pytest.mark.parametrize("ending", ["json", "yaml", "yml"])
def test_a_plan_survives_a_file(tmp_path: Path, ending: str) -> None:
    stack = Stack(((2, draw.Constant(0.0)), (2, draw.Orthogonal(1.5, groups=2))))
    rows = (
        Row("wéight", (4, 3), "hidden", "shaped", "why: «x»", draw.Normal(0.0, 0.1), fan_in=2.875),
        Row("bias", (4,), "bias", "shaped", "so", stack, centre=Centre("wéight", 0.5)),
        Row("gate", (), "gate", "left alone", "a gate", names=("alias",), lr=0.25),
    )
    plan = Plan(rows, "auto", (Stretch(("wéight",), "plain", "shaped", "deep"),), ("a note",))
    path = plan.save(tmp_path / f"plan.{ending}")
    assert store.load_plan(path) == plan


def message(content: object) -> str:
    with pytest.raises(PlanError) as caught:
        store.from_dict(content)
    return str(caught.value)


def test_what_is_not_a_plan_is_an_error_that_says_where() -> None:
    row = {"path": "w", "shape": [2], "role": "gate", "rule": "keep", "reason": "so"}
    good = {"format": store.FORMAT, "rule": "auto", "rows": [row]}
    assert store.from_dict(good)["w"].shape == (2,)
    assert message([]) == "plan: expected a mapping, got list"
    assert message({**good, "format": "fanin.plan/9"}) == (
        "plan.format: expected fanin.plan/1, got 'fanin.plan/9'; use the version of fanin that "
        "wrote it"
    )
    assert message({**good, "sed": 1}) == (
        "plan: expected keys rows, rule, stretches, notes, stream, seed, got 'sed'"
    )
    assert message({**good, "stream": 99}).startswith("plan.stream: expected stream version")
    assert message({"format": store.FORMAT, "rows": []}) == (
        "plan: expected the key 'rule', got none"
    )
    assert message({**good, "rows": [{**row, "std": 1}]}).startswith("plan.rows[0]: expected keys")
    assert message({**good, "rows": [{**row, "std": 1}]}).endswith("got 'std'")
    assert message({**good, "rows": [{**row, "shape": "2"}]}) == (
        "plan.rows[0].shape: expected a list of int, got '2'"
    )
    assert message({**good, "rows": [{**row, "fan_in": "many"}]}) == (
        "plan.rows[0].fan_in: expected a value of kind float | None, got 'many'"
    )
    assert message({**good, "rows": [{**row, "values": {"kind": "normel"}}]}) == (
        "plan.rows[0].values.kind: expected one of normal, uniform, truncated_normal, rademacher, "
        "constant, orthogonal, delta_orthogonal, stack, mirrored, got 'normel'"
    )
    wrong = {**row, "values": {"kind": "normal", "std": -1.0}}
    assert message({**good, "rows": [wrong]}) == (
        "plan.rows[0].values: expected a distribution, got Normal: expected std >= 0, "
        "got Normal(mean=0.0, std=-1.0)"
    )
    extra = {**row, "values": {"kind": "normal", "sigma": 1.0}}
    assert message({**good, "rows": [extra]}) == (
        "plan.rows[0].values: expected keys mean, std, got 'sigma'"
    )


ROW = {"path": "w", "shape": [4, 4], "role": "hidden", "rule": "given", "reason": "so"}
NORMAL = {"kind": "normal", "std": 1.0}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"kind": "weird"}, "plan.rows[0].kind: expected one of parameter, buffer, parametrized"),
        ({"lr": -1}, "plan.rows[0].lr: expected a number above 0, got -1"),
        ({"values": {"kind": ["normal"]}}, "plan.rows[0].values.kind: expected one of normal"),
        (
            {"values": {"kind": "stack", "blocks": [{"rows": -4, **NORMAL}]}},
            "plan.rows[0].values.blocks: expected rows and a distribution",
        ),
        (
            {"values": {"kind": "stack", "blocks": [{"rows": True, **NORMAL}]}},
            "plan.rows[0].values.blocks: expected rows and a distribution",
        ),
        (
            {"values": {"kind": "mirrored", "values": NORMAL, "pairs": [[0, 1]], "coherence": -1}},
            "plan.rows[0].values.coherence: expected a number above 0, got -1",
        ),
        (
            {"centre": {"weight": "w", "mean": 0.5, "groups": 0}},
            "plan.rows[0].centre.groups: expected a number above 0, got 0",
        ),
    ],
    ids=str,
)
def test_fields_outside_their_domain(fields: dict[str, object], expected: str) -> None:
    content = {"format": store.FORMAT, "rule": "auto", "rows": [{**ROW, **fields}]}
    assert message(content).startswith(expected)


def test_two_rows_of_one_path() -> None:
    assert message({"format": store.FORMAT, "rule": "auto", "rows": [ROW, ROW]}) == (
        "plan.rows: expected one row for each path, got two of 'w'"
    )


def test_files_that_would_fill_the_memory_or_the_stack(tmp_path: Path) -> None:
    """A YAML file of 500 bytes that stands for 9^9 elements; 100,000 brackets."""
    letters = "abcdefghij"
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"{one}: &{one} [{', '.join([f'*{before}'] * 9)}]" for before, one in pairwise(letters)
    ]
    (tmp_path / "laughs.yaml").write_text("\n".join([*lines, "format: *j"]))
    with pytest.raises(PlanError, match=r"plan\.format: expected") as caught:
        store.load_plan(tmp_path / "laughs.yaml")
    assert len(str(caught.value)) < 500
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="expected a plan, got data nested too deeply"):
        store.load_plan(tmp_path / "deep.json")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="expected text in UTF-8"):
        store.load_plan(tmp_path / "bytes.yaml")


def test_a_plan_does_not_steer_the_terminal() -> None:
    row = {**ROW, "reason": "\x1b[2Jgone", "values": NORMAL}
    plan = store.from_dict(
        {"format": store.FORMAT, "rule": "auto", "rows": [row], "notes": ["\x07"]}
    )
    assert "\x1b" not in str(plan)
    assert "\x07" not in str(plan)
    assert "[2Jgone" in str(plan)


def test_files_that_are_missing_or_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="expected a plan's file, got no file"):
        store.load_plan(tmp_path / "absent.json")
    for name, content in (("a.json", "{"), ("a.yaml", "{a: [")):
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match=name):
            store.load_plan(tmp_path / name)
    with pytest.raises(PlanError, match="a file ending in"):
        Plan((), "auto").save(tmp_path / "plan.txt")
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    with pytest.raises(MissingDependencyError, match="pyyaml"):
        Plan((), "auto").save(tmp_path / "plan.yaml")


def test_yaml_executes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text(f"!!python/object/apply:os.mkdir ['{tmp_path}/made']")
    with pytest.raises(DataError):
        store.load_plan(path)
    assert not (tmp_path / "made").exists()
