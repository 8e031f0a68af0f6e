"""From a model and example inputs to its signal graph, without touching the model."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from torch import nn
from torch.distributions import Distribution
from torch.utils._pytree import tree_flatten_with_path, tree_leaves, tree_map

from fanin.errors import ArgumentTypeError, TraceError
from fanin.signal.graph import Graph, Parameter, Parametrization
from fanin.signal.spec import Spec
from fanin.torch.calling import (
    distribution_parameters,
    does_not_run,
    module_of,
    parameters_of,
)
from fanin.torch.tracing.memory import plain
from fanin.torch.tracing.modules import (
    Named,
    Sites,
    drop_sharding_hooks,
    is_lazy,
    named_tensors,
    original,
    put_back,
    watch_lazy,
)
from fanin.torch.tracing.recorder import Content, NeedsDataError, Recorder

if TYPE_CHECKING:
    from numpy.typing import NDArray

Inputs: TypeAlias = torch.Tensor | Spec | Sequence[Any] | Mapping[str, Any]
_KEPT_DATA = 1 << 22  # elements of a value whose content the graph keeps


def trace(model: nn.Module, inputs: Inputs) -> Graph:
    """The signal graph of one forward pass.

    The pass runs on meta tensors, in the model's own mode: no weight is read or copied, and the
    parameters, buffers, attributes and hooks of the model and all random generators stay as they
    are. Where the content of a tensor decides what runs, or an operation has no meta kernel, the
    pass is repeated on real tensors, and `Graph.notes` says why.

    Args:
        model: any module; on meta, or real, or inside `torch.compile` or data parallelism.
        inputs: a tensor, a `fanin.spec`, a tuple of arguments, or a dict of keyword arguments;
            structures inside are kept, with a spec in place of any tensor.

    Returns:
        The graph; every parameter and buffer of the model is in it.

    Raises:
        ArgumentTypeError: the model is no module, or no input is a tensor or spec.
        TraceError: the model itself fails on these inputs, or needs real tensors and has none.

    Example:
        >>> graph = trace(nn.Sequential(nn.Linear(4, 8), nn.GELU()), Spec((2, 4)))
        >>> print(*graph.nodes, sep="\\n")
        %3 = aten.linear.default(input=%0, weight=%1, bias=%2)  # 0
        %4 = aten.gelu.default(self=%3, approximate='none')  # 1
    """
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError("trace(model)", expected="a torch.nn.Module", got=repr(model))
    model = original(model)
    args, kwargs = _arguments(model, inputs)
    forward = _Pass(model, args, kwargs)
    tensors = (*model.parameters(), *model.buffers(), *tree_leaves((args, kwargs)))
    on_meta = any(isinstance(t, torch.Tensor) and t.is_meta for t in tensors)
    # In order of cost; the last is for models that differentiate inside their forward.
    attempts = [(False, False)] if on_meta else [(False, False), (True, False)]
    attempts.append((not on_meta, True))
    failures: list[TraceError] = []
    for real, grad in attempts:
        try:
            graph = forward.run(real=real, grad=grad)
        except TraceError as error:
            failures.append(error)
            continue
        how = " on real tensors" if real else " with gradients"
        notes = tuple(
            f"traced{how}; else {e.where.removeprefix('trace(model): ')} ends in {e.got}"
            for e in failures[:1]
        )
        return dataclasses.replace(graph, notes=(*notes, *graph.notes))
    raise failures[0 if on_meta else 1]  # real tensors say best what is wrong


class _Pass:
    """One model with its arguments, to be run until a way is found that works."""

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.model, self.args, self.kwargs = model, args, kwargs
        self.named = named_tensors(model)
        whole = args[0] if len(args) == 1 and not kwargs else None
        names = [key for key in whole if isinstance(key, str)] if isinstance(whole, dict) else []
        self.strange = next((n for n in names if not _takes(model, {n: None})), None)

    def run(self, *, real: bool, grad: bool) -> Graph:
        """Run the forward pass and return what was recorded."""
        self.computed: dict[tuple[str, tuple[str, ...]], list[int]] = {}
        self.sites = Sites(self.model, self._computed)
        self.recorder = Recorder(self.sites, real=real)
        self.leaves: dict[str, tuple[Named, int]] = {}
        for named in self.named:
            if not is_lazy(named.tensor):
                self._adopt(named)
        args, kwargs, inputs = self._place_inputs(real=real)
        try:
            with put_back(self.model), _undisturbed(), self.sites, _autograd(grad):
                drop_sharding_hooks(self.model)
                watch_lazy(self.model, None if real else "meta", self._pause, self._shaped)
                with self.recorder, Content():
                    result = self.model(*args, **kwargs)
                outputs = tuple(self.recorder.index_of(t) for t in _tensors(result))
        except Exception as error:
            failed = self._failed(error, real=real)
            raise failed from (None if failed is error else error)
        return self._graph(inputs, outputs)

    def _adopt(self, named: Named) -> None:
        """Let the recorder know a tensor of the model."""
        leaf = self.recorder.adopt(named.tensor, _kind(named), named.names[0], known=_known(named))
        self.leaves[named.names[0]] = named, leaf

    def _pause(self) -> None:
        """A lazy module finds its shapes, which is no part of the network."""
        self.recorder.paused = True

    def _shaped(self, module: nn.Module) -> None:
        """A lazy module has found its shapes: its parameters are there now."""
        self.recorder.paused = False
        path = self.sites()[0]
        for named in self.named:
            owner, _, name = named.names[0].rpartition(".")
            if is_lazy(named.tensor) and owner == path:
                self._adopt(dataclasses.replace(named, tensor=getattr(module, name)))

    def _computed(self, name: str, how: tuple[str, ...], weight: torch.Tensor) -> None:
        """Note a weight that a parametrization computed."""
        values = self.computed.setdefault((name, how), [])
        if (index := self.recorder.index_of(weight)) not in values:
            values.append(index)

    def _place_inputs(self, *, real: bool) -> tuple[tuple[Any, ...], dict[str, Any], list[int]]:
        """The arguments with a tensor for each spec, and the values of the inputs."""
        generator = torch.Generator().manual_seed(0)
        device = next((n.tensor.device for n in self.named), torch.device("cpu"))
        names = _input_names(self.model, self.args, self.kwargs)
        inputs: list[int] = []

        def place(leaf: Any) -> Any:
            if not _is_tensor(leaf):
                return leaf
            given = isinstance(leaf, torch.Tensor)
            tensor = leaf if given else _sample(leaf, generator, device if real else "meta")
            name = names[len(inputs)]
            self.recorder.adopt(tensor, "input", name, known=given and not tensor.is_meta)
            inputs.append(self.recorder.index_of(tensor))
            return tensor

        args, kwargs = tree_map(place, (self.args, self.kwargs))
        return args, kwargs, inputs

    def _graph(self, inputs: list[int], outputs: tuple[int, ...]) -> Graph:
        """Put the recorded parts together."""
        recorder = self.recorder
        shapeless = [n.names[0] for n in self.named if n.names[0] not in self.leaves]
        if shapeless:
            raise TraceError(
                f"trace(model): {shapeless[0]}",
                expected="every lazy module called",
                got="a lazy parameter that no operation gave a shape",
                fix="run the model's other parts once, or remove it",
            )
        lazy = [n.names[0] for n in self.named if is_lazy(n.tensor)]
        notes = [f"lazy, with the shapes that these inputs give: {', '.join(lazy)}"] if lazy else []
        return Graph(
            nodes=tuple(recorder.nodes),
            values=tuple(
                dataclasses.replace(v, data=self._content(v.index)) for v in recorder.values
            ),
            parameters=tuple(
                _parameter(n, recorder.value_of(leaf))
                for n, leaf in (self.leaves[n.names[0]] for n in self.named)
            ),
            inputs=tuple(inputs),
            outputs=outputs,
            modules=self.sites.table(),
            parametrizations=tuple(self._parametrizations()),
            notes=tuple(dict.fromkeys([*recorder.notes, *notes])),
            training=self.model.training,
        )

    def _content(self, index: int) -> NDArray[Any] | None:
        """The content of a value as an array, where it is known and of bearable size."""
        tensor = self.recorder.data.get(index)
        if tensor is None or tensor.is_meta or not plain(tensor):
            return None
        numpy_has_it = tensor.dtype not in (torch.bfloat16, torch.float16)
        if tensor.numel() > _KEPT_DATA and not (numpy_has_it and tensor.device.type == "cpu"):
            return None
        array: NDArray[Any] = (tensor if numpy_has_it else tensor.float()).numpy(force=True)
        return array

    def _parametrizations(self) -> Iterator[Parametrization]:
        """The weights that were computed from others, with the names of those."""
        for (name, how), values in self.computed.items():
            layer, _, weight = name.rpartition(".")
            prefix = f"{layer}." if layer else ""
            new, old = f"{prefix}parametrizations.{weight}.", f"{prefix}{weight}_"
            originals = [n.names[0] for n in self.named if n.names[0].startswith((new, old))]
            yield Parametrization(name, tuple(originals), how, tuple(values))

    def _failed(self, error: Exception, *, real: bool) -> TraceError:
        """The error of a pass that did not run to its end: where, which operation, what to do."""
        if isinstance(error, TraceError):
            return error
        path, op = module_of(self.model, error), ""
        if self.recorder.failure is not None and self.recorder.failure[2] is error:
            path, op, _ = self.recorder.failure
        where = f"trace(model): {path or 'the model itself'}"
        what, fix = f"{op or type(error).__name__}: {error}", ""
        if isinstance(error, NeedsDataError) or (
            isinstance(error, NotImplementedError) and not real
        ):
            fix = "give a model with real weights: meta tensors have no content"
        elif self.strange:
            fix = f"forward has no argument {self.strange!r}, so that it got the whole dict"
        return does_not_run(where, what, fix)


@contextlib.contextmanager
def _autograd(on: bool) -> Iterator[None]:
    """With gradients, or below autograd: there operations are not yet taken apart."""
    if on:
        with torch.enable_grad():
            yield
    else:
        with torch.no_grad(), torch._C._AutoDispatchBelowADInplaceOrView():
            yield


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Random generators and global switches are as before at the end; nothing is compiled."""
    state, numpy_state = random.getstate(), np.random.get_state()
    fast = torch.backends.mha.get_fastpath_enabled()
    with torch.random.fork_rng(), _eager():
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            random.setstate(state)
            np.random.set_state(numpy_state)


