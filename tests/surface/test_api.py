"""The page of public names and the names that can be imported are the same."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "api.md").read_text()


def documented(module: str) -> set[str]:
    section = PAGE.split(f"## `{module}`\n", 1)[1].split("\n## ", 1)[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`([A-Za-z_]\w*)", row)}


def defined(module: str) -> set[str]:
    """Public names that a module defines or, for a package, gathers from its own files."""
    found = importlib.import_module(module)
    names = getattr(found, "__all__", None)
    if names is not None:
        return set(names)
    return {
        name
        for name, value in vars(found).items()
        if not name.startswith("_")
        and (getattr(value, "__module__", "") or "").startswith(module)
        and callable(value)
    } | ({"STREAM_VERSION"} & set(vars(found)))


@pytest.mark.parametrize("module", ["fanin", "fanin.theory.rules", "fanin.draw"])
def test_documented_names_are_the_public_names(module: str) -> None:
    assert documented(module) == defined(module)


def test_documented_initializers_are_those_of_the_module() -> None:
    from fanin.torch import init
    from fanin.torch.filling import Initializer

    drawn = {name for name, value in vars(init).items() if isinstance(value, Initializer)}
    assert documented("fanin.torch.init") == drawn | {"calculate_gain"} - {"Initializer"}


def test_documented_names_of_fanin_torch_exist() -> None:
    import fanin.torch

    assert documented("fanin.torch") == {"Watch"}
    assert fanin.torch.Watch is not None
