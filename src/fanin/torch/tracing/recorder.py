"""Records each ATen operation of a forward pass, on meta tensors wherever content is not needed.

The user's tensors are replaced on their way into each operation, so the model is neither changed
nor copied. A value that follows from constants and given inputs alone is *known*: it is computed
for real, so that masks, position ids and control flow on them work. Every other value has a shape
and no content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._ops import HigherOrderOperator
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from fanin.errors import TraceError
from fanin.signal.graph import Kind, Node, Ref, Value
from fanin.torch.tracing import schema
from fanin.torch.tracing.kernel import Replay, Slot
from fanin.torch.tracing.memory import At, Memory, View, geometry, plain

aten = torch.ops.aten
KNOWN_LIMIT = 1 << 25  # elements of a known value; the content of a larger one is let go
# Running statistics, which norms write without saying so in their schemas.
_STATISTICS = ("running_mean", "running_var")
_Convert = Callable[[torch.Tensor], torch.Tensor]


class NeedsDataError(RuntimeError):
    """The content of a tensor that has none on meta decides what runs next."""


class Recorder(TorchDispatchMode):  # type: ignore[misc]
    """Records the operations that run under it.

    Args:
        site: gives the path of the module that runs, and which call of it.
        real: run everything on real tensors, where meta does not do.
    """

    supports_higher_order_operators = True  # `cond`, `flex_attention`: what they run is recorded

    def __init__(self, site: Callable[[], tuple[str, int]], *, real: bool = False) -> None:
        super().__init__()
        self.site, self.real = site, real
        self.nodes: list[Node] = []
        self.values: list[Value] = []
        self.data: dict[int, torch.Tensor] = {}
        self.paused = False
        self.notes: list[str] = []
        self.failure: tuple[str, str, BaseException] | None = None
        self.memory = Memory(self._emit)
        self._leaves: list[tuple[torch.Tensor, Kind, str, bool]] = []
        self._settled: dict[int, int] = {}
        self._known: set[int] = set()
        self._own: set[Any] = set()
        self._meta: dict[Any, torch.Tensor] = {}
        self._copied: dict[Any, torch.Tensor] = {}
        self._shapes: dict[Any, Any] = {}

    # -- tensors and values -------------------------------------------------------------------

    def adopt(self, tensor: torch.Tensor, kind: Kind, name: str, *, known: bool) -> int:
        """Name a tensor from before the trace; it becomes a value when it is first read.

        Returns:
            The number of this leaf, for `value_of`.
        """
        self._leaves.append((tensor, kind, name, known))
        self.memory.put(tensor, -len(self._leaves))
        return len(self._leaves)

    def value_of(self, leaf: int) -> int | None:
        """The index of the value of an adopted tensor; None if nothing read it."""
        return self._settled.get(leaf)

    def index_of(self, tensor: torch.Tensor) -> int:
        """The index of the value that the tensor holds now."""
        index = self.memory.get(tensor)
        if index is None:
            index = -self.adopt(tensor, "constant", "", known=not tensor.is_meta)
        index = self._settle(index)
        if index in self._known and index not in self.data:
            self.data[index] = self._real_twin(tensor)  # brought up to date by an emitted view
        return index

    def _settle(self, index: int) -> int:
        """The index itself, or that of the leaf which a negative one stands for."""
        if index >= 0:
            return index
        if -index not in self._settled:
            tensor, kind, name, known = self._leaves[-index - 1]
            weights = kind == "parameter"
            made = self._value(tensor, kind, name=name, varying=kind == "input", depends=weights)
            if known:
                self._known.add(made)
                self.data[made] = tensor
            self._settled[-index] = made
        return self._settled[-index]

    def _value(self, like: torch.Tensor, kind: Kind, **facts: Any) -> int:
        """Add a value with the shape and dtype of a tensor."""
        dtype = str(like.dtype).removeprefix("torch.")
        self.values.append(Value(len(self.values), tuple(like.shape), dtype, kind, **facts))
        return len(self.values) - 1

    # -- running --------------------------------------------------------------------------------

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Take a composite operation apart, or run and record one."""
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            return self._run_body(func, args, kwargs)
        if schema.composite(func):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if self.paused:
            return func(*args, **kwargs)
        bound = schema.bind(func, args, kwargs)
        self._refuse_nested(bound)
        read = [self.index_of(t) for t in _tensors(bound)]
        if schema.reshapes_in_place(func):
            return self._reshape(func, bound, read)
        draws = schema.random(func, bound)
        known = not draws and all(i in self._known for i in read)
        try:
            result, known = self._run(func, bound, known)
        except Exception as error:
            self.failure = (self.site()[0], schema.recorded_name(func), error)
            raise
        self._refuse_nested(result)
        self._write_down(func, bound, read, result, known=known, draws=draws)
        return _returned(func, bound, result)

    def _run_body(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record what an operation on functions runs."""
        try:
            with self:
                return schema.body(func)(*args, **kwargs)
        except Exception as error:
            self.failure = self.failure or (self.site()[0], func.name(), error)
            raise

    def _refuse_nested(self, tree: Any) -> None:
        """Nested tensors have no sizes that could be written down."""
        if any(t.is_nested for t in _tensors(tree)):
            raise TraceError(
                f"trace(model): {self.site()[0] or 'the model itself'}",
                expected="tensors with one size along each axis",
                got="a nested tensor",
                fix="plan with the padded form of the same input: the weights are the same",
            )

    def _run(self, func: Any, bound: dict[str, Any], known: bool) -> tuple[Any, bool]:
        """The result, real if its content is wanted, and whether it is known."""
        if self.real:
            return self._call(func, bound, self._real_twin), known
        if known and not schema.by_content(func):
            shapes = self._call(func, self._on_meta(func, bound), _blank)
            known = max((t.numel() for t in _tensors(shapes)), default=0) <= KNOWN_LIMIT
        if not known:
            return self._call_meta(func, bound), False
        bound = {k: None if _is_meta(v) else v for k, v in bound.items()}
        result = self._call(func, bound, self._real_twin)
        if schema.short_name(func).startswith(("empty", "new_empty")):
            result.zero_()  # so that what is read before it is written does not hang on luck
        return result, True

    def _call_meta(self, func: Any, bound: dict[str, Any]) -> Any:
        """The result on meta; of an operation that meta does not do, found with zeros."""
        on_meta = self._on_meta(func, bound)
        signature = _signature(func, on_meta)
        if signature in self._shapes:  # the same operation of another layer
            return tree_map_only(torch.Tensor, _blank, self._shapes[signature])
        try:
            result = self._call(func, on_meta, self._meta_twin)
            if signature is not None and self._is_fresh(result):
                self._shapes[signature] = tree_map_only(torch.Tensor, _blank, result)
            return result
        except Exception:
            size = sum(t.numel() for t in _tensors(bound))
            if schema.written(func) or schema.by_content(func) or size > KNOWN_LIMIT:
                raise
            shapes = self._on_zeros(func, bound)
            if shapes is None:
                raise
        self.notes.append(f"{schema.recorded_name(func)} does not run on meta: shapes from zeros")
        return tree_map_only(torch.Tensor, _blank, shapes)

    def _is_fresh(self, result: Any) -> bool:
        """Whether the results are tensors of their own, each on a new storage."""
        made = _tensors(result)
        keys = {self.memory.key(t) for t in made}
        own = len(keys) == len(made) > 0 and not any(self.memory.seen(t) for t in made)
        return own and all(t.storage_offset() == 0 and plain(t) for t in made)

    def _on_zeros(self, func: Any, bound: dict[str, Any]) -> Any:
        """The result for zeros in place of the tensors; None if that does not run either."""
        try:
            return self._call(func, bound, _zeros)
        except Exception:
            return None

    def _on_meta(self, func: Any, bound: dict[str, Any]) -> dict[str, Any]:
        """The arguments for a run on meta: the device, and masks as indices."""
        if func is aten._local_scalar_dense.default:
            raise NeedsDataError("the value of a tensor decides what the model does next")
        devices = dict.fromkeys(schema.device_arguments(func), torch.device("meta"))
        bound = {k: v for k, v in bound.items() if k != "pin_memory"} | devices
        if "indices" in bound and isinstance(bound["indices"], (list, tuple)):
            bound["indices"] = [self._as_indices(i) for i in bound["indices"]]
        return bound

    def _as_indices(self, index: torch.Tensor | None) -> torch.Tensor | None:
        """A known mask of one axis as the positions it selects, whose number meta then sees."""
        mask = index is not None and index.dtype in (torch.bool, torch.uint8) and index.dim() == 1
        if not mask or self.index_of(index) not in self._known:
            return index
        return self._real_twin(index).nonzero().squeeze(1)

    def _call(self, func: Any, bound: dict[str, Any], convert: _Convert) -> Any:
        """Run the operation on converted tensors, such that nothing of the user's is written."""
        for name in schema.written(func):
            for tensor in _tensors(bound.get(name)):
                if convert == self._real_twin:
                    self._keep_from_writes(tensor)
        bound = tree_map_only(torch.Tensor, convert, bound)
        for name in _STATISTICS:
            if isinstance(bound.get(name), torch.Tensor):
                bound[name] = bound[name].clone()
        if schema.recurrent(func) and convert == self._meta_twin:
            return schema.recurrent_shapes(bound)
        return func(**bound)

    def _keep_from_writes(self, tensor: torch.Tensor) -> None:
        """Before a real tensor is written: let a copy stand for the user's, and keep old data."""
        for view in self.memory.record(tensor).views.values():
            index = self._settle(view.value)
            if index in self.data:
                self.data[index] = self.data[index].clone()
        key = self.memory.key(tensor)
        if key in self._own or key in self._copied or not plain(tensor):
            return
        storage = tensor.untyped_storage().clone()
        copy = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(storage)
        self._copied[key] = copy
        self.memory.alias(tensor, copy)

    def _real_twin(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor itself, or the copy that was written in its stead."""
        copy = self._copied.get(self.memory.key(tensor))
        return tensor if copy is None else _with_geometry(copy, tensor)

    def _meta_twin(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor's twin on meta: one storage there for each storage here."""
        key = self.memory.key(tensor)
        if tensor.is_meta and plain(tensor):
            return tensor
        if not plain(tensor):
            if key not in self._meta:
                self._meta[key] = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
                self.memory.alias(tensor, self._meta[key])
            return self._meta[key]
        if key not in self._meta:
            elements = tensor.untyped_storage().nbytes() // tensor.element_size()
            self._meta[key] = torch.empty(elements, dtype=tensor.dtype, device="meta")
            self.memory.alias(tensor, self._meta[key])
        return _with_geometry(self._meta[key], tensor)

    # -- writing down ---------------------------------------------------------------------------

    def _write_down(
        self,
        func: Any,
        bound: dict[str, Any],
        read: list[int],
        result: Any,
        *,
        known: bool,
        draws: bool,
    ) -> None:
        """Make the node of an operation that ran, and the values of its results."""
        targets = [t for name in schema.targets(func) for t in _tensors(bound[name])]
        made = targets or _tensors(result)
        if not made or (not targets and all(self.memory.placed(t) for t in made)):
            return
        outputs = self._results(made, read, known=known, draws=draws)
        tensors = _tensors(bound)
        places = [next(i for i, t in enumerate(tensors) if t is target) for target in targets]
        self._node(func, bound, read, outputs, places, draws=draws)
        for place, (tensor, index) in enumerate(zip(made, outputs, strict=True)):
            if targets:
                self.memory.write(tensor, index)
            elif not self.memory.seen(tensor):
                self._own.add(self.memory.key(tensor))
                self.memory.put(tensor, index)
            elif not self.memory.placed(tensor):
                self._put_view(func, bound, tensor, index, place if len(made) > 1 else None)
            if known:
                self.data[index] = self._real_twin(tensor)

    def _reshape(self, func: Any, bound: dict[str, Any], read: list[int]) -> torch.Tensor:
        """Change the sizes of a tensor in place, and write that down as a view."""
        tensor: torch.Tensor = bound["self"]
        before = tensor.detach()
        if self.memory.key(tensor) not in self._own:
            func(**bound | {"self": (probe := tensor.detach())})
            if probe.shape != tensor.shape:
                raise TraceError(
                    f"trace(model): {self.site()[0]}: {schema.recorded_name(func)}",
                    expected="sizes of the model's own tensors and inputs left as they are",
                    got="a change in place",
                    fix=f"write {schema.short_name(func).removesuffix('_')} without the underscore",
                )
            return tensor
        func(**bound)
        if not self.memory.placed(tensor):
            known = read[0] in self._known
            (index,) = self._results([tensor], read, known=known, draws=False)
            view = schema.out_of_place(func)
            self._node(view, bound, read, (index,), [], draws=False)
            options = {k: v for k, v in bound.items() if k != "self"}
            self.memory.put_view(tensor, before, View(index, 0, None, view, options))
        return tensor

    def _results(
        self, made: list[torch.Tensor], read: list[int], *, known: bool, draws: bool
    ) -> tuple[int, ...]:
        """New values for the results of an operation that read these values."""
        varying = draws or any(self.values[i].varying for i in read)
        depends = any(self.values[i].depends for i in read)
        facts = {"producer": len(self.nodes), "varying": varying, "depends": depends}
        outputs = tuple(self._value(t, "produced", position=i, **facts) for i, t in enumerate(made))
        if known:
            self._known.update(outputs)
        return outputs

    def _put_view(
        self, func: Any, bound: dict[str, Any], tensor: torch.Tensor, index: int, place: int | None
    ) -> None:
        """Remember the result as a view of the operand whose storage it shares."""
        record = self.memory.record(tensor)
        base = next(t for t in _tensors(bound) if self.memory.record(t) is record)
        first = next(iter(bound))
        options = {k: v for k, v in bound.items() if k != first}
        whole = base if plain(base) else self._meta_twin(base)
        self.memory.put_view(tensor, whole, View(index, 0, None, func, options, place))

    def _node(
        self,
        func: Any,
        bound: dict[str, Any],
        read: list[int],
        outputs: tuple[int, ...],
        places: list[int],
        *,
        draws: bool,
    ) -> None:
        """Append a node; `places` are those of the tensors that it writes in place."""
        indices, inplace = iter(read), bool(places)
        arguments = {k: _argument(v, indices) for k, v in schema.complete(func, bound).items()}
        if schema.writes_out(func):
            func, places = schema.out_of_place(func), []
            bound = {k: v for k, v in bound.items() if k in arguments}
        template = tree_map_only(torch.Tensor, lambda _: Slot(), bound)
        path, call = self.site()
        view = schema.copies(func, bound) or bool(func.is_view)
        self.nodes.append(
            Node(
                index=len(self.nodes),
                op=schema.recorded_name(func),
                args=arguments,
                outputs=outputs,
                path=path,
                call=call,
                pointwise=schema.pointwise(func),
                view=view,
                random=draws,
                attrs={"inplace": True} if inplace else {},
                kernel=Replay(func, template, places),
            )
        )

    def _emit(
        self, func: Any, bound: dict[str, Any], sizes: tuple[int, ...], dtype: torch.dtype
    ) -> int:
        """Write down an operation that brings an alias up to date; nothing runs."""
        read = [self._settle(v.value) for v in bound.values() if isinstance(v, At)]
        like = torch.empty(sizes, dtype=dtype, device="meta")
        stand_ins = {k: like if isinstance(v, At) else v for k, v in bound.items()}
        known = all(i in self._known for i in read)
        outputs = self._results([like], read, known=known, draws=False)
        self._node(func, stand_ins, read, outputs, [], draws=False)
        return outputs[0]


class Content(TorchFunctionMode):  # type: ignore[misc]
    """Lets tensors that are written out as lists or numbers keep their content.

    A model asks for them on the device of its activations; on meta the content would be lost
    before any operation could see it.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Make such a tensor on the CPU instead of on meta."""
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor, torch.asarray):
            if torch.device(kwargs.get("device") or "cpu").type == "meta":
                kwargs["device"] = "cpu"
        elif func is torch.Tensor.new_tensor and args[0].is_meta:
            kwargs = {"dtype": args[0].dtype} | kwargs | {"device": "cpu"}
            return torch.tensor(*args[1:], **kwargs)
        return func(*args, **kwargs)


def _tensors(tree: Any) -> list[torch.Tensor]:
    """The tensors in a tree of arguments or results, in order."""
    return [item for item in tree_flatten(tree)[0] if isinstance(item, torch.Tensor)]


def _signature(func: Any, bound: dict[str, Any]) -> Any:
    """What decides the shapes of an operation's results; None where more may."""
    if not schema.functional(func) or torch.is_grad_enabled():
        return None
    leaves, form = tree_flatten(bound)
    parts = [
        geometry(x) if isinstance(x, torch.Tensor) and plain(x) else (type(x), x) for x in leaves
    ]
    key = (func, form, *parts)
    try:
        hash(key)
    except TypeError:
        return None
    return None if any(isinstance(x, torch.Tensor) and not plain(x) for x in leaves) else key


def _argument(item: Any, indices: Iterator[int]) -> Any:
    """An argument as the graph holds it: references, tuples and plain constants."""
    if isinstance(item, torch.Tensor):
        return Ref(next(indices))
    if isinstance(item, (tuple, list)):
        return tuple(_argument(i, indices) for i in item)
    return schema.constant(item)


def _blank(tensor: torch.Tensor) -> torch.Tensor:
    """A meta tensor of the same sizes and strides, on a storage of its own."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _zeros(tensor: torch.Tensor) -> torch.Tensor:
    """A CPU tensor of zeros of the same shape."""
    return torch.zeros(tensor.shape, dtype=tensor.dtype)


def _with_geometry(storage: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The part of a storage that a tensor of another storage occupies there."""
    whole = storage if storage.dtype == like.dtype else storage.view(like.dtype)
    part = whole.as_strided(like.shape, like.stride(), like.storage_offset())
    part = part.conj() if like.is_conj() else part
    return part._neg_view() if like.is_neg() else part


def _is_meta(item: Any) -> bool:
    """Whether an argument is the meta device."""
    return isinstance(item, torch.device) and item.type == "meta"


def _returned(func: Any, bound: dict[str, Any], result: Any) -> Any:
    """What the caller gets: from an operation in place, the very tensors that it wrote."""
    targets = [t for name in schema.targets(func) for t in _tensors(bound[name])]
    if not targets or not func._schema.returns:
        return result
    return targets[0] if len(func._schema.returns) == 1 else tuple(targets)
