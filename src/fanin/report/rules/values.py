"""Rules on what a tensor holds: equal to another, not finite, closed, not as asked."""

from __future__ import annotations

import math
from collections.abc import Iterator

from fanin.report.audit_view import AuditView, deliberate, template, unset
from fanin.report.findings import AUDITS, Finding, Severity, rule
from fanin.report.tensors import last_write, modified
from fanin.report.view import listed
from fanin.torch.provenance.asked import Asked
from fanin.torch.provenance.inventory import Held

DEVIATIONS = 5.0
"""Standard errors of a standard deviation: one false alarm in 10^6 tensors."""
ROUNDING = 0.01
"""Relative: what rounding to bfloat16 and samplers of low precision may change."""
FEW = 4
"""Fewer elements than this may agree by intention."""


@rule(AUDITS, "AUD205", "nonfinite")
def nonfinite(view: AuditView) -> Iterator[Finding]:
    """NaN or infinity in a tensor that something wrote."""
    found = [
        t
        for t in view.of(nonfinite, loaded=True)
        if t.values and t.values.nonfinite and not _mask(t) and not unset(t)
    ]
    if found:
        yield nonfinite.finding(
            "FAIL",
            found[0].name,
            "The tensor holds NaN or infinity.",
            f"{len(found)} of {len(view.tensors)} tensors: {listed([t.name for t in found])}",
            "fanin.init_(model, inputs)",
        )


def _mask(held: Held) -> bool:
    """Buffers with -inf and nothing else strange are attention masks."""
    v = held.values
    return held.kind == "buffer" and v is not None and v.low == -math.inf and v.high <= 0


@rule(AUDITS, "AUD204", "duplicate-values")
def duplicates(view: AuditView) -> Iterator[Finding]:
    """Tensors, shards or rows that are drawn at random and yet are the same."""
    for name, shards in view.ranks.items():
        if len(set(shards.values())) < len(shards):
            yield duplicates.finding(
                "FAIL",
                name,
                "Different shards of one tensor hold the same values: every rank "
                "drew from the same random state.",
                f"{len(shards)} shards, {len(set(shards.values()))} different",
                "fanin.materialize_(model, device, seed=0)  # draws by position in the tensor",
            )
            break
    written = [t for t in view.of(duplicates) if not unset(t) and t.values and not t.values.table]
    for held in written:
        if (
            held.values
            and held.values.equal_rows
            and held.kind == "parameter"
            and len(held.shape) > 1
        ):
            yield duplicates.finding(
                "FAIL",
                held.name,
                "All rows of the weight are the same, so all its units stay the same for ever.",
                f"{held.shape[0]} equal rows",
                "fanin.init_(model, inputs)",
            )
            break
    groups: dict[str, list[Held]] = {}
    for held in written:
        if held.kind != "buffer" and held.values and held.values.digest and held.count >= FEW:
            groups.setdefault(held.values.digest, []).append(held)
    equal = [g for g in groups.values() if len(g) > 1 and not _copy_on_purpose(g)]
    if equal:
        first = equal[0]
        copies = len({template(t.name) for t in first}) == 1
        what = "copies of one layer" if copies else "tensors"
        yield duplicates.finding(
            "WARN",
            first[0].name,
            f"{what.capitalize()} start with the same random values: a layer was copied, or an "
            "initializer was used again with the same seed.",
            f"{len(equal)} groups of equal tensors; first {listed([t.name for t in first])}",
            "fanin.init_(model, inputs)",
        )


def _copy_on_purpose(group: list[Held]) -> bool:
    """A frozen copy of a trained network: target networks, teachers, moving averages."""
    return any(t.trainable for t in group) and any(
        not t.trainable and t.kind == "parameter" for t in group
    )


