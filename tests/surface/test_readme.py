"""The README's examples are executed, its links lead somewhere, its targets are in the Makefile."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

from fanin.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_examples_are_true() -> None:
    failures, tried = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert tried > 5
    assert failures == 0


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!http)([^)#]+)", README))))
def test_links_lead_to_files(link: str) -> None:
    assert (ROOT / link).exists()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"^make (\w+)", README, re.MULTILINE))))
def test_make_targets_exist(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_every_command_is_named() -> None:
    named = set(re.findall(r"`fanin ([\w|]+)", README))
    assert {word for group in named for word in group.split("|")} == set(COMMANDS)
