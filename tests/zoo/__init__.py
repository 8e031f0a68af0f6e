"""The models that whole-model features are tested on: built from configurations, never downloaded.

Each entry builds a model of its usual size and a small one of the same kind; both come with inputs.
Build under `torch.device("meta")` for a model without memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Entry:
    """A kind of model.

    Args:
        name: as the coverage table shows it.
        build: from `small` to the model.
        inputs: from `small` to what `fanin.torch.tracing.trace.trace` takes.
    """

    name: str
    build: Callable[[bool], nn.Module]
    inputs: Callable[[bool], Any]


def entries() -> tuple[Entry, ...]:
    """All of them, in the order of the coverage table."""
    from tests.zoo import language, plain, sequence, vision

    return (*plain.ENTRIES, *vision.ENTRIES, *sequence.ENTRIES, *language.ENTRIES)


def entry(name: str) -> Entry:
    """The one of this name."""
    return next(e for e in entries() if e.name == name)
