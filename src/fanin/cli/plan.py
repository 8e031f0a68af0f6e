"""`fanin plan module:build --input 8,3,224,224`: what each weight should be, and why."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from fanin.cli.model import add_input_argument, build, inputs_of
from fanin.errors import ArgumentError, TraceError

_SMALL = 1 << 26  # parameters of a model that is built in memory, to see what it sets itself
_BUILT = 1 << 30  # the same where meta does not do


def add_parser(subparsers: Any) -> None:
    """Add the command `plan`."""
    command: argparse.ArgumentParser = subparsers.add_parser(
        "plan", help="what each weight of a model should be, and why; nothing is written"
    )
    command.add_argument("model", help="package.module:build, a function that returns the model")
    add_input_argument(command)
    command.add_argument("--rule", default="auto", help="auto, a rule, or a recipe")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument("--save", metavar="FILE", help="also write FILE.json or FILE.yaml")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the plan; a large model is built on meta, so its size does not matter.

    A small one is built in memory, as one is where content decides what runs.
    """
    import torch

    from fanin.planning.store import to_dict
    from fanin.torch.apply import plan
    from fanin.torch.tracing.modules import is_lazy

    inputs = inputs_of(arguments.input, where="fanin plan")
    if inputs is None:
        raise ArgumentError("fanin plan --input", expected="a shape", got="none")
    with torch.device("meta"):
        model = build(arguments.model, where="fanin plan")
    size = sum(p.numel() for p in model.parameters() if not is_lazy(p))
    if size <= _SMALL:
        model = build(arguments.model, where="fanin plan")
    try:
        made = plan(model, inputs, arguments.rule)
    except TraceError:
        if not _SMALL < size <= _BUILT:
            raise
        made = plan(build(arguments.model, where="fanin plan"), inputs, arguments.rule)
    if arguments.save:
        made.save(Path(arguments.save))
    print(json.dumps(to_dict(made), indent=2) if arguments.json else made)
    return 0
