"""The trainability benchmark: cells are files, a run goes on, starts are what they are called."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.activations import ACTIVATIONS
from benchmarks.trainability import __main__ as command
from benchmarks.trainability import language, measure, report, run, table
from benchmarks.trainability.cells import PLAIN, SETS, Cell, quick
from benchmarks.trainability.convolutional import Conv, Stacked
from benchmarks.trainability.networks import Plain, stacked
from benchmarks.trainability.starts import STARTS, UnsupportedError, layers_of, transformed
from torch import nn

RESULTS = sorted((Path(__file__).parents[2] / "benchmarks/results").glob("trainability-*"))
SMALL = Cell(
    "plain", "tanh", 3, "he", rates=(0.01, 0.1), seeds=(0, 1), epochs=1, width=16, batch=300
)


# --- cells --------------------------------------------------------------------------------------


def test_a_cell_goes_through_json_and_back() -> None:
    assert Cell.of(json.loads(json.dumps(SMALL.facts))) == SMALL


@pytest.mark.parametrize("name", SETS)
def test_every_set_names_starts_and_activations_that_exist(name: str) -> None:
    cells = list(SETS[name]())
    assert {c.activation for c in cells} <= set(ACTIVATIONS)
    assert {c.start for c in cells if not c.start.startswith("normal(")} <= set(STARTS)


def test_the_full_set_is_the_whole_product() -> None:
    cells = set(SETS["full"]())
    for data, optimiser in itertools.product(("mnist", "fashion-mnist"), ("sgd", "adam")):
        for seeds in ((0,), (0, 1, 2)):
            found = {
                (c.activation, c.depth, c.start)
                for c in cells
                if ("plain", data, optimiser, seeds) == (c.family, c.data, c.optimiser, c.seeds)
            }
            assert found >= set(itertools.product(ACTIVATIONS, (10, 20, 50, 100, 200), PLAIN))


def test_the_quick_set_takes_less_than_15_minutes_on_two_cores_by_count() -> None:
    assert sum(map(run.cost, set(quick()))) / 2 < 13 * 60  # two minutes to spare for the start


# --- networks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [None, "layer", "batch"])
def test_a_stack_of_plain_networks_is_its_networks(norm: Any) -> None:
    models = [Plain(12, 8, 3, torch.tanh, norm) for _ in range(3)]
    for model in models:
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.5)
    x = torch.randn(3, 20, 12)
    stack = stacked(models)
    torch.testing.assert_close(
        stack(x).detach(), torch.stack([m(each) for m, each in zip(models, x, strict=True)])
    )
    with torch.no_grad():  # running statistics, moved by the one batch
        expected = torch.stack([m.eval()(each) for m, each in zip(models, x, strict=True)])
        torch.testing.assert_close(stack(x), expected)


def test_a_stack_by_torch_func_is_its_networks() -> None:
    models = [Conv(4, 3, torch.tanh, "batch") for _ in range(2)]
    expected = [Conv(4, 3, torch.tanh, "batch") for _ in range(2)]
    for a, b in zip(models, expected, strict=True):
        b.load_state_dict(a.state_dict())
    x, stack = torch.randn(2, 5, 784), Stacked(models)
    torch.testing.assert_close(
        stack(x), torch.stack([m(each) for m, each in zip(expected, x, strict=True)])
    )
    with torch.no_grad():
        evaluated = torch.stack([m.eval()(each) for m, each in zip(expected, x, strict=True)])
        torch.testing.assert_close(stack(x), evaluated)


# --- starts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in PLAIN if name != "tat"])  # dks writes both
def test_a_start_depends_on_its_seed_and_leaves_random_state(name: str) -> None:
    if name in ("lsuv", "anyinit", "anyinit, centred", "dks"):
        pytest.importorskip(name.partition(",")[0])
    cell = replace(SMALL, start=name, activation="sigmoid")
    before = torch.get_rng_state()
    first, again, other = (measure.model(cell, seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    one, two, three = (layers_of(m)[1].get_parameter("weight") for m in (first, again, other))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_classical_starts_have_their_variances() -> None:
    variances = {"xavier": 1.0, "he": 2.0, "kumar": 12.8, "second moment": 3.41, "centred": 23.05}
    for name, expected in variances.items():
        model = measure.model(replace(SMALL, start=name, activation="sigmoid", width=200), 0)
        weight = layers_of(model)[1].get_parameter("weight")
        assert 200 * weight.var().item() == pytest.approx(expected, rel=0.03), name


def test_what_a_peer_does_not_know_is_said() -> None:
    pytest.importorskip("dks", reason="peers are in the extra `benchmarks`")
    with pytest.raises(UnsupportedError, match=r"^dks 0\.1\.2 does not take it in torch$"):
        transformed("square", "DKS", 3)


def test_what_a_rule_does_not_cover_is_said() -> None:
    assert measure.measure(replace(SMALL, start="kumar", activation="square")) == {
        "unsupported": "f'(0) = 0"
    }


# --- runs ---------------------------------------------------------------------------------------


def cells(*starts: str) -> list[Cell]:
    return [replace(SMALL, start=name) for name in starts]


def test_a_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: Any) -> None:
    whole = run._one
    trained: list[str] = []
    pressed = iter([True])

    def once(cell: Cell, first: Any) -> Any:
        if cell.start == "xavier" and next(pressed, False):
            raise KeyboardInterrupt
        trained.append(cell.start)
        return whole(cell, first)

    monkeypatch.setattr(run, "_one", once)
    monkeypatch.setitem(SETS, "quick", lambda: iter(cells("he", "centred", "xavier")))
    monkeypatch.setattr(command, "RESULTS", tmp_path / "none")
    asked = ["--cells", str(tmp_path), "run", "--set", "quick", "--workers", "1"]
    assert command.main(asked) == 130
    assert trained == ["he", "centred"]
    assert len(list(tmp_path.glob("*.json"))) == 2
    assert command.main(asked) == 0
    assert trained == ["he", "centred", "xavier"]
    assert command.main(asked) == 0
    assert len(trained) == 3


def test_a_cell_goes_on_from_its_first_seed_if_that_still_starts_alike(
    tmp_path: Path, monkeypatch: Any
) -> None:
    (cell,) = cells("he")
    finished = run.Finished(tmp_path)
    run.run([cell.first], finished, workers=1)
    known = finished.all()[cell.first]
    whole = measure.measure(cell)
    asked: list[Any] = []
    best_rate = measure.best_rate
    monkeypatch.setattr(
        measure, "best_rate", lambda *given: (asked.append(given[-1]), best_rate(*given))[1]
    )
    assert measure.measure(cell, known) == whole
    assert measure.measure(cell, {**known, "start": "other", "final": [0.0]}) == whole
    assert asked == [known, None]


def test_data_that_is_not_here_is_said(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(command, "FASHION", tmp_path / "none")
    monkeypatch.setattr(command, "RESULTS", tmp_path / "none")
    monkeypatch.setitem(SETS, "quick", lambda: iter([SMALL, replace(SMALL, data="fashion-mnist")]))
    assert command.main(["--cells", str(tmp_path), "run", "--dry-run"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == (
        f"1 cells left out: {tmp_path}/none is not there "
        "(Debian: apt-get install dataset-fashion-mnist)"
    )
    assert said[-1].startswith("1 of 1 cells to train, about")


def test_a_torn_cell_is_run_again_and_a_table_counts(tmp_path: Path) -> None:
    finished = run.Finished(tmp_path / "cells")
    run.run(cells("he"), finished, workers=1)
    results = finished.all()
    assert list(results) == cells("he")
    table.write(tmp_path / "table", results, "")
    for path in (tmp_path / "cells").glob("*.json"):
        path.write_text(path.read_text()[:40])
    assert finished.all() == {}
    kept = run.Finished(tmp_path / "cells", (tmp_path / "table",)).all()
    assert list(kept) == cells("he")
    assert kept[cells("he")[0]]["final"] == results[cells("he")[0]]["final"]


def test_a_changed_start_is_stale(tmp_path: Path) -> None:
    finished = run.Finished(tmp_path)
    run.run(cells("he"), finished, workers=1)
    results = finished.all()
    assert finished.stale(results) == []
    results[cells("he")[0]]["start"] = "0" * 16
    assert finished.stale(results) == cells("he")


def test_the_cost_of_a_plan_is_that_of_the_committed_cells() -> None:
    """Within the factor of two that seconds of one kind of cell differ by, as the table notes."""
    kinds: dict[tuple[str, int, bool, bool], list[tuple[float, float]]] = {}
    known = run.Finished(Path("none"), tuple(RESULTS)).all()
    for cell, result in known.items():
        if "seconds" in result and "unsupported" not in result and "ended" not in result:
            goes_on = len(cell.seeds) > 1 and cell.first in known
            kind = cell.family, cell.depth, " norm" in cell.start, goes_on
            kinds.setdefault(kind, []).append((result["seconds"], run.cost(cell, goes_on)))
    for kind, pairs in kinds.items():
        spent, planned = (sum(column) for column in zip(*pairs, strict=True))
        assert 1 / 2 < planned / spent < 2, (kind, planned, spent)


def test_a_fresh_run_trains_what_is_committed_and_says_both(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    (here,) = cells("he")
    there = {"rate": 0.1, "tried": [], "final": [0.5, 0.7], "curves": [[0.5], [0.7]], "start": ""}
    monkeypatch.setattr(report, "draw", lambda folder, results: [folder / "picture.svg"])
    table.write(tmp_path / "trainability-1", {here: there}, "")
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    monkeypatch.setattr(run, "_one", lambda c, _: (c.facts, {**there, "final": [0.5, 0.5]}))
    monkeypatch.setitem(SETS, "quick", lambda: iter([here]))
    asked = ["--cells", str(tmp_path / "cells"), "run", "--workers", "1"]
    assert command.main(asked) == 0
    assert capsys.readouterr().out.startswith("0 of 1 cells to train")
    assert command.main([*asked, "--fresh"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-2:] == [
        " 50.0% (committed: 60.0%)  plain 3 tanh, he, sgd",
        f"{tmp_path}/cells/picture.svg",
    ]


def test_no_cell_is_started_after_the_time_is_up(tmp_path: Path) -> None:
    run.run(cells("he"), run.Finished(tmp_path), workers=1, end=0.0)
    assert not list(tmp_path.glob("*.json"))


def test_a_dask_cluster_gives_what_processes_here_give(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
    ) as cluster:
        run.run(
            cells("he", "centred"),
            run.Finished(tmp_path / "dask"),
            workers=1,
            backend="dask",
            address=cluster.scheduler_address,
        )
    run.run(cells("he", "centred"), run.Finished(tmp_path / "here"), workers=1)
    far, near = (run.Finished(tmp_path / name).all() for name in ("dask", "here"))
    assert set(far) == set(near) == set(cells("he", "centred"))
    assert [far[c]["final"] for c in near] == [near[c]["final"] for c in near]


def test_durations_in_words() -> None:
    assert [run.duration(s) for s in (40, 300, 12_000)] == ["40 s", "5 min", "3 h 20 min"]


# --- results ------------------------------------------------------------------------------------


def made(start: str, final: list[float], curves: list[list[float]], **changes: Any) -> Any:
    whole = Cell("plain", "sigmoid", 100, start, seeds=tuple(range(len(final))))
    cell = replace(whole, **changes)
    return cell, {"rate": 0.003, "tried": [], "final": final, "curves": curves, "start": "x"}


def test_a_score_counts_seeds_and_steps() -> None:
    scored = table.score(*made("fanin", [0.9, 0.86], [[0.5, 0.82, 0.9], [0.1, 0.2, 0.86]]))
    assert scored is not None
    assert (scored.mean, round(scored.spread, 3), scored.trained) == (0.88, 0.02, True)
    assert scored.steps == (112, 168)
    failed = table.score(*made("he", [0.9, 0.1], [[0.9], [0.1]]))
    assert failed is not None
    assert (failed.trained, failed.steps) == (False, (56, None))


def test_tables_show_the_cell_with_most_seeds_and_the_best_in_bold() -> None:
    results = dict(
        [
            made("fanin", [0.9, 0.86], [[0.9], [0.86]], seeds=(0, 1)),
            made("fanin", [0.7], [[0.7]], seeds=(0,)),
            made("he", [0.1], [[0.1]], seeds=(0,)),
        ]
    )
    text = report.accuracy("plain", 100)(results)
    assert text.splitlines()[0] == "| activation | fanin | he |"
    assert text.splitlines()[2] == "| `sigmoid` | **88.0** ± 2.0 | 10.0 |"
    assert "| `sigmoid` | 56 ± 0 | never |" in report.steps(results)
    results |= dict([made("xavier", [0.9, 0.9], [[0.9, 0.9], [0.1, 0.9]])])
    assert "| `sigmoid` | 56 ± 0 | 84 ± 28 | never |" in report.steps(results)
    assert "1 of 1 run" in report.targets(results).splitlines()[2]


def test_how_deep_says_the_deepest_of_the_deepest_that_was_run() -> None:
    results = dict(
        [
            made("fanin", [0.9], [[0.9]], depth=200),
            made("he", [0.8], [[0.8]], depth=10),
            made("he", [0.79], [[0.79]], depth=20),
            made("xavier", [0.9, 0.7], [[0.9], [0.7]], depth=10),
            made("xavier", [0.8], [[0.8]], depth=20),
            made("layer norm", [0.9], [[0.9]], depth=200),
        ]
    )
    (dks, _) = made("dks", [], [], depth=10)
    results[dks] = {"unsupported": "no root"}
    lines = report.depths()(results).splitlines()
    shown = {line.split(" | ")[0]: line.split(" | ")[3] for line in lines[2:7]}
    assert shown == {
        "| fanin": "200 of 200",
        "| xavier": "20 of 20",
        "| he": "10 of 20",
        "| dks": "–",
        "| layer norm": "200 of 200",
    }
    assert lines[-1] == (
        "Failed at one depth and run at a greater one as well: 1, of which 1 trained there "
        "(xavier, `sigmoid`)."
    )
    assert report.depths(data="fashion-mnist")(results) == "No cells yet."
    bar = "trains deeper, on any activation: mnist, sgd | deeper on 0 of 1 run |"
    assert bar in report.targets(results)
    deep, result = made("lsuv", [0.9], [[0.9]], depth=200)
    results[next(c for c in results if c.start == "fanin")] = made("fanin", [0.1], [[0.1]])[1]
    results[deep] = result
    assert "deeper on 1 of 1 run: `sigmoid` |" in report.targets(results)


def test_rivals_are_compared_at_the_seeds_that_both_have() -> None:
    ours = made("fanin", [0.9, 0.5, 0.7], [[0.9], [0.5], [0.7]])
    near = made("layer norm", [0.91], [[0.91]], seeds=(0,))
    far = made("dks", [0.72, 0.6], [[0.72], [0.6]], seeds=(2, 1))
    assert table.lead(dict([ours, near]), "sigmoid", 100, ["layer norm"]) == pytest.approx(-0.01)
    both = dict([ours, near, far])
    assert table.lead(both, "sigmoid", 100, ["layer norm", "dks"]) == pytest.approx(-0.06)
    assert table.lead(both, "sigmoid", 100, ["tat"]) is None
    assert table.lead(both, "tanh", 100, ["dks"]) is None
    others = ", ".join(f"`{f}`" for f in ACTIVATIONS if f != "sigmoid")
    rows = report.targets(dict([ours, near])).splitlines()
    assert rows[-1].endswith(f"| 1 of 1 run; not comparable: {others} |")
    rows = report.targets(both).splitlines()
    assert rows[-1].endswith(f"| 0 of 1 run; less: `sigmoid`; not comparable: {others} |")


def test_the_page_has_every_section_once_and_is_rewritten_between_markers() -> None:
    page = (Path(__file__).parents[2] / "docs" / "trainability.md").read_text()
    for name in report.SECTIONS:
        assert page.count(f"<!-- {name}: begin -->") == 1
        once = report.between(page, name, "new")
        assert report.between(once, name, "new") == once
    with pytest.raises(ValueError, match="the page has no section 'other'"):
        report.between(page, "other", "new")


# --- language -----------------------------------------------------------------------------------


def test_the_book_is_the_one_that_the_readme_names() -> None:
    import hashlib

    digest = hashlib.sha256(language.TEXT.read_bytes()).hexdigest()
    assert digest in (language.TEXT.parent / "README.md").read_text()


def test_a_gpt_learns_letters_and_sees_no_future() -> None:
    cell = Cell(
        "gpt", "gelu", 2, "fanin", "alice", "adam", (1e-2,), (0,), epochs=30, width=32, batch=4
    )
    made = language.model(cell, 0)
    ids = language.text().train[None, : language.CONTEXT]
    changed = ids.clone()
    changed[0, -1] = (ids[0, -1] + 1) % language.text().letters
    torch.testing.assert_close(made(ids)[:, :-1], made(changed)[:, :-1])
    before = language.held_out(made)
    assert language.train(made, 1e-2, 0, cell)[-1] < before - 0.5
