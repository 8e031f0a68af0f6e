"""Measure a model in one forward and one backward pass, and leave it as it was.

A function mode sees every call of torch that the model's Python makes; module hooks that belong to
no module say where. Nothing is attached to the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from fanin.torch.probing import operations
from fanin.torch.probing.slope import Glimpse, Slope, glimpse
from fanin.torch.probing.statistics import moments, sample, square_sum

WEIGHTED = ("linear", "embedding", "recurrent")
"""Kinds of rows that add one to the depth."""


@dataclass(frozen=True)
class Origin:
    """What a tensor was computed from: weight layers on the way, and the nearest rows."""

    depth: int = 0
    rows: tuple[int, ...] = ()
    channels_first: bool = False


@dataclass
class Row:
    """One recorded call while it is still being measured."""

    index: int
    name: str
    module: str
    kind: str
    operation: str
    shape: tuple[int, ...]
    dtype: str
    depth: int
    parents: tuple[int, ...]
    operands: tuple[tuple[int, ...], ...]
    weights: tuple[str, ...]
    width: int
    moments: torch.Tensor
    glimpse: Glimpse | None = None
    square_sum: torch.Tensor | None = None
    size: int = 1


@dataclass
class Trace:
    """The rows of one run, and what took part in it."""

    batch: int
    rows: list[Row] = field(default_factory=list)
    called: set[int] = field(default_factory=set)
    used: set[str] = field(default_factory=set)
    errors: list[str] = field(default_factory=list)


class Probe(TorchFunctionMode):  # type: ignore[misc]
    """Records rows while it is entered; gradients arrive later, through the rows' tensors.

    Args:
        model: its modules' names become rows' names.
        batch: number of samples in the inputs.
        inputs: tensors that count as the model's input.
        keep_dropout: leave dropout on, as for a step that trains.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: int,
        inputs: Sequence[torch.Tensor],
        keep_dropout: bool = False,
    ) -> None:
        super().__init__()
        self._keep_dropout = keep_dropout
        self.trace = Trace(batch)
        self._names = {id(m): name for name, m in model.named_modules()}
        self._parameters = {id(p): name for name, p in model.named_parameters()}
        self._origins: Any = WeakIdKeyDictionary()
        for tensor in inputs:
            self._origins[tensor] = Origin()
        self._stack: list[nn.Module] = [model]
        self._calls: dict[str, int] = {}
        self._slopes: dict[Any, Slope | None] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> Probe:
        self._handles = [
            hooks.register_module_forward_pre_hook(self._enter_module),
            hooks.register_module_forward_hook(self._leave_module, always_call=True),
        ]
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        for handle in self._handles:
            handle.remove()

    def origin(self, tensor: torch.Tensor) -> Origin | None:
        """What a tensor of this run was computed from, or None if not from the inputs."""
        found: Origin | None = self._origins.get(tensor)
        return found

    def _enter_module(self, module: nn.Module, inputs: Any) -> None:
        if id(module) in self._names:
            self.trace.called.add(id(module))
            self._stack.append(module)

    def _leave_module(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if id(module) in self._names and len(self._stack) > 1:
            self._stack.pop()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = operations.name_of(func)
        off = not self._keep_dropout
        if off and name in operations.DROPOUTS and args and isinstance(args[0], torch.Tensor):
            return args[0]
        given = list(_tensors((args, kwargs)))
        weights = [n for n in map(self._parameter_name, given) if n]
        self.trace.used.update(weights)
        origins = [o for o in map(self._origins.get, given) if o is not None]
        if off:
            args, kwargs = operations.without_dropout(name, args, kwargs)
        if not origins:
            return func(*args, **kwargs)
        kind = operations.kind_of(name, weights, len(origins))
        seen = self._glimpse(func, name, args, kwargs, origins[0]) if kind == "activation" else None
        out = func(*args, **kwargs)
        self._follow(out, name, kind, origins, weights, seen)
        return out

    def _parameter_name(self, tensor: torch.Tensor) -> str | None:
        """The name of a parameter, also of one that a sharding wrapper put in its place."""
        found = self._parameters.get(id(tensor))
        if found is None and isinstance(tensor, nn.Parameter):
            owner = self._stack[-1]
            prefix = self._names[id(owner)]
            local = next((n for n, p in owner._parameters.items() if p is tensor), None)
            found = (f"{prefix}.{local}" if prefix else local) if local else None
        return found

    def _glimpse(
        self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], origin: Origin
    ) -> Glimpse | None:
        """Look at an activation's input before the call, which may write over it."""
        before = args[0] if args else kwargs.get("input")
        batch = self.trace.batch
        if not isinstance(before, torch.Tensor) or not before.is_floating_point():
            return None
        if before.dim() < 2 or before.shape[0] % batch or not before.numel():
            return None
        rest = args[1:]
        key = (name, _key(rest), _key(kwargs))
        try:
            if key not in self._slopes:
                self._slopes[key] = Slope(func, rest, kwargs)
            slope = self._slopes[key]
            if slope is None or slope.largest == 0:
                return None
            return glimpse(slope, before, batch, origin.channels_first)
        except (RuntimeError, TypeError, ValueError):  # such as one parameter for each channel
            self._slopes[key] = None
            return None

    def _follow(
        self,
        out: Any,
        name: str,
        kind: str | None,
        origins: list[Origin],
        weights: list[str],
        seen: Glimpse | None,
    ) -> None:
        """Give the results an origin, and a row if the call makes one."""
        results = [t for t in _tensors(out) if t.is_floating_point()]
        if not results:
            return
        depth = max(o.depth for o in origins)
        first = origins[0].channels_first
        if name in operations.CHANNELS_FIRST:
            first = results[0].dim() > 2
        elif kind in ("linear", "embedding", "attention", "recurrent"):
            first = False
        rows = tuple(sorted({r for o in origins for r in o.rows}))
        if kind is not None:
            depth += bool(weights) if kind == "attention" else kind in WEIGHTED
            operands = tuple(o.rows for o in origins) if kind in ("add", "product") else ()
            row = self._row(results[0], name, kind, depth, rows, operands, weights, seen, first)
            rows = (row,)
        origin = Origin(depth, rows, first)
        for tensor in results:
            self._origins[tensor] = origin

    def _row(
        self,
        out: torch.Tensor,
        name: str,
        kind: str,
        depth: int,
        parents: tuple[int, ...],
        operands: tuple[tuple[int, ...], ...],
        weights: list[str],
        seen: Glimpse | None,
        channels_first: bool,
    ) -> int:
        """Measure one result and wait for its gradient."""
        index = len(self.trace.rows)
        axis = 1 if channels_first and out.dim() > 2 else -1
        row = Row(
            index,
            self._call_name(name),
            type(self._stack[-1]).__name__,
            kind,
            name,
            tuple(out.shape),
            str(out.dtype).removeprefix("torch."),
            depth,
            parents,
            operands,
            tuple(dict.fromkeys(weights)),
            out.shape[axis] if out.dim() else 1,
            moments(out, sample(out, self.trace.batch)),
            seen,
            size=out.numel(),
        )
        if out.requires_grad:
            out.register_hook(_keep(row))
        self.trace.rows.append(row)
        return index

    def _call_name(self, operation: str) -> str:
        """Module path; with the operation where the module holds others; with a count."""
        module = self._stack[-1]
        path = self._names[id(module)]
        leaf = path and not any(True for _ in module.children())
        base = path if leaf else f"{path}:{operation}" if path else operation
        count = self._calls[base] = self._calls.get(base, 0) + 1
        return base if count == 1 else f"{base}#{count}"


def _keep(row: Row) -> Callable[[torch.Tensor | None], None]:
    """A hook that keeps the sum of squares of the gradient it sees, if an operation gives one."""

    def hook(gradient: torch.Tensor | None) -> None:
        if gradient is not None:
            row.square_sum = square_sum(gradient.detach())

    return hook


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in nested tuples, lists and dicts."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)


def _key(value: Any) -> Any:
    """Something hashable that tells arguments of an activation apart."""
    if isinstance(value, torch.Tensor):
        return id(value)
    if isinstance(value, tuple | list):
        return tuple(map(_key, value))
    if isinstance(value, dict):
        return tuple((k, _key(v)) for k, v in value.items())
    return value
