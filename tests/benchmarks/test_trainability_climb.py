"""The climb: shallow networks first, deeper ones only where the start has trained those."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks.activations import ACTIVATIONS
from benchmarks.trainability import __main__ as command
from benchmarks.trainability import climb, run
from benchmarks.trainability.cells import DEPTHS, PLAIN, RATES, SETS, Cell, plain

TALL = Cell("plain", "tanh", 200, "he", rates=RATES, seeds=(0,))
TRAINS = {"fanin": 200, "he": 20, "xavier": 0}
"""The deepest network that the trainer of these tests brings to the bar, by start."""


def result(cell: Cell) -> dict[str, Any]:
    final = 0.9 if cell.depth <= TRAINS[cell.start] else 0.1
    return {"rate": 0.01, "tried": [], "final": [final], "curves": [[final]], "start": "x"}


def at(depth: int, start: str = "he") -> Cell:
    return replace(TALL, depth=depth, start=start)


def test_a_grid_is_every_start_activation_and_depth_shallow_first() -> None:
    cells = list(plain())
    assert len(cells) == len(set(cells)) == len(PLAIN) * len(ACTIVATIONS) * len(DEPTHS)
    assert [c.start for c in cells[:: len(ACTIVATIONS)]][:3] == ["fanin", "torch default", "he"]
    assert [depth for depth, _ in itertools.groupby(c.depth for c in cells)] == list(DEPTHS)


def test_the_climb_is_every_grid_with_one_seed_and_with_all_of_them() -> None:
    cells = list(SETS["climb"]())
    one, three = ([c for c in cells if len(c.seeds) == n] for n in (1, 3))
    assert len(cells) == len(set(cells)) == len(one) + len(three)
    assert {c.first for c in three} == set(one)
    kinds = itertools.product(("mnist", "fashion-mnist"), ("sgd", "adam"))
    for data, optimiser in kinds:
        grid = set(plain(data, optimiser))
        assert grid <= set(three)
        depths = [
            c.depth for c in one if (c.family, c.data, c.optimiser) == ("plain", data, optimiser)
        ]
        assert depths == sorted(depths)


def test_the_climb_leaves_out_what_failed_below_and_where_the_first_seed_failed() -> None:
    def cell(start: str, depth: int, *seeds: int) -> Cell:
        return Cell("plain", "relu", depth, start, seeds=seeds)

    well, ill = ({"rate": 0.1, "final": [x], "curves": [[x]]} for x in (0.9, 0.7))
    known = {
        cell("he", 10, 0): well,
        cell("he", 20, 0): ill,
        cell("xavier", 10, 0): well,
        cell("xavier", 20, 0): well,
        cell("dks", 10, 0): {"unsupported": "no root"},
    }
    asked = [cell(s, d, *seeds) for s in ("he", "xavier", "dks") for d in (10, 20, 50)
             for seeds in ((0,), (0, 1))]  # fmt: skip
    assert [c for c in climb.due(asked, known) if c not in known] == [
        cell("he", 10, 0, 1),
        cell("xavier", 10, 0, 1),
        cell("xavier", 20, 0, 1),
        cell("xavier", 50, 0),
        cell("xavier", 50, 0, 1),  # unless the first seed fails
        cell("dks", 20, 0),
        cell("dks", 20, 0, 1),
        cell("dks", 50, 0),
        cell("dks", 50, 0, 1),
    ]
    assert climb.due([cell("xavier", 50, 0, 1)], {**known, cell("xavier", 50, 0): ill}) == []


def test_stages_of_the_climb_do_not_rule_each_other_out() -> None:
    for stage in climb.stages(SETS["full"]()):
        assert len({(c.depth, c.seeds) for c in stage}) == 1


def test_a_start_that_failed_is_not_tried_deeper() -> None:
    results = {at(10): result(at(10)), at(20): result(at(20)), at(50): result(at(50))}
    assert climb.due(map(at, DEPTHS), results) == [at(10), at(20), at(50)]
    assert climb.stopped(at(200), results) == 50
    other = replace(at(200), data="fashion-mnist")
    assert climb.due([other], results) == [other]


def test_a_start_that_does_not_exist_has_not_failed() -> None:
    assert climb.due([at(20)], {at(10): {"unsupported": "no root at this depth"}}) == [at(20)]


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: Any) -> list[Cell]:
    """The cells that a trainer which knows the answer was asked for."""
    asked: list[Cell] = []

    def one(cell: Cell, first: Any) -> Any:
        asked.append(cell)
        return cell.facts, result(cell)

    def cells() -> Any:
        return (at(d, s) for d, s in itertools.product(DEPTHS, TRAINS))

    monkeypatch.setattr(run, "_one", one)
    monkeypatch.setattr(command, "RESULTS", tmp_path / "none")
    monkeypatch.setitem(SETS, "climb", cells)
    return asked


def ask(folder: Path, *more: str) -> int:
    return command.main(["--cells", str(folder), "run", "--set", "climb", "--workers", "1", *more])


def test_a_climb_trains_what_is_due_and_goes_on(
    trained: list[Cell], tmp_path: Path, capsys: Any
) -> None:
    assert ask(tmp_path, "--limit", "4") == 0
    assert [(c.depth, c.start) for c in trained] == [
        (10, "fanin"), (10, "he"), (10, "xavier"), (20, "fanin"),
    ]  # fmt: skip
    assert ask(tmp_path, "--dry-run") == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("at most 7 of 15 cells to train, at most about ")
    assert ask(tmp_path) == 0
    assert [(c.depth, c.start) for c in trained[4:]] == [
        (20, "he"), (50, "fanin"), (50, "he"), (100, "fanin"), (200, "fanin"),
    ]  # fmt: skip
    assert ask(tmp_path) == 0
    assert len(trained) == 9


def test_a_climb_stops_with_its_time(trained: list[Cell], tmp_path: Path) -> None:
    assert ask(tmp_path, "--minutes", "0") == 0
    assert trained == []


def test_a_refreshed_climb_does_not_go_by_old_failures(
    trained: list[Cell], tmp_path: Path, monkeypatch: Any
) -> None:
    def stale(self: run.Finished, results: Any) -> list[Cell]:
        return [c for c in results if c.start == "xavier"]

    monkeypatch.setattr(run.Finished, "stale", stale)
    assert ask(tmp_path, "--limit", "3") == 0
    monkeypatch.setitem(TRAINS, "xavier", 10)
    assert ask(tmp_path) == 0
    assert [c.depth for c in trained if c.start == "xavier"] == [10]
    assert ask(tmp_path, "--refresh") == 0
    assert [c.depth for c in trained if c.start == "xavier"] == [10, 10, 20]
