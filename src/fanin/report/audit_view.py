"""What the rules of `audit` look at: tensors with their histories, and what the user asked."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fanin.errors import ArgumentTypeError
from fanin.report.findings import Rule
from fanin.report.tensors import SETTING
from fanin.report.view import View
from fanin.torch.provenance.inventory import Held
from fanin.torch.provenance.recording import Write


@dataclass(frozen=True)
class Wanted:
    """One of the user's rules: a pattern of names, and the std that it asks for."""

    pattern: str
    std: float | None
    text: str


@dataclass(frozen=True)
class AuditView:
    """All tensors, the user's rules, what other ranks hold, a measurement where inputs were given.

    Args:
        tensors: every tensor once.
        wanted: what the user asked, in order; the first pattern that matches a name decides.
        ranks: digests of shards by place, for each sharded tensor.
        checked: the view of a check, where inputs were given.
        ignore: rules that the user silenced for tensors of a pattern.
    """

    tensors: tuple[Held, ...]
    wanted: tuple[Wanted, ...] = ()
    ranks: Mapping[str, Mapping[tuple[int, ...], str]] = field(default_factory=dict)
    checked: View | None = None
    ignore: Sequence[str] = ()

    def of(self, rule: Rule, loaded: bool = False) -> Iterator[Held]:
        """The tensors that a rule judges: new ones that it is not silenced for."""
        patterns = [
            pattern
            for named, _, pattern in (entry.partition(":") for entry in self.ignore)
            if named in (rule.id, rule.name) and pattern
        ]
        for held in self.tensors:
            if (loaded or not held.loaded) and not any(
                fnmatch.fnmatch(name, p) for name in held.names for p in patterns
            ):
                yield held

    def sites(self) -> Counter[str]:
        """How many tensors each line of the user's code filled."""
        return Counter(
            site
            for held in self.tensors
            for site in {where(w) for w in held.writes or () if w.kind == "filled"}
        )

    def asked_of(self, held: Held) -> Wanted | None:
        """The user's rule that decides for a tensor."""
        return next((w for w in self.wanted if any(matches(w, n) for n in held.names)), None)


def wanted(rules: Mapping[str, object] | None) -> tuple[Wanted, ...]:
    """The user's rules: patterns to a std, to anything with `.std`, or to None.

    Raises:
        ArgumentTypeError: a value that is none of these.
    """
    found = []
    for pattern, value in (rules or {}).items():
        std = value if isinstance(value, int | float) else getattr(value, "std", None)
        if value is not None and not isinstance(std, int | float):
            raise ArgumentTypeError(
                f"audit(rules), {pattern!r}",
                expected="a standard deviation, a distribution with .std, or None",
                got=repr(value),
            )
        found.append(Wanted(pattern, None if std is None else float(std), repr(value)))
    return tuple(found)


def matches(one: Wanted, name: str) -> bool:
    """Whether a pattern is this name, or a glob that fits it."""
    return fnmatch.fnmatchcase(name, one.pattern)


def where(write: Write) -> str:
    """The line and function that filled a tensor."""
    return f"{write.site.place} {write.function}"


def deliberate(held: Held) -> list[Write]:
    """Whole fills that a user's code asked for, not torch's own constructors."""
    return [
        w
        for w in held.writes or ()
        if w.kind == "filled" and w.whole and not w.site.default and w.asked is not None
    ]


def set_at_all(held: Held) -> bool:
    """Whether, by the record, every element was written."""
    writes = held.writes or ()
    if any(w.kind in SETTING and w.whole for w in writes):
        return True
    parts = [w for w in writes if w.kind in SETTING]
    return sum(w.elements for w in parts) >= held.count > 0 and bool(parts)


def unset(held: Held) -> bool:
    """Whether, by the record, some of its memory is as it was found."""
    writes = held.writes or ()
    return bool(writes) and writes[0].kind == "unset" and not set_at_all(held)


def template(name: str) -> str:
    """A name with its indices taken out: copies of a layer have the same one."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "#", name)
