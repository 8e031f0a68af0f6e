"""What a model's memory says before anything is written: flags, constants, loaded tensors."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from fanin.errors import ArgumentError, ArgumentTypeError
from fanin.planning.names import near
from fanin.torch.slots import unwritable
from fanin.torch.tracing.modules import is_lazy, named_tensors

_FLAGS = {
    "_no_reinit": "marked _no_reinit",
    "_is_hf_initialized": "marked _is_hf_initialized: loaded from a checkpoint",
}
_GLANCE = 64  # elements that are compared before a whole tensor is
_READABLE = 1 << 22  # elements of a tensor whose values enter the sweep


def kept(model: nn.Module) -> dict[str, str]:
    """Parameters that must not be drawn, by first name, with the reason: flags and types."""
    found = {}
    for named in named_tensors(model):
        if named.kind != "parameter":
            continue
        reason = _flagged(named.tensor) or _untouchable(named.tensor)
        if reason is not None:
            found[named.names[0]] = reason
    return found


def constants(model: nn.Module) -> dict[str, float]:
    """Parameters in memory whose elements are all one number, by first name."""
    found = {}
    for named in named_tensors(model):
        if named.kind == "parameter" and (value := _constant(named.tensor)) is not None:
            found[named.names[0]] = value
    return found


class Held(Mapping[str, Any]):
    """What the parameters and buffers of a model hold, as wide arrays made when asked for.

    Of a parametrized weight what its parametrization computes.
    """

    def __init__(self, model: nn.Module) -> None:
        self._tensors = {n: t.tensor for t in named_tensors(model) for n in t.names}
        self._computed = {
            f"{path}.{name}" if path else name: computed
            for path, module in model.named_modules()
            if parametrize.is_parametrized(module)
            for name, computed in module.parametrizations.items()
        }

    def _tensor(self, name: str) -> torch.Tensor:
        if name not in self._computed:
            return self._tensors[name]
        with torch.no_grad():  # a copy: in training mode a spectral norm changes its buffers
            found: torch.Tensor = copy.deepcopy(self._computed[name]).eval()()
        return found

    def __getitem__(self, name: str) -> Any:
        tensor = self._tensor(name)
        readable = type(tensor) in (torch.Tensor, nn.Parameter, nn.Buffer) and not tensor.is_meta
        if is_lazy(tensor) or not readable or not 0 < tensor.numel() <= _READABLE:
            raise KeyError(name)
        wide = torch.complex128 if tensor.is_complex() else torch.float64
        return tensor.detach().to(wide).cpu().numpy()

    def __iter__(self) -> Iterator[str]:
        return iter((*self._tensors, *self._computed))

    def __len__(self) -> int:
        return len(self._tensors) + len(self._computed)


def present(model: nn.Module, only_missing: bool | Iterable[str]) -> dict[str, str]:
    """Parameters that hold something of worth, so that only the missing ones are drawn.

    Args:
        model: after a checkpoint was loaded in part.
        only_missing: the missing names, as `load_state_dict` returns them; or True, to tell by what
            can be told: marks of `from_pretrained`; else a tensor is missing only if nothing but
            its module's own default initialization has ever been written to it. What another
            freshly built model was assigned from cannot be told apart; give the names then.

    Returns:
        Names to leave alone, and why.

    Raises:
        ArgumentError: a missing name that is no parameter or buffer.
        ArgumentTypeError: something else than names.
    """
    tensors = {n: t for t in named_tensors(model) for n in t.names}
    if not isinstance(only_missing, bool):
        if isinstance(only_missing, str) or not isinstance(only_missing, Iterable):
            raise ArgumentTypeError(
                "only_missing", expected="True, False, or a list of names", got=repr(only_missing)
            )
        wanted = set(only_missing)
        unknown = sorted(wanted - set(tensors))
        if unknown:
            raise ArgumentError(
                "only_missing",
                expected="names of the model's tensors",
                got=repr(unknown[0]),
                fix=near(unknown[0], tensors),
            )
        return {n: "not among the missing" for n in tensors if n not in wanted}
    marked = {n for n, t in tensors.items() if getattr(t.tensor, "_is_hf_initialized", False)}
    if marked:
        return dict.fromkeys(marked, _FLAGS["_is_hf_initialized"])
    with torch.random.fork_rng():
        fresh = {name for name, tensor in _untouched(model) if tensor is not None}
    reason = "written since it was built, or it cannot be told"
    return {n: reason for n in tensors if n not in fresh}


def _flagged(tensor: torch.Tensor) -> str | None:
    """The reason that a mark on a tensor gives."""
    return next((why for flag, why in _FLAGS.items() if getattr(tensor, flag, False)), None)


def _untouchable(tensor: torch.Tensor) -> str | None:
    """Why a tensor's type forbids drawing: quantised, integer, complex."""
    reason = unwritable(tensor)
    if reason == "a tensor without elements" and tensor.dim() < 2:
        return None  # it may stand for one that is elsewhere, which is an error
    typed = reason is not None and (
        "quantised" in reason or reason.startswith("a tensor of") or "without elements" in reason
    )
    return f"{reason} cannot be drawn" if typed else None


