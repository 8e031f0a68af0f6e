"""The fixture `assert_healthy` in a real pytest run."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]

TESTS = """
import torch
from torch import nn

def deep():
    return nn.Sequential(*[p for _ in range(20) for p in (nn.Linear(16, 16), nn.Sigmoid())])

def test_healthy(assert_healthy):
    report = assert_healthy(nn.Sequential(nn.Linear(16, 4)), torch.randn(16, 16), "ce")
    assert report.verdict == "PASS"

def test_broken(assert_healthy):
    assert_healthy(deep(), torch.randn(16, 16))

def test_silenced(assert_healthy):
    assert_healthy(deep(), torch.randn(16, 16), ignore=["CHK101", "CHK104"])
"""


def test_the_fixture_fails_with_the_report_and_passes_healthy_models(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_inprocess("-q", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*FAIL CHK101 vanishing-signal at *"])
