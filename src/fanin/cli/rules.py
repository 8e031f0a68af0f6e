"""`fanin rules`: the rules there are, what each keeps, and where it comes from."""

from __future__ import annotations

import argparse
import json
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add the command `rules`."""
    command: argparse.ArgumentParser = subparsers.add_parser(
        "rules", help="the rules there are, and what each keeps"
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print a line a rule: its name and the first sentence of its docstring."""
    from fanin.theory import rules

    said = {name: _first_sentence(rules.get(name).__doc__ or "") for name in rules.names()}
    if arguments.json:
        print(json.dumps(said, indent=2))
        return 0
    width = max(map(len, said))
    for name, sentence in said.items():
        print(f"{name:<{width}}  {sentence}")
    return 0


def _first_sentence(docstring: str) -> str:
    return " ".join(docstring.strip().split("\n\n", 1)[0].split())
