"""The plan: what each parameter gets and why, as a value. Called, it is the verb `fanin.plan`."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fanin.errors import ArgumentTypeError

if TYPE_CHECKING:
    from fanin.plan.plan import Plan


class _Verb(ModuleType):
    """This package, callable: the room and the verb share the name `fanin.plan`."""

    def __call__(self, model: Any, inputs: Any, rule: object = "auto") -> Plan:
        """What each parameter should be before the first step; see `fanin.torch.apply.plan`."""
        torch = sys.modules.get("torch")
        if torch is None or not isinstance(model, torch.nn.Module):
            raise ArgumentTypeError("plan(model)", expected="a torch.nn.Module", got=repr(model))
        made: Plan = importlib.import_module("fanin.torch.apply").plan(model, inputs, rule)
        return made


sys.modules[__name__].__class__ = _Verb
