"""What a module's constructor puts into its tensors, found by constructing it again.

A tensor that was lost on the meta device can be had back where its value is a function of what the
module still remembers: a frequency table of its config, the ones of a norm. It counts as had
back only if it does not change with the random state, nor with any argument that is not
remembered.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

_INERT = ("device", "dtype")
_PLAIN = (bool, int, float, str, tuple, list, type(None), torch.dtype)
Arguments = dict[str, Any]


def rebuilt(module: nn.Module) -> dict[str, torch.Tensor]:
    """The module's own parameters and buffers that its constructor determines, on the CPU.

    Args:
        module: a module without children; its arguments are taken from attributes of their names,
            one that is missing from the length of a vector.

    Returns:
        Values by name; empty where the constructor cannot be called again.

    Example:
        >>> sorted(rebuilt(nn.LayerNorm(3)))
        ['bias', 'weight']
        >>> rebuilt(nn.Linear(3, 2))
        {}
    """
    if next(module.children(), None) is not None:
        return {}
    for arguments, open_ in _candidates(module):
        first = _construct(module, arguments, seed=1)
        if first is None:
            continue
        others = [_construct(module, arguments, seed=2)]
        others += [_construct(module, arguments | {k: _other(v)}, seed=1) for k, v in open_.items()]
        return {
            name: value
            for name, value in first.items()
            if all(other is not None and _same(other.get(name), value) for other in others)
        }
    return {}


def _candidates(module: nn.Module) -> Iterator[tuple[Arguments, Arguments]]:
    """Arguments for the constructor, and those of them that are a default and not remembered."""
    try:
        signature = inspect.signature(type(module).__init__)
    except (TypeError, ValueError):
        return
    known: Arguments = {}
    open_: Arguments = {}
    unknown: list[str] = []
    for name, parameter in list(signature.parameters.items())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or name in _INERT:
            continue
        if name in vars(module):
            known[name] = vars(module)[name]
        elif name in module._parameters:  # bias=True and the like
            known[name] = module._parameters[name] is not None
        elif parameter.default is not parameter.empty:
            open_[name] = parameter.default
        else:
            unknown.append(name)
    if not unknown:
        yield known | open_, open_
    elif len(unknown) == 1:
        own = [*module._parameters.values(), *module._buffers.values()]
        lengths = {len(t) for t in own if t is not None and t.dim() == 1}
        for length in sorted({factor * n for n in lengths for factor in (1, 2)}):
            yield known | open_ | {unknown[0]: length}, open_


def _construct(module: nn.Module, arguments: Arguments, seed: int) -> dict[str, Any] | None:
    """The tensors of a new module of the same class, if it is like the old one."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.random.default_generator.manual_seed(seed)
        try:
            new = type(module)(**arguments)
        except Exception:  # any constructor may refuse any argument
            return None
    mine, its = _tensors(module), _tensors(new)
    if mine.keys() != its.keys() or any(its[k].shape != mine[k].shape for k in mine):
        return None
    if any(k in arguments and not _alike(vars(new).get(k), v) for k, v in vars(module).items()):
        return None
    return {name: value.detach().to(mine[name].dtype) for name, value in its.items()}


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    own = {**module._parameters, **module._buffers}
    return {name: tensor for name, tensor in own.items() if tensor is not None}


def _other(value: Any) -> Any:
    """Another value of the same kind; what has none is no argument, so the constructor refuses."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value * 2 + 1
    return object()


def _alike(a: Any, b: Any) -> bool:
    """Whether an attribute came out as it was; what is no plain value is taken at its word."""
    return a == b if type(b) in _PLAIN else type(a) is type(b)


def _same(a: torch.Tensor | None, b: torch.Tensor) -> bool:
    return a is not None and torch.equal(a, b)
