"""Who wrote each tensor: recorded while a model is built, by watching torch's own calls.

`with fanin.recording():` sees fills in place, copies, loading and the factories (`empty`, `zeros`,
`randn`) as the user's Python calls them. What was written is kept by storage, so that it survives
`nn.Parameter(...)`, tying and renaming, and is forgotten with the storage.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from fanin.planning.plan import Values
from fanin.torch.provenance.asked import Asked, asked_of, of_values
from fanin.torch.provenance.stack import Site, site_of

UNSET = frozenset(["empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"])
FIXED = frozenset(
    [
        "zeros",
        "ones",
        "full",
        "eye",
        "zeros_like",
        "ones_like",
        "full_like",
        "new_zeros",
        "new_ones",
        "new_full",
    ]
)
RANDOM = frozenset(["rand", "randn", "rand_like", "randn_like", "normal", "randint", "bernoulli"])
FILLS = frozenset(
    [
        "normal_",
        "uniform_",
        "bernoulli_",
        "exponential_",
        "log_normal_",
        "random_",
        "geometric_",
        "cauchy_",
        "fill_",
        "zero_",
    ]
)
COPIES = frozenset(
    [
        "clone",
        "to",
        "contiguous",
        "cpu",
        "cuda",
        "float",
        "double",
        "half",
        "bfloat16",
        "type",
        "pin_memory",
        "__deepcopy__",
    ]
)


@dataclass(frozen=True)
class Write:
    """One write to a tensor.

    Args:
        kind: `unset` (memory as it was found), `created`, `filled`, `modified`, `copied`, `loaded`.
        function: that wrote, such as `torch.nn.init.kaiming_uniform_`.
        site: in which of the user's lines, and in whose method.
        asked: the law that was asked for, where it is known.
        whole: whether all of the storage was written.
        lost_on: for a write to the result of a computation, which is lost: the storages of the
            parameters that it was computed from.
        shape: of what was written.
        elements: how many elements.
    """

    kind: str
    function: str
    site: Site
    asked: Asked | None = None
    whole: bool = True
    lost_on: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()
    elements: int = 0

    def __str__(self) -> str:
        by = f" in {self.site.owner}" if self.site.owner else ""
        return f"{self.function}{by} ({self.site.place})"


class _Book:
    """Writes by storage, dropped when the storage is gone."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[StorageWeakRef, list[Write]]] = {}
        self._limit = 4096

    def of(self, tensor: torch.Tensor) -> list[Write]:
        """The writes to a tensor's storage, oldest first; a list to append to."""
        reference = StorageWeakRef(tensor.untyped_storage())
        entry = self._entries.get(reference.cdata)
        if entry is None or entry[0].expired():
            entry = self._entries[reference.cdata] = (reference, [])
            if len(self._entries) > self._limit:
                self._purge()
        return entry[1]

    def known(self, tensor: torch.Tensor) -> list[Write] | None:
        """The writes, or None where nothing was recorded."""
        entry = self._entries.get(StorageWeakRef(tensor.untyped_storage()).cdata)
        return None if entry is None or entry[0].expired() or not entry[1] else entry[1]

    def _purge(self) -> None:
        self._entries = {k: e for k, e in self._entries.items() if not e[0].expired()}
        self._limit = max(4096, 2 * len(self._entries))


_BOOK = _Book()
_ACTIVE: list[Recording] = []
_LOST: deque[Write] = deque(maxlen=1000)


class Recording(TorchFunctionMode):  # type: ignore[misc]
    """What was written while this was entered; `fanin.audit` finds it by itself."""

    def __init__(self) -> None:
        super().__init__()
        self._call: tuple[object, list[Write]] | None = None

    def __enter__(self) -> Recording:
        _ACTIVE.append(self)
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        _ACTIVE.remove(self)
        self._call = None  # it holds a frame

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        target = _target(func, name, args, kwargs)
        before = None if target is None else _place(target)
        out = func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            if target is not None and before == _place(target):
                self._written(func, name, target, args, kwargs)
            elif isinstance(out, torch.Tensor):
                self._made(func, name, out, args, kwargs)
        return out

    def _written(
        self, func: Any, name: str, target: torch.Tensor, args: tuple[Any, ...], kwargs: Any
    ) -> None:
        """A write in place."""
        site, frame = site_of(func)
        history = _BOOK.of(target)
        last = (None, None) if self._call is None else self._call
        if frame is not None and history and last[0] is frame and last[1] is history:
            return  # a further step of the same initializer
        self._call = None if frame is None else (frame, history)
        kind = "filled" if frame is not None or name in FILLS else "modified"
        source = args[1] if name == "copy_" and len(args) > 1 else None
        if isinstance(source, torch.Tensor) and frame is None:
            kind = "loaded" if site.loading else "copied"
        write = Write(
            kind,
            site.initializer or f"Tensor.{name}",
            site,
            asked_of(name, site, target, args, kwargs) if kind == "filled" else None,
            target.numel() * target.element_size() >= target.untyped_storage().nbytes(),
            _computed_from(target),
            tuple(target.shape),
            target.numel(),
        )
        if write.lost_on:
            _LOST.append(write)
        history.append(write)

    def _made(
        self, func: Any, name: str, out: torch.Tensor, args: tuple[Any, ...], kwargs: Any
    ) -> None:
        """A new tensor; one that shares the storage of an argument is none."""
        if out.layout != torch.strided or _has_no_storage(out):
            return
        source = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if source is not None and (_has_no_storage(source) or _storage(source) == _storage(out)):
            return
        kind = "unset" if name in UNSET else "created"
        site, _ = site_of(func)
        history = _BOOK.of(out)
        history.clear()  # the storage is new
        shape, elements = tuple(out.shape), out.numel()
        asked = asked_of(name, site, out, args, kwargs) if name in RANDOM | FIXED else None
        if name in COPIES and source is not None:
            history += _BOOK.known(source) or []
            if history and name not in ("clone", "__deepcopy__"):
                return
            kind = "copied"
        history.append(Write(kind, f"torch.{name}", site, asked, shape=shape, elements=elements))


