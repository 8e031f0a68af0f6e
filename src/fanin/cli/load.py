"""Find what `package.module:attribute` names: the only place where a command runs a user's code."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from fanin.errors import ArgumentError


def load(reference: str, *, where: str) -> Any:
    """What `package.module:attribute` names; the current directory is searched first.

    Raises:
        ArgumentError: the reference has no colon, the module cannot be imported, or lacks the name.
    """
    module_name, colon, attribute = reference.partition(":")
    if not (module_name and colon and attribute):
        raise ArgumentError(where, expected="package.module:attribute", got=repr(reference))
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # a user's module may fail in any way; the line below names it
        raise ArgumentError(
            where,
            expected=f"a module {module_name!r} that can be imported",
            got=f"{type(error).__name__}: {error}",
            fix=f"try python -c 'import {module_name}'",
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ArgumentError(
                where,
                expected=f"a name in {module_name!r}",
                got=f"{attribute!r}, which it does not have",
            )
        found = getattr(found, part)
    return found