def _eager() -> contextlib.AbstractContextManager[Any]:
    """Compiled parts of the model run as written, where this torch can say so."""
    stance = getattr(torch.compiler, "set_stance", None)
    return contextlib.nullcontext() if stance is None else stance("force_eager")


def _is_tensor(leaf: Any) -> bool:
    """Whether a leaf of the inputs is a tensor or stands for one."""
    return isinstance(leaf, (torch.Tensor, Spec))


def _arguments(model: nn.Module, inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of the forward pass."""
    if not any(map(_is_tensor, tree_leaves(inputs))):
        raise ArgumentTypeError(
            "trace(inputs)",
            expected="a tensor, a fanin.spec, or a tuple or dict with one of them",
            got=type(inputs).__name__,
            fix="write fanin.spec((batch, features)) if no data is at hand",
        )
    if isinstance(inputs, (tuple, list)) and type(inputs) in (tuple, list):
        return tuple(inputs), {}  # a named tuple is one argument
    if isinstance(inputs, Mapping):
        return ((), dict(inputs)) if _takes(model, inputs) else ((inputs,), {})
    return (inputs,), {}


def _takes(model: nn.Module, inputs: Mapping[str, Any]) -> bool:
    """Whether the model's forward takes these names as keyword arguments."""
    parameters = parameters_of(model)
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return True
    return set(inputs) <= {p.name for p in parameters if p.kind is not p.POSITIONAL_ONLY}


def _input_names(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """A name for each tensor among the arguments, from the signature and the place inside."""
    signature = [p.name for p in parameters_of(model)]
    found = []
    for place, leaf in tree_flatten_with_path((args, kwargs))[0]:
        if _is_tensor(leaf):
            keys: list[Any] = [getattr(k, "idx", getattr(k, "key", k)) for k in place]
            positional, first = keys[0] == 0, keys[1]
            keys[1] = signature[first] if positional and first < len(signature) else first
            found.append(".".join(map(str, keys[1:])))
    return found


def _sample(spec: Spec, generator: torch.Generator, device: Any) -> torch.Tensor:
    """A tensor for a spec: of its shape on meta, drawn from its law elsewhere."""
    dtype = getattr(torch, spec.dtype)
    if str(device) == "meta":
        return torch.empty(spec.shape, dtype=dtype, device="meta")
    if spec.floating:
        return torch.randn(spec.shape, generator=generator).to(device, dtype)
    return torch.randint(spec.high, spec.shape, generator=generator).to(device, dtype)


def _kind(named: Named) -> Literal["parameter", "buffer"]:
    """The kind of value that a tensor of the model is."""
    return "parameter" if named.kind == "parameter" else "buffer"


def _known(named: Named) -> bool:
    """Whether the content counts as known: that of a real buffer does, a weight's does not."""
    return named.kind == "buffer" and not named.tensor.is_meta


def _parameter(named: Named, value: int | None) -> Parameter:
    """The graph's entry for a tensor of the model."""
    return Parameter(
        name=named.names[0],
        names=named.names,
        shape=tuple(named.tensor.shape),
        dtype=str(named.tensor.dtype).removeprefix("torch."),
        kind=_kind(named),
        trainable=named.tensor.requires_grad,
        value=value,
        persistent=named.persistent,
    )


def _tensors(result: Any) -> Iterator[torch.Tensor]:
    """The tensors in what a model returned, whatever holds them, in order."""
    for leaf in tree_leaves(result):
        if isinstance(leaf, torch.Tensor):
            yield leaf
        elif isinstance(leaf, Mapping):
            yield from _tensors(dict(leaf))
        elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            yield from _tensors([getattr(leaf, f.name) for f in dataclasses.fields(leaf)])
        elif isinstance(leaf, Distribution):
            yield from _tensors(distribution_parameters(leaf))
