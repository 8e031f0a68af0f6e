"""The report as one page: works from disk, without network, in light and dark, on a phone.

Names come from a user's model and are data: they travel as escaped JSON, the page writes them as
text, and its policy runs no script but the one below, known by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from importlib import resources
from typing import TYPE_CHECKING

from fanin.report.document import document
from fanin.report.text import text

if TYPE_CHECKING:
    from fanin.report.report import Report


def to_html(report: Report) -> str:
    """The page."""
    style, script = _asset("report.css"), _asset("report.js")
    policy = f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    title = f"fanin {report.kind}: {report.model}: {report.verdict}"
    page = _asset("report.html")
    for place, content in {
        "{{policy}}": policy,
        "{{title}}": html.escape(title),
        "{{style}}": style,
        "{{text}}": html.escape(text(report)),
        "{{data}}": _data(report),
        "{{script}}": script,  # last: nothing that stands in it is a place
    }.items():
        page = page.replace(place, content, 1)
    return page


def _data(report: Report) -> str:
    """The document as JSON that no HTML parser can leave: no angle bracket, no ampersand."""
    plain = json.dumps(document(report), ensure_ascii=True, allow_nan=False)
    return plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(content: str) -> str:
    digest = hashlib.sha256(content.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _asset(name: str) -> str:
    return (resources.files("fanin.report") / "assets" / name).read_text(encoding="utf-8")
