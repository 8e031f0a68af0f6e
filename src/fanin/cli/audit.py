"""`fanin audit module:build` or `file.safetensors`: what is in memory, and whose it is."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fanin.cli.model import add_model_arguments, build, finish, inputs_of
from fanin.errors import ArgumentError

FILES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


def add_parser(subparsers: Any) -> None:
    """Add the command `audit`."""
    command: argparse.ArgumentParser = subparsers.add_parser(
        "audit", help="who wrote each tensor, what was asked, and what is there now"
    )
    command.add_argument(
        "model", help="package.module:build, or a checkpoint (.safetensors, .pt with weights only)"
    )
    command.add_argument(
        "--rule",
        action="append",
        default=[],
        metavar="PATTERN=STD",
        help="what was meant, such as '*.c_proj.weight=0.004'; again for each rule",
    )
    add_model_arguments(command)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the report; 1 if it fails."""
    from fanin.report.audit import audit
    from fanin.torch.provenance.recording import recording

    rules = dict(_rule(text) for text in arguments.rule)
    if Path(arguments.model).suffix in FILES:
        return finish(audit(arguments.model, rules=rules, ignore=arguments.ignore), arguments)
    with recording():
        model = build(arguments.model, where="fanin audit")
    inputs = inputs_of(arguments.input, where="fanin audit")
    report = audit(model, inputs=inputs, rules=rules, ignore=arguments.ignore)
    return finish(report, arguments)


def _rule(text: str) -> tuple[str, float]:
    pattern, _, std = text.rpartition("=")
    try:
        return pattern, float(std)
    except ValueError:
        raise ArgumentError(
            "fanin audit --rule", expected="PATTERN=STD, such as '*.weight=0.02'", got=repr(text)
        ) from None
