"""Residual streams: how they grow, and whether depth was paid for once, in the right place."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

from fanin.report.audit_view import template
from fanin.report.findings import CHECKS, Finding, rule
from fanin.report.view import Branch, View, listed
from fanin.torch.probing.measurement import Layer

MANY = 8
"""Branches on one stream from which depth scaling matters: a factor sqrt(8) in scale."""
NEAR = 0.1
"""Relative distance within which a ratio of two measured stds is the intended one."""


@rule(CHECKS, "CHK111", "depth-scaling")
def depth_scaling(view: View) -> Iterator[Finding]:
    """The factor for depth on more than one weight of a branch, or not on its last."""
    weighted = [b for b in view.branches if b.linears]
    total = len(weighted)
    if total < MANY:
        return
    double, misplaced = (_schemed(view, weighted, how) for how in ("double", "misplaced"))
    if double:
        rows = _small(view, double[0], total)
        yield depth_scaling.finding(
            "WARN",
            rows[0].name,
            f"Double depth scaling: {listed([r.name for r in rows])} of one branch are all scaled "
            "down for depth, so the branch starts smaller than the depth asks for.",
            f"{len(double)} of {total} branches; std {_ratio(view, double[0], rows[0]):.3g} times "
            f"that of the branch's other weights, near 1/sqrt({total})",
            "fanin.init_(model, inputs)  # scales the last projection of each branch, once",
        )
    if misplaced:
        rows = _small(view, misplaced[0], total)
        last = misplaced[0].linears[-1]
        yield depth_scaling.finding(
            "WARN",
            rows[0].name,
            f"Depth scaling on a non-residual projection: {rows[0].name} is scaled down and "
            f"{last.name}, which writes to the stream, is not; the start is the same, the "
            "training is not.",
            f"{len(misplaced)} of {total} branches; std {_ratio(view, misplaced[0], rows[0]):.3g} "
            "times that of the branch's other weights",
            "fanin.init_(model, inputs)  # scales the last projection of each branch",
        )


def _schemed(view: View, weighted: list[Branch], how: str) -> list[Branch]:
    """The branches that are scaled so, where most of their kind are.

    A scheme scales branches of one kind alike (attentions, MLPs); a few near the ratio have other
    reasons.
    """
    kinds: dict[str, list[Branch]] = {}
    for branch in weighted:
        if len(branch.linears) > 1:
            kinds.setdefault(template(branch.linears[-1].name), []).append(branch)
    found: list[Branch] = []
    for alike in kinds.values():
        scaled = [b for b in alike if _scaled(view, b, len(weighted)) == how]
        if 2 * len(scaled) > len(alike) >= MANY // 2:
            found += scaled
    return found


def _reference(view: View, branch: Branch) -> float:
    """The typical std of the branch's weights, the largest of them."""
    return max((_std(view, row) for row in branch.linears), default=0.0)


def _std(view: View, row: Layer) -> float:
    return view.weights[row.weights[0]].std


def _ratio(view: View, branch: Branch, row: Layer) -> float:
    reference = _reference(view, branch)
    return _std(view, row) / reference if reference else 1.0


def _small(view: View, branch: Branch, total: int) -> list[Layer]:
    """Rows of a branch whose std is that of the others times 1/sqrt of a count of depth."""
    counts = {total, total / 2, 2 * total}
    return [
        row
        for row in branch.linears
        if any(abs(_ratio(view, branch, row) * math.sqrt(n) - 1) < NEAR for n in counts)
        and not _by_fan(view, branch, row)
    ]


def _by_fan(view: View, branch: Branch, row: Layer) -> bool:
    """Whether a std is small because the row sums more terms than the one with the largest."""
    largest = max(branch.linears, key=lambda other: _std(view, other))
    gain, other = view.gain(row), view.gain(largest)
    if row is branch.linears[-1] or not gain or not other:
        return False
    return gain / other > 2 * _ratio(view, branch, row)


def _scaled(view: View, branch: Branch, total: int) -> str:
    small = _small(view, branch, total)
    last = branch.linears[-1]
    if len(small) > 1:
        return "double"
    if small and small[0] is not last:
        return "misplaced"
    return "right" if small else "none"


def _start(view: View, branch: Branch) -> float:
    """The stream's second moment where the branch leaves it."""
    if branch.skip is not None:
        return branch.skip.second_moment
    return next((i.second_moment for i in view.measurement.inputs if i.second_moment), 1.0)


@rule(CHECKS, "CHK110", "residual-growth")
def residual_growth(view: View) -> Iterator[Finding]:
    """A stream to which many branches add at full size."""
    for stream in view.streams:
        count = len(stream)
        if count < MANY:
            continue
        start = _start(view, stream[0])
        end = stream[-1].add.second_moment
        unit = max(start, 1.0)
        if not (end - start) / unit > 2 * math.sqrt(count):
            continue
        share = statistics.median(b.end.second_moment for b in stream)
        yield residual_growth.finding(
            "WARN",
            stream[0].linears[-1].name if stream[0].linears else stream[0].add.name,
            f"The residual stream grows: {count} branches each add a second moment of "
            f"{share:.3g} and none is scaled for depth, so later branches change it less and less.",
            f"root mean square {math.sqrt(end / max(start, 1e-300)):.3g} times from the first to "
            f"the last of {count} branches (missing depth scaling: 1/sqrt({count}) = "
            f"{1 / math.sqrt(count):.3g} on the last projection of each)",
            "fanin.init_(model, inputs)",
        )
        return
