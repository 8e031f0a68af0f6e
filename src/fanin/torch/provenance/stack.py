"""Where a call comes from: the user's line, the method around it, the initializer that it is in."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch

_INITIALIZERS = ("torch/nn/init.py", "fanin/torch/init.py", "transformers/initialization.py")
_LOADERS = {
    "_load_from_state_dict",
    "load_state_dict",
    "_load_parameter_into_model",
    "set_param_for_module",
    "load_sd_in_params",
}
_OWNERS = {
    "reset_parameters",
    "_reset_parameters",
    "__init__",
    "_init_weights",
    "init_weights",
    "initialize_weights",
    "post_init",
    "setup",
}
_TORCH = Path(torch.__file__).parent.as_posix() + "/"
_FANIN = Path(__file__).parents[2].as_posix() + "/"
_HELPERS = ("transformers/initialization.py", "/contextlib.py", "/copy.py")


@dataclass(frozen=True)
class Site:
    """Where something was called.

    Args:
        place: file and line of the innermost frame that is the user's.
        owner: class and method around the call, such as `Linear.reset_parameters`.
        default: whether that is a constructor or `reset_parameters` of torch itself.
        initializer: the outermost initializer around the call, with its module.
        loading: whether a checkpoint is being loaded.
        arguments: the initializer's variables at the call.
    """

    place: str
    owner: str = ""
    default: bool = False
    initializer: str = ""
    loading: bool = False
    arguments: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)


def site_of(function: Any) -> tuple[Site, FrameType | None]:
    """Where the running call comes from, and the frame of its initializer, if it is in one.

    Args:
        function: what torch was asked to run; an initializer that torch dispatches is its own.
    """
    frame: FrameType | None = sys._getframe(2)
    place, owner, default, loading = "", "", False, False
    initializer, inside = "", None
    if getattr(function, "__module__", "") == "torch.nn.init":
        initializer = f"torch.nn.init.{function.__name__}"
    while frame is not None:
        file, name = frame.f_code.co_filename.replace(os.sep, "/"), frame.f_code.co_name
        kind = next((k for k in _INITIALIZERS if file.endswith(k)), None)
        if kind is not None and name.endswith("_") and not name.startswith("_"):
            module = (
                "transformers" if kind.startswith("transformers") else kind[:-3].replace("/", ".")
            )
            initializer, inside = f"{module}.{name}", frame
        elif name in _LOADERS:
            loading = True
        elif not owner and name in _OWNERS and kind is None:
            owner = _method(frame, name)
            default = file.startswith(_TORCH)
        if (
            not place
            and not file.startswith((_TORCH, _FANIN, "<frozen"))
            and not file.endswith(_HELPERS)
        ):
            place = f"{_short(file)}:{frame.f_lineno}"
        frame = frame.f_back
    arguments = {} if inside is None else _plain(inside)
    return Site(place or "?", owner, default, initializer, loading, arguments), inside


def _method(frame: FrameType, name: str) -> str:
    """Class and method of a frame."""
    owner = frame.f_locals.get("self")
    return f"{type(owner).__name__}.{name}" if owner is not None else name


def _plain(frame: FrameType) -> dict[str, Any]:
    """The variables of a frame that are numbers or words."""
    return {k: v for k, v in frame.f_locals.items() if isinstance(v, int | float | str)}


def _short(file: str) -> str:
    """A path as a reader wants it: relative where it lies below, else its last two parts."""
    path = Path(file)
    here = Path.cwd()
    if path.is_relative_to(here) and "site-packages" not in file:
        return str(path.relative_to(here))
    return "/".join(path.parts[-2:])
