"""One forward and one backward pass over a model, as a value."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fanin.errors import ArgumentTypeError
from fanin.torch.calling import (
    SEED,
    call,
    main_outputs,
    named_tensors,
    realise,
    refuse_unready,
    running,
    unwrap,
)
from fanin.torch.probing import losses
from fanin.torch.probing.measurement import Input, Layer, Loss, Measurement
from fanin.torch.probing.probe import Probe, Row, Trace
from fanin.torch.probing.slope import look
from fanin.torch.probing.statistics import moments, sample
from fanin.torch.probing.untouched import seed_devices, untouched
from fanin.torch.probing.weights import mean_square, never_trains, weights

Gradients = Mapping[str, torch.Tensor]


def measure(
    model: nn.Module,
    inputs: Any,
    loss: str | Callable[..., Any] | None = None,
    *,
    targets: Any = None,
    prior: Sequence[float] | None = None,
) -> Measurement:
    """Measure signal and gradient at every layer; the model comes back bit-identical.

    *Definition*: the model runs once forward in training mode with dropout off (its masks would
    part inputs that are alike) and once backward from the loss, or from sum_i r_i y_i with r
    standard normal where no loss is given. Statistics as in `Layer`.

    Args:
        model: in memory, of any device and dtype, wrapped or not.
        inputs: a tensor, a `fanin.spec`, a tuple of positional or a mapping of keyword arguments;
            batch first.
        loss: `ce`, `bce`, `mse`, a function of the outputs (and targets), or None.
        targets: for the loss; drawn at random where None.
        prior: probabilities of the classes, for the loss that is expected.

    Raises:
        UninitializedError: a lazy, meta or size-0 tensor.
        ArgumentError: the inputs are keywords that `forward` does not have.
        TraceError: the model does not run on these inputs.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))
        >>> [layer.name for layer in measure(net, torch.randn(32, 8)).layers]
        ['0', '1', '2']
    """
    if not isinstance(model, nn.Module):
        refuse_unready("check(model)", model)
    inner, notes = unwrap(model)
    refuse_unready("check(model)", inner)
    losses.loss_name(loss)
    with untouched(inner), _eager(inner, notes), torch.enable_grad():
        device, dtype = _home(inner)
        given = realise(inputs, device, dtype)
        tensors = list(named_tensors(given))
        if not tensors:
            raise ArgumentTypeError(
                "check(inputs)", expected="at least one tensor", got=type(inputs).__name__
            )
        batch = tensors[0][1].shape[0] if tensors[0][1].dim() else 1
        _prepare(inner, batch, notes)
        probe = Probe(inner, batch, [t for _, t in tensors])
        with running(inner, "check(model)"), probe:
            outputs = call(inner, given)
        run = _Backward(inner, probe, given, outputs, loss, targets, prior)
        with running(inner, "check(model)", "backward"):
            gradients = run.backward()
        held = weights(inner, {n: float(mean_square(g)) for n, g in gradients.items()})
        zero = {name for name, w in held.items() if w.second_moment == 0}
        return Measurement(
            type(inner).__name__,
            tuple(layers(probe.trace)),
            held,
            tuple(_input(name, t, batch) for name, t in tensors),
            batch,
            run.described,
            run.rows,
            _never_called(inner, probe.trace, gradients),
            never_trains(inner, zero, gradients, lambda: run.again(given)),
            (*notes, *run.notes),
        )


def _home(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of the model's first real parameter."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            return tensor.device, tensor.dtype
    return torch.device("cpu"), torch.get_default_dtype()


def _prepare(model: nn.Module, batch: int, notes: list[str]) -> None:
    """The state of the first training step: training mode, dropout off, one fixed random state."""
    was_training = model.training
    model.train()
    for module in model.modules():
        kind = type(module).__name__
        if "Drop" in kind or (batch == 1 and "BatchNorm" in kind):
            module.eval()
    seed_devices(0)
    if not was_training:
        notes.append("measured in training mode, the state of the first step, not in eval mode")


@contextlib.contextmanager
def _eager(model: nn.Module, notes: list[str]) -> Iterator[None]:
    """Run compiled parts of the model as the Python that they were compiled from."""
    compiled = [
        m
        for m in model.modules()
        if type(m).__name__ == "OptimizedModule" or m._compiled_call_impl is not None
    ]
    if not compiled:
        yield
        return
    notes.append("compiled: hooks are inactive in compiled code, so the original module was run")
    kept = [(m, m._compiled_call_impl) for m in compiled]
    for module in compiled:
        module._compiled_call_impl = None
    stance = getattr(torch.compiler, "set_stance", None)
    try:
        with stance("force_eager") if stance else contextlib.nullcontext():
            yield
    finally:
        for module, implementation in kept:
            module._compiled_call_impl = implementation


class _Backward:
    """From outputs to gradients of the parameters, without touching their `.grad`."""

    def __init__(
        self,
        model: nn.Module,
        probe: Probe,
        inputs: Any,
        outputs: Any,
        loss: str | Callable[..., Any] | None,
        targets: Any,
        prior: Sequence[float] | None,
    ) -> None:
        self._model, self._loss, self._targets = model, loss, targets
        self.notes: list[str] = []
        self.described: Loss | None = None
        found = main_outputs(outputs)
        origins = [o for o in map(probe.origin, found) if o]
        self.rows = tuple(sorted({row for origin in origins for row in origin.rows}))
        self._class_axis = 1 if origins and origins[0].channels_first else None
        self.scalar = self._scalar(inputs, outputs, found, prior)

    def _scalar(
        self,
        inputs: Any,
        outputs: Any,
        found: list[torch.Tensor],
        prior: Sequence[float] | None,
    ) -> torch.Tensor:
        """What is differentiated."""
        own = getattr(outputs, "loss", None)
        if self._loss is None and isinstance(own, torch.Tensor) and own.numel() == 1:
            logits = getattr(outputs, "logits", None)
            labels = inputs.get("labels") if isinstance(inputs, Mapping) else None
            each = None
            if isinstance(logits, torch.Tensor) and isinstance(labels, torch.Tensor):
                each = losses.own_terms(own.detach(), logits.detach(), labels)
            name = "custom" if each is None else "ce"
            self.described = losses.describe(name, own, outputs, labels, each, prior, None)
            return own.reshape(())
        if self._loss is None:
            self.notes.append("no loss was given: the gradient is that of a random cotangent")
            return self.cotangent(found)
        axis = self._class_axis
        value, targets, each = losses.compute(self._loss, outputs, self._targets, axis)
        name = str(losses.loss_name(self._loss))
        self.described = losses.describe(name, value, outputs, targets, each, prior, axis)
        if self._targets is None and name != "custom":
            self.notes.append("no targets were given: they were drawn at random")
        return value

    def cotangent(self, outputs: list[torch.Tensor]) -> torch.Tensor:
        """sum of r y over the outputs, with r standard normal."""
        if not outputs:
            raise ArgumentTypeError(
                "check(model)",
                expected="a model with a real-valued output",
                got="one without",
                fix="pass a function of the outputs as loss",
            )
        generator = torch.Generator().manual_seed(SEED + 2)
        total = torch.zeros((), device=outputs[0].device)
        for y in outputs:
            r = torch.randn(y.shape, generator=generator).to(y.device)
            total = total + (y.float() * r).sum()
        return total

    def again(self, inputs: Any) -> Gradients:
        """Gradients of a second run, with the parameters as they are now."""
        outputs = call(self._model, inputs)
        own = getattr(outputs, "loss", None)
        if self._loss is not None:
            value, *_ = losses.compute(self._loss, outputs, self._targets, self._class_axis)
        elif isinstance(own, torch.Tensor) and own.numel() == 1:
            value = own.reshape(())
        else:
            value = self.cotangent(main_outputs(outputs))
        return self._gradients(value)

    def backward(self) -> Gradients:
        """Gradients of the run that was measured."""
        return self._gradients(self.scalar)

    def _gradients(self, scalar: torch.Tensor) -> Gradients:
        trainable = {n: p for n, p in self._model.named_parameters() if p.requires_grad}
        if not scalar.requires_grad:
            self.notes.append("no gradient: nothing between the parameters and the loss has one")
            return {}
        if _sharded(self._model):
            return _accumulated(scalar, trainable)
        found = torch.autograd.grad(scalar, list(trainable.values()), allow_unused=True)
        return {n: g for n, g in zip(trainable, found, strict=True) if g is not None}


def _sharded(model: nn.Module) -> bool:
    """Whether gradients reach the parameters only through a sharding wrapper's own hooks."""
    kinds = {k.__name__ for m in model.modules() for k in type(m).__mro__}
    return any("FSDP" in kind or "FullySharded" in kind for kind in kinds)


