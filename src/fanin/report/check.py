"""`fanin.check`: what a model does to signal and gradient before its first step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fanin.report import rules as _registered  # noqa: F401
from fanin.report.findings import CHECKS, rank, without
from fanin.report.report import Report
from fanin.report.view import View

if TYPE_CHECKING:
    from torch import nn

    from fanin.planning.plan import Plan
    from fanin.torch.probing.measurement import Measurement


def check(
    model: nn.Module,
    inputs: Any,
    loss: str | Callable[..., Any] | None = None,
    *,
    targets: Any = None,
    prior: Sequence[float] | None = None,
    plan: Plan | None = None,
    predicted: bool = False,
    ignore: Sequence[str] = (),
) -> Report:
    r"""Judge one forward and one backward pass: signal, gradient, distance of inputs, start loss.

    *Definition*: with q_l, s_l, d_l the second moment, the variance over samples and the distance
    of inputs at depth l, and G_l the sum of squared gradients: FAIL where ln(s_l / s_0), ln d_l or
    ln(q_l G_l / (q_L G_L)) lies beyond 20 ln 2 + 4 sqrt(sum_l 5 / n_l), n_l the widths; WARN
    beyond 6 + 4 sqrt(...). The other rules are on their pages in docs/rules.

    Args:
        model: any module in memory; parameters, buffers, gradients, random states, modes and hooks
            are bit-identical afterwards.
        inputs: a tensor, a `fanin.spec`, a tuple of positional or a mapping of keyword arguments;
            batch first, 8 samples or more to judge the distance of inputs.
        loss: `ce`, `bce`, `mse`, a function of the outputs (and of targets, where given); without
            one the gradient is that of a random cotangent.
        targets: for the loss; drawn at random where not given.
        prior: probabilities of the classes, to expect their entropy as start loss.
        plan: a plan whose predictions are shown beside what is measured.
        predicted: without a plan: show what the theory predicts for the weights as they are.
        ignore: rules to leave out, such as `CHK110` or `CHK115:decoder.*`.

    Returns:
        A report: print it, or ask for `.verdict`, `.findings`, `.to_json()`, `.to_html()`,
        `.plot()`.

    Raises:
        ArgumentError: the inputs do not fit the model's `forward`, or the loss is not known.
        UninitializedError: a lazy parameter, a tensor on the meta device or without elements.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> deep = [part for _ in range(20) for part in (nn.Linear(64, 64), nn.Sigmoid())]
        >>> report = check(nn.Sequential(*deep, nn.Linear(64, 10)), torch.randn(32, 64), "ce")
        >>> report.verdict, report.findings[0].name
        ('FAIL', 'vanishing-signal')
    """
    from fanin.torch.probing.measure import measure

    measured = measure(model, inputs, loss, targets=targets, prior=prior)
    if predicted or plan is not None:
        from fanin.torch.probing.predict import predict

        measured = predict(model, inputs, measured, plan)
    return judge(measured, ignore=ignore)


def judge(measured: Measurement, *, ignore: Sequence[str] = ()) -> Report:
    """A report on what was measured, by every rule that is not ignored.

    Args:
        measured: from `fanin.torch.probing.measure.measure` or a `fanin.torch.Watch`.
        ignore: as in `check`.
    """
    view = View(measured)
    found = (finding for rule in CHECKS.values() for finding in rule.look(view))
    findings = rank(without(found, ignore))
    return Report("check", measured.model, findings, measured)
