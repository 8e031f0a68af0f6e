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
from fanin.torch.probing.statistics import square_sum

NAMES = ("ce", "bce", "mse")
IGNORED = -100
"""The class that cross-entropy leaves out."""
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
) -> tuple[torch.Tensor, Any, torch.Tensor | None]:
    """The loss, the targets that were used (drawn where none were given), and its terms if known.

    The terms are per sample and position, detached; they tell how far chance goes.
    """
    name = str(loss_name(loss))
    if name == "custom":
        assert callable(loss)
        value = loss(outputs) if targets is None else loss(outputs, targets)
        if not isinstance(value, torch.Tensor) or value.numel() != 1:
            got = type(value).__name__
            if isinstance(value, torch.Tensor):
                got = f"a tensor of shape {tuple(value.shape)}"
            raise ArgumentTypeError("check(loss)", expected="a loss that returns a scalar", got=got)
        return value.reshape(()), targets, None
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
        targets = _draw_targets(name, prediction, class_axis)
    if callable(loss):
        with torch.no_grad():
            each = _terms(name, prediction.detach(), targets, class_axis)
        return loss(prediction, targets), targets, each
    each = _terms(name, prediction, targets, class_axis)
    if each is None:
        raise ArgumentError(
            "check(targets)",
            expected=f"a shape that fits outputs of shape {tuple(prediction.shape)}",
            got=str(tuple(targets.shape)),
        )
    value = each.mean()
    if name == "ce" and not targets.is_floating_point():
        value = each.sum() / (targets != IGNORED).sum()
    return value, targets, each.detach()


def _terms(
    name: str, prediction: torch.Tensor, targets: torch.Tensor, class_axis: int | None
) -> torch.Tensor | None:
    """What the loss is the mean of; None where prediction and targets do not fit."""
    axis = _axis(prediction, class_axis)
    if name != "ce":
        if prediction.shape != targets.shape:
            return None
        error = F.mse_loss if name == "mse" else F.binary_cross_entropy_with_logits
        return error(prediction.float(), targets.float(), reduction="none")
    logits = prediction.float()
    if logits.dim() > 1:
        logits = logits.movedim(axis, 1)
    fits = logits.shape[:1] + logits.shape[2:] if logits.dim() > 1 else torch.Size()
    if targets.shape != (logits.shape if targets.is_floating_point() else fits):
        return None
    return F.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORED)


def own_terms(
    value: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor | None
) -> torch.Tensor | None:
    """Terms of a loss that the model computed itself, if it is the cross-entropy of its labels.

    Language models shift: position t predicts the label at t + 1.
    """
    if labels is None or labels.is_floating_point() or labels.dim() != logits.dim() - 1:
        return None
    pairs = [(logits, labels)]
    if labels.dim() == 2:
        pairs.append((logits[:, :-1], labels[:, 1:]))
    for scores, classes in pairs:
        each = _terms("ce", scores, classes, None)
        if each is None:
            continue
        mean = each.sum() / (classes != IGNORED).sum()
        if torch.isclose(mean, value.float(), rtol=1e-2) or not value.isfinite():
            return each
    return None


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
    each: torch.Tensor | None,
    prior: Sequence[float] | None,
    class_axis: int | None,
) -> Loss:
    """The value beside what is expected at the start."""
    found = main_outputs(outputs)
    number = float(value.detach())
    if name == "custom" or not found:
        return Loss(number, name)
    if name == "mse":
        reference = float(targets.double().square().mean())
        return Loss(number, name, reference, "the mean square of the targets")
    prediction = found[0].detach()
    error = 0.0 if each is None else _standard_error(each)
    if name == "bce":
        chances: Sequence[float] | None = None
        if prior is not None:
            chances = (float(prior[0]), 1 - float(prior[0]))
        classes, known, power = 2, "ln 2", _mean_square(prediction)
    else:
        axis = _axis(prediction, class_axis)
        chances, classes = prior, prediction.shape[axis]
        known = f"ln {classes}"
        shared = prediction.mean(axis, dtype=torch.float32)
        power = max(_mean_square(prediction) - _mean_square(shared), 0.0)
    expected, meaning = math.log(classes), known
    if chances is not None:
        expected, meaning = _entropy(chances), "the entropy of the prior"
    return Loss(number, name, expected, meaning, error, classes, power)


def _mean_square(tensor: torch.Tensor) -> float:
    return float(square_sum(tensor).item() / max(tensor.numel(), 1))


def _standard_error(each: torch.Tensor) -> float:
    """Of the mean over samples."""
    rows = each.reshape(len(each), -1).mean(1, dtype=torch.float64)
    return float(rows.std() / len(rows) ** 0.5) if len(rows) > 1 else 0.0


def _entropy(prior: Sequence[float]) -> float:
    """-sum p ln p."""
    total = math.fsum(prior)
    if any(p < 0 for p in prior) or not math.isclose(total, 1, rel_tol=1e-3):
        raise ArgumentError(
            "check(prior)", expected="probabilities that sum to 1", got=f"a sum of {total:.4g}"
        )
    return -math.fsum(p * math.log(p) for p in prior if p > 0)
