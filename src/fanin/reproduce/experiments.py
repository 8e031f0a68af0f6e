"""Find the folder `experiments/` of the source checkout and load its claims by path."""

from __future__ import annotations

import hashlib
import importlib.util
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import fanin
from fanin.errors import ArgumentError, DataError
from fanin.reproduce.claim import Claim, Experiment

MODES = ("quick", "full")
_FIRST = Path("01_rule") / "claim.py"
_HERE = Path(__file__).parent


def folder(start: Path) -> Path:
    """The `experiments/` folder: in `start`, in one above it, or beside the installed checkout.

    Args:
        start: where to look first, usually the current directory.

    Raises:
        DataError: there is none, because fanin was installed without its sources.
    """
    beside = Path(fanin.__file__).resolve().parents[2]
    for root in (start, *start.parents, beside):
        if (root / "experiments" / _FIRST).is_file():
            return root / "experiments"
    raise DataError(
        "experiments/",
        expected=f"{_FIRST} in {start}, above it, or in {beside}",
        got="nothing there",
        fix="run `fanin reproduce` inside a source checkout of fanin",
    )


def claims(root: Path, mode: str = "quick", only: Sequence[int] = ()) -> list[Claim]:
    """Load the claims of a folder.

    Args:
        root: the folder `experiments/`.
        mode: the section of each `config.toml`.
        only: numbers of the claims to load; all if empty.

    Raises:
        ArgumentError: `only` names a claim that is not there.
        DataError: a claim lacks its code or its configuration.
    """
    folders = sorted(path for path in root.glob("[0-9][0-9]_*") if path.is_dir())
    numbers = {int(path.name[:2]): path for path in folders}
    for number in only:
        if number not in numbers:
            known = f"{min(numbers)} to {max(numbers)}"
            raise ArgumentError("--only", expected=f"a claim, {known}", got=str(number))
    return [_claim(numbers[n], n, mode) for n in sorted(set(only) or numbers)]


def _claim(path: Path, number: int, mode: str) -> Claim:
    code, config = path / "claim.py", path / "config.toml"
    for file in (code, config):
        if not file.is_file():
            raise DataError(str(file), expected="this file", got="nothing there")
    try:
        sections = tomllib.loads(config.read_text())
    except tomllib.TOMLDecodeError as error:
        raise DataError(str(config), expected="TOML", got=str(error)) from error
    if mode not in sections:
        raise DataError(str(config), expected=f"a section [{mode}]", got=", ".join(sections))
    return Claim(number, path.name, sections[mode], _experiment(code), _digest(code))


def _experiment(code: Path) -> Experiment:
    """The module of a claim; loaded by path, because the package never imports experiments."""
    spec = importlib.util.spec_from_file_location(f"fanin_claim_{code.parent.name}", code)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return cast(Experiment, module)


def _digest(code: Path) -> str:
    """A fingerprint of a claim's code and of the training it uses."""
    total = hashlib.sha256()
    for file in (code, _HERE / "networks.py", _HERE / "training.py"):
        total.update(file.read_bytes())
    return total.hexdigest()[:16]
