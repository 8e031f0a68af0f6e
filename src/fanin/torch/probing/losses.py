"""The start loss of a model, and what a model that knows nothing yet would have."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fanin.errors import ArgumentError, ArgumentTypeError
from fanin.torch.calling import SEED, main_outputs
from fanin.torch.probing.measurement import Loss

NAMES = ("ce", "bce", "mse")
_KNOWN = {
    F.cross_entropy: "ce",
    F.binary_cross_entropy_with_logits: "bce",
    F.mse_loss: "mse",
}
_KNOWN_MODULES = (
    (nn.CrossEntropyLoss, "ce"),
    (nn.BCEWithLogitsLoss, "bce"),
    (nn.MSELoss, "mse"),
)


def loss_name(loss: str | Callable[..., Any] | None) -> str | None:
    """The name of a loss whose start value is known, `custom` for others."""
    if loss is None:
        return None
    if isinstance(loss, str):
        if loss not in NAMES:
            raise ArgumentError(
                "check(loss)", expected=f"a function or one of {', '.join(NAMES)}", got=repr(loss)
            )
        return loss
    if not callable(loss):
        raise ArgumentTypeError(
            "check(loss)", expected="a function or a name", got=type(loss).__name__
        )
    found = next((n for kind, n in _KNOWN_MODULES if isinstance(loss, kind)), None)
    return found or _KNOWN.get(loss, "custom")


def compute(
    loss: str | Callable[..., Any], outputs: Any, targets: Any, class_axis: int | None
) -> tuple[torch.Tensor, Any]:
    """The loss as a tensor, and the targets that were used (drawn where none were given)."""
    name = loss_name(loss)
    if name == "custom":
        assert callable(loss)
        value = loss(outputs) if targets is None else loss(outputs, targets)
        if not isinstance(value, torch.Tensor) or value.numel() != 1:
            got = type(value).__name__
            if isinstance(value, torch.Tensor):
                got = f"a tensor of shape {tuple(value.shape)}"
            raise ArgumentTypeError("check(loss)", expected="a loss that returns a scalar", got=got)
        return value.reshape(()), targets
    found = main_outputs(outputs)
    if not found:
        raise ArgumentTypeError(
            "check(loss)",
            expected="a model with a real-valued output",
            got=type(outputs).__name__,
            fix="pass a function of the outputs as loss",
        )
    prediction = found[0]
    if targets is None:
        targets = _draw_targets(str(name), prediction, class_axis)
    if callable(loss):
        return loss(prediction, targets), targets
    if name == "ce":
        return F.cross_entropy(*_classes_second(prediction, targets, class_axis)), targets
    if name == "bce":
        return F.binary_cross_entropy_with_logits(prediction.float(), targets.float()), targets
    return F.mse_loss(prediction.float(), targets.float()), targets


def _classes_second(
    prediction: torch.Tensor, targets: torch.Tensor, class_axis: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits with the classes on axis 1, as cross-entropy wants them."""
    axis = _axis(prediction, class_axis)
    logits = prediction.float().movedim(axis, 1) if prediction.dim() > 1 else prediction.float()
    return logits, targets


def _axis(prediction: torch.Tensor, class_axis: int | None) -> int:
    """The axis of the classes: 1 after a convolution, else the last."""
    return class_axis if class_axis is not None else prediction.dim() - 1


def _draw_targets(name: str, prediction: torch.Tensor, class_axis: int | None) -> torch.Tensor:
    """Targets that carry no information: uniform classes, fair coins, N(0, 1) values."""
    generator = torch.Generator().manual_seed(SEED + 1)
    shape = list(prediction.shape)
    if name == "ce":
        classes = shape.pop(_axis(prediction, class_axis))
        return torch.randint(classes, shape, generator=generator).to(prediction.device)
    if name == "bce":
        return torch.randint(2, shape, generator=generator).to(prediction)
    return torch.randn(shape, generator=generator).to(prediction)


def describe(
    name: str,
    value: torch.Tensor,
    outputs: Any,
    targets: Any,
    prior: Sequence[float] | None,
    class_axis: int | None,
) -> Loss:
    """The value beside what is expected at the start."""
    found = main_outputs(outputs)
    prediction = found[0].detach().double() if found else None
    number = float(value.detach())
    if name == "custom" or prediction is None:
        return Loss(number, name)
    if name == "mse":
        reference = float(targets.double().square().mean())
        return Loss(number, name, reference, "the mean square of the targets")
    if name == "bce":
        error = F.binary_cross_entropy_with_logits(prediction, targets.double(), reduction="none")
        spread = _standard_error(error)
        q = float(prediction.square().mean())
        if prior is not None:
            p = float(prior[0])
            return Loss(
                number, name, _entropy([p, 1 - p]), "the entropy of the prior", spread, 2, q
            )
        return Loss(number, name, math.log(2), "ln 2", spread, 2, q)
    classes = prediction.shape[_axis(prediction, class_axis)]
    centred = prediction - prediction.mean(_axis(prediction, class_axis), keepdim=True)
    q = float(centred.square().mean())
    error_of_mean = 0.0
    if isinstance(targets, torch.Tensor) and not targets.is_floating_point():
        logits, labels = _classes_second(prediction, targets, class_axis)
        if logits.shape[:1] + logits.shape[2:] == labels.shape:
            error_of_mean = _standard_error(
                F.cross_entropy(logits.double(), labels, reduction="none")
            )
    if prior is not None:
        return Loss(
            number, name, _entropy(prior), "the entropy of the prior", error_of_mean, classes, q
        )
    return Loss(number, name, math.log(classes), f"ln {classes}", error_of_mean, classes, q)


def _standard_error(each: torch.Tensor) -> float:
    """Of the mean over samples."""
    rows = each.reshape(len(each), -1).mean(1)
    return float(rows.std() / len(rows) ** 0.5) if len(rows) > 1 else 0.0


def _entropy(prior: Sequence[float]) -> float:
    """-sum p ln p."""
    total = math.fsum(prior)
    if any(p < 0 for p in prior) or not math.isclose(total, 1, rel_tol=1e-3):
        raise ArgumentError(
            "check(prior)", expected="probabilities that sum to 1", got=f"a sum of {total:.4g}"
        )
    return -math.fsum(p * math.log(p) for p in prior if p > 0)
