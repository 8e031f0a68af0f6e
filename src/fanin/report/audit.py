"""`fanin.audit`: who wrote each tensor, what was asked, and what is there now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fanin.errors import ArgumentTypeError
from fanin.report import rules as _registered  # noqa: F401
from fanin.report.audit_view import AuditView, wanted
from fanin.report.findings import AUDITS, rank, without
from fanin.report.report import Report
from fanin.report.tensors import row
from fanin.report.view import View

if TYPE_CHECKING:
    from torch import nn

    from fanin.planning.plan import Plan
    from fanin.torch.provenance.inventory import Held


def audit(
    model: nn.Module | str | Path,
    *,
    inputs: Any = None,
    rules: Mapping[str, object] | None = None,
    plan: Plan | None = None,
    ignore: Sequence[str] = (),
) -> Report:
    r"""Hold what is in memory against what was asked: per tensor its writer, law, fan and values.

    *Definition*: a standard deviation s of n values differs from the asked one where
    |s / asked - 1| > max(5 sqrt((kurtosis - 1) / (4 n)), 0.01). The other rules are on their
    pages in docs/rules.

    Args:
        model: a module, built inside `with fanin.recording():` if writers are to be known; or
            the path of a checkpoint, `.safetensors` or `.pt` (read with weights only).
        inputs: to judge residual branches by what they compute instead of by names.
        rules: what was meant: patterns of names to a standard deviation or a distribution.
        plan: what was meant, as a plan.
        ignore: rules to leave out, such as `AUD209` or `AUD204:blocks.*`.

    Returns:
        A report: print it, or ask for `.verdict`, `.findings`, `.tensors`.

    Raises:
        ArgumentTypeError: neither a module nor a path.
        DataError: a file that is missing, damaged, or holds more than tensors.

    Example:
        >>> from torch import nn
        >>> layer = nn.TransformerEncoderLayer(16, 2, batch_first=True)
        >>> report = audit(nn.TransformerEncoder(layer, 3))
        >>> report.findings[0].name
        'duplicate-values'
    """
    from torch import nn as torch_nn

    from fanin.torch.probing.measure import measure
    from fanin.torch.provenance.checkpoint import read
    from fanin.torch.provenance.inventory import across_ranks, from_tensors, inventory

    checked = None
    if isinstance(model, str | Path):
        held, name = from_tensors(read(Path(model))), Path(model).name
    elif isinstance(model, torch_nn.Module):
        held, name = inventory(model), type(model).__name__
        checked = None if inputs is None else View(measure(model, inputs))
    else:
        raise ArgumentTypeError(
            "audit(model)", expected="a torch.nn.Module or a path", got=type(model).__name__
        )
    view = AuditView(
        held, (*wanted(rules), *_planned(plan)), across_ranks(held), checked, tuple(ignore)
    )
    found = (finding for rule in AUDITS.values() for finding in rule.look(view))
    findings = rank(without(found, ignore))
    return Report("audit", name, findings, tensors=tuple(map(row, held)), notes=_notes(held))


def _planned(plan: Plan | None) -> tuple[Any, ...]:
    """A plan's rows as rules."""
    if plan is None:
        return ()
    return wanted({row.path: row.std for row in plan.rows if row.std is not None})


def _notes(held: tuple[Held, ...]) -> tuple[str, ...]:
    """How much is known."""
    new = [t for t in held if not t.loaded]
    loaded = len(held) - len(new)
    notes = []
    if loaded:
        notes.append(
            f"{loaded} tensors come from a checkpoint and were not judged; {len(new)} are new: "
            + ", ".join(t.name for t in new[:5])
            + (f" and {len(new) - 5} more" if len(new) > 5 else "")
        )
    unknown = sum(t.writes is None for t in new)
    if unknown:
        notes.append(
            f"{unknown} of {len(new)} tensors were written outside `with fanin.recording():`; "
            "what is said of them follows from their values"
        )
    return tuple(notes)
