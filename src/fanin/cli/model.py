"""What the commands on models share: building the model, reading `--input`, writing the report."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Any

from fanin.cli.load import load
from fanin.errors import ArgumentError
from fanin.signal.spec import Spec, spec

if TYPE_CHECKING:
    from fanin.report.report import Report

_INPUT = re.compile(r"^(?P<shape>\d+(?:,\d+)*)(?::(?P<dtype>[a-z]+\d*)(?:<(?P<high>\d+))?)?$")


def add_input_argument(command: argparse.ArgumentParser) -> None:
    """`--input`, of every command that runs a model."""
    command.add_argument(
        "--input",
        action="append",
        metavar="SHAPE",
        help="shape of an input, such as 8,3,224,224, 8,128:int64<50257 for token ids, or "
        "mask=8,128:int64<2 for a keyword; again for each input",
    )


def add_model_arguments(command: argparse.ArgumentParser) -> None:
    """Arguments of a command that judges a model."""
    add_input_argument(command)
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument("--html", metavar="FILE", help="also write a page")
    command.add_argument(
        "--ignore", action="append", default=[], metavar="RULE", help="such as CHK110 or AUD204:h.*"
    )
    command.add_argument("--strict", action="store_true", help="exit with 1 on warnings as well")


def build(reference: str, *, where: str) -> Any:
    """The module that `package.module:build` names; what is no module is called to make one."""
    from torch import nn

    found = load(reference, where=where)
    model = found if isinstance(found, nn.Module) else found() if callable(found) else found
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            where,
            expected="a torch.nn.Module or a function that returns one",
            got=f"{type(model).__name__} from {reference}",
        )
    return model


def inputs_of(texts: list[str] | None, *, where: str) -> Any:
    """Specs from `--input`: one, a tuple of several, or a mapping where they are named."""
    positional, named = [], {}
    for text in texts or []:
        name, equals, shape = text.rpartition("=")
        one = parse_input(shape, where=where)
        if equals:
            named[name] = one
        else:
            positional.append(one)
    if named and positional:
        raise ArgumentError(
            f"{where} --input", expected="all named or none", got=" ".join(texts or [])
        )
    if named:
        return named
    if not positional:
        return None
    return positional[0] if len(positional) == 1 else tuple(positional)


def parse_input(text: str, *, where: str) -> Spec:
    """A spec from `8,3,224,224`, `8,128:int64<50257` or `8,16:bfloat16`.

    Example:
        >>> print(parse_input("2,128:int64<50257", where="fanin check"))
        int64[2, 128] of uniform on 0..50256
    """
    match = _INPUT.match(text)
    if match is None:
        raise ArgumentError(
            f"{where} --input",
            expected="a shape such as 8,3,224,224 or 8,128:int64<50257",
            got=repr(text),
        )
    shape = [int(size) for size in match["shape"].split(",")]
    return spec(shape, match["dtype"] or "float32", high=int(match["high"] or 2))


def finish(report: Report, arguments: argparse.Namespace) -> int:
    """Print, write the page, and turn the verdict into an exit code."""
    from fanin.report.console import show

    if arguments.html:
        report.to_html(arguments.html)
    if arguments.json:
        print(report.to_json())
    else:
        show(report)
    bad = ("FAIL", "WARN") if arguments.strict else ("FAIL",)
    return int(report.verdict in bad)
