"""The argument `--input` of the commands that run a model: a shape, its dtype, its name."""

from __future__ import annotations

import argparse
import re
from typing import Any

from fanin.errors import ArgumentError
from fanin.signal.spec import Spec, spec

_FORM = re.compile(
    r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>\d+(?:,\d+)*)(?::(?P<dtype>[a-z]+\d*)(?:<(?P<high>\d+))?)?"
)


def add_model_arguments(command: argparse.ArgumentParser) -> None:
    """Add `module:build` and `--input`, which every command that runs a model has."""
    command.add_argument(
        "model", help="package.module:name of a model, or of a function that builds one"
    )
    command.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="SHAPE",
        help="8,3,224,224 or 2,128:int64<50257 (below 50257) or name=SHAPE; repeat for more inputs",
    )


def parse_inputs(texts: list[str]) -> Any:
    """The inputs that `--input` describes: one spec, a tuple of them, or a dict where they are named.

    Raises:
        ArgumentError: a text has another form, or only some inputs are named.

    Example:
        >>> print(parse_inputs(["2,128:int64<50257"]))
        int64[2, 128] of uniform on 0..50256
    """
    named: list[tuple[str | None, Spec]] = []
    for text in texts:
        found = _FORM.fullmatch(text.replace(" ", ""))
        if found is None:
            raise ArgumentError(
                "--input",
                expected="sizes such as 8,3,224,224 or 2,128:int64<50257",
                got=repr(text),
            )
        sizes = [int(n) for n in found["shape"].split(",")]
        high = int(found["high"] or 2)
        named.append((found["name"], spec(sizes, found["dtype"] or "float32", high=high)))
    names = [name for name, _ in named]
    if not named:
        raise ArgumentError("--input", expected="at least one", got="none")
    if all(names):
        return {str(name): value for name, value in named}
    if any(names):
        raise ArgumentError("--input", expected="a name for all inputs or for none", got=str(texts))
    values = tuple(value for _, value in named)
    return values[0] if len(values) == 1 else values
