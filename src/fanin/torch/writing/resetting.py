"""A module's own `reset_parameters`, with its random numbers replaced by streams of our own.

What the module draws keeps its distribution, but depends on (seed, name, position): so torch's
defaults, too, are the same on every number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fanin import draw
from fanin.draw.philox import stream
from fanin.errors import NotCoveredError
from fanin.torch.probing.untouched import seed_devices
from fanin.torch.writing.shard import is_sharded, local
from fanin.torch.writing.write import write_

_DRAWN = {"normal_": ("mean", "std"), "uniform_": ("from", "to")}
_RANDOM = {"bernoulli_", "cauchy_", "exponential_", "geometric_", "log_normal_", "random_"}


def resetter(module: nn.Module) -> MethodType | None:
    """The method of its class by which a module sets its own tensors, if there is one."""
    for name in ("reset_parameters", "_reset_parameters"):
        function = getattr(type(module), name, None)
        if callable(function):
            return MethodType(function, module)
    return None


def reset(
    method: MethodType,
    names: Mapping[str, torch.Tensor],
    seed: int,
    path: str,
    spared: Iterable[torch.Tensor] = (),
) -> None:
    """Call a resetter; `normal_` and `uniform_` of whole tensors draw our streams.

    Args:
        method: of `resetter`.
        names: tensors of the model by their names.
        seed: of the streams.
        path: the module's place in the model.
        spared: tensors that stay as they are, though the resetter may write them: statistics that
            were loaded, a child's bias.

    Raises:
        NotCoveredError: it draws something else into a sharded tensor.
    """
    used = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=list(used)), _Streams(names, seed, spared), torch.no_grad():
        seed_devices(stream(seed, path or "model").key[0])
        method()


class _Streams(TorchDispatchMode):  # type: ignore[misc]
    """Redirects draws into known tensors, and leaves out what would write others."""

    def __init__(
        self, names: Mapping[str, torch.Tensor], seed: int, spared: Iterable[torch.Tensor]
    ) -> None:
        super().__init__()
        self.spared = {_storage(t) for t in spared if local(t).numel()}
        self.names = {_place(t): name for name, t in names.items() if local(t).numel()}
        self.seed = seed

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        for written in _written(func, args, kwargs):
            if _storage(written) in self.spared:
                return written
        if name not in _DRAWN and not (name in _RANDOM and is_sharded(args[0])):
            return func(*args, **kwargs)
        if local(args[0]).numel() == 0:
            return args[0]
        known = self.names.get(_place(args[0]))
        if known is not None and name in _DRAWN:
            return write_(args[0], _drawn(name, args[1:], kwargs), seed=self.seed, name=known)
        if is_sharded(args[0]):
            raise NotCoveredError(
                f"reset_parameters() of {', '.join(self.names.values())}",
                expected="normal_ or uniform_ of the whole sharded tensor",
                got=f"{name} of {'a part' if name in _DRAWN else 'it'}",
                fix="give a distribution for it in the plan",
            )
        return func(*args, **kwargs)


def _drawn(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> draw.Distribution:
    """The distribution that an in-place draw of torch asks for."""
    keys = _DRAWN[name]
    given = dict(zip(keys, args, strict=False)) | kwargs
    first, second = float(given.get(keys[0], 0.0)), float(given.get(keys[1], 1.0))
    return draw.Normal(first, second) if name == "normal_" else draw.Uniform(first, second)


def _written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterable[torch.Tensor]:
    """The tensors that an operation writes in place."""
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            yield from (value,) if isinstance(value, torch.Tensor) else value or ()


def _storage(tensor: torch.Tensor) -> int:
    """The memory of a tensor, or of a rank's part of it."""
    return int(local(tensor).untyped_storage().data_ptr())


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    """What a tensor shares with its aliases (`.data`, `.detach()`), but not with its parts."""
    mine = local(tensor)
    return mine.untyped_storage().data_ptr(), mine.storage_offset(), mine.shape, mine.stride()
