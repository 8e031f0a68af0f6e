"""Watch a model while it trains: the measurements of `check`, every so many steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fanin.errors import ArgumentError
from fanin.torch.calling import named_tensors, unwrap
from fanin.torch.probing.measure import layers
from fanin.torch.probing.measurement import Measurement
from fanin.torch.probing.probe import Probe
from fanin.torch.probing.weights import mean_square, weights


class Watch:
    """Measures the training steps of a model, one in `every`; in between it costs one call a step.

    Nothing changes in what is trained: the steps are the user's own, with dropout and autocast as
    they are. A measurement is complete when the next forward pass begins, or at `close`.

    *Definition*: as in `fanin.check`; steps are forward passes in training mode, counted from 0,
    and step t is measured where t is a multiple of `every`.

    Args:
        model: what is trained; hooks go on it alone and leave with `close`.
        every: steps from one measurement to the next; at least 1.
        attach: put hooks on the model; else the training loop calls `begin` and `end` itself.
        then: called with the step and the measurement when it is complete, such as a logger.
        keep: how many measurements `.measured` holds, the latest.

    Raises:
        ArgumentError: `every` or `keep` below 1.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> with Watch(net, every=2) as watch:
        ...     for _ in range(3):
        ...         net(torch.randn(16, 4)).sum().backward()
        >>> [step for step, _ in watch.measured]
        [0, 2]
    """

    def __init__(
        self,
        model: nn.Module,
        every: int = 50,
        *,
        attach: bool = True,
        then: Callable[[int, Measurement], object] | None = None,
        keep: int = 100,
    ) -> None:
        for name, value in (("every", every), ("keep", keep)):
            if value < 1:
                raise ArgumentError(f"Watch({name})", expected="at least 1", got=str(value))
        self._model, notes = unwrap(model)
        compiled = type(model).__name__ == "OptimizedModule"
        self._notes = tuple(notes)
        if compiled or model._compiled_call_impl is not None:
            self._notes = ("compiled: hooks inactive, so only weights and gradients are measured",)
        self._every, self._then, self._keep = every, then, keep
        self._see_calls = not (compiled or model._compiled_call_impl is not None)
        self._step = 0
        self._probe: Probe | None = None
        self._pending: tuple[int, Probe] | None = None
        self._squares: dict[str, torch.Tensor] = {}
        self._on_gradients: list[Any] = []
        self.measured: list[tuple[int, Measurement]] = []
        self._handles: list[Any] = []
        if attach:  # on a wrapper where there is one, so that nothing is compiled anew
            self._handles = [
                model.register_forward_pre_hook(self._before, with_kwargs=True),
                model.register_forward_hook(self._after, always_call=True),
            ]

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def close(self) -> None:
        """Complete the last measurement and take the hooks off."""
        self.end()
        self._complete()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if module.training and torch.is_grad_enabled():
            self.begin((args, kwargs))

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        self.end()

    def begin(self, inputs: Any) -> None:
        """A training step begins: measure it if it is due.

        Args:
            inputs: what the model is given, in any structure.
        """
        step, self._step = self._step, self._step + 1
        if self._pending is not None:
            self._complete()
        if step % self._every:
            return
        tensors = [t for _, t in named_tensors(inputs)]
        batch = tensors[0].shape[0] if tensors and tensors[0].dim() else 1
        probe = Probe(self._model, batch, tensors, keep_dropout=True)
        self._pending = (step, probe)
        self._squares = {}
        for name, parameter in self._model.named_parameters():
            if parameter.requires_grad:
                self._on_gradients.append(
                    parameter.register_post_accumulate_grad_hook(self._keep_square(name))
                )
        if self._see_calls:
            self._probe = probe
            probe.__enter__()

    def _keep_square(self, name: str) -> Callable[[torch.Tensor], None]:
        """A hook for this step alone: the gradient may be gone when the next one begins."""

        def hook(parameter: torch.Tensor) -> None:
            if parameter.grad is not None:
                self._squares[name] = mean_square(parameter.grad)

        return hook

    def _release(self) -> None:
        for handle in self._on_gradients:
            handle.remove()
        self._on_gradients = []

    def end(self) -> None:
        """The forward pass is over: gradients still come."""
        if self._probe is not None:
            self._probe.__exit__(None, None, None)
            self._probe = None

    def _complete(self) -> None:
        """Turn what arrived into a measurement."""
        if self._pending is None:
            return
        (step, probe), self._pending = self._pending, None
        self._release()
        squares = {name: float(square) for name, square in self._squares.items()}
        made = Measurement(
            type(self._model).__name__,
            tuple(layers(probe.trace)),
            weights(self._model, squares),
            (),
            probe.trace.batch,
            notes=(f"training step {step}", *self._notes),
        )
        self.measured = [*self.measured, (step, made)][-self._keep :]
        if self._then is not None:
            self._then(step, made)
