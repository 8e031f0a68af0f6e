"""A network as the signal sees it: operations in order, the values between them, the parameters.

A graph is a frozen value that knows no framework. A tracer makes it; transfer rules, the solver
and the reports read it. What changes a tensor in place is written as an operation with a new
result, so a value never changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from fanin.errors import ArgumentError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

Kind = Literal["input", "parameter", "buffer", "constant", "produced"]
# What an argument of an operation may be: a value of the graph, or a constant.
Argument = Any


@dataclass(frozen=True)
class Ref:
    """A reference from an operation's arguments to the value with this index."""

    value: int

    def __repr__(self) -> str:
        return f"%{self.value}"


class Kernel(Protocol):
    """An operation made callable on NumPy arrays, in float64; the tracer attaches it."""

    def __call__(self, *arrays: Array) -> tuple[Array, ...]:
        """Run the operation on one array for each of the node's inputs; one array an output."""

    def vjp(
        self, arrays: Sequence[Array], cotangents: Sequence[Array | None]
    ) -> tuple[Array | None, ...]:
        """Cotangents of the inputs, from those of the outputs; None where there is no gradient."""


@dataclass(frozen=True)
class Value:
    """A tensor of the network at one moment.

    Args:
        index: its place in `Graph.values`.
        shape: sizes, with the batch axis of the example inputs.
        dtype: "float32", "int64", ....
        kind: "input", "parameter", "buffer", "constant", or "produced" by a node.
        producer: index of the node that made it, None for a leaf.
        position: which of the producer's outputs it is.
        name: of an input, parameter or buffer; empty for the others.
        varying: whether it depends on an input or on randomness (dropout, noise).
        depends: whether it depends on a parameter (through any operation).
        data: its content where it does not depend on weights and is small enough to be kept:
            position ids, masks, tables, given inputs. None where it is not known.
    """

    index: int
    shape: tuple[int, ...]
    dtype: str
    kind: Kind
    producer: int | None = None
    position: int = 0
    name: str = ""
    varying: bool = False
    depends: bool = False
    data: Array | None = field(default=None, compare=False, repr=False)

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def floating(self) -> bool:
        """Whether the elements are real (or complex) numbers."""
        return self.dtype.startswith(("float", "bfloat")) or self.complex

    @property
    def complex(self) -> bool:
        """Whether the elements are complex numbers."""
        return self.dtype.startswith("complex")

    def __str__(self) -> str:
        return f"%{self.index}: {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Node:
    """One operation.

    Args:
        index: its place in execution order.
        op: its name with the overload, such as "aten.linear.default"; an operation in place
            stands under the name of the one that makes a new tensor.
        args: arguments by the names of the operation's own schema, in its order, with the
            defaults filled in. A tensor is a `Ref`; lists are tuples; a dtype is a string.
        outputs: indices of the values it makes.
        path: the module that called it ("" for the whole model), such as "layer1.0.conv1".
        call: which call of that module, counted from 0: above 0 for a shared module.
        pointwise: each element of the result depends on the same element of the operands alone.
        view: the result holds elements of the first operand, unchanged.
        random: it draws random numbers.
        attrs: further facts: {"inplace": True} for an operation written in place.
        kernel: the operation on arrays; None in a graph read from a file.
    """

    index: int
    op: str
    args: Mapping[str, Argument]
    outputs: tuple[int, ...]
    path: str = ""
    call: int = 0
    pointwise: bool = False
    view: bool = False
    random: bool = False
    attrs: Mapping[str, Any] = field(default_factory=dict)
    kernel: Kernel | None = field(default=None, compare=False, repr=False)

    @cached_property
    def inputs(self) -> tuple[int, ...]:
        """Indices of the values among the arguments, in order, each as often as it occurs."""
        return tuple(refs(self.args))

    @property
    def name(self) -> str:
        """The operation without namespace and overload: "linear" of "aten.linear.default"."""
        return self.op.split(".")[1]

    def __getitem__(self, argument: str) -> Argument:
        return self.args[argument]

    def get(self, argument: str, default: Argument = None) -> Argument:
        """The argument of this name, or the default where the operation has none."""
        return self.args.get(argument, default)

    def __str__(self) -> str:
        made = ", ".join(f"%{i}" for i in self.outputs)
        given = ", ".join(f"{k}={_short(v)}" for k, v in self.args.items() if v is not None)
        call = f" (call {self.call})" if self.call else ""
        return f"{made} = {self.op}({given})  # {self.path or '(model)'}{call}"


