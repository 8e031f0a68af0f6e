"""A Lightning callback: checks the model before the first step, and watches it while it trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fanin.errors import ArgumentError, MissingDependencyError, UnhealthyError

try:
    from lightning.pytorch import Callback
    from lightning.pytorch.utilities import rank_zero_info
except ImportError:
    try:
        from pytorch_lightning import Callback
        from pytorch_lightning.utilities import rank_zero_info
    except ImportError as error:
        raise MissingDependencyError(
            "fanin.integrations.lightning",
            expected="lightning",
            got="no such package",
            fix="pip install lightning",
        ) from error

from fanin.report.check import check, judge
from fanin.torch.probing.watch import Watch

if TYPE_CHECKING:
    from fanin.report.report import Report
    from fanin.torch.probing.measurement import Measurement


class InitCheck(Callback):  # type: ignore[misc]
    """Checks on the first training batch, before the first step; nothing of the model changes.

    Args:
        inputs: from a batch to what `forward` takes; the batch itself, or its first part where
            it is a tuple or list, if not given.
        loss: as in `fanin.check`; `targets` are the batch's second part where it has two.
        every: also measure each so many training steps; 0 for the start alone.
        on_fail: `raise` to stop training, `log` to print the report.
        ignore: rules to leave out.

    Example:
        >>> callback = InitCheck(loss="ce", on_fail="raise")
        >>> callback.report is None
        True
    """

    def __init__(
        self,
        *,
        inputs: Callable[[Any], Any] | None = None,
        loss: Any = None,
        every: int = 0,
        on_fail: str = "log",
        ignore: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if on_fail not in ("log", "raise"):
            raise ArgumentError("InitCheck(on_fail)", expected="log or raise", got=repr(on_fail))
        self._inputs, self._loss, self._every = inputs or _first, loss, every
        self._on_fail, self._ignore = on_fail, ignore
        self._watch: Watch | None = None
        self.report: Report | None = None
        self.history: list[tuple[int, Report]] = []

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check on the first batch; later begin a measurement where one is due."""
        if self.report is None:
            self._check(pl_module, batch)
        if self._watch is not None:
            self._watch.begin(batch)

    def _check(self, pl_module: Any, batch: Any) -> None:
        pair = isinstance(batch, tuple | list) and len(batch) == 2
        targets = batch[1] if pair and self._loss is not None else None
        self.report = check(
            pl_module, self._inputs(batch), self._loss, targets=targets, ignore=self._ignore
        )
        rank_zero_info(str(self.report))
        if self._on_fail == "raise" and not self.report.ok:
            first = self.report.findings[0]
            raise UnhealthyError(
                f"fanin.check: {first.rule} {first.name} at {first.where}: {first.cause}",
                fix=first.fix,
            )
        if self._every:
            self._watch = Watch(pl_module, self._every, attach=False, then=self._judge)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """The forward pass is over."""
        if self._watch is not None:
            self._watch.end()

    def on_train_batch_end(self, *arguments: Any, **more: Any) -> None:
        """The step is over, also where it has no backward pass of Lightning's."""
        if self._watch is not None:
            self._watch.end()

    def _judge(self, step: int, measured: Measurement) -> None:
        self.history.append((step, judge(measured, ignore=self._ignore)))

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Complete the last measurement and let go of the model."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None


def _first(batch: Any) -> Any:
    """The batch, or its first part where it is a pair of inputs and targets."""
    return batch[0] if isinstance(batch, tuple | list) and len(batch) == 2 else batch
