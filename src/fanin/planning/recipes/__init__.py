"""Published initialization schemes, each a frozen value with its citation and its parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from fanin.errors import PlanError, UnknownNameError
from fanin.planning.recipes.base import Recipe
from fanin.planning.recipes.residual import DeepNorm, Fixup, ResNet, ReZero, TFixup
from fanin.planning.recipes.special import LSTM, PPO, LoRA, MuP, Siren
from fanin.planning.recipes.transformers import GPT2, T5, Llama, ViT

__all__ = [
    "GPT2",
    "LSTM",
    "PPO",
    "T5",
    "DeepNorm",
    "Fixup",
    "Llama",
    "LoRA",
    "MuP",
    "ReZero",
    "Recipe",
    "ResNet",
    "Siren",
    "TFixup",
    "ViT",
    "get",
    "names",
]

_RECIPES: dict[str, type[Recipe]] = {
    recipe.label: recipe
    for recipe in (
        *(GPT2, Llama, T5, ViT, ResNet, DeepNorm, Fixup, TFixup, ReZero),
        *(Siren, MuP, LoRA, PPO, LSTM),
    )
}


def names() -> tuple[str, ...]:
    """The names of all recipes.

    Example:
        >>> "t_fixup" in names()
        True
    """
    return tuple(_RECIPES)


def get(name: str, parameters: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe with a name, with its parameters.

    Args:
        name: one of `names()`.
        parameters: by their names; what is left out has its published value.

    Raises:
        UnknownNameError: there is no such recipe.
        PlanError: it has no such parameter, or one without a default is missing.

    Example:
        >>> get("gpt2", {"std": 0.01})
        GPT2(std=0.01)
    """
    if name not in _RECIPES:
        raise UnknownNameError("recipe", expected=f"one of {', '.join(names())}", got=repr(name))
    kind, given = _RECIPES[name], dict(parameters or {})
    fields = [f for f in dataclasses.fields(kind) if f.init]
    known = [f.name for f in fields]
    unknown = [key for key in given if key not in known]
    if unknown:
        raise PlanError(
            f"recipe {name!r}",
            expected=f"parameters {', '.join(known)}" if known else "no parameters",
            got=repr(unknown[0]),
        )
    missing = [f.name for f in fields if f.default is dataclasses.MISSING and f.name not in given]
    if missing:
        raise PlanError(f"recipe {name!r}", expected=f"the parameter {missing[0]!r}", got="none")
    return kind(**given)
