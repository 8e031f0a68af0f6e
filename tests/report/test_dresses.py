"""One report in its dresses: text, JSON, page source, figure; and the commands that print them."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fanin
from fanin.cli import main
from fanin.report.document import SCHEMA
from fanin.report.report import Report
from fanin.report.text import text as as_text

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def report() -> Report:
    torch.manual_seed(0)
    deep = [part for _ in range(30) for part in (nn.Linear(32, 32), nn.Sigmoid())]
    return fanin.check(nn.Sequential(*deep, nn.Linear(32, 4)), torch.randn(64, 32), "ce")


def test_text_fits_a_terminal_and_names_what_matters(report: Report) -> None:
    text = str(report)
    lines = text.splitlines()
    assert lines[0] == "fanin check: Sequential on 64 samples: FAIL"
    assert lines[1].startswith("loss at start ")
    assert "expected 1.386 (ln 4)" in lines[1]
    assert re.search(r"^FAIL CHK101 vanishing-signal at \d+$", text, re.M)
    assert "     fix: fanin.init_(model, inputs)" in text
    assert max(map(len, lines)) <= 100
    assert len(lines) < 80
    assert "more rows in the JSON and the page" in text
    first = report.findings[0].where
    assert re.search(rf"^{first} +linear ", text, re.M)  # the row that a finding names is kept


def test_text_fits_a_narrow_terminal(report: Report) -> None:
    lines = as_text(report, 80).splitlines()
    assert max(map(len, lines)) <= 80
    assert "     fix: fanin.init_(model, inputs)" in lines
    assert '          # or by hand: gain fanin.gain("sigmoid", "centred") = 4.801' in lines


def test_a_finding_prints_alone(report: Report) -> None:
    printed = str(report.findings[0])
    assert printed.startswith("FAIL CHK101 vanishing-signal at ")
    assert printed in str(report)


def test_control_characters_in_names_do_not_reach_the_terminal() -> None:
    model = nn.Sequential()
    model.add_module("evil\x1b[2J\u202e", nn.Linear(4, 2))
    text = str(fanin.check(model, torch.randn(8, 4)))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert r"evil\x1b[2J" in text


def test_json_is_valid_versioned_and_complete(report: Report, tmp_path: Path) -> None:
    text = report.to_json(tmp_path / "report.json")
    assert (tmp_path / "report.json").read_text(encoding="utf-8") == text
    document = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert document["schema"] == SCHEMA
    assert document["verdict"] == report.verdict
    assert len(document["layers"]) == 61
    schema = (ROOT / "docs" / "report-schema.md").read_text(encoding="utf-8")
    parts = [
        document,
        *document["findings"],
        *document["layers"],
        *document["weights"],
        *document["inputs"],
        document["loss"],
    ]
    for part in parts:
        for key in part:
            assert f"`{key}`" in schema, key


def test_json_of_infinities_is_still_json() -> None:
    net = nn.Linear(4, 2)
    nn.init.constant_(net.weight, float("inf"))
    document = json.loads(fanin.check(net, torch.randn(8, 4)).to_json())
    assert document["layers"][0]["second_moment"] is None


def test_audit_json_has_every_field_in_the_schema() -> None:
    document = json.loads(fanin.audit(nn.Linear(4, 2)).to_json())
    schema = (ROOT / "docs" / "report-schema.md").read_text(encoding="utf-8")
    for key in (*document, *document["tensors"][0]):
        assert f"`{key}`" in schema, key


def test_the_page_holds_everything_and_no_markup_of_the_model() -> None:
    model = nn.Sequential()
    model.add_module("</script><b>&amp;", nn.Linear(4, 2))
    page = fanin.check(model, torch.randn(8, 4)).to_html()
    assert "<b>" not in page
    data = page.split('id="data">')[1].split("</script>")[0]
    assert json.loads(data)["layers"][0]["name"] == "</script><b>&amp;"
    assert not re.search(r"(src|href)=", page)
    assert "{{" not in page
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'")
    assert "unsafe" not in policy[1]


def test_figures_of_both_kinds(report: Report) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    _, ax = pyplot.subplots()
    assert report.plot(ax) is ax
    labels = {line.get_label() for line in ax.get_lines()}
    assert {"second moment", "gradient", "distance of inputs"} <= labels
    drawn = next(line for line in ax.get_lines() if line.get_label() == "gradient")
    assert report.measured is not None
    assert list(drawn.get_ydata()) == [row.gradient for row in report.measured.layers]
    assert ax.get_yscale() == "log"
    audited = fanin.audit(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))).plot()
    assert audited.get_ylabel() == "standard deviation"
    pyplot.close("all")


def test_rich_shows_the_same_text(report: Report) -> None:
    pytest.importorskip("rich")
    assert report.__rich__().plain == str(report)


MODULE = """
from torch import nn

