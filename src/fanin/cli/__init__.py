"""The command `fanin`: each file here is one command, thin over the public function of its name.

Exit codes: 0 good, 1 findings, 2 bad usage or an error of fanin, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from fanin import __version__
from fanin.errors import FaninError

# One file a command; each has add_parser(subparsers) and run(arguments) -> exit code.
COMMANDS = ("gain", "rules", "plan", "check", "audit", "reproduce")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command."""
    top = argparse.ArgumentParser(
        prog="fanin",
        description="What a network's weights should be before the first training step, and why.",
    )
    top.add_argument("--version", action="version", version=f"fanin {__version__}")
    subparsers = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        importlib.import_module(f"fanin.cli.{name}").add_parser(subparsers)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; an error of fanin is one line on standard error."""
    arguments = parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except FaninError as error:
        command, said = f"fanin {arguments.command}", str(error)
        print(said if said.startswith(command) else f"{command}: {said}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader has gone (`fanin rules | head`); keep the interpreter from saying so at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
