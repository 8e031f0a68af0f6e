"""`fanin reproduce`: the paper's claims, one by one, on real networks and real images."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

from fanin.errors import ArgumentError, MissingDependencyError

_NEEDED = ("torch", "rich", "matplotlib")


def add_parser(subparsers: Any) -> None:
    """Add the command `reproduce`."""
    command: argparse.ArgumentParser = subparsers.add_parser(
        "reproduce", help="test the paper's claims on real networks and images"
    )
    mode = command.add_mutually_exclusive_group()
    mode.add_argument("--quick", action="store_true", help="minutes on two cores (the default)")
    mode.add_argument("--full", action="store_true", help="the real protocol: hours")
    command.add_argument("--only", action="append", metavar="N", help="one claim; may be repeated")
    command.add_argument("--out", default="reproduce", metavar="DIR", help="where the report goes")
    command.add_argument("--seed", default="0", metavar="N", help="of everything that is drawn")
    command.add_argument(
        "--data", default="mnist", metavar="NAME", help="mnist (bundled), fashion-mnist or cifar10"
    )
    command.add_argument("--root", metavar="DIR", help="folder with the files of --data")
    command.add_argument("--download", action="store_true", help="fetch them there, with checksums")
    command.add_argument("--fresh", action="store_true", help="measure again what is on disk")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the claims and print the verdicts; 0 if none failed, 1 if one did, 130 after Ctrl-C."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            "fanin reproduce",
            expected=f"the package {missing[0]}",
            got="none",
            fix="pip install 'fanin[experiments]'",
        )
    from rich.console import Console

    from fanin.reproduce import experiments
    from fanin.reproduce.run import Options, reproduce
    from fanin.reproduce.terminal import table, watching

    options = Options(
        mode="full" if arguments.full else "quick",
        only=tuple(_whole("--only", each) for each in arguments.only or ()),
        out=Path(arguments.out),
        seed=_whole("--seed", arguments.seed),
        data=arguments.data,
        root=Path(arguments.root) if arguments.root else None,
        download=arguments.download,
        fresh=arguments.fresh,
    )
    console = Console()
    found = experiments.claims(experiments.folder(Path.cwd()), options.mode, options.only)
    titles = {claim.number: claim.experiment.TITLE for claim in found}
    with watching(console, titles) as watch:
        outcome = reproduce(options, watch)
    if outcome.conclusions:
        console.print(table(outcome))
    facts = outcome.facts
    seconds = f"{facts['wall_seconds']:.0f} s, {facts['cpu_seconds']:.0f} s of processor time"
    console.print(f"arms: {facts['arms']}; {seconds}", highlight=False)
    console.print(f"images: {facts['images']}", highlight=False)
    console.print(f"report: {outcome.report}", highlight=False, soft_wrap=True)
    if outcome.interrupted:
        print(
            f"interrupted; finished arms are kept in {options.out / 'arms'}, "
            "the same command goes on from there",
            file=sys.stderr,
        )
        return 130
    return 1 if outcome.failed else 0


def _whole(option: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ArgumentError(option, expected="a whole number", got=repr(text)) from None
