"""The rules from criticality: variances at which neither signal nor gradient grows or dies."""

from __future__ import annotations

from typing import Any, Literal

from fanin.errors import ArgumentError
from fanin.theory.activation import Activation, activation
from fanin.theory.criticality import CriticalPoint, edge_of_chaos, susceptibility_points
from fanin.theory.rules.layer import LayerRule, layer_rule

Criterion = Literal["susceptibility", "edge_of_chaos"]


def critical(
    f: Any, *, criterion: Criterion = "susceptibility", bias_variance: float | None = None
) -> LayerRule:
    """Keep gradients and distances between inputs at a fixed point of the variance map.

    *Definition*: `edge_of_chaos`: `sigma_w^2 E[f'^2] = 1` at `q = sigma_w^2 E[f^2] + sigma_b^2`
    for the given bias variance. `susceptibility`: in addition the variance map has slope 1, which
    fixes sigma_b^2 as well. Of several points a stable one is taken, then half-stable, then the
    largest q.

    Wrong when: the point is unstable (GELU and SiLU at a small bias variance), which `stable`
    says; or where q = 0 is the only fixed point (tanh): the variance then falls as a power of the
    depth.

    Args:
        f: an activation without jumps.
        criterion: which of the two.
        bias_variance: sigma_b^2 for `edge_of_chaos`, 0 if left out; `susceptibility` finds its own.

    Returns:
        The layer; the first one gives the second moment q to inputs of mean square 1.

    Raises:
        NoSolutionError: there is no such point (softplus; sigmoid under `susceptibility`).
        ArgumentError: an unknown criterion, or a bias variance for `susceptibility`.

    Example:
        >>> rule = critical("tanh", criterion="edge_of_chaos", bias_variance=0.05)
        >>> round(rule.weight_variance_times_fan_in, 6), round(rule.operating_point.variance, 6)
        (1.760955, 0.570048)

    Reference: Schoenholz et al. 2017 (arXiv:1611.01232); Roberts, Yaida & Hanin 2022, section 5.
    """
    act = activation(f)
    if criterion == "edge_of_chaos":
        points = edge_of_chaos(act, 0.0 if bias_variance is None else bias_variance)
    elif criterion != "susceptibility":
        raise ArgumentError(
            "critical(criterion)",
            expected="'susceptibility' or 'edge_of_chaos'",
            got=repr(criterion),
        )
    elif bias_variance is not None:
        raise ArgumentError(
            "critical(bias_variance)",
            expected="no bias variance, because the criterion 'susceptibility' determines it",
            got=repr(bias_variance),
            fix="leave it out, or use criterion='edge_of_chaos'",
        )
    else:
        points = susceptibility_points(act)
    return _layer(act, _preferred(points))


def _preferred(points: tuple[CriticalPoint, ...]) -> CriticalPoint:
    """The point to use: the one that holds the variance best."""
    order = {"stable": 0, "neutral": 0, "half-stable": 1, "unstable": 2}
    return min(points, key=lambda p: (order[p.stability], p.kind == "zero", -p.q))


def _layer(act: Activation, point: CriticalPoint) -> LayerRule:
    """The rule at a point; at q = 0, where all moments vanish, the start q = 1 stands for it."""
    if point.kind == "zero":
        falls = point.stability == "stable"
        note = "falls to 0 as a power of the depth" if falls else "leaves 0"
        notes: tuple[str, ...] = (f"The fixed point is q = 0: the variance {note}.",)
        return layer_rule("critical", act, point.sigma_w2, variance=1.0, notes=notes)
    notes = ()
    if point.stability in ("unstable", "half-stable"):
        notes = (f"The fixed point q = {point.q:.6g} is {point.stability}.",)
    return layer_rule(
        "critical",
        act,
        point.sigma_w2,
        variance=point.q,
        bias_variance=point.sigma_b2,
        notes=notes,
    )
