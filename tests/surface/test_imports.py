"""Importing fanin is light, and its rooms import one way."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "jax", "keras", "matplotlib", "scipy", "numba", "rich", "pandas", "numpy")


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_fanin_loads_nothing_heavy() -> None:
    assert not loaded_after("import fanin") & set(HEAVY)


@pytest.mark.parametrize(
    "statement",
    [
        "import fanin; fanin.gain('gelu')",
        "import fanin.theory.rules, fanin.draw, fanin.signal, fanin.planning",
        "from fanin.cli import main; main(['gain', 'silu'])",
    ],
)
def test_theory_draw_signal_plan_load_no_framework(statement: str) -> None:
    assert not loaded_after(statement) & {"torch", "jax", "keras", "matplotlib", "pandas"}


def test_every_public_name_can_be_reached() -> None:
    import fanin

    for name in fanin.__all__:
        assert getattr(fanin, name) is not None, name
    assert set(dir(fanin)) == set(fanin.__all__)


def test_the_rooms_of_torch_are_reached_from_the_face() -> None:
    statement = "import fanin; fanin.torch.init.normal_; fanin.torch.adapters; fanin.torch.fans"
    assert "fanin.torch.init" in loaded_after(statement)


def test_unknown_name_is_an_attribute_error() -> None:
    import fanin

    with pytest.raises(AttributeError, match=r"^module 'fanin' has no attribute 'initialise'$"):
        fanin.initialise  # noqa: B018
