"""The command line: what it prints, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fanin import gain
from fanin.cli import main


def test_gain_prints_the_explanation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gain", "leaky_relu(0.2)"]) == 0
    assert capsys.readouterr().out == gain("leaky_relu(0.2)").explain() + "\n"


def test_gain_as_json_takes_a_rule_and_its_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gain", "relu", "--rule", "shaped", "--depth", "50", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == json.loads(json.dumps(gain("relu", "shaped", depth=50).to_dict()))


def test_gain_of_a_users_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "users_own.py").write_text("def cube(x):\n    return x * x * x\n")
    monkeypatch.chdir(tmp_path)
    assert main(["gain", "users_own:cube", "--json"]) == 0
    # E[z^6] = 15
    assert json.loads(capsys.readouterr().out)["gain"] == pytest.approx(15**-0.5, rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["gain", "gelo"],
            "fanin gain: activation: expected a known name, got 'gelo'; try 'gelu'",
        ),
        (
            ["gain", "no_such_module:f"],
            "fanin gain: expected a module 'no_such_module' that can be imported, got "
            "ModuleNotFoundError: No module named 'no_such_module'; "
            "try python -c 'import no_such_module'",
        ),
        (
            ["gain", "math:"],
            "fanin gain: expected package.module:attribute, got 'math:'",
        ),
        (
            ["plan", "math:pi", "--input", "8,x"],
            "fanin plan --input: expected a shape such as 8,3,224,224 or 8,128:int64<50257, "
            "got '8,x'",
        ),
        (
            ["check", "math:pi", "--input", "8"],
            "fanin check: expected a torch.nn.Module or a function that returns one, "
            "got float from math:pi",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(line.split("; try 'gelu'")[0])
    assert printed.err.count("\n") == 1


def test_an_unknown_command_is_a_usage_error() -> None:
    with pytest.raises(SystemExit) as stop:
        main(["initialise"])
    assert stop.value.code == 2


def test_rules_lists_every_rule(capsys: pytest.CaptureFixture[str]) -> None:
    from fanin.theory import rules

    assert main(["rules"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(rules.names())


def test_python_m_fanin_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fanin", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("fanin ")


def test_plan_prints_a_row_for_every_parameter_of_an_unprepared_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "users_model.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Linear(8, 9), nn.LayerNorm(9), nn.SiLU(), nn.Linear(9, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "users_model:build", "--input", "4,8", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["path"] for row in rows] == [
        f"{layer}.{kind}" for layer in (0, 1, 3) for kind in ("weight", "bias")
    ]


def test_plan_builds_in_memory_where_content_decides_what_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "users_choice.py").write_text(
        "from torch import nn\n"
        "class Choice(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)\n"
        "    def forward(self, x):\n"
        "        h = self.a(x)\n"
        "        return self.b(h) if h.mean() > 9 else self.b(h.relu())\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "users_choice:Choice", "--input", "4,8", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [row["path"] for row in plan["rows"]] == ["a.weight", "a.bias", "b.weight", "b.bias"]
    assert plan["notes"][0].startswith("traced on real tensors; else the model itself ends in ")


def test_plan_of_a_small_model_sees_what_it_sets_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A prior in the head stays; on meta there is no telling, which is said."""
    (tmp_path / "prior.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    head = nn.Linear(4, 2)\n"
        "    nn.init.constant_(head.bias, -4.6)\n"
        "    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), head)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "prior:build", "--input", "8,4"]) == 0
    seen = capsys.readouterr().out
    assert "the model set it to -4.6" in seen
    assert "on meta" not in seen
    monkeypatch.setattr("fanin.cli.plan._SMALL", 0)
    assert main(["plan", "prior:build", "--input", "8,4"]) == 0
    assert "note: on meta: what the model sets itself" in capsys.readouterr().out
