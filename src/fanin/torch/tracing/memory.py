"""Which value a tensor holds now: aliases and writes in place, told as operations with results.

Tensors that share a storage are told apart by their geometry (sizes, strides, offset, dtype). A
write through one of them makes a new value; the others are brought up to date when they are next
read, by the inverse of each view towards the base and the views again away from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from fanin.errors import TraceError

aten = torch.ops.aten
Geometry = tuple[Any, ...]


@dataclass(frozen=True)
class At:
    """Stands for the value with this index in the arguments of an emitted operation."""

    value: int


# emit(operation, its arguments by name, sizes and dtype of the result) -> the new value
Emit = Callable[[Any, dict[str, Any], tuple[int, ...], torch.dtype], int]


@dataclass
class View:
    """One geometry of a storage: its value, how new that is, and the view that made it.

    Args:
        value: the value it holds, as of the version.
        version: the storage's version then.
        parent: the geometry that it was taken of; None for a base.
        operation: the view.
        options: the view's arguments by name, without the base.
        position: which output it is, of a view with several (split, unbind).
    """

    value: int
    version: int
    parent: Geometry | None = None
    operation: Any = None
    options: dict[str, Any] = field(default_factory=dict)
    position: int | None = None


@dataclass
class Record:
    """One storage: its views, and the geometry that was written last."""

    views: dict[Geometry, View] = field(default_factory=dict)
    version: int = 0
    written: Geometry | None = None


def geometry(tensor: torch.Tensor) -> Geometry:
    """What tells tensors on one storage apart."""
    return (
        tensor.dtype,
        tuple(tensor.shape),
        tensor.stride(),
        tensor.storage_offset(),
        tensor.is_conj(),
        tensor.is_neg(),
    )


def plain(tensor: torch.Tensor) -> bool:
    """Whether the tensor has a storage of its own kind; sharded and quantised ones do not."""
    return type(tensor) in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer) and (
        tensor.layout is torch.strided
    )


class Memory:
    """The values of all tensors of a trace, by storage and geometry."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._records: dict[Any, Record] = {}
        self._kept: dict[int, torch.Tensor] = {}

    def key(self, tensor: torch.Tensor) -> Any:
        """A key of the tensor's storage that no later storage can take."""
        if plain(tensor):
            return StorageWeakRef(tensor.untyped_storage())
        self._kept[id(tensor)] = tensor
        return id(tensor)

    def record(self, tensor: torch.Tensor) -> Record:
        """The record of the tensor's storage, made if there is none."""
        return self._records.setdefault(self.key(tensor), Record())

    def seen(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor lies in a storage that has a record."""
        return self.key(tensor) in self._records

    def alias(self, tensor: torch.Tensor, twin: torch.Tensor) -> None:
        """Let the twin's storage stand for the tensor's: both have one record."""
        record = self._records[self.key(twin)] = self.record(tensor)
        if not plain(tensor):
            record.views[geometry(twin)] = record.views[_outline(tensor)]

    def put(self, tensor: torch.Tensor, value: int) -> None:
        """Say that the tensor, a base and no view, holds this value."""
        record = self.record(tensor)
        record.views[_outline(tensor)] = View(value, record.version)

    def put_view(self, tensor: torch.Tensor, base: torch.Tensor, view: View) -> None:
        """Say that the tensor is this view of the base."""
        record = self.record(tensor)
        view.version, view.parent = record.version, geometry(base)
        record.views[geometry(tensor)] = view

    def placed(self, tensor: torch.Tensor) -> bool:
        """Whether this part of a storage was seen before, and so has a value."""
        record = self._records.get(self.key(tensor))
        return record is not None and _outline(tensor) in record.views

    def write(self, tensor: torch.Tensor, value: int) -> None:
        """Say that the tensor was overwritten in place and now holds this value."""
        record = self.record(tensor)
        record.version += 1
        shape = _outline(tensor)
        view = record.views.setdefault(shape, View(value, record.version))
        view.value, view.version, record.written = value, record.version, shape

    def get(self, tensor: torch.Tensor) -> int | None:
        """The value that the tensor holds now; None if the trace has not seen its storage."""
        record = self._records.get(self.key(tensor))
        if record is None or not record.views:
            return None
        shape = _outline(tensor)
        if shape not in record.views:
            options = {
                "size": list(tensor.shape),
                "stride": list(tensor.stride()),
                "storage_offset": tensor.storage_offset(),
            }
            base = next(iter(record.views))
            record.views[shape] = View(-1, -1, base, aten.as_strided.default, options)
        return self._fresh(record, shape)

    def _fresh(self, record: Record, shape: Geometry) -> int:
        """The value at this geometry after all writes so far."""
        view = record.views[shape]
        if view.version == record.version:
            return view.value
        if not any(record.views[g].version == record.version for g in _line(record, shape)):
            self._write_back(record)
        if view.version < record.version and view.parent is not None:
            base = self._fresh(record, view.parent)
            operation, options = _single(view, shape)
            view.value = self._emit(operation, {"self": At(base)} | options, shape[1], shape[0])
        # A base that no write reached stays as it is: parts of one buffer, kept apart.
        view.version = record.version
        return view.value

    def _write_back(self, record: Record) -> None:
        """Bring the ancestors of the geometry that was written last up to date."""
        shape = record.written
        while shape is not None and (parent := record.views[shape].parent) is not None:
            child, base = record.views[shape], record.views[parent]
            operation, arguments = _inverse(child, base, parent, shape)
            base.value = self._emit(operation, arguments, parent[1], parent[0])
            base.version = record.version
            shape = parent


def _outline(tensor: torch.Tensor) -> Geometry:
    """The tensor's geometry; its shape, if it has no plain storage."""
    return geometry(tensor) if plain(tensor) else (tensor.dtype, tuple(tensor.shape))


def _line(record: Record, shape: Geometry) -> list[Geometry]:
    """The geometry and those that it is a view of, nearest first."""
    line = [shape]
    while (parent := record.views[line[-1]].parent) is not None:
        line.append(parent)
    return line


def _single(view: View, shape: Geometry) -> tuple[Any, dict[str, Any]]:
    """The view as one of one output: a slice or selection for an output of split or unbind."""
    if view.position is None:
        return view.operation, view.options
    dim = view.options.get("dim", 0)
    if view.operation is aten.unbind.int:
        return aten.select.int, {"dim": dim, "index": view.position}
    sizes = view.options.get("split_sizes")
    step = view.options.get("split_size", 0)
    start = sum(sizes[: view.position]) if sizes is not None else view.position * step
    end = start + shape[1][dim]
    return aten.slice.Tensor, {"dim": dim, "start": start, "end": end, "step": 1}


_SHAPES_ONLY = frozenset({"view", "squeeze", "expand", "alias", "detach", "_reshape_alias"})


def _inverse(
    child: View, base: View, parent: Geometry, shape: Geometry
) -> tuple[Any, dict[str, Any]]:
    """The operation that puts a written view back into its base, and its arguments."""
    operation, options = _single(child, shape)
    name = operation._schema.name.split("::")[1]
    old, new = At(base.value), At(child.value)
    if name in ("slice", "select", "diagonal", "as_strided"):
        scatter = getattr(aten, f"{name}_scatter").default
        return scatter, {"self": old, "src": new} | options
    if name in ("transpose", "t"):
        return operation, {"self": new} | options
    if name == "permute":
        order = [d % len(options["dims"]) for d in options["dims"]]
        return operation, {"self": new, "dims": [order.index(d) for d in range(len(order))]}
    if name == "unsqueeze":
        return aten.squeeze.dim, {"self": new} | options
    if name in _SHAPES_ONLY:
        return aten.view.default, {"self": new, "size": list(parent[1])}
    raise TraceError(
        f"trace: write in place through {name}",
        expected="a view whose inverse is known",
        fix="write the operation with a new result",
    )
