"""Elementwise fusion: a subgraph of elementwise operations with one source is one activation.

Nothing needs a registration: the subgraph itself is run on the quadrature nodes, in float64. A
value's *root* is what it is an elementwise function of. Adding, or multiplying by, a parameter or
a table (a bias, a LayerScale gain, position codes) ends a subgraph, since it is a layer's own step;
it stays inside where the subgraph would fall apart without it, as in x * sigmoid(beta * x).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from fanin.errors import ArgumentError
from fanin.signal.graph import Graph, Node, Ref, Value
from fanin.theory.activation import activation, names

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

# With a tensor that is no data, these are steps of a layer and not part of an activation.
_STEPS = frozenset(
    {"add", "sub", "rsub", "mul", "div", "masked_fill", "where", "_to_copy", "clone"}
)
_SIGNS = {"add": "+", "sub": "-", "mul": "*", "div": "/", "pow": "**"}
_TEXT_LIMIT = 120


@dataclass(frozen=True)
class Function:
    """A fused subgraph as a function of its source, callable on float64 arrays.

    Args:
        nodes: the operations, in order.
        source: index of the value that it is a function of.
        output: index of the value that it gives.
        operands: indices of the parameters and tables that it reads besides, in order.
        text: the formula, with x for the source.
    """

    nodes: tuple[Node, ...]
    source: int
    output: int
    operands: tuple[int, ...] = ()
    text: str = "x"

    def __call__(self, x: Array, *operands: Array) -> Array:
        """The function of an array of any shape that the operands broadcast with.

        A truth value or an integer, as of x > 0, is a number as well.
        """
        y = self._forward(x, operands)[self.output]
        return y.astype(np.float64) if y.dtype.kind in "bui" else y

    def derivative(self, x: Array, *operands: Array) -> Array:
        """Its derivative at each element of an array."""
        arrays = self._forward(x, operands)
        slopes: dict[int, Array] = {self.output: np.ones(np.shape(arrays[self.output]))}
        for node in reversed(self.nodes):
            given = slopes.pop(node.outputs[0], None)
            if given is None or node.kernel is None:
                continue
            pulled = node.kernel.vjp([arrays[i] for i in node.inputs], [given])
            for index, slope in zip(node.inputs, pulled, strict=True):
                if slope is not None and index not in self.operands:
                    slopes[index] = slopes.get(index, 0.0) + slope
        zero = np.zeros_like(np.asarray(x, dtype=np.float64))
        return zero + slopes.get(self.source, zero)

    @cached_property
    def name(self) -> str | None:
        """The registered activation that it equals, such as "mish"; None if there is none."""
        if self.operands or self.trivial:
            return None
        x = np.linspace(-6.0, 6.0, 41)
        y = self(x)
        equal = (n for n in names() if np.allclose(activation(n)(x), y, rtol=1e-12, atol=1e-13))
        return next(equal, None)

    @property
    def trivial(self) -> bool:
        """Whether it is the identity, having no operation."""
        return not self.nodes

    def __str__(self) -> str:
        return self.text

    def _forward(self, x: Array, operands: Sequence[Array]) -> dict[int, Array]:
        """All values of the subgraph."""
        if len(operands) != len(self.operands):
            raise ArgumentError(
                f"{self.text}",
                expected=f"the source and {len(self.operands)} operands",
                got=f"{len(operands)} operands",
            )
        arrays = {self.source: np.asarray(x, dtype=np.float64)}
        arrays.update(zip(self.operands, operands, strict=True))
        for node in self.nodes:
            if node.kernel is None:
                raise ArgumentError(
                    f"{self.text}",
                    expected="a graph from a trace",
                    got="one read from a file, whose operations cannot run",
                )
            arrays[node.outputs[0]] = node.kernel(*(arrays[i] for i in node.inputs))[0]
        return arrays


@dataclass(frozen=True)
class Product:
    """A product of two functions of different sources, such as the gate of a GLU.

    Args:
        node: the multiplication.
        left, right: the functions that are multiplied.
        independent: whether the sources are different outputs of layers with weights, or
            different parts of one such output, and so independent over the draw of the weights.
    """

    node: Node
    left: Function
    right: Function
    independent: bool

    def __str__(self) -> str:
        left, right = self.left.text, self.right.text.replace("x", "y")
        return f"({left}) * ({right})"


@dataclass(frozen=True)
class Fusion:
    """What `fuse` found.

    Args:
        graph: the graph that was read.
    """

    graph: Graph
    _roots: dict[int, int] = field(repr=False)

    def function(self, value: Value | Ref | int) -> Function:
        """A value as a function of its root; the identity where it is its own root."""
        return self._function(self.graph.index(value))

    @cached_property
    def activations(self) -> tuple[Function, ...]:
        """The maximal functions in order of execution: read by others, or returned."""
        returned = set(self.graph.outputs)
        ends = [i for i, root in self._roots.items() if i != root and self._ends(i, returned)]
        return tuple(self._function(i) for i in sorted(ends, key=self._made))

    @cached_property
    def products(self) -> tuple[Product, ...]:
        """The products of functions of two sources, in order of execution."""
        return tuple(p for n in self.graph.nodes if (p := self._product(n)) is not None)

    def _ends(self, index: int, returned: set[int]) -> bool:
        """Whether a value leaves its subgraph: read outside it, returned, or left unread."""
        readers = self.graph.consumers(index)
        root = self._roots[index]
        inside = [bool(n.outputs) and self._roots.get(n.outputs[0]) == root for n in readers]
        return index in returned or not inside or not all(inside)

    def _made(self, index: int) -> int:
        """When a value was made, as the index of its node."""
        producer = self.graph.values[index].producer
        return -1 if producer is None else producer

    def _function(self, index: int) -> Function:
        """The operations between a value's root and the value, as a function."""
        root = self._roots.get(index, index)
        needed: dict[int, Node] = {}
        operands: dict[int, None] = {}
        waiting = [index]
        while waiting:
            i = waiting.pop()
            node = self.graph.producer(i)
            if i == root:
                continue
            if self._roots.get(i) != root or node is None:
                operands[i] = None
            elif node.index not in needed:
                needed[node.index] = node
                waiting.extend(node.inputs)
        nodes = tuple(needed[i] for i in sorted(needed))
        order = tuple(i for n in nodes for i in n.inputs if i in operands)
        return Function(nodes, root, index, tuple(dict.fromkeys(order)), _text(nodes, root, index))

    def _product(self, node: Node) -> Product | None:
        """The node as a product of two functions, if it is one."""
        both = node.inputs
        if node.name != "mul" or len(both) != 2:
            return None
        values = [self.graph.values[i] for i in both]
        roots = [self._roots.get(i, i) for i in both]
        if roots[0] == roots[1] or not all(v.varying and v.floating for v in values):
            return None
        if self._roots.get(node.outputs[0], node.outputs[0]) != node.outputs[0]:
            return None
        left, right = (self._function(i) for i in both)
        return Product(node, left, right, self._independent(*roots))

    def _independent(self, one: int, other: int) -> bool:
        """Whether two values are outputs of weights that share nothing."""
        ends, ends_too = self._way_back(one), self._way_back(other)
        if ends is None or ends_too is None:
            return False
        (made, weights, parts), (made_too, weights_too, parts_too) = ends, ends_too
        if made == made_too:
            return parts != parts_too
        return not weights & weights_too

    def _way_back(self, index: int) -> tuple[int, frozenset[int], tuple[Any, ...]] | None:
        """The weighted output that a value is a view of, its weights, and which part it is."""
        parts: list[Any] = []
        while (node := self.graph.producer(index)) is not None and node.view:
            if node.name in ("split", "split_with_sizes", "chunk", "unbind", "slice", "select"):
                options = tuple((k, v) for k, v in node.args.items() if not isinstance(v, Ref))
                parts.append((node.name, options, node.outputs.index(index)))
            index = node.inputs[0]
        weights = [v for v in self.graph.operands(node) if not v.varying] if node else []
        if not any(v.depends for v in weights):
            return None
        return index, frozenset(self.graph.origin(v).index for v in weights), tuple(parts)


