"""fanin: what a network's weights should be before the first training step, and why."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fanin.signal.spec import spec as spec
    from fanin.theory.gain import gain as gain

__version__ = "0.1.0"

# Where each public name lives; it is imported at first use, so `import fanin` costs nothing.
_HOMES = {
    "Activation": "fanin.theory.activation",
    "activation": "fanin.theory.activation",
    "gain": "fanin.theory.gain",
    "spec": "fanin.signal.spec",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'fanin' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
