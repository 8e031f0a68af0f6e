"""`fanin.explain`: the formula behind one weight, with this layer's numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fanin.errors import ArgumentTypeError, UnknownNameError
from fanin.report.tensors import last_write
from fanin.torch.provenance.asked import Asked

if TYPE_CHECKING:
    from torch import nn

    from fanin.planning.plan import Plan
    from fanin.torch.provenance.inventory import Held


@dataclass(frozen=True)
class Explanation:
    """What one tensor holds, by which formula, and what fanin would write.

    Args:
        name: of the tensor.
        lines: sentences, most telling first.
        asked: the law behind the values, recorded or inferred; None where it is not known.
        fan_in, fan_out: as counted from the layer or, without one, from the shape.
    """

    name: str
    lines: tuple[str, ...]
    asked: Asked | None
    fan_in: float | None
    fan_out: float | None

    def __str__(self) -> str:
        return "\n".join((f"{self.name}: {self.lines[0]}", *(f"  {x}" for x in self.lines[1:])))


def explain(
    target: nn.Module | nn.Parameter, name: str | None = None, *, plan: Plan | None = None
) -> Explanation:
    r"""Say by which formula a weight got its scale, with its own numbers.

    *Definition*: torch's default for linear and convolutional layers, `kaiming_uniform_` with
    a = sqrt(5), has gain sqrt(2 / (1 + a^2)) = 1/sqrt(3), hence std = 1/sqrt(3 fan_in) and bound
    sqrt(3) std = 1/sqrt(fan_in).

    Args:
        target: a parameter, a layer, or a model.
        name: which parameter, for a layer or model; the first matrix if not given.
        plan: a plan that holds this parameter, to say what it gives and why.

    Returns:
        A value that prints as text.

    Raises:
        ArgumentTypeError: neither a parameter nor a module.
        UnknownNameError: the module has no such parameter.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> print(explain(torch.nn.Linear(8, 16).weight).lines[0])
        U(±0.3536), std 0.2041 = 1/sqrt(3*fan_in), torch default,
        a=sqrt(5) cancels to gain 1/sqrt(3)

    Reference: He et al. 2015 (arXiv:1502.01852), equation 15, for the gain with slope a.
    """
    held, fan_in, fan_out, counted = _found(target, name)
    last = last_write(held)
    recorded = last.asked if last is not None else None
    asked = recorded or _inferred(held, fan_in)
    lines = [_law(held, asked, fan_in, recorded is not None)]
    if counted:
        lines.append(f"fan_in {fan_in:g}, fan_out {fan_out:g}: {counted}")
    if last is not None:
        lines.append(f"written by {last}")
    elif held.loaded:
        lines.append("loaded from a checkpoint")
    else:
        lines.append("not recorded; inferred from the values (see fanin.recording)")
    if held.values is not None:
        lines.append(
            f"now: mean {held.values.mean:.3g}, std {held.values.std:.4g}, in "
            f"[{held.values.low:.4g}, {held.values.high:.4g}]"
        )
    lines += _instead(held, fan_in, fan_out, plan)
    return Explanation(held.name, tuple(lines), asked, fan_in, fan_out)


def _found(target: Any, name: str | None) -> tuple[Held, float | None, float | None, str]:
    """The tensor and its fans."""
    import torch
    from torch import nn

    from fanin.torch.provenance.inventory import inventory

    if isinstance(target, torch.Tensor):
        holder = nn.Module()
        parameter = target if isinstance(target, nn.Parameter) else nn.Parameter(target, False)
        holder.weight = parameter
        held = inventory(holder)[0]
    elif isinstance(target, nn.Module):
        held = _named(inventory(target), name, type(target).__name__)
    else:
        raise ArgumentTypeError(
            "explain(target)", expected="a parameter or a module", got=type(target).__name__
        )
    if held.fans is not None:
        return held, held.fans.fan_in, held.fans.fan_out, held.fans.counted
    if len(held.shape) < 2 or held.kind == "buffer":
        return held, None, None, ""
    taps = math.prod(held.shape[2:])
    counted = f"from the shape {'x'.join(map(str, held.shape))} read as (out, in, taps...)"
    return held, float(held.shape[1] * taps), float(held.shape[0] * taps), counted


def _named(tensors: tuple[Held, ...], name: str | None, kind: str) -> Held:
    parameters = [t for t in tensors if t.kind == "parameter"]
    if name is None:
        matrices = [t for t in parameters if len(t.shape) >= 2]
        found = next(iter(matrices or parameters), None)
    else:
        found = next((t for t in tensors if name in t.names), None)
    if found is None:
        raise UnknownNameError(
            f"explain({kind})",
            expected="one of " + (", ".join(t.name for t in parameters[:10]) or "no parameters"),
            got=repr(name),
        )
    return found


def _inferred(held: Held, fan_in: float | None) -> Asked | None:
    """Torch's default, where the values agree with it."""
    from fanin.torch.provenance.asked import constant, uniform

    v = held.values
    if v is None:
        return None
    if v.constant:
        return constant(v.low)
    if fan_in is None:
        return None
    bound = 1 / math.sqrt(fan_in)
    error = 5 * math.sqrt(0.8 / (4 * held.count))
    inside = max(-v.low, v.high) <= bound * (1 + 1e-3)
    if inside and abs(v.std * math.sqrt(3 * fan_in) - 1) < max(error, 0.01):
        return uniform(-bound, bound, fan=fan_in, mode="fan_in")
    return None


def _law(held: Held, asked: Asked | None, fan_in: float | None, recorded: bool) -> str:
    """The law in one sentence."""
    v = held.values
    if asked is None or asked.std is None:
        return f"std {v.std:.4g}, of no law that is known" if v else "no values yet"
    if asked.law == "constant":
        return f"constant {asked.mean:g}"
    std = asked.true_std or asked.std
    text = f"{asked}, std {std:.4g}"
    if not fan_in:
        return text
    gain = std * math.sqrt(fan_in)
    if asked.law == "uniform" and abs(gain * math.sqrt(3) - 1) < 1e-6:
        return f"{text} = 1/sqrt(3*fan_in), torch default, a=sqrt(5) cancels to gain 1/sqrt(3)"
    return f"{text} = {gain:.4g}/sqrt(fan_in)"


def _instead(
    held: Held, fan_in: float | None, fan_out: float | None, plan: Plan | None
) -> list[str]:
    """What fanin would write."""
    if plan is not None:
        row = next((r for r in plan.rows if {r.path, *r.names} & set(held.names)), None)
        if row is not None:
            std = f", std {row.std:.4g}" if row.std is not None else ""
            return [f"the plan: {row.rule}{std}: {row.reason}"]
    if fan_in is None or fan_out is None:
        return ["fanin.init_(model, inputs) decides it from what it does in the model"]
    stds = {
        "lecun 1/sqrt(fan_in)": fan_in**-0.5,
        "he (relu) sqrt(2/fan_in)": (2 / fan_in) ** 0.5,
        "xavier sqrt(2/(fan_in+fan_out))": (2 / (fan_in + fan_out)) ** 0.5,
    }
    listed = ", ".join(f"{name} = {std:.4g}" for name, std in stds.items())
    return [
        f"by rules that need the fans alone: {listed}",
        "fanin.init_(model, inputs) decides from the activation, depth and branches around it",
    ]