@dataclass(frozen=True)
class Parameter:
    """A parameter or buffer of the model; a tied tensor is one, with several names.

    Args:
        name: the first name that reaches it, as `named_parameters` gives it.
        names: all names that reach it.
        shape, dtype: of the whole tensor, also where a rank holds a shard of it.
        kind: "parameter" or "buffer".
        trainable: whether it asks for a gradient.
        value: index of its value; None if no operation reads it.
        persistent: False for a buffer that the state dict leaves out.
    """

    name: str
    names: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    kind: Literal["parameter", "buffer"] = "parameter"
    trainable: bool = True
    value: int | None = None
    persistent: bool = True


@dataclass(frozen=True)
class Parametrization:
    """A weight that is computed from other parameters before each use.

    Args:
        name: the weight as the layer sees it, "fc.weight".
        originals: names of the parameters and buffers that it is computed from.
        how: class names of the parametrizations, in order, such as ("_WeightNorm",).
        values: indices of the computed weights, one for each time it was computed.
    """

    name: str
    originals: tuple[str, ...]
    how: tuple[str, ...]
    values: tuple[int, ...]


@dataclass(frozen=True)
class Module:
    """A module of the model: its path, its class as "package.module.Class", its number of calls."""

    path: str
    kind: str
    calls: int = 0
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Graph:
    """A traced network.

    Args:
        nodes: operations in the order in which they ran.
        values: all tensors, leaves and produced.
        parameters: every parameter and buffer of the model, used or not, each once.
        inputs: indices of the input values, in the order of the arguments.
        outputs: indices of the values that the model returned, in order of the structure.
        modules: every module, called or not, in order of registration.
        parametrizations: the weights that are computed from other parameters.
        notes: what the reader must know: a fallback and its reason, what was not seen.
        training: whether the model was traced in training mode.

    Example:
        >>> x, w, y = (Value(0, (8, 4), "float32", "input", name="x", varying=True),
        ...            Value(1, (2, 4), "float32", "parameter", name="weight"),
        ...            Value(2, (8, 2), "float32", "produced", producer=0, varying=True))
        >>> args = {"input": Ref(0), "weight": Ref(1), "bias": None}
        >>> node = Node(0, "aten.linear.default", args, (2,))
        >>> weight = Parameter("weight", ("weight",), (2, 4), "float32", value=1)
        >>> graph = Graph((node,), (x, w, y), (weight,), inputs=(0,), outputs=(2,))
        >>> print(node)
        %2 = aten.linear.default(input=%0, weight=%1)  # (model)
        >>> graph.consumers(graph.values[1])[0].name
        'linear'
    """

    nodes: tuple[Node, ...]
    values: tuple[Value, ...]
    parameters: tuple[Parameter, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    modules: tuple[Module, ...] = ()
    parametrizations: tuple[Parametrization, ...] = ()
    notes: tuple[str, ...] = ()
    training: bool = False

    def value(self, reference: Ref | int) -> Value:
        """The value that a reference or an index names."""
        return self.values[reference.value if isinstance(reference, Ref) else reference]

    def operands(self, node: Node) -> tuple[Value, ...]:
        """The values that a node reads, in order."""
        return tuple(self.values[i] for i in node.inputs)

    def results(self, node: Node) -> tuple[Value, ...]:
        """The values that a node makes."""
        return tuple(self.values[i] for i in node.outputs)

    def producer(self, value: Value | Ref | int) -> Node | None:
        """The node that made a value; None for an input, parameter, buffer or constant."""
        index = self.index(value)
        made_by = self.values[index].producer
        return None if made_by is None else self.nodes[made_by]

    def consumers(self, value: Value | Ref | int) -> tuple[Node, ...]:
        """The nodes that read a value, in execution order, each once."""
        return tuple(self.nodes[i] for i in self._readers.get(self.index(value), ()))

    def origin(self, value: Value | Ref | int) -> Value:
        """The value at the start of a chain of views, copies and casts; itself if there is none."""
        index = self.index(value)
        while (node := self.producer(index)) is not None and node.view:
            index = node.inputs[0]
        return self.values[index]

    def parameter(self, key: Value | Ref | int | str) -> Parameter | None:
        """The parameter or buffer with one of its names, or of a value that is one."""
        if isinstance(key, str):
            return self._by_name.get(key)
        value = self.values[self.index(key)]
        return self._by_name.get(value.name) if value.kind in ("parameter", "buffer") else None

    def parametrization(self, value: Value | Ref | int) -> Parametrization | None:
        """The parametrization that computed this value, or None."""
        return self._computed.get(self.index(value))

    def module(self, path: str) -> Module | None:
        """The module at this path, or None."""
        return self._modules.get(path)

    def walk(self) -> Iterator[tuple[Node, tuple[Value, ...], tuple[Value, ...]]]:
        """Nodes in execution order, each with the values it reads and the values it makes."""
        for node in self.nodes:
            yield node, self.operands(node), self.results(node)

    def __str__(self) -> str:
        leaves = [f"{v}  # {v.kind} {v.name}".rstrip() for v in self.values if v.producer is None]
        outputs = ", ".join(f"%{i}" for i in self.outputs)
        lines = [*leaves, *map(str, self.nodes), f"return {outputs}"]
        return "\n".join(lines + [f"# note: {note}" for note in self.notes])

    def index(self, value: Value | Ref | int) -> int:
        """The index of a value, however it is named."""
        if isinstance(value, Value):
            return value.index
        return value.value if isinstance(value, Ref) else value

    @cached_property
    def _readers(self) -> dict[int, list[int]]:
        """For each value the nodes that read it."""
        readers: dict[int, list[int]] = {}
        for node in self.nodes:
            for index in dict.fromkeys(node.inputs):
                readers.setdefault(index, []).append(node.index)
        return readers

    @cached_property
    def _by_name(self) -> dict[str, Parameter]:
        """Parameters and buffers by each of their names."""
        return {name: p for p in self.parameters for name in p.names}

    @cached_property
    def _computed(self) -> dict[int, Parametrization]:
        """Parametrizations by the values that they computed."""
        return {index: p for p in self.parametrizations for index in p.values}

    @cached_property
    def _modules(self) -> dict[str, Module]:
        """Modules by each of their paths."""
        return {name: m for m in self.modules for name in (m.path, *m.names)}


def refs(argument: Argument) -> Iterator[int]:
    """Indices of the values inside an argument, however deep, in order."""
    if isinstance(argument, Ref):
        yield argument.value
    elif isinstance(argument, Mapping):
        for item in argument.values():
            yield from refs(item)
    elif isinstance(argument, (tuple, list)):
        for item in argument:
            yield from refs(item)


def _short(argument: Argument) -> str:
    """An argument as text, cut to a few items."""
    if isinstance(argument, tuple) and len(argument) > 6:
        return f"({', '.join(map(_short, argument[:5]))}, ... {len(argument)})"
    if isinstance(argument, tuple):
        inside = ", ".join(map(_short, argument))
        return f"({inside},)" if len(argument) == 1 else f"({inside})"
    return repr(argument)


def to_dict(graph: Graph) -> dict[str, Any]:
    """The graph as plain lists and dicts that JSON can hold; kernels and data are left out."""

    def plain(item: Any) -> Any:
        if isinstance(item, Ref):
            return {"%": item.value}
        if isinstance(item, (tuple, list)):
            return [plain(i) for i in item]
        if isinstance(item, Mapping):
            return {str(k): plain(v) for k, v in item.items()}
        if isinstance(item, complex):
            return {"complex": [item.real, item.imag]}
        return item

    def fields(record: Any) -> dict[str, Any]:
        skipped = ("kernel", "data")
        return {
            k: plain(getattr(record, k)) for k in record.__dataclass_fields__ if k not in skipped
        }

    return {
        "format": "fanin.graph/1",
        **{
            k: [fields(record) for record in getattr(graph, k)]
            for k in ("nodes", "values", "parameters", "modules", "parametrizations")
        },
        **{k: plain(getattr(graph, k)) for k in ("inputs", "outputs", "notes", "training")},
    }


def from_dict(content: Mapping[str, Any]) -> Graph:
    """The graph that `to_dict` wrote; its nodes have no kernels.

    Raises:
        ArgumentError: the content is not that of a graph.
    """
    if content.get("format") != "fanin.graph/1":
        raise ArgumentError(
            "from_dict(content)", expected="format fanin.graph/1", got=repr(content.get("format"))
        )

    def rich(item: Any) -> Any:
        if isinstance(item, list):
            return tuple(rich(i) for i in item)
        if isinstance(item, dict):
            if set(item) == {"%"}:
                return Ref(item["%"])
            if set(item) == {"complex"}:
                return complex(*item["complex"])
            return {k: rich(v) for k, v in item.items()}
        return item

    kinds = {
        "nodes": Node,
        "values": Value,
        "parameters": Parameter,
        "modules": Module,
        "parametrizations": Parametrization,
    }
    parts: dict[str, Any] = {
        k: tuple(kind(**{n: rich(v) for n, v in record.items()}) for record in content[k])
        for k, kind in kinds.items()
    }
    rest = {k: rich(content[k]) for k in ("inputs", "outputs", "notes", "training")}
    return Graph(**parts, **rest)
