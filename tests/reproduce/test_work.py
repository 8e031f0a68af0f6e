"""Running claims: what is kept, what is taken from disk, what Ctrl-C leaves."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from fanin.errors import ArgumentError, DataError
from fanin.reproduce import experiments
from fanin.reproduce.claim import Arm, Claim, Conclusion, Tick
from fanin.reproduce.run import Options, Outcome, reproduce
from fanin.reproduce.store import Store
from fanin.reproduce.work import Interrupted, Work, measure

from .fake import checkout

ROOT = Path(__file__).resolve().parents[2]


def run(root: Path, **options: Any) -> Outcome:
    return reproduce(Options(out=root / "out", workers=2, **options), start=root)


def arms_on_disk(root: Path) -> int:
    return len(list((root / "out" / "arms").glob("*.json")))


def test_a_run_leaves_values_figures_and_a_report(tmp_path: Path) -> None:
    outcome = run(checkout(tmp_path, picture=True))
    assert outcome.failed == 0
    assert not outcome.interrupted
    assert outcome.report == tmp_path / "out" / "report.html"
    kept = json.loads((tmp_path / "out" / "claim-1.json").read_text())
    assert kept["values"] == {"arm 0": 0, "arm 1": 1, "arm 2": 4}
    assert [line["verdict"] for line in kept["verdicts"]] == ["PASS", "REPORT"]
    assert kept["config"] == {"arms": 3, "power": 2}
    names = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert names == {"squares-light.svg", "squares-dark.svg"}


def test_a_rerun_takes_finished_arms_from_disk(tmp_path: Path) -> None:
    checkout(tmp_path)
    assert run(tmp_path).work.reused == 0
    again = run(tmp_path)
    assert again.work.reused == 3
    assert again.claims[0].experiment.measured == []  # type: ignore[attr-defined]
    assert again.facts["arms"] == "3 of 3, 3 taken from disk"


@pytest.mark.parametrize("change", [{"fresh": True}, {"seed": 1}, {"mode": "full"}])
def test_what_changes_a_result_measures_again(tmp_path: Path, change: dict[str, Any]) -> None:
    checkout(tmp_path)
    run(tmp_path)
    assert run(tmp_path, **change).work.reused == 0


def test_changed_code_measures_again(tmp_path: Path) -> None:
    checkout(tmp_path)
    run(tmp_path)
    code = tmp_path / "experiments" / "01_rule" / "claim.py"
    code.write_text(code.read_text() + "\n# another version\n")
    assert run(tmp_path).work.reused == 0


def test_ctrl_c_keeps_what_is_finished(tmp_path: Path) -> None:
    """The second arm is under way when the interruption comes; the first is on disk."""
    under_way, finished = threading.Event(), []

    class Slow:
        TITLE = STATEMENT = "slow"
        NEEDS_IMAGES = False

        def arms(self, config: Any, seed: int) -> list[Arm]:
            return [Arm("long", {"long": True}, cost=2.0), Arm("short", {"long": False})]

        def measure(self, config: Any, images: None, tick: Tick) -> dict[str, Any]:
            while config["long"]:
                under_way.set()
                tick(0.5)
            finished.append("short")
            return {"x": 1}

        def conclude(self, config: Any, results: Any) -> Conclusion:
            raise AssertionError

    def watch(work: Work) -> None:
        if work.count[0] == 1 and under_way.is_set():
            assert work.done(1) == pytest.approx(2 / 3)
            raise KeyboardInterrupt

    claim = Claim(1, "slow", {}, Slow())
    store = Store(tmp_path)
    with pytest.raises(Interrupted) as caught:
        measure([claim], None, store, seed=0, fresh=False, workers=2, watch=watch)
    assert caught.value.work.results == {1: {"short": {"x": 1}}}
    assert not caught.value.work.finished(1)
    assert len(list(tmp_path.iterdir())) == len(finished) == 1


def test_after_ctrl_c_the_finished_claims_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout(tmp_path)

    def watch(work: Work) -> None:
        if work.finished(1):
            raise KeyboardInterrupt

    outcome = reproduce(Options(out=tmp_path / "out", workers=1), watch, start=tmp_path)
    assert outcome.interrupted
    assert len(outcome.conclusions) == 1
    assert arms_on_disk(tmp_path) == 3


def test_an_error_in_an_arm_is_not_swallowed(tmp_path: Path) -> None:
    checkout(tmp_path)
    code = tmp_path / "experiments" / "01_rule" / "claim.py"
    code.write_text(code.read_text().replace("tick(0.5)", "raise ZeroDivisionError('arm')"))
    with pytest.raises(ZeroDivisionError, match="arm"):
        run(tmp_path)
    assert arms_on_disk(tmp_path) == 0


def test_the_folder_is_found_from_below(tmp_path: Path) -> None:
    below = checkout(tmp_path) / "a" / "b"
    below.mkdir(parents=True)
    assert experiments.folder(below) == tmp_path / "experiments"


def test_the_folder_is_found_beside_the_package(tmp_path: Path) -> None:
    assert experiments.folder(tmp_path) == ROOT / "experiments"


def test_without_a_checkout_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fanin.__file__", str(tmp_path / "lib" / "site" / "fanin" / "__init__.py"))
    with pytest.raises(DataError) as caught:
        experiments.folder(tmp_path)
    assert str(caught.value) == (
        f"experiments/: expected 01_rule/claim.py in {tmp_path}, above it, or in {tmp_path}/lib, "
        "got nothing there; run `fanin reproduce` inside a source checkout of fanin"
    )


def test_bad_options_are_named(tmp_path: Path) -> None:
    checkout(tmp_path)
    said = {
        "--only: expected a claim, 1 to 1, got 7": {"only": (7,)},
        "--seed: expected 0 to 2^31 - 1, got -1": {"seed": -1},
        "mode: expected quick or full, got 'fast'": {"mode": "fast"},
    }
    for message, options in said.items():
        with pytest.raises(ArgumentError) as caught:
            run(tmp_path, **options)
        assert str(caught.value) == message


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (checkout(tmp_path) / "out").write_text("a file")
    with pytest.raises(ArgumentError) as caught:
        run(tmp_path)
    assert str(caught.value) == (
        f"--out: expected a folder that can be written, got {tmp_path}/out (Not a directory)"
    )


@pytest.mark.parametrize("damage", ["missing", "not TOML", "no section"])
def test_a_claim_without_its_configuration(tmp_path: Path, damage: str) -> None:
    config = checkout(tmp_path) / "experiments" / "01_rule" / "config.toml"
    if damage == "missing":
        config.unlink()
        said = f"{config}: expected this file, got nothing there"
    elif damage == "not TOML":
        config.write_text("[quick")
        said = f"{config}: expected TOML, got "
    else:
        config.write_text("[full]\n")
        said = f"{config}: expected a section [quick], got full"
    with pytest.raises(DataError) as caught:
        run(tmp_path)
    assert str(caught.value).startswith(said)
