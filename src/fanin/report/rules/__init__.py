"""The rules of `check` and `audit`; importing this registers them."""

from __future__ import annotations

from fanin.report.rules import (
    depth,
    gradient,
    inputs,
    loss,
    residual,
    signal,
    stability,
    structure,
    units,
    values,
    written,
)

__all__ = [
    "depth",
    "gradient",
    "inputs",
    "loss",
    "residual",
    "signal",
    "stability",
    "structure",
    "units",
    "values",
    "written",
]
