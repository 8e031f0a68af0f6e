"""The report as JSON: a versioned document whose schema is docs/report-schema.md."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fanin import __version__

if TYPE_CHECKING:
    from fanin.report.report import Report

SCHEMA = 1
"""Raised when a field changes its meaning or goes; new fields do not raise it."""


def document(report: Report) -> dict[str, Any]:
    """The report as plain values; numbers that JSON lacks are None."""
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "fanin": __version__,
        "kind": report.kind,
        "model": report.model,
        "verdict": report.verdict,
        "findings": [{**asdict(f), "page": f.page} for f in report.findings],
        "notes": list(report.notes),
    }
    if report.measured is not None:
        m = report.measured
        content["batch"] = m.batch
        content["inputs"] = [asdict(i) for i in m.inputs]
        content["loss"] = None if m.loss is None else asdict(m.loss)
        content["layers"] = [
            {**asdict(row), "distance": row.distance, "correlation": row.correlation}
            for row in m.layers
        ]
        content["weights"] = [{**asdict(w), "std": w.std} for w in m.weights.values()]
        content["never_called"] = list(m.never_called)
        content["never_trains"] = list(m.never_trains)
        content["notes"] += list(m.notes)
    else:
        content["tensors"] = [asdict(t) for t in report.tensors]
    plain: dict[str, Any] = _plain(content)
    return plain


def to_json(report: Report) -> str:
    """The document as text."""
    return json.dumps(document(report), indent=2, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    """Without NaN and infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