@rule(AUDITS, "AUD206", "all-zero-pair")
def zero_pair(view: AuditView) -> Iterator[Finding]:
    """Both factors of a low-rank pair at zero: measured where inputs are given, else by name."""
    found = list(view.checked.measurement.never_trains) if view.checked else []
    if not found:
        zeros = {t.name for t in view.of(zero_pair) if _zero_matrix(t)}
        found = [
            name
            for name in sorted(zeros)
            if "lora_A" in name and name.replace("lora_A", "lora_B") in zeros
        ]
        found += [name.replace("lora_A", "lora_B") for name in found]
    if found:
        yield zero_pair.finding(
            "FAIL",
            found[0],
            "Two zero factors follow each other: each has a gradient only while the other is not "
            "zero, so both stay zero.",
            f"{len(found)} zero weights: {listed(found)}",
            "# draw the first factor (lora_A), keep the second (lora_B) at zero",
        )


def _zero_matrix(held: Held) -> bool:
    v = held.values
    return bool(v and v.constant and v.low == 0 and len(held.shape) >= 2 and held.trainable)


@rule(AUDITS, "AUD208", "std-not-as-asked")
def std_not_as_asked(view: AuditView) -> Iterator[Finding]:
    """A standard deviation that is not the one asked for, beyond chance and rounding."""
    found: list[tuple[Held, float, str]] = []
    for held in view.of(std_not_as_asked):
        one = view.asked_of(held)
        last = last_write(held)
        if one is not None and one.std is not None:
            asked, source = one.std, f"the rule {one.pattern!r}"
        elif (
            last is not None
            and last.asked
            and last.asked.true_std is not None
            and not (modified(held) or last.kind != "filled")
        ):
            asked, source = last.asked.true_std, str(last)
        else:
            continue
        if held.values and _differs(held, asked):
            found.append((held, asked, source))
    if found:
        held, asked, source = found[0]
        assert held.values is not None
        ratio = held.values.std / asked if asked else math.inf
        yield std_not_as_asked.finding(
            "WARN",
            held.name,
            f"{source} asks for a standard deviation of {asked:.4g}, and the tensor has "
            f"{held.values.std:.4g}.",
            f"ratio {ratio:.4g} with a relative standard error of {_error(held):.2g}; "
            f"{len(found)} tensors: {listed([t.name for t, _, _ in found])}",
            "# something wrote after the initializer, or the initializer reads its argument "
            "differently",
        )


def _error(held: Held) -> float:
    """Relative standard error of a standard deviation: sqrt((kurtosis - 1) / (4 n))."""
    kurtosis = max(held.values.kurtosis if held.values else 3.0, 1.8)
    return math.sqrt((kurtosis - 1) / (4 * max(held.count, 1)))


def _differs(held: Held, asked: float) -> bool:
    assert held.values is not None
    allowed = max(DEVIATIONS * _error(held), ROUNDING)
    return abs(held.values.std - asked) > allowed * max(asked, 1e-12)


@rule(AUDITS, "AUD210", "truncation-changes-std")
def truncation(view: AuditView) -> Iterator[Finding]:
    """Bounds near enough to change the standard deviation, and nothing that corrects it."""
    found = [
        (t, w.asked)
        for t in view.of(truncation)
        if (w := last_write(t)) is not None and w.asked is not None and _shrinks(w.asked)
    ]
    if found:
        held, asked = found[0]
        assert asked.std is not None
        assert asked.true_std is not None
        yield truncation.finding(
            "WARN",
            held.name,
            f"A normal law of std {asked.std:.4g} cut to [{asked.low:.4g}, {asked.high:.4g}] has "
            f"std {asked.true_std:.4g}.",
            f"{asked.true_std / asked.std:.3f} of what was asked, in {len(found)} tensors: "
            f"{listed([t.name for t, _ in found])}",
            f"fanin.torch.init.trunc_normal_(w, std={asked.std:g})  # std of what comes out",
        )


def _shrinks(asked: Asked) -> bool:
    true = asked.true_std
    return bool(asked.law == "truncated normal" and asked.std and true and true < 0.99 * asked.std)


