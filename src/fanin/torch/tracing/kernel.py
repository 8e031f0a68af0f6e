"""A recorded operation made callable on NumPy arrays in float64, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fanin.errors import NotCoveredError
from fanin.torch.tracing import schema

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

_SEED = 0  # random operations (dropout) repeat the same draw in each call


class Slot:
    """The place of the next array in a template of arguments."""

    def __repr__(self) -> str:
        return "_"


class Replay:
    """An operation with its constants; call it with one array for each tensor that it read.

    Args:
        function: the operation as it ran, in place or not.
        arguments: its arguments by name, with a `Slot` for each tensor.
        written: positions, among the tensors, of those that the operation writes; then these
            are the results.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        arguments: dict[str, Any],
        written: Sequence[int] = (),
    ) -> None:
        self.function, self.written = function, tuple(written)
        self.arguments = {k: v for k, v in arguments.items() if k not in ("device", "pin_memory")}
        # Only elementwise operations are known to leave what they read as it is: a batch norm
        # writes its running moments, and does not say so.
        shared = schema.pointwise(function) and not self.written
        self._tensor = _seen if shared else _copied
        self._spreads = bool(self.written) and schema.pointwise(function)
        self._draws = schema.random(function, arguments)

    def __call__(self, *arrays: Array) -> tuple[Array, ...]:
        """The operation's results on these arrays, in float64 where they are real."""
        with torch.no_grad():
            results = self._run([self._tensor(a) for a in arrays])
        return tuple(r.resolve_conj().resolve_neg().numpy() for r in results)

    def vjp(
        self, arrays: Sequence[Array], cotangents: Sequence[Array | None]
    ) -> tuple[Array | None, ...]:
        """The gradient of sum_i <cotangent_i, result_i> in each array; None where there is none.

        Raises:
            NotCoveredError: torch has no derivative of the operation.
        """
        places = range(len(arrays))
        try:
            return self._pulled(arrays, cotangents, places)
        except RuntimeError as error:
            # torch derives by some operands and not by others: noise, samples
            found = [self._attempt(arrays, cotangents, place) for place in places]
            if all(g is None for g in found):
                raise NotCoveredError(
                    f"the gradient of {schema.recorded_name(self.function)}",
                    expected="an operation with a derivative",
                    got=" ".join(str(error).split())[:200],
                ) from error
            return tuple(found)

    def _attempt(
        self, arrays: Sequence[Array], cotangents: Sequence[Array | None], place: int
    ) -> Array | None:
        """The gradient in one array; None where torch has no derivative by it."""
        try:
            return self._pulled(arrays, cotangents, (place,))[place]
        except RuntimeError:
            return None

    def _pulled(
        self,
        arrays: Sequence[Array],
        cotangents: Sequence[Array | None],
        places: Sequence[int],
    ) -> tuple[Array | None, ...]:
        """The gradient in the arrays at these places."""
        tensors = [self._tensor(a) for a in arrays]
        leaves = [
            t.requires_grad_(i in places and (t.is_floating_point() or t.is_complex()))
            for i, t in enumerate(tensors)
        ]
        with torch.enable_grad():
            results = self._run([t.clone() for t in leaves] if self.written else leaves)
        pairs = [
            (r, self._tensor(c).to(r.dtype))
            for r, c in zip(results, cotangents, strict=True)
            if c is not None and r.requires_grad
        ]
        wanted = [t for t in leaves if t.requires_grad]
        if not pairs or not wanted:
            return (None,) * len(tensors)
        found = iter(
            torch.autograd.grad(
                [r for r, _ in pairs], wanted, [c for _, c in pairs], allow_unused=True
            )
        )
        grads = [next(found) if t.requires_grad else None for t in leaves]
        return tuple(None if g is None else g.numpy() for g in grads)

    def on_tensors(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The operation's results on torch tensors, in their dtypes; gradients flow through."""
        given = [t.clone() if i in self.written else t for i, t in enumerate(tensors)]
        result, given = self._call(given, widen=False)
        return self._results(result, given)

    def _run(self, tensors: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Run the operation with the tensors in their slots, global randomness untouched."""
        if self._spreads:  # what is written in place takes the shape of all
            shape = torch.broadcast_shapes(*(t.shape for t in tensors))
            tensors = [
                t.expand(shape).clone() if i in self.written else t for i, t in enumerate(tensors)
            ]
        if not self._draws:
            result, given = self._call(tensors, widen=True)
        else:
            with torch.random.fork_rng(devices=()):
                torch.random.default_generator.manual_seed(_SEED)
                result, given = self._call(tensors, widen=True)
        return tuple(_double(r) for r in self._results(result, given))

    def _results(self, result: Any, given: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """What was written, if something was; else what was returned."""
        if self.written:
            return tuple(given[i] for i in self.written)
        return tuple(result) if isinstance(result, (tuple, list)) else (result,)

    def _call(self, tensors: list[torch.Tensor], *, widen: bool) -> tuple[Any, list[torch.Tensor]]:
        """The result, in another type where the CPU has no kernel for this one; what was read."""
        refusals: list[RuntimeError] = []
        for cast in (_same, _single, _real):
            given = [cast(t) for t in tensors]
            waiting = iter(given)
            arguments = {k: _fill(a, waiting, widen=widen) for k, a in self.arguments.items()}
            try:
                return self.function(**arguments), given
            except RuntimeError as error:
                refusals.append(error)
        raise refusals[0]


def _same(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor."""
    return tensor


def _single(tensor: torch.Tensor) -> torch.Tensor:
    """In float32 if it is real: for kernels without float64."""
    return tensor.float() if tensor.is_floating_point() else tensor


def _real(tensor: torch.Tensor) -> torch.Tensor:
    """In float64: for kernels without integers."""
    return tensor if tensor.is_complex() else tensor.double()


def _double(tensor: torch.Tensor) -> torch.Tensor:
    """In float64 if it is real."""
    return tensor.double() if tensor.is_floating_point() else tensor


def _wide(array: Array) -> Array:
    """The array in float64 (or complex128) if it is real (or complex)."""
    array = np.asarray(array)
    if array.dtype.kind in "fc":
        wide = np.complex128 if array.dtype.kind == "c" else np.float64
        return array.astype(wide, copy=False)
    return array


def _copied(array: Array) -> torch.Tensor:
    """A fresh CPU tensor of the array."""
    return torch.from_numpy(np.array(_wide(array), copy=True, order="C"))


def _seen(array: Array) -> torch.Tensor:
    """A CPU tensor of the array, in the array's own memory where torch can use that.

    What a broadcast repeats is copied once.
    """
    array = _wide(array)
    once = tuple(slice(0, 1) if step == 0 else slice(None) for step in array.strides)
    own = array[once]
    if not own.flags.writeable or min(own.strides, default=0) < 0:
        own = np.array(own, copy=True)
    return torch.from_numpy(own).expand(array.shape)


def _fill(template: Any, tensors: Iterator[torch.Tensor], *, widen: bool) -> Any:
    """The template with tensors in its slots; each real dtype widened to float64, if wanted."""
    if isinstance(template, Slot):
        return next(tensors)
    if isinstance(template, (tuple, list)):
        return [_fill(item, tensors, widen=widen) for item in template]
    if widen and isinstance(template, torch.dtype) and template.is_floating_point:
        return torch.float64
    if widen and isinstance(template, torch.dtype) and template.is_complex:
        return torch.complex128
    return template
