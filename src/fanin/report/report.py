"""The report: one value in four dresses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fanin.report.findings import Finding, verdict
from fanin.torch.probing.measurement import Measurement

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fanin.report.tensors import Tensor


@dataclass(frozen=True)
class Report:
    """What was found, and what it was found from.

    Args:
        kind: `check` or `audit`.
        model: class of the model, or the file.
        findings: worst first.
        measured: of a check: layers, weights, loss.
        tensors: of an audit: one row a tensor.
        notes: what the reader must know.
    """

    kind: str
    model: str
    findings: tuple[Finding, ...]
    measured: Measurement | None = None
    tensors: tuple[Tensor, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """FAIL, WARN or PASS."""
        return verdict(self.findings)

    @property
    def ok(self) -> bool:
        """Whether nothing fails."""
        return self.verdict != "FAIL"

    def __str__(self) -> str:
        from fanin.report.text import terminal_width, text

        return text(self, terminal_width())

    def __rich__(self) -> Any:
        from fanin.report.console import rich_text

        return rich_text(self)

    def to_json(self, path: str | Path | None = None) -> str:
        """The report as JSON (docs/report-schema.md); written to a file if one is named."""
        from fanin.report.document import to_json

        return _keep(to_json(self), path)

    def to_html(self, path: str | Path | None = None) -> str:
        """The report as one page that needs no network; written to a file if one is named."""
        from fanin.report.html import to_html

        return _keep(to_html(self), path)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Signal and gradient layer by layer (a check), or stds by tensor (an audit)."""
        from fanin.report.figures import plot

        made: Axes = plot(self, ax)
        return made


def _keep(content: str, path: str | Path | None) -> str:
    if path is not None:
        Path(path).write_text(content, encoding="utf-8")
    return content
