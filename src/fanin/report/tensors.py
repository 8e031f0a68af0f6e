"""One row of an audit's table: what a tensor holds beside what was asked, and who wrote it."""

from __future__ import annotations

from dataclasses import dataclass

from fanin.torch.provenance.inventory import Held
from fanin.torch.provenance.recording import Write


@dataclass(frozen=True)
class Tensor:
    """A tensor as an audit shows it.

    Args:
        name: its first name.
        names: every name that reaches it.
        kind: `parameter`, `buffer`, or `tensor` of a file.
        shape, dtype: as held.
        mean, std, low, high: of the values; None where there are none.
        looks: `constant`, `uniform`, `normal` or `other`.
        asked: the law that was asked for, in words; empty where not known.
        asked_std: its standard deviation as asked.
        source: who wrote it last: a function, or what follows from the values alone.
        place: file and line of the user's call.
        fan_in, fan_out: of the layer that owns it.
        new: whether it counts as new, not taken from a checkpoint.
    """

    name: str
    names: tuple[str, ...]
    kind: str
    shape: tuple[int, ...]
    dtype: str
    mean: float | None
    std: float | None
    low: float | None
    high: float | None
    looks: str
    asked: str
    asked_std: float | None
    source: str
    place: str
    fan_in: float | None
    fan_out: float | None
    new: bool


def row(held: Held) -> Tensor:
    """The row of one tensor."""
    values, last = held.values, last_write(held)
    asked = last.asked if last is not None and not modified(held) else None
    return Tensor(
        held.name,
        held.names,
        held.kind,
        held.shape,
        held.dtype,
        values.mean if values else None,
        values.std if values else None,
        values.low if values else None,
        values.high if values else None,
        values.shape(held.count) if values else "",
        str(asked) if asked else "",
        asked.std if asked else None,
        _source(held, last),
        last.site.place if last else "",
        held.fans.fan_in if held.fans else None,
        held.fans.fan_out if held.fans else None,
        not held.loaded,
    )


def last_write(held: Held) -> Write | None:
    """The last write that set the whole tensor, or else the last one."""
    writes = held.writes or ()
    setting = [w for w in writes if w.kind in SETTING and w.whole]
    return setting[-1] if setting else writes[-1] if writes else None


def modified(held: Held) -> bool:
    """Whether something changed the values after they were set."""
    writes = held.writes or ()
    last = last_write(held)
    return last is not None and any(
        w.kind == "modified" and w.whole for w in writes[writes.index(last) + 1 :]
    )


SETTING = ("filled", "created", "copied", "loaded")
"""Kinds of writes after which the values no longer depend on what was there before."""


def _source(held: Held, last: Write | None) -> str:
    if held.loaded:
        return "loaded from a checkpoint"
    if held.meta:
        return "on meta: no values"
    if held.placeholder:
        return "placeholder of size 0"
    if last is None:
        looks = held.values.shape(held.count) if held.values else "nothing"
        return f"not recorded, looks {looks}"
    if last.kind == "loaded":
        return f"load_state_dict ({last.site.place})"
    then = ", then modified" if modified(held) else ""
    by = f" in {last.site.owner}" if last.site.owner else ""
    return f"{last.function.rpartition('.')[2]}{by} ({last.site.place}){then}"
