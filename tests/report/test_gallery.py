"""The gallery: in every broken model the first finding names the cause; no healthy one fails."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import fanin

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "gallery"


def gallery(name: str) -> Any:
    """A module of the gallery, which is a folder of scripts."""
    if str(FOLDER) not in sys.path:
        sys.path.insert(0, str(FOLDER))
    return importlib.import_module(name)


gallery("broken")
gallery("broken_tensors")
BROKEN, HEALTHY = gallery("entries").BROKEN, gallery("healthy").HEALTHY


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.name)
def test_the_first_finding_names_the_true_cause(case: Any) -> None:
    torch.manual_seed(0)
    report = case.run()
    first = report.findings[0]
    assert first.name == case.rule, str(report)
    assert first.where.startswith(case.where), str(report)
    assert report.verdict in ("FAIL", "WARN")
    assert first.cause
    assert first.number
    assert first.fix


@pytest.mark.parametrize("case", HEALTHY, ids=lambda case: case.name)
def test_accepted_architectures_do_not_fail(case: Any) -> None:
    torch.manual_seed(1)
    model, inputs, loss = case.build()
    report = fanin.check(model, inputs, loss)
    assert report.verdict != "FAIL", str(report)
    assert sum(f.severity == "WARN" for f in report.findings) <= 2, str(report)


def test_the_gallery_is_as_large_as_promised() -> None:
    assert sum(bool(case.thread) for case in BROKEN) >= 25
    assert len(HEALTHY) >= 25


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("case", HEALTHY, ids=lambda case: case.name)
def test_no_seed_makes_a_healthy_model_fail(case: Any, seed: int) -> None:
    torch.manual_seed(100 + seed)
    model, inputs, loss = case.build()
    assert fanin.check(model, inputs, loss).ok


def test_the_page_of_the_gallery_is_the_one_that_the_command_writes() -> None:
    """Names and causes are those of the code; numbers of a run may differ in the last digit."""
    page = (FOLDER.parents[1] / "docs" / "gallery" / "README.md").read_text(encoding="utf-8")
    for case in BROKEN:
        assert f"### {case.name}" in page
        assert case.story in page
    for case in HEALTHY:
        assert f"| {case.name} |" in page