def fuse(graph: Graph) -> Fusion:
    """The elementwise subgraphs of a graph, each as one function of one source.

    *Definition*: the root r(v) of a value v made by an elementwise operation of operands u_1..u_k
    is the common r(u_i) of those that depend on data, if they have one and v has its shape;
    else v itself. The activations are the functions v = f(r(v)) that are read elsewhere.

    Args:
        graph: a traced graph.

    Returns:
        The functions, by value and as a list of the maximal ones, and the products of two.

    Example:
        >>> from fanin.signal.graph import Parameter
        >>> x = Value(0, (8, 4), "float32", "input", name="x", varying=True)
        >>> y = Value(1, (8, 4), "float32", "produced", producer=0, varying=True)
        >>> z = Value(2, (8, 4), "float32", "produced", producer=1, varying=True)
        >>> tanh = Node(0, "aten.tanh.default", {"self": Ref(0)}, (1,), pointwise=True)
        >>> args = {"self": Ref(0), "other": Ref(1)}
        >>> mul = Node(1, "aten.mul.Tensor", args, (2,), pointwise=True)
        >>> print(*fuse(Graph((tanh, mul), (x, y, z), (), (0,), (2,))).activations)
        (x * tanh(x))
    """
    roots: dict[int, int] = {}
    wide: dict[int, int] = {}  # roots that see through the steps of layers
    for node in graph.nodes:
        if not _fusable(graph, node):
            continue
        made = graph.values[node.outputs[0]]
        data, tables = _operands(graph, node)
        near = {roots.get(v.index, v.index) for v in data}
        far = {wide.get(v.index, v.index) for v in data}
        wide[made.index] = _common(graph, far, made)
        if tables and len(near) == 1 and node.name in _STEPS:
            roots[made.index] = made.index
        elif len(near) == 1:
            roots[made.index] = _common(graph, near, made)
        else:
            roots[made.index] = wide[made.index]
            if wide[made.index] != made.index:
                _take_in(graph, node, roots, wide)
    return Fusion(graph, roots)