def deep():
    return nn.Sequential(*[p for _ in range(20) for p in (nn.Linear(16, 16), nn.Sigmoid())],
                         nn.Linear(16, 4))

def small():
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.fc = nn.Embedding(50, 16), nn.Linear(16, 4)

    def forward(self, tokens, shift):
        return self.fc(self.embed(tokens).mean(1) + shift)

two = Two()
number = 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "their_models.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "their_models", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("check their_models:deep --input 32,16 --loss ce", 1, "FAIL CHK101 vanishing-signal"),
        ("check their_models:deep --input 32,16 --ignore CHK101 --ignore CHK104", 0, "PASS"),
        (
            "check their_models:small --input 32,16 --loss ce",
            0,
            "fanin check: Sequential on 32 samples: PASS",
        ),
        (
            "check their_models:two --input tokens=8,6:int64<50 --input shift=8,16",
            0,
            "on 8 samples: PASS",
        ),
        ("check their_models:small --input 4,16 --strict", 0, "NOTE CHK116 batch-too-small"),
        (
            "audit their_models:small",
            0,
            "(their_models.py:9)",
        ),
        ("audit their_models:small --rule 0.weigth=0.1", 1, "FAIL AUD201 rule-never-matched"),
    ],
)
def test_commands(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: str, code: int, said: str
) -> None:
    assert main(arguments.split()) == code
    assert said in capsys.readouterr().out


def test_commands_write_json_and_pages(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["check", "their_models:small", "--input", "32,16", "--json", "--html", "out.html"])
        == 0
    )
    assert json.loads(capsys.readouterr().out)["verdict"] == "PASS"
    assert (here / "out.html").read_text().startswith("<!doctype html>")
    torch.save(nn.Linear(4, 4).state_dict(), here / "model.pt")
    assert main(["audit", "model.pt"]) == 0
    assert "fanin audit: model.pt: PASS" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            "check their_models:small",
            "fanin check --input: expected a shape, got none",
        ),
        (
            "check their_models:small --input 8x16",
            "fanin check --input: expected a shape such as 8,3,224,224 or "
            "8,128:int64<50257, got '8x16'",
        ),
        (
            "check their_models:number --input 8,16",
            "fanin check: expected a torch.nn.Module or a function that returns one, got "
            "int from their_models:number",
        ),
        (
            "audit none.safetensors",
            "fanin audit: audit(none.safetensors): expected a file, got nothing at this path",
        ),
        (
            "audit their_models:small --rule weight",
            "fanin audit --rule: expected PATTERN=STD, such as '*.weight=0.02', got 'weight'",
        ),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: str, line: str
) -> None:
    assert main(arguments.split()) == 2
    assert capsys.readouterr().err.strip() == line


def test_inputs_that_the_model_cannot_take(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "their_models:small", "--input", "8,9"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "fanin check: check(model): 0: expected a forward pass that runs, got RuntimeError: "
    )
    assert len(error.strip().splitlines()) == 1
