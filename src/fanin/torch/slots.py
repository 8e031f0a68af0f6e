"""Where a weight lives in a module, whether it can be written, and how a value gets there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm, norm_except_dim

from fanin.errors import ArgumentTypeError, NotCoveredError, UninitializedError

_QUANTISERS = {"torchao", "bitsandbytes"}
_SETTLE = 50  # power iterations; the gap of a random matrix needs fewer


def unwritable(tensor: torch.Tensor) -> str | None:
    """Why drawn values cannot be put into this tensor, or None."""
    if isinstance(tensor, nn.UninitializedParameter):
        return "a lazy parameter without a shape"
    if tensor.is_quantized or type(tensor).__module__.split(".")[0] in _QUANTISERS:
        return "a quantised tensor"
    if not tensor.dtype.is_floating_point:
        return f"a tensor of {str(tensor.dtype).removeprefix('torch.')}"
    if tensor.is_meta:
        return "a tensor on the meta device"
    if tensor.numel() == 0:
        return "a tensor without elements"
    if _is_computed(tensor):
        return "the result of a computation, not a parameter"
    return None


def refuse(where: str, tensor: object) -> torch.Tensor:
    """The tensor, or an error that says why nothing can be written into it."""
    if not isinstance(tensor, torch.Tensor):
        raise ArgumentTypeError(where, expected="a tensor or a layer", got=type(tensor).__name__)
    reason = unwritable(tensor)
    if reason is None:
        return tensor
    expected = "a floating-point tensor in memory"
    if reason == "a tensor without elements":
        sharded = hasattr(tensor, "ds_shape")
        fix = "gather it first (deepspeed.zero.GatheredParameters)" if sharded else None
        got = "a ZeRO placeholder without elements" if sharded else reason
        raise UninitializedError(where, expected=expected, got=got, fix=fix)
    if "lazy" in reason or "meta" in reason:
        fix = "run one forward pass first" if "lazy" in reason else "use to_empty() first"
        raise UninitializedError(where, expected=expected, got=reason, fix=fix)
    fix = "pass the layer, so that its parametrization is written through"
    raise ArgumentTypeError(
        where, expected=expected, got=reason, fix=fix if "computation" in reason else None
    )


def _is_computed(tensor: torch.Tensor) -> bool:
    """Whether writing here would be lost: a computed tensor, not a parameter or a view of one."""
    base = tensor._base if tensor._is_view() else tensor
    return base is not None and base.grad_fn is not None


def submodule(module: nn.Module, path: str) -> nn.Module:
    """The part of a module at a path; TorchScript modules have no `get_submodule`."""
    for name in path.split(".") if path else ():
        module = getattr(module, name)
    return module


@contextmanager
def writable(module: nn.Module, name: str, *, scale_fixed: bool = False) -> Iterator[torch.Tensor]:
    """The tensor to fill so that `module.name` has these values afterwards.

    A plain parameter is that tensor. A parametrized one is filled beside and assigned through
    the parametrization, and the result is compared with what was asked.

    Args:
        module: the layer.
        name: the weight's name in it, with dots for a submodule's.
        scale_fixed: the parametrization is known to set the scale itself (spectral norm), so
            that only the direction is asked for.

    Raises:
        NotCoveredError: the parametrization cannot take this value; the old one is kept.
    """
    path, _, leaf = name.rpartition(".")
    owner = submodule(module, path)
    assign = _assigner(owner, leaf)
    if assign is None:
        yield getattr(owner, leaf)
        return
    asked = torch.empty_like(getattr(owner, leaf)).detach()
    yield asked
    where = f"{type(owner).__name__}.{leaf}"
    before = {k: v.clone() for k, v in owner.state_dict().items()}
    try:
        assign(asked)
    except Exception as error:  # whatever a user's parametrization raises
        owner.load_state_dict(before)
        raise NotCoveredError(
            where,
            expected="a parametrization with a right_inverse that takes any value",
            got=f"{type(error).__name__} from {_named(parametrizations(owner, leaf))}",
            fix="initialise before parametrizing",
        ) from error
    found = getattr(owner, leaf)
    gap, size, wanted = (t.norm().item() for t in (found - asked, found, asked))
    if not scale_fixed and not gap <= 0.01 * wanted:
        owner.load_state_dict(before)
        _refresh(owner, leaf)
        raise NotCoveredError(
            where,
            expected="a parametrization that can take any value",
            got=f"one that made the norm {size:.3g} of {wanted:.3g}",
            fix="let fanin.init_ plan it, or initialise before parametrizing",
        )


def parametrizations(module: nn.Module, name: str) -> list[object]:
    """What computes `module.name` from other parameters: new-style or hooks; empty if nothing."""
    if parametrize.is_parametrized(module, name):
        lists = module.parametrizations
        assert isinstance(lists, nn.ModuleDict)
        return list(lists[name])
    return [
        hook
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, WeightNorm | SpectralNorm) and hook.name == name
    ]


def _named(parts: list[object]) -> str:
    """The kinds of some parametrizations."""
    return ", ".join(type(part).__name__ for part in parts)


def fixes_scale(module: nn.Module, name: str) -> bool:
    """Whether a spectral norm sets the scale of this weight, whatever is written."""
    return any("SpectralNorm" in type(p).__name__ for p in parametrizations(module, name))


def _assigner(module: nn.Module, name: str) -> Callable[[torch.Tensor], None] | None:
    """How a value is assigned where the attribute is not itself the parameter."""
    found = parametrizations(module, name)
    if not found:
        return None

    def assign(value: torch.Tensor) -> None:
        hook = found[-1]
        if isinstance(hook, WeightNorm):
            getattr(module, f"{name}_g").copy_(norm_except_dim(value, 2, hook.dim))
            getattr(module, f"{name}_v").copy_(value)
        elif isinstance(hook, SpectralNorm):
            getattr(module, f"{name}_orig").copy_(value)
        else:
            setattr(module, name, value)
        _refresh(module, name)

    return assign


def _refresh(module: nn.Module, name: str) -> None:
    """Bring what hooks keep up to date: the computed attribute, the singular vectors."""
    for part in parametrizations(module, name):
        if isinstance(part, WeightNorm):
            setattr(module, name, part.compute_weight(module))
        elif isinstance(part, SpectralNorm):
            for _ in range(_SETTLE):
                setattr(module, name, part.compute_weight(module, do_power_iteration=True))
        elif isinstance(part, nn.Module) and fixes_scale(module, name):
            mode = part.training
            part.train()
            for _ in range(_SETTLE):
                getattr(module, name)
            part.train(mode)
