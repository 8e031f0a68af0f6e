"""Depth scaling as the weights show it: which projection of each repeated block is scaled."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from fanin.report.audit_view import AuditView, template
from fanin.report.findings import AUDITS, Finding, rule
from fanin.report.rules.residual import MANY, NEAR, depth_scaling, residual_growth
from fanin.report.view import listed
from fanin.torch.provenance.inventory import Held

OUTPUTS = ("c_proj", "out_proj", "o_proj", "down_proj", "w2", "fc2", "wo", "proj")
"""Names that projections onto the residual stream go by, where shapes do not tell."""


@rule(AUDITS, "AUD214", "depth-scaling")
def depth(view: AuditView) -> Iterator[Finding]:
    """Missing, doubled or misplaced; measured where inputs are given, else by name and shape."""
    if view.checked is not None:
        for look in (depth_scaling, residual_growth):
            for f in look.look(view.checked):
                yield depth.finding(f.severity, f.where, f.cause, f.number, f.fix)
        return
    blocks = _blocks(view)
    if not blocks:
        return
    count = max(len(tensors) for tensors in blocks.values())
    ratios = _ratios(blocks)
    scaled = [
        name
        for name, ratio in ratios.items()
        if _near(ratio, count) and not _by_fan(name, ratio, ratios, blocks)
    ]
    width = _width(blocks)
    outputs = [name for name in ratios if _writes_stream(blocks[name][0], width)]
    inner = [name for name in scaled if name not in outputs]
    if not outputs:
        return
    said = "no inputs were given, so the projections are told apart by shape and name"
    if inner and any(name in scaled for name in outputs):
        yield depth.finding(
            "WARN",
            blocks[inner[0]][0].name,
            f"Double depth scaling: {listed([*inner, *(n for n in outputs if n in scaled)])} are "
            "scaled down for depth, where the last projection of a branch is enough.",
            f"std {ratios[inner[0]]:.3g} times that of the block's other weights, near "
            f"1/sqrt({2 * count}); {said}",
            "fanin.init_(model, inputs)",
        )
    elif inner:
        yield depth.finding(
            "WARN",
            blocks[inner[0]][0].name,
            f"Depth scaling on a non-residual projection: {listed(inner)} is scaled down, "
            f"{listed(outputs)}, which writes to the stream, is not.",
            f"std {ratios[inner[0]]:.3g} times that of the block's other weights; {said}",
            "fanin.init_(model, inputs)",
        )
    elif not any(name in scaled for name in outputs):
        yield depth.finding(
            "NOTE",
            blocks[outputs[0]][0].name,
            f"No depth scaling: {listed(outputs)} of {count} blocks write to the stream at full "
            "size.",
            f"std {ratios[outputs[0]]:.3g} times the block's largest, where 1/sqrt({2 * count}) = "
            f"{(2 * count) ** -0.5:.3g} would hold the stream; {said}",
            "fanin.audit(model, inputs=inputs)  # measures the growth of the stream",
        )


def _blocks(view: AuditView) -> dict[str, list[Held]]:
    """Matrices of blocks that are repeated MANY times or more, by name without number."""
    found: dict[str, list[Held]] = {}
    for held in view.of(depth):
        matrix = len(held.shape) == 2 and held.kind == "parameter"
        if matrix and held.values and not held.values.table:
            found.setdefault(template(held.name), []).append(held)
    return {name: tensors for name, tensors in found.items() if len(tensors) >= MANY}


def _ratios(blocks: dict[str, list[Held]]) -> dict[str, float]:
    """Typical std by name, relative to the largest of the block."""
    stds = {
        name: sum(t.values.std for t in tensors if t.values) / len(tensors)
        for name, tensors in blocks.items()
    }
    largest = max(stds.values())
    return {name: std / largest if largest else 1.0 for name, std in stds.items()}


def _by_fan(
    name: str, ratio: float, ratios: dict[str, float], blocks: dict[str, list[Held]]
) -> bool:
    """Whether a std is small because the weight sums more terms than the one with the largest."""
    largest = max(ratios, key=lambda other: ratios[other])
    fans = [_inputs(blocks[n][0]) for n in (name, largest)]
    return math.sqrt(fans[0] / fans[1]) > 2 and abs(ratio * math.sqrt(fans[0] / fans[1]) - 1) < 0.5


def _inputs(held: Held) -> int:
    """What a matrix sums, by its shape."""
    return held.shape[0] if "Conv1D" in held.owners else held.shape[1]


def _near(ratio: float, count: int) -> bool:
    """Whether a ratio is 1/sqrt of the number of blocks or of branches."""
    return any(abs(ratio * math.sqrt(n) - 1) < NEAR for n in (count, 2 * count))


def _width(blocks: dict[str, list[Held]]) -> int:
    """The stream's width: the size that most matrices share, of several the smallest."""
    sizes = Counter(size for tensors in blocks.values() for size in set(tensors[0].shape))
    return max(sizes, key=lambda size: (sizes[size], -size))


def _writes_stream(held: Held, width: int) -> bool:
    """Whether a matrix maps back onto the stream."""
    rows, columns = held.shape
    layer = held.name.split(".")[-2] if "." in held.name else held.name
    if rows == columns or width not in (rows, columns):
        return rows == columns and layer in OUTPUTS
    if any(owner == "Conv1D" for owner in held.owners):
        rows, columns = columns, rows
    return rows == width
