"""`fanin check module:build --input 8,3,224,224`: what a model does before its first step."""

from __future__ import annotations

import argparse
from typing import Any

from fanin.cli.model import add_model_arguments, build, finish, inputs_of
from fanin.errors import ArgumentError


def add_parser(subparsers: Any) -> None:
    """Add the command `check`."""
    command: argparse.ArgumentParser = subparsers.add_parser(
        "check", help="one forward and backward pass: does signal and gradient reach every layer?"
    )
    command.add_argument("model", help="package.module:build, a function that returns the model")
    command.add_argument("--loss", choices=("ce", "bce", "mse"), help="judge the start loss")
    command.add_argument("--predict", action="store_true", help="show what the theory predicts")
    add_model_arguments(command)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the report; 1 if it fails."""
    from fanin.report.check import check

    inputs = inputs_of(arguments.input, where="fanin check")
    if inputs is None:
        raise ArgumentError("fanin check --input", expected="a shape", got="none")
    model = build(arguments.model, where="fanin check")
    report = check(
        model,
        inputs,
        arguments.loss,
        predicted=arguments.predict,
        ignore=arguments.ignore,
    )
    return finish(report, arguments)
