"""The report for a terminal with colours, where rich is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fanin.report.text import terminal_width, text

if TYPE_CHECKING:
    from fanin.report.report import Report

STYLES = {"FAIL": "bold red", "WARN": "bold yellow", "NOTE": "bold cyan", "PASS": "bold green"}


def rich_text(report: Report) -> Any:
    """The plain text with the verdicts, rules and fixes in colour."""
    from rich.text import Text

    made = Text(text(report, terminal_width()))
    for word, style in STYLES.items():
        made.highlight_regex(rf"(?m)^{word}(?= )|(?<=: ){word}$", style)
    made.highlight_regex(r"(?m)(?<=^     )fix: .*$", "green")
    made.highlight_regex(r"\b(CHK|AUD)\d{3} \S+", "bold")
    made.highlight_regex(r"(?m)^(layer|tensor)  .*$", "bold")
    made.highlight_regex(r"(?m)^note: .*$", "dim")
    return made


def show(report: Report) -> None:
    """Print with colour on a terminal with rich, else as plain text."""
    import sys

    if sys.stdout.isatty():
        try:
            from rich.console import Console
        except ImportError:
            pass
        else:
            Console().print(rich_text(report), soft_wrap=True)
            return
    print(report)
