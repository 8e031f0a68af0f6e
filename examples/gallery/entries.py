"""An entry of the gallery of broken models, and the list of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fanin.report.report import Report


@dataclass(frozen=True)
class Broken:
    """One entry: what was reported where, and which rule must come first.

    Args:
        name: of the entry.
        thread: where a user met it, as owner/repository#number; empty for the classical cases.
        story: what was done, and what happened, in a sentence.
        rule: name of the rule that finds the cause.
        where: how the path of the first bad layer or tensor begins.
        run: builds the model and returns the report.
    """

    name: str
    thread: str
    story: str
    rule: str
    where: str
    run: Callable[[], Report]


BROKEN: list[Broken] = []


def broken(
    thread: str, story: str, rule: str, where: str = ""
) -> Callable[[Callable[[], Report]], Callable[[], Report]]:
    """Register an entry."""

    def add(run: Callable[[], Report]) -> Callable[[], Report]:
        BROKEN.append(Broken(run.__name__.replace("_", " "), thread, story, rule, where, run))
        return run

    return add