def _accumulated(scalar: torch.Tensor, trainable: Mapping[str, nn.Parameter]) -> Gradients:
    """Gradients through `.grad`, which is put back by `untouched`."""
    for parameter in trainable.values():
        parameter.grad = None
    scalar.backward()
    return {n: p.grad for n, p in trainable.items() if p.grad is not None}


def layers(trace: Trace) -> Iterator[Layer]:
    """Rows as values, fetched from the device in one piece."""
    if not trace.rows:
        return
    unknown = torch.full((3,), math.nan, dtype=torch.float64)
    table = torch.stack([r.moments.cpu() for r in trace.rows]).tolist()
    glimpses = [r.glimpse for r in trace.rows if r.glimpse is not None]
    found = iter(look(glimpses))
    looks = torch.stack([next(found).cpu() if r.glimpse else unknown for r in trace.rows])
    nan = torch.tensor(math.nan, dtype=torch.float64)
    sums = torch.stack([nan if r.square_sum is None else r.square_sum.cpu() for r in trace.rows])
    for row, numbers, seen, total in zip(
        trace.rows, table, looks.tolist(), sums.tolist(), strict=True
    ):
        yield _layer(row, numbers, seen, None if row.square_sum is None else total)


def _layer(row: Row, numbers: list[float], seen: list[float], total: float | None) -> Layer:
    second, mean, spread, plain_sum = numbers
    # A sum of huge finite values may overflow: that is large, not broken.
    broken = not math.isfinite(second) or (not math.isfinite(plain_sum) and second < 1e50)
    dead, saturated, slope = (None if math.isnan(v) else v for v in seen)
    return Layer(
        row.index,
        row.name,
        row.module,
        row.kind,
        row.operation,
        row.shape,
        row.dtype,
        row.depth,
        row.parents,
        row.operands,
        row.weights,
        row.width,
        second,
        mean,
        None if math.isnan(spread) else spread,
        broken,
        second == 0 and plain_sum == 0,
        dead,
        saturated if row.glimpse and row.glimpse.slope.flat_tails else None,
        None if total is None else total / max(row.size, 1),
        total,
        slope,
    )


def _input(name: str, tensor: torch.Tensor, batch: int) -> Input:
    """What was given, in numbers."""
    kind, shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
    if not tensor.numel() or tensor.is_complex():
        return Input(name, shape, kind, None, None, 0.0, 0.0, False)
    low, high = (float(v) for v in tensor.detach().aminmax())
    if not tensor.is_floating_point():
        return Input(name, shape, kind, None, None, low, high, False)
    second, _, spread, total = moments(tensor, sample(tensor, batch)).tolist()
    broken = not math.isfinite(total)
    return Input(
        name, shape, kind, second, None if math.isnan(spread) else spread, low, high, broken
    )


def _never_called(model: nn.Module, trace: Trace, gradients: Gradients) -> tuple[str, ...]:
    """Modules with parameters of their own that took no part."""
    idle = []
    for path, module in model.named_modules():
        own = [f"{path}.{n}" if path else n for n, _ in module.named_parameters(recurse=False)]
        if (
            own
            and not any(n in trace.used or n in gradients for n in own)
            and (id(module) not in trace.called)
        ):
            idle.append(path)
    return tuple(idle)
