"""Tensors from a file, without running anything that the file says."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch

from fanin.errors import DataError, MissingDependencyError
from fanin.torch.calling import named_tensors

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


def read(path: Path) -> Mapping[str, torch.Tensor]:
    """Every tensor of a checkpoint by its name.

    Args:
        path: a `.safetensors` file, or a `.pt`, `.pth`, `.bin` or `.ckpt` file of tensors in
            mappings and lists, which is read with `weights_only`.

    Raises:
        DataError: no such file, a damaged one, or one that holds more than tensors.
        MissingDependencyError: `safetensors` is not installed.
    """
    where = f"audit({path.name})"
    if not path.is_file():
        raise DataError(where, expected="a file", got="nothing at this path")
    if path.suffix not in SUFFIXES:
        raise DataError(
            where, expected=f"one of {', '.join(SUFFIXES)}", got=path.suffix or "no suffix"
        )
    try:
        found = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
    except pickle.UnpicklingError as error:
        raise DataError(
            where,
            expected="a file of tensors",
            got="one that would run code when it is read",
            fix="save model.state_dict(), or a .safetensors file",
        ) from error
    except (RuntimeError, ValueError, OSError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(where, expected="a readable checkpoint", got=reason) from error
    if not found:
        raise DataError(where, expected="a file of tensors", got="one without any")
    return found


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise MissingDependencyError(
            "audit(.safetensors)",
            expected="safetensors",
            got="no such package",
            fix="pip install safetensors",
        ) from error
    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _torch(path: Path) -> dict[str, torch.Tensor]:
    content = torch.load(path, map_location="cpu", weights_only=True)
    return {name.removeprefix("state_dict."): t for name, t in named_tensors(content)}
