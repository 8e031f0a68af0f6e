"""Names of parameters: patterns that select them, and near names when nothing is selected."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from fnmatch import translate


def matches(pattern: str, names: Iterable[str]) -> bool:
    """Whether a glob pattern (`*` crosses dots) is one of the names in full."""
    compiled = re.compile(translate(pattern))
    return any(compiled.match(name) for name in names)


def near(wanted: str, known: Iterable[str]) -> str:
    """What to write instead: the glob that would have matched, or the nearest names.

    Example:
        >>> near("c_proj.weight", ["h.0.c_proj.weight", "h.1.c_proj.weight"])
        "did you mean '*.c_proj.weight'?"
        >>> near("fc.wieght", ["fc.weight", "head.bias"])
        "did you mean 'fc.weight'?"
    """
    names = list(known)
    for glob in (f"*.{wanted}", f"{wanted}.*", f"*{wanted}*"):
        if matches(glob, names):
            return f"did you mean {glob!r}?"
    close = difflib.get_close_matches(wanted, names, n=3, cutoff=0.6)
    listed = close or names[:5]
    return f"did you mean {' or '.join(map(repr, listed))}?" if listed else "there are none"
