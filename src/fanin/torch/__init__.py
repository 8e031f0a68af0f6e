"""fanin for PyTorch: drop-in initializers, fans of layers, and the verbs on models."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fanin.torch.probing.watch import Watch as Watch


def __getattr__(name: str) -> Any:
    if name == "Watch":
        from fanin.torch.probing.watch import Watch

        return Watch
    if name in ("adapters", "fans", "init"):
        return importlib.import_module(f"fanin.torch.{name}")
    raise AttributeError(f"module 'fanin.torch' has no attribute {name!r}")
