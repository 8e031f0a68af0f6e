"""`fanin gain NAME|module:function`: the gain of an activation, and what it means."""

from __future__ import annotations

import argparse
import json
from typing import Any

from fanin.cli.load import load


def add_parser(subparsers: Any) -> None:
    """Add the command `gain`."""
    command: argparse.ArgumentParser = subparsers.add_parser(
        "gain", help="the gain of an activation, and what it means"
    )
    command.add_argument(
        "activation", help="a name such as gelu or leaky_relu(0.2), or package.module:function"
    )
    command.add_argument("--rule", default="second_moment", help="see `fanin rules`")
    command.add_argument("--depth", type=int, help="number of nonlinear layers, for rule shaped")
    command.add_argument("--zeta", type=float, help="nonlinearity budget, for rule shaped")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the gain."""
    from fanin.theory.gain import gain

    named = ":" not in arguments.activation
    f = arguments.activation if named else load(arguments.activation, where="fanin gain")
    given = {"depth": arguments.depth, "zeta": arguments.zeta}
    result = gain(f, arguments.rule, **{k: v for k, v in given.items() if v is not None})
    print(json.dumps(result.to_dict(), indent=2) if arguments.json else result.explain())
    return 0
