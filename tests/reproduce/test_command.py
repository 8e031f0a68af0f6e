"""`fanin reproduce`: exit codes, one clear line for bad input, a table for 80 columns."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from fanin.cli import main
from fanin.reproduce.run import Options, reproduce
from fanin.reproduce.terminal import table, watching
from fanin.reproduce.work import Work

from .fake import checkout


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(checkout(tmp_path))
    return tmp_path


def test_a_good_run_is_0(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "--out", "o"]) == 0
    said = capsys.readouterr().out
    assert "claim 1 measured: Squares <&>" in said
    assert "PASS" in said
    assert "arms: 3 of 3, 0 taken from disk" in said
    assert said.rstrip().endswith("report: o/report.html")
    assert (inside / "o" / "report.html").is_file()


def test_a_failed_claim_is_1(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "--full", "--out", "o"]) == 1
    assert "FAIL" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "9"], "--only: expected a claim, 1 to 1, got 9"),
        (["--only", "one"], "--only: expected a whole number, got 'one'"),
        (["--seed", "1.5"], "--seed: expected a whole number, got '1.5'"),
        (["--seed", "-3"], "--seed: expected 0 to 2^31 - 1, got -3"),
    ],
)
def test_bad_input_is_one_line_and_2(
    inside: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["reproduce", *arguments]) == 2
    assert capsys.readouterr().err == f"fanin reproduce: {said}\n"


def test_ctrl_c_is_130_and_says_where_the_work_is(
    inside: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fanin.reproduce.work.wait", interrupted)
    assert main(["reproduce", "--out", "o"]) == 130
    assert capsys.readouterr().err == (
        "interrupted; finished arms are kept in o/arms, the same command goes on from there\n"
    )


def test_the_table_keeps_to_80_columns(inside: Path) -> None:
    outcome = reproduce(Options(out=inside / "o", workers=1), start=inside)
    console = Console(width=80, record=True, file=(inside / "said").open("w"))
    console.print(table(outcome))
    said = console.export_text()
    assert max(map(len, said.splitlines())) <= 80
    for text in ("Squares <&>", "The sum is right", "PASS", "REPORT"):
        assert text in said


def test_bars_end_at_100_percent(inside: Path) -> None:
    console = Console(width=80, force_terminal=True, record=True, file=(inside / "said").open("w"))
    work = Work({1: []}, {1: {}})
    with watching(console, {1: "Squares"}) as watch:
        outcome = reproduce(Options(out=inside / "o", workers=1), watch, start=inside)
    assert outcome.work.done(1) == 1.0
    assert "100%" in (inside / "said").read_text() or "100%" in console.export_text()
    assert work.count == (0, 0)
