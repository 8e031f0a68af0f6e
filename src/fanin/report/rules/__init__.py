"""The rules of `check` and `audit`; importing this registers them."""

from __future__ import annotations

from fanin.report.rules import (
    gradient,
    inputs,
    loss,
    residual,
    signal,
    stability,
    structure,
    units,
)

__all__ = ["gradient", "inputs", "loss", "residual", "signal", "stability", "structure", "units"]