def _fusable(graph: Graph, node: Node) -> bool:
    """Whether a node is an elementwise function of data that are real numbers."""
    if not node.pointwise or node.random or len(node.outputs) != 1:
        return False
    return any(v.floating and (v.varying or v.depends) for v in graph.operands(node))


def _operands(graph: Graph, node: Node) -> tuple[list[Value], list[Value]]:
    """The operands that are data, and those that are parameters or tables.

    A constant of one element is neither. Where no operand depends on an input, as in exp(A) of a
    parameter A, the parameters are the data.
    """
    operands = graph.operands(node)
    data = [v for v in operands if v.varying]
    data = data or [v for v in operands if v.depends]
    chosen = {v.index for v in data}
    rest = [v for v in operands if v.index not in chosen]
    return data, [v for v in rest if v.size > 1 or v.depends]


def _common(graph: Graph, roots: set[int], made: Value) -> int:
    """The one root of the operands, if the result has its shape; else the result itself."""
    root = next(iter(roots)) if len(roots) == 1 else made.index
    return root if graph.values[root].shape == made.shape else made.index


def _take_in(graph: Graph, node: Node, roots: dict[int, int], wide: dict[int, int]) -> None:
    """Let the steps of layers between a joined value and its root be part of its function."""
    root = wide[node.outputs[0]]
    waiting = [i for i in node.inputs if wide.get(i) == root]
    while waiting:
        index = waiting.pop()
        made_by = graph.producer(index)
        if index == root or made_by is None:
            continue
        roots[index] = root
        waiting.extend(i for i in made_by.inputs if wide.get(i) == root and roots.get(i) != root)


def _text(nodes: tuple[Node, ...], source: int, output: int) -> str:
    """The formula of a subgraph, cut if it is long."""
    texts: dict[int, str] = {source: "x"}
    for node in nodes:
        given = [_term(v, texts) for k, v in node.args.items() if not _silent(k, v)]
        if node.name in ("_to_copy", "clone"):
            texts[node.outputs[0]] = given[0]
        elif node.name in _SIGNS and len(given) == 2:
            texts[node.outputs[0]] = f"({given[0]} {_SIGNS[node.name]} {given[1]})"
        else:
            texts[node.outputs[0]] = f"{node.name}({', '.join(given)})"
    text = texts.get(output, "x")
    return text if len(text) <= _TEXT_LIMIT else f"f(x) of {len(nodes)} operations"


def _silent(name: str, argument: Any) -> bool:
    """Whether an argument is left out of the formula: flags, names, and factors of 1."""
    unit = name in ("alpha", "beta") and argument == 1
    return argument is None or isinstance(argument, (bool, str)) or unit


def _term(argument: Any, texts: dict[int, str]) -> str:
    """An argument in the formula."""
    if isinstance(argument, Ref):
        return texts.get(argument.value, repr(argument))
    return f"{argument:g}" if isinstance(argument, (int, float)) else repr(argument)
