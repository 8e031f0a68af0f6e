"""Every example in a docstring is executed, and every public function has a docstring."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest

import fanin

# `__main__` runs the command line when it is imported.
MODULES = sorted(
    name
    for _, name, _ in pkgutil.walk_packages(fanin.__path__, "fanin.")
    if not name.endswith("__main__")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_are_true(name: str) -> None:
    module = importlib.import_module(name)
    failures, _ = doctest.testmod(
        module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    )
    assert failures == 0


@pytest.mark.parametrize(
    "name", [name for name in MODULES if not name.rsplit(".", 1)[-1].startswith("_")]
)
def test_public_functions_and_classes_are_documented(name: str) -> None:
    module = importlib.import_module(name)
    bare = [
        attribute
        for attribute, value in vars(module).items()
        if not attribute.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == name
        and not value.__doc__
    ]
    assert not bare