def _constant(tensor: torch.Tensor) -> float | None:
    """The one number that a tensor holds, or None."""
    plain = type(tensor) in (torch.Tensor, nn.Parameter) and unwritable(tensor) is None
    if not plain or (tensor.numel() == 1 and tensor.detach().item() not in (0.0, 1.0)):
        return None
    flat = tensor.detach().reshape(-1) if tensor.is_contiguous() else tensor.detach()
    first = flat.reshape(-1)[:1]
    glance = flat[:_GLANCE] if tensor.is_contiguous() else flat
    if bool((glance == first).all()) and bool((flat == first).all()):
        number = complex(first.item())
        return number.real if number.imag == 0 else None
    return None


def _untouched(model: nn.Module) -> Iterator[tuple[str, torch.Tensor | None]]:
    """Each parameter of a known layer that was written as often as its own reset writes it."""
    shadows = _shadows(model)
    for path, module in model.named_modules():
        resets = _resets(module, shadows)
        for name, tensor in module.named_parameters(recurse=False):
            full = f"{path}.{name}" if path else name
            writes = resets.get(name)
            same = writes is not None and _version(tensor) == writes > 0
            yield full, tensor if same else None


def _resets(module: nn.Module, shadows: Mapping[int, torch.Tensor]) -> dict[str, int]:
    """How often the layer's default initialization writes each of its parameters.

    It is tried on a copy that shares no tensor: it may write buffers and children as well.
    """
    reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    own = dict(module.named_parameters(recurse=False))
    if not callable(reset) or not own or parametrize.is_parametrized(module):
        return {}
    if any(isinstance(p, nn.UninitializedParameter) for p in own.values()):
        return {}
    before = {name: _version(shadows[id(p)]) for name, p in own.items()}
    try:
        twin = copy.deepcopy(module, dict(shadows))
        (getattr(twin, "reset_parameters", None) or twin._reset_parameters)()
    except Exception:  # a reset that needs more than meta tensors tells nothing
        return {}
    after = {name: _version(p) for name, p in twin._parameters.items() if p is not None}
    return {name: after[name] - count for name, count in before.items() if name in after}


def _shadows(model: nn.Module) -> dict[int, torch.Tensor]:
    """A meta tensor for every tensor of a model, cached ones included, by the tensor's id."""
    found: dict[int, torch.Tensor] = {}
    cached = (vars(module).values() for module in model.modules())
    held = (t for values in cached for t in values if isinstance(t, torch.Tensor))
    for tensor in (*model.parameters(), *model.buffers(), *held):
        if isinstance(tensor, nn.parameter.UninitializedTensorMixin):
            continue
        meta = torch.empty_like(tensor, device="meta")
        own = isinstance(tensor, nn.Parameter)
        found[id(tensor)] = nn.Parameter(meta, requires_grad=tensor.requires_grad) if own else meta
    return found


def _version(tensor: torch.Tensor) -> int:
    """How often a tensor was written in place; -1 where that is not counted."""
    return -1 if tensor.is_inference() else int(tensor._version)
