"""What a claim is made of: arms that measure, lines that judge, tables and pictures that show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fanin.reproduce.figures import Palette
    from fanin.reproduce.images import Images

Verdict = Literal["PASS", "FAIL", "REPORT"]
Cell = str | float | int | None
Tick = Callable[[float], None]
"""Called with the finished share of an arm, in [0, 1]; raises `Stopped` when the run is to end."""


class Stopped(Exception):  # noqa: N818  (not an error: the user asked for it)
    """The run was interrupted; an arm that sees it leaves without a result."""


@dataclass(frozen=True)
class Arm:
    """One unit of work: measured once, kept on disk, taken from there by a rerun.

    Args:
        name: unique within its claim.
        config: all that the result depends on, besides images and code; JSON values.
        cost: seconds of one core that it takes, roughly; only for the order and the progress bar.
    """

    name: str
    config: Mapping[str, Any]
    cost: float = 1.0


@dataclass(frozen=True)
class Line:
    """One line of the verdict table.

    Args:
        statement: what is claimed.
        expected: what theory, or the paper, says.
        found: what was measured.
        verdict: `PASS` or `FAIL` where there is a bar, `REPORT` where a number is only told.
        contradicts: whether what was found contradicts the paper.
    """

    statement: str
    expected: str
    found: str
    verdict: Verdict
    contradicts: bool = False


@dataclass(frozen=True)
class Table:
    """Numbers behind a claim."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A figure that can be drawn in light and in dark.

    Args:
        name: of its file, without suffix.
        title: what it shows, as a sentence; the text for who cannot see it.
        caption: how to read it.
        draw: from a palette to the figure.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Palette], Figure]


@dataclass(frozen=True)
class Conclusion:
    """What a claim's arms add up to; `values` are JSON values."""

    lines: tuple[Line, ...]
    values: Mapping[str, Any]
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()


class Experiment(Protocol):
    """What `experiments/*/claim.py` has: the claim in words, its arms, and what they add up to."""

    TITLE: str
    STATEMENT: str
    NEEDS_IMAGES: bool

    def arms(self, config: Mapping[str, Any], seed: int) -> list[Arm]:
        """The work to do."""
        ...

    def measure(
        self, config: Mapping[str, Any], images: Images | None, tick: Tick
    ) -> dict[str, Any]:
        """Do one arm; the result holds JSON values."""
        ...

    def conclude(
        self, config: Mapping[str, Any], results: Mapping[str, dict[str, Any]]
    ) -> Conclusion:
        """From the results by arm name to the verdict."""
        ...


@dataclass(frozen=True)
class Claim:
    """An experiment with the configuration of one mode.

    Args:
        number: its place in the paper's order, from 1.
        folder: the name of its folder.
        config: one section of its `config.toml`.
        experiment: its code.
        code: a fingerprint of that code.
    """

    number: int
    folder: str
    config: Mapping[str, Any]
    experiment: Experiment = field(repr=False)
    code: str = ""