@rule(AUDITS, "AUD209", "fan-not-as-meant")
def fan_not_as_meant(view: AuditView) -> Iterator[Finding]:
    """A fan counted from a shape that does not say what the layer sums."""
    groups: dict[Severity, list[tuple[Held, Asked, float, str]]] = {}
    for held in view.of(fan_not_as_meant):
        last = last_write(held)
        if last is None or last.asked is None or not last.asked.fan:
            continue
        meant = _meant(held, last.asked)
        if meant is not None and abs(last.asked.fan / meant[0] - 1) > 0.05:
            severity: Severity = "NOTE" if last.site.default else "WARN"
            groups.setdefault(severity, []).append((held, last.asked, *meant))
    for severity, found in groups.items():
        held, asked, fan, how = found[0]
        assert asked.fan is not None
        yield fan_not_as_meant.finding(
            severity,
            held.name,
            f"{asked.mode} was counted as {asked.fan:g} from the shape "
            f"{'x'.join(map(str, held.shape))}; {how} has {fan:g}.",
            f"std {math.sqrt(fan / asked.fan):.3g} times what was meant, in {len(found)} tensors: "
            f"{listed([t.name for t, *_ in found])}",
            "fanin.torch.init.kaiming_normal_(layer)  # given the layer, counts what it sums",
        )


def _meant(held: Held, asked: Asked) -> tuple[float, str] | None:
    """The fan of what the layer does, in the mode that was asked, and how it was counted."""
    if held.fans is not None:
        both = {"fan_in": held.fans.fan_in, "fan_out": held.fans.fan_out}
        part = held.fans.parts[0]
        if len(held.fans.parts) > 1:
            both = {"fan_in": part.fan_in, "fan_out": part.fan_out}
        fan = both.get(asked.mode, sum(both.values()) / 2)
        return fan, f"{held.owners[0]} ({held.fans.counted})"
    stacked = len(held.shape) == 3 and not any("Conv" in owner for owner in held.owners)
    if not stacked or asked.mode == "fan_avg":
        return None
    count, rows, columns = held.shape
    fan = rows if asked.mode == "fan_in" else columns
    return float(fan), f"each of {count} stacked matrices {rows}x{columns}"


@rule(AUDITS, "AUD211", "tied-conflict")
def tied_conflict(view: AuditView) -> Iterator[Finding]:
    """One tensor with two uses whose rules disagree."""
    for held in view.of(tied_conflict):
        if len(held.names) < 2 or held.values is None:
            continue
        fills = deliberate(held)
        laws = {str(w.asked) for w in fills}
        owners = [w.site for w in fills]
        if len(laws) > 1 and len({(s.place, s.owner) for s in owners}) > 1:
            yield tied_conflict.finding(
                "WARN",
                held.name,
                f"{listed(held.names)} are one tensor, and two rules wrote it: "
                f"{fills[-2]} {fills[-2].asked}, then {fills[-1]} {fills[-1].asked}.",
                f"{len(laws)} laws for one tensor; std now {held.values.std:.3g}",
                "# skip the second name, or decide for one of the two",
            )
            return
        gain = held.values.std * math.sqrt(held.shape[-1]) if len(held.shape) == 2 else 0.0
        if "Embedding" in held.owners and len(set(held.owners)) > 1 and gain > 2:
            yield tied_conflict.finding(
                "WARN",
                held.name,
                f"The embedding is tied to the head {held.names[-1]}: std {held.values.std:.3g} "
                f"suits a lookup; the head sums {held.shape[-1]} terms of it.",
                f"logits have gain {gain:.3g}; 1/sqrt({held.shape[-1]}) = "
                f"{held.shape[-1] ** -0.5:.3g} gives 1",
                f"fanin.torch.init.normal_(model.{held.name}, std={held.shape[-1] ** -0.5:.3g})",
            )
            return
