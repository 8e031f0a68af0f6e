"""A finding, the register of rules that make them, and how findings are ranked and silenced."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from fanin.errors import ArgumentTypeError, UnknownNameError

Severity = Literal["FAIL", "WARN", "NOTE"]
SEVERITIES: tuple[Severity, ...] = ("FAIL", "WARN", "NOTE")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, where, why, the number that shows it, and what to do.

    Args:
        rule: its id, such as CHK101; each has a page in docs/rules.
        name: the rule's name, such as vanishing-signal.
        severity: FAIL (will not train, or not as meant), WARN (will train worse), NOTE.
        where: path of the first bad layer or of the tensor; empty for the whole model.
        cause: one sentence.
        number: what was measured, beside what it was held against.
        fix: code.
    """

    rule: str
    name: str
    severity: Severity
    where: str
    cause: str
    number: str
    fix: str = ""

    def __str__(self) -> str:
        from fanin.report.text import lines_of, terminal_width

        return "\n".join(lines_of(self, terminal_width()))

    @property
    def page(self) -> str:
        """The rule's page."""
        return f"docs/rules/{self.rule}.md"


@dataclass(frozen=True)
class Rule:
    """A rule as registered: id, name, and the function that looks."""

    id: str
    name: str
    look: Callable[[Any], Iterable[Finding]]

    def finding(
        self, severity: Severity, where: str, cause: str, number: str, fix: str = ""
    ) -> Finding:
        """A finding of this rule."""
        return Finding(self.id, self.name, severity, where, cause, number, fix)


CHECKS: dict[str, Rule] = {}
AUDITS: dict[str, Rule] = {}

CAUSES_FIRST = (
    *("nonfinite", "input-scale", "equal-units", "zero-pair", "gradient-stops"),
    *("saturated-units", "dead-units", "unstable-fixed-point", "vanishing-signal"),
    *("collapsed-inputs", "exploding-signal", "vanishing-gradient", "exploding-gradient"),
    "start-loss",
    *("depth-scaling", "residual-growth", "never-called", "batch-too-small"),
    *("size-zero-placeholder", "rule-never-matched", "init-after-parametrization"),
    *("buffer-lost-on-meta", "never-initialized", "all-zero-pair", "tied-conflict"),
    *("overwritten-by", "duplicate-values", "fan-not-as-meant", "truncation-changes-std"),
    "std-not-as-asked",
)
"""Rules in order of cause: what comes first explains what comes later."""

Look = TypeVar("Look", bound=Callable[..., Iterable[Finding]])


def rule(register: dict[str, Rule], id: str, name: str) -> Callable[[Look], Rule]:
    """Register a function that looks at a view and yields findings of one rule."""

    def add(look: Look) -> Rule:
        made = Rule(id, name, look)
        register[id] = made
        return made

    return add


def rank(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Worst first; of equal severity causes before consequences."""

    def place(finding: Finding) -> tuple[int, int]:
        known = finding.name in CAUSES_FIRST
        order = CAUSES_FIRST.index(finding.name) if known else len(CAUSES_FIRST)
        return SEVERITIES.index(finding.severity), order

    return tuple(sorted(findings, key=place))


def without(findings: Iterable[Finding], ignore: Sequence[str]) -> Iterator[Finding]:
    """Leave out what the user silenced: `CHK110`, a rule's name, or `AUD205:*.bias`.

    Raises:
        UnknownNameError: an entry names no rule.
    """
    if isinstance(ignore, str):
        raise ArgumentTypeError(
            "ignore", expected="a sequence of rules", got=repr(ignore), fix=f"write [{ignore!r}]"
        )
    known = {r.id for r in (*CHECKS.values(), *AUDITS.values())}
    known |= {r.name for r in (*CHECKS.values(), *AUDITS.values())}
    silenced = [entry.partition(":") for entry in ignore]
    for named, _, _ in silenced:
        if named not in known:
            raise UnknownNameError(
                "ignore", expected="ids or names of rules such as CHK110", got=repr(named)
            )
    for finding in findings:
        if not any(
            named in (finding.rule, finding.name) and fnmatch.fnmatch(finding.where, pattern or "*")
            for named, _, pattern in silenced
        ):
            yield finding


def verdict(findings: Iterable[Finding]) -> str:
    """FAIL, WARN or PASS."""
    found = {f.severity for f in findings}
    return "FAIL" if "FAIL" in found else "WARN" if "WARN" in found else "PASS"
