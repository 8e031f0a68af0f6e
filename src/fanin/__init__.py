"""fanin: what a network's weights should be before the first training step, and why."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fanin.planning.store import load_plan as load_plan
    from fanin.report.audit import audit as audit
    from fanin.report.check import check as check
    from fanin.report.explain import explain as explain
    from fanin.signal.spec import spec as spec
    from fanin.theory.gain import gain as gain
    from fanin.torch.apply import apply_ as apply_
    from fanin.torch.apply import init_ as init_
    from fanin.torch.apply import plan as plan
    from fanin.torch.provenance.recording import recording as recording
    from fanin.torch.writing.materialize import materialize_ as materialize_

__version__ = "0.1.0"

# Where each public name lives; it is imported at first use, so `import fanin` costs nothing.
_HOMES = {
    "Activation": "fanin.theory.activation",
    "activation": "fanin.theory.activation",
    "apply_": "fanin.torch.apply",
    "audit": "fanin.report.audit",
    "check": "fanin.report.check",
    "explain": "fanin.report.explain",
    "gain": "fanin.theory.gain",
    "init_": "fanin.torch.apply",
    "load_plan": "fanin.planning.store",
    "materialize_": "fanin.torch.writing.materialize",
    "plan": "fanin.torch.apply",
    "recording": "fanin.torch.provenance.recording",
    "spec": "fanin.signal.spec",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name == "torch":
        return importlib.import_module("fanin.torch")
    raise AttributeError(f"module 'fanin' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
