"""A callback for the Trainer of transformers: it checks and logs, and changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fanin.errors import MissingDependencyError

try:
    from transformers import TrainerCallback
    from transformers.utils import logging
except ImportError as error:
    raise MissingDependencyError(
        "fanin.integrations.transformers",
        expected="transformers",
        got="no such package",
        fix="pip install transformers",
    ) from error

import torch

from fanin.report.audit import audit
from fanin.report.check import check, judge
from fanin.torch.probing.untouched import untouched
from fanin.torch.probing.watch import Watch

if TYPE_CHECKING:
    from fanin.report.report import Report
    from fanin.torch.probing.measurement import Measurement

logger = logging.get_logger(__name__)


class InitCheckCallback(TrainerCallback):  # type: ignore[misc]
    """Checks and audits the model before the first step, and watches it while it trains.

    Args:
        inputs: keyword arguments of the model to check it with; the first `samples` examples of
            the training set, collated by the Trainer's own collator, if not given.
        samples: how many examples of the training set.
        every: also measure each so many forward passes; 0 for the start alone.
        ignore: rules to leave out.

    Example:
        >>> callback = InitCheckCallback(every=100)
        >>> callback.report is None
        True
    """

    def __init__(
        self,
        inputs: Any = None,
        *,
        samples: int = 8,
        every: int = 0,
        ignore: Sequence[str] = (),
    ) -> None:
        self._inputs, self._samples, self._every = inputs, samples, every
        self._ignore = ignore
        self._watch: Watch | None = None
        self.report: Report | None = None
        self.audit: Report | None = None
        self.history: list[tuple[int, Report]] = []

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **more: Any
    ) -> None:
        """Audit the tensors, check the first examples, log both."""
        self.audit = audit(model, ignore=_only(self._ignore, "AUD"))
        reports = [self.audit]
        with untouched(model):  # collating may draw random numbers, as masking does
            inputs = self._inputs if self._inputs is not None else self._examples(model, more)
        if inputs is not None:
            self.report = check(model, inputs, ignore=_only(self._ignore, "CHK"))
            reports.append(self.report)
        if state.is_world_process_zero:
            for report in reports:
                logger.warning("%s", report) if report.findings else logger.info("%s", report)
        if self._every:
            self._watch = Watch(model, self._every, then=self._judge)

    def _examples(self, model: Any, more: dict[str, Any]) -> Any:
        """The first examples, collated; None where the data cannot be indexed."""
        loader: Any = more.get("train_dataloader")
        dataset = getattr(loader, "dataset", None)
        if (
            dataset is None
            or not hasattr(dataset, "__getitem__")
            or not hasattr(dataset, "__len__")
        ):
            logger.info("fanin: the training set cannot be indexed; pass inputs= to check")
            return None
        examples = [dataset[i] for i in range(min(self._samples, len(dataset)))]
        batch = loader.collate_fn(examples)
        device = next(model.parameters()).device
        return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}

    def _judge(self, step: int, measured: Measurement) -> None:
        self.history.append((step, judge(measured, ignore=_only(self._ignore, "CHK"))))

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Complete the last measurement and take the hooks off."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None


def _only(ignore: Sequence[str], prefix: str) -> tuple[str, ...]:
    """The entries for one kind of report; names of rules go to both."""
    other = "AUD" if prefix == "CHK" else "CHK"
    return tuple(entry for entry in ignore if not entry.startswith(other))
