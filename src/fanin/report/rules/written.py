"""Rules on who wrote a tensor: never, twice, out of reach, or by a pattern that matched nothing."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from itertools import pairwise

from fanin.report.audit_view import (
    AuditView,
    deliberate,
    matches,
    template,
    unset,
    where,
)
from fanin.report.findings import AUDITS, Finding, rule
from fanin.report.view import listed
from fanin.torch.provenance.inventory import Held


@rule(AUDITS, "AUD201", "rule-never-matched")
def never_matched(view: AuditView) -> Iterator[Finding]:
    """A pattern of the user's that fits no tensor."""
    names = [name for held in view.tensors for name in held.names]
    for one in view.wanted:
        if any(matches(one, name) for name in names):
            continue
        meant = [n for n in names if n.endswith(one.pattern)]
        near = f"*.{one.pattern}" if meant else ""
        if not near:
            near = next(
                iter(difflib.get_close_matches(one.pattern, [*names, *map(_glob, names)])), ""
            )
        hint = f"; did you mean `{near}`?" if near else ""
        yield never_matched.finding(
            "FAIL",
            one.pattern,
            f"The rule {one.pattern!r} fits no name, so what it asks for is nowhere.",
            f"rule matched 0 of {len(meant) or len(names)} tensors{hint}",
            f'{{"{near or "*" + one.pattern}": {one.text}}}',
        )


def _glob(name: str) -> str:
    return template(name).replace("#", "*")


@rule(AUDITS, "AUD202", "overwritten-by")
def overwritten(view: AuditView) -> Iterator[Finding]:
    """A deliberate initialization that a more general one wrote over."""
    counts = view.sites()
    groups: dict[tuple[str, str], list[Held]] = {}
    for held in view.of(overwritten):
        fills = deliberate(held)
        for first, second in pairwise(fills):
            different = first.asked != second.asked and where(first) != where(second)
            # A later rule for fewer tensors refines an earlier one for all; the reverse is a loss.
            if different and counts[where(second)] >= counts[where(first)]:
                groups.setdefault((where(first), where(second)), []).append(held)
                break
    for (first_at, second_at), tensors in groups.items():
        one = tensors[0]
        by_site = {where(w): w for w in deliberate(one)}
        yield overwritten.finding(
            "WARN",
            one.name,
            f"{by_site[first_at]} asked for {by_site[first_at].asked}, and "
            f"{by_site[second_at]} wrote "
            f"{by_site[second_at].asked} over it.",
            f"{len(tensors)} tensors: {listed([t.name for t in tensors])}; std now "
            f"{one.values.std if one.values else 0:.3g}",
            "# call the general initialization first, the special one after it",
        )


@rule(AUDITS, "AUD203", "never-initialized")
def never_initialized(view: AuditView) -> Iterator[Finding]:
    """Memory that nothing wrote: from `torch.empty`, `to_empty`, or still on meta."""
    say = never_initialized.finding
    meta = [t for t in view.of(never_initialized, loaded=True) if t.meta and t.kind == "parameter"]
    if meta:
        yield say(
            "FAIL",
            meta[0].name,
            "Parameters are on the meta device and have no values at all.",
            f"{len(meta)} parameters: {listed([t.name for t in meta])}",
            "fanin.materialize_(model, device)",
        )
    found = [t for t in view.of(never_initialized) if t.persistent and unset(t)]
    if found:
        one = found[0]
        assert one.writes is not None
        part = sum(w.elements for w in one.writes if w.kind == "filled")
        how = f"{part} of {one.count} elements were written" if part else "nothing wrote it"
        yield say(
            "FAIL",
            one.name,
            f"The memory comes from {one.writes[0].function} ({one.writes[0].site.place}) and "
            f"{how}: it holds what was there before.",
            f"{len(found)} tensors: {listed([t.name for t in found])}",
            "fanin.init_(model, inputs)",
        )
    strange = [t for t in view.of(never_initialized) if t.writes is None and _strange(t)]
    if strange:
        largest = max(max(abs(t.values.low), abs(t.values.high)) for t in strange if t.values)
        yield say(
            "WARN",
            strange[0].name,
            "The values look like memory that nothing wrote; build the model in "
            "`with fanin.recording():` to know.",
            f"{len(strange)} tensors: {listed([t.name for t in strange])}; largest {largest:.3g}",
            "fanin.init_(model, inputs)",
        )


def _strange(held: Held) -> bool:
    """Finite values of a size that no initializer gives a parameter."""
    v = held.values
    real = v is not None and not v.nonfinite and held.kind == "parameter"
    return real and v is not None and not 1e-30 < max(abs(v.low), abs(v.high), 1e-20) < 1e6


@rule(AUDITS, "AUD207", "init-after-parametrization")
def after_parametrization(view: AuditView) -> Iterator[Finding]:
    """A write to a weight that the layer computes from others: it changes nothing that lasts."""
    for held in view.of(after_parametrization):
        if held.lost:
            write = held.lost[-1]
            layer = held.name.split(".parametrizations.")[0].removesuffix("parametrizations")
            yield after_parametrization.finding(
                "FAIL",
                held.name,
                f"{write} wrote to the result of a parametrization, which is computed anew at "
                "each forward: the write is lost.",
                f"asked {write.asked or 'values'} for a {'x'.join(map(str, write.shape))} weight "
                f"of {layer or 'the model'}; its parameters are unchanged",
                "fanin.init_(model, inputs)  # writes through right_inverse",
            )
            return


@rule(AUDITS, "AUD212", "buffer-lost-on-meta")
def buffer_lost(view: AuditView) -> Iterator[Finding]:
    """A buffer that no checkpoint holds and whose values were lost on the meta device."""
    lost = [t for t in view.of(buffer_lost, loaded=True) if t.kind == "buffer" and _lost(t)]
    if lost:
        state = "still on meta" if lost[0].meta else "memory from to_empty that nothing wrote"
        yield buffer_lost.finding(
            "FAIL",
            lost[0].name,
            f"A buffer that no checkpoint brings back is {state}: {', '.join(set(lost[0].owners))} "
            "computes it in its constructor, which ran on the meta device.",
            f"{len(lost)} buffers: {listed([t.name for t in lost])}",
            "fanin.materialize_(model, device)  # recomputes buffers through their modules",
        )


def _lost(held: Held) -> bool:
    """Whether a buffer's values went: on meta, never written, or not the frequencies it names."""
    if held.meta:
        return True
    if unset(held):
        return not held.persistent
    v = held.values
    frequencies = held.name.rpartition(".")[2] == "inv_freq"
    # Rotary frequencies are base^(-2i/d): they start at 1 and fall.
    return bool(frequencies and v and (v.nonfinite or v.high > 1.001 or v.low < 0 or v.constant))


@rule(AUDITS, "AUD213", "size-zero-placeholder")
def placeholder(view: AuditView) -> Iterator[Finding]:
    """A stand-in of a sharding framework: writing to it is a silent no-op."""
    found = [t for t in view.of(placeholder, loaded=True) if t.placeholder]
    if found:
        yield placeholder.finding(
            "FAIL",
            found[0].name,
            "Parameters have no elements here: any initializer writes nothing and says nothing.",
            f"{len(found)} placeholders of size 0 for shapes such as "
            f"{'x'.join(map(str, found[0].shape))}: {listed([t.name for t in found])}",
            "with deepspeed.zero.GatheredParameters([*model.parameters()], modifier_rank=0): ...",
        )
