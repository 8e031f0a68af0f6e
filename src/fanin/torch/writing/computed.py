"""Weights that a parametrization computes, on a model without memory.

Such a weight is drawn beside the model as a plain tensor, and assigned through the parametrization
(its `right_inverse`) once all other tensors have memory, as `fanin.init_` does it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn.utils import parametrize

from fanin import draw
from fanin.draw import canonical_name
from fanin.errors import NotCoveredError
from fanin.torch.slots import fixes_scale, parametrizations, writable
from fanin.torch.writing.shard import is_sharded, local
from fanin.torch.writing.write import write_

_HOOKED = {"WeightNorm": ("_g", "_v"), "SpectralNorm": ("_orig", "_u", "_v")}


@dataclass
class Computed:
    """One weight that a module computes from others.

    Attributes:
        name: in the whole model.
        module: that has it.
        key: its name there.
        below: names of the tensors that are set when it is assigned.
        kinds: the parametrizations, in words.
    """

    name: str
    module: nn.Module
    key: str
    below: tuple[str, ...]
    kinds: str

    def renamed(self, rename: Callable[[str], str]) -> Computed:
        """The same weight under another name."""
        below = tuple(rename(name) for name in self.below)
        return replace(self, name=rename(self.name), below=below)

    def like(self) -> torch.Tensor:
        """A tensor of its shape, type and device.

        Raises:
            NotCoveredError: its parametrization does not run on the meta device, or is sharded.
        """
        where = f"materialize_({self.name})"
        try:
            like = getattr(self.module, self.key).detach()
        except Exception as error:  # whatever a parametrization raises without memory
            raise NotCoveredError(
                where,
                expected=f"{self.kinds} to compute the weight on the meta device",
                got=f"{type(error).__name__}: {error}",
                fix="parametrize the layer after materialize_",
            ) from error
        if is_sharded(like):
            raise NotCoveredError(
                where,
                expected="a parametrized weight that is whole",
                got="a sharded one",
                fix="call materialize_ before fully_shard",
            )
        return torch.empty_like(like)

    def assign(self, values: torch.Tensor, tensors: Mapping[str, torch.Tensor], seed: int) -> None:
        """Set the tensors below, so that the weight has these values."""
        for name in self.below:  # a start that the parametrization can compute with
            if local(tensors[name]).is_floating_point():
                write_(tensors[name], draw.Normal(), seed=seed, name=name)
        if self.key in vars(self.module):  # what a hook computed last is still on meta
            vars(self.module)[self.key] = values
        scale_fixed = fixes_scale(self.module, self.key)
        with writable(self.module, self.key, scale_fixed=scale_fixed) as weight:
            weight.copy_(values)


def computed(modules: Mapping[str, nn.Module]) -> Iterator[Computed]:
    """The parametrized weights of some modules by their paths, in either of torch's ways."""
    for path, module in modules.items():
        prefix = f"{path}." if path else ""
        if parametrize.is_parametrized(module):
            lists = module.parametrizations
            assert isinstance(lists, nn.ModuleDict)
            for key, parts in lists.items():
                below = [n for n, _ in (*parts.named_parameters(), *parts.named_buffers())]
                own = [n for n in below if _set_by_assigning(parts, n)]
                names = tuple(f"{prefix}parametrizations.{key}.{name}" for name in own)
                yield _made(f"{prefix}{key}", module, key, names)
        for hook in module._forward_pre_hooks.values():
            ends = _HOOKED.get(type(hook).__name__)
            key = getattr(hook, "name", None)
            if ends is not None and isinstance(key, str):
                names = tuple(f"{prefix}{key}{end}" for end in ends)
                yield _made(f"{prefix}{key}", module, key, names)


def _set_by_assigning(parts: nn.Module, name: str) -> bool:
    """Whether `right_inverse` sets a tensor: the originals, and what a spectral norm keeps."""
    first, _, rest = name.partition(".")
    return not rest or "SpectralNorm" in type(parts.get_submodule(first)).__name__


def _made(name: str, module: nn.Module, key: str, below: tuple[str, ...]) -> Computed:
    kinds = ", ".join(type(part).__name__ for part in parametrizations(module, key))
    return Computed(canonical_name(name), module, key, tuple(map(canonical_name, below)), kinds)


def class_of(module: nn.Module) -> str:
    """The name of a module's class, as it was before parametrizing."""
    return str(parametrize.type_before_parametrizations(module).__name__)


@contextmanager
def plain(weights: Mapping[str, torch.Tensor], module: nn.Module) -> Iterator[None]:
    """While this holds, some computed weights of a module are these plain tensors."""
    with ExitStack() as back:
        if parametrize.is_parametrized(module) and weights:
            back.callback(setattr, module, "__class__", type(module))
            module.__class__ = parametrize.type_before_parametrizations(module)
        for key, tensor in weights.items():
            if key in vars(module):
                back.callback(vars(module).__setitem__, key, vars(module)[key])
            else:
                back.callback(vars(module).__delitem__, key)
            vars(module)[key] = tensor
        yield
