"""The two paths of the draws, to be forced one after the other."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable

import pytest

Force = Callable[[str], None]


@pytest.fixture
def force(monkeypatch: pytest.MonkeyPatch) -> Force:
    """A function that sends every draw through one path, "plain" or "compiled"."""

    def forced(path: str) -> None:
        kernels = None
        if path == "compiled":
            pytest.importorskip("numba")
            kernels = importlib.import_module("fanin.draw.kernels")
        for name in ("fanin.draw.fill", "fanin.draw.orthogonal"):
            importlib.import_module(name)
            monkeypatch.setattr(sys.modules[name], "kernels_for", lambda size=0: kernels)

    return forced


@pytest.fixture(params=["plain", "compiled"])
def path(request: pytest.FixtureRequest, force: Force) -> str:
    """All draws of the test go through this path."""
    force(request.param)
    return str(request.param)
