"""The report: one HTML file that needs no network, no script and no other file."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

from fanin.reproduce.claim import Cell, Claim, Conclusion, Line, Picture, Table

# Nothing may be fetched or run, whatever text a claim's numbers bring along.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


Drawn = dict[str, dict[str, bytes]]
"""SVG of each picture by its name, then by theme, `light` or `dark`."""


def html(
    claims: Sequence[Claim],
    conclusions: Sequence[Conclusion],
    drawn: Drawn,
    facts: Mapping[str, Any],
) -> str:
    """The report of some claims.

    Args:
        claims: in the order of the page.
        conclusions: of each.
        drawn: their pictures.
        facts: when, where and with what they were run.

    Returns:
        A whole HTML document; everything that is not markup of this file is escaped.
    """
    style = resources.files("fanin.reproduce").joinpath("page.css").read_text()
    pairs = list(zip(claims, conclusions, strict=True))
    body = [
        _header(conclusions, facts),
        _verdicts(pairs),
        _differences(pairs),
        *(_section(claim, conclusion, drawn) for claim, conclusion in pairs),
        _footer(facts),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>fanin: the paper, claim by claim</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{''.join(body)}</main>\n</body>\n</html>\n"
    )


def _header(conclusions: Sequence[Conclusion], facts: Mapping[str, Any]) -> str:
    lines = [line for conclusion in conclusions for line in conclusion.lines]
    counts = [
        f"{_pill(verdict)} {sum(line.verdict == verdict for line in lines)}"
        for verdict in ("PASS", "FAIL", "REPORT")
    ]
    depth = "a quick run" if facts.get("mode") == "quick" else "the full protocol"
    return (
        "<header>\n<h1>The paper, claim by claim</h1>\n"
        "<p class=lead>S. K. Kumar, <cite>On weight initialization in deep neural networks</cite> "
        f"(arXiv:1704.08863), tested on real networks: {depth}, "
        f"{escape(str(facts.get('images', '')))}.</p>\n"
        f"<p class=counts>{'<span class=gap></span>'.join(counts)}</p>\n</header>\n"
    )


def _verdicts(pairs: Sequence[tuple[Claim, Conclusion]]) -> str:
    rows = []
    for claim, conclusion in pairs:
        title = escape(claim.experiment.TITLE)
        rows.append(
            f'<tr class=group><th colspan=4 scope=rowgroup><a href="#claim-{claim.number}">'
            f"{claim.number}. {title}</a></th></tr>\n"
        )
        rows += [_verdict(line) for line in conclusion.lines]
    return (
        "<section>\n<h2>Verdicts</h2>\n<table class=verdicts>\n<thead><tr><th>verdict<th>claim"
        f"<th>expected<th>found</tr></thead>\n<tbody>\n{''.join(rows)}</tbody>\n</table>\n"
        "<p class=note>PASS and FAIL are measured against a bar; REPORT tells a number that has "
        "none.</p>\n</section>\n"
    )


def _verdict(line: Line) -> str:
    return (
        f"<tr><td>{_pill(line.verdict)}<td>{escape(line.statement)}"
        f"<td data-label=expected>{escape(line.expected)}"
        f"<td data-label=found>{escape(line.found)}</tr>\n"
    )


def _pill(verdict: str) -> str:
    return f'<span class="pill {verdict.lower()}">{escape(verdict)}</span>'


def _differences(pairs: Sequence[tuple[Claim, Conclusion]]) -> str:
    """What contradicts the paper, gathered in one place."""
    items = [
        f"<li><strong>{escape(line.statement)}?</strong> Expected: {escape(line.expected)}. "
        f"Found: {escape(line.found)}.</li>\n"
        for _, conclusion in pairs
        for line in conclusion.lines
        if line.contradicts
    ]
    if not items:
        return ""
    return (
        "<section>\n<h2>Where the paper and the numbers part</h2>\n"
        f"<ul class=parts>\n{''.join(items)}</ul>\n</section>\n"
    )


def _section(claim: Claim, conclusion: Conclusion, drawn: Drawn) -> str:
    values = json.dumps(conclusion.values, indent=1, ensure_ascii=False)
    config = json.dumps(dict(claim.config), indent=1, ensure_ascii=False)
    return (
        f'<section id="claim-{claim.number}">\n<h2><span class=number>{claim.number}</span> '
        f"{escape(claim.experiment.TITLE)}</h2>\n"
        f"<p class=statement>{escape(claim.experiment.STATEMENT)}</p>\n"
        f"{''.join(_picture(picture, drawn[picture.name]) for picture in conclusion.pictures)}"
        f"{''.join(_table(table) for table in conclusion.tables)}"
        f"<details><summary>All numbers, as JSON</summary><pre>{escape(values)}</pre></details>\n"
        f"<details><summary>Configuration</summary><pre>{escape(config)}</pre></details>\n"
        "</section>\n"
    )


def _picture(picture: Picture, svg: Mapping[str, bytes]) -> str:
    title, light, dark = escape(picture.title), _data(svg["light"]), _data(svg["dark"])
    return (
        f"<figure>\n<figcaption><strong>{title}.</strong> {escape(picture.caption)}</figcaption>\n"
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{title}"></picture>\n</figure>\n'
    )


def _data(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


def _table(table: Table) -> str:
    head = "".join(f"<th scope=col>{escape(column)}" for column in table.columns)
    rows = "".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>\n" for row in table.rows)
    note = f"<p class=note>{escape(table.note)}</p>" if table.note else ""
    shown = " open" if len(table.rows) <= 20 else ""
    return (
        f"<details{shown}><summary>{escape(table.title)}</summary>\n<div class=scroll>"
        f"<table class=numbers><thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table>"
        "</div>"
        f"{note}</details>\n"
    )


def _cell(value: Cell) -> str:
    if isinstance(value, str):
        return f"<td{' class=long' if len(value) > 40 else ''}>{escape(value)}"
    text = "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return f"<td class=number>{text}"


def _footer(facts: Mapping[str, Any]) -> str:
    items = "".join(
        f"<dt>{escape(name.replace('_', ' '))}<dd>{escape(str(value))}"
        for name, value in facts.items()
    )
    return f"<footer>\n<h2>The run</h2>\n<dl>{items}</dl>\n</footer>\n"