@contextlib.contextmanager
def recording() -> Iterator[Recording]:
    """Record who writes each tensor while a model is built; `fanin.audit` reads it.

    Yields:
        The recording; `audit(model)` needs no reference to it.

    Example:
        >>> from torch import nn
        >>> with recording():
        ...     layer = nn.Linear(8, 16)
        >>> history(layer.weight)[-1].function
        'torch.nn.init.kaiming_uniform_'
    """
    with Recording() as made:
        yield made


def history(tensor: torch.Tensor) -> tuple[Write, ...] | None:
    """Who wrote a tensor, oldest first; None where nothing was recorded.

    Args:
        tensor: of any kind; what shares its storage shares its history.
    """
    if tensor.layout != torch.strided or _has_no_storage(tensor):
        return None
    known = _BOOK.known(tensor)
    return None if known is None else tuple(known)


def lost_writes(tensor: torch.Tensor) -> tuple[Write, ...]:
    """Recorded writes to something computed from this tensor, which changed nothing that lasts."""
    if not _LOST or _has_no_storage(tensor):
        return ()
    return tuple(write for write in _LOST if _storage(tensor) in write.lost_on)


def wrote(tensor: torch.Tensor, values: Values, shape: tuple[int, ...]) -> None:
    """Tell a running recording of values that fanin drew through memory, which torch did not see.

    Args:
        tensor: that was written, of a sharded one the part on this rank.
        values: what was drawn.
        shape: the whole shape.
    """
    if not _ACTIVE or _has_no_storage(tensor):
        return
    site, frame = site_of(None)
    last, records = _ACTIVE[-1]._call, _BOOK.of(tensor)
    if frame is not None and last is not None and last[0] is frame and last[1] is records:
        return  # a further part of the same call
    _ACTIVE[-1]._call = None if frame is None else (frame, records)
    whole = tensor.numel() * tensor.element_size() >= tensor.untyped_storage().nbytes()
    function = site.initializer or "fanin.init_"
    records.append(
        Write("filled", function, site, of_values(values, shape), whole, (), shape, tensor.numel())
    )


def _target(
    func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> torch.Tensor | None:
    """The tensor that a call writes into, or None."""
    out = kwargs.get("out")
    if isinstance(out, torch.Tensor):
        return out
    first = args[0] if args else kwargs.get("tensor")
    in_place = (name.endswith("_") and not name.endswith("__")) or name == "__setitem__"
    if name == "requires_grad_" or not in_place or not isinstance(first, torch.Tensor):
        return None
    return None if _has_no_storage(first) else first


def _has_no_storage(tensor: torch.Tensor) -> bool:
    """Whether a subclass (DTensor, fake, lazy) has no storage of its own to go by."""
    try:
        tensor.untyped_storage()
    except (NotImplementedError, RuntimeError, ValueError):
        return True
    return False


def _storage(tensor: torch.Tensor) -> int:
    return int(StorageWeakRef(tensor.untyped_storage()).cdata)


def _place(tensor: torch.Tensor) -> int:
    """Which storage a tensor has: a write into it does not change this."""
    with torch._C.DisableTorchFunction():
        return _storage(tensor)


def _computed_from(tensor: torch.Tensor) -> tuple[int, ...]:
    """The parameters' storages behind a result of a computation; none for a leaf or its view."""
    base = tensor._base if tensor._is_view() else tensor
    if base is None or base.grad_fn is None:
        return ()
    found: list[int] = []
    front, seen = [base.grad_fn], set()
    while front:
        node = front.pop()
        leaf = getattr(node, "variable", None)
        if leaf is not None and not _has_no_storage(leaf):
            found.append(_storage(leaf))
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                front.append(following)
    return tuple(found)
