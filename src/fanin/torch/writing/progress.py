"""A progress bar for work that takes seconds or more: one line on a terminal, nothing in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PATIENCE = 1.0  # seconds before anything is shown
_WIDTH = 30


@contextmanager
def progress(total: int, label: str = "drawing weights") -> Iterator[Callable[[int], None]]:
    """A function to call with each number of elements done; it draws the bar on stderr.

    Example:
        >>> with progress(10) as advance:
        ...     advance(10)
    """
    start = last = time.monotonic()
    done, shown = 0, False

    def advance(count: int) -> None:
        nonlocal done, last, shown
        done += count
        now = time.monotonic()
        if now - start < PATIENCE or now - last < 0.1 or not sys.stderr.isatty():
            return
        last, shown = now, True
        share = done / max(total, 1)
        bar = "#" * int(_WIDTH * share)
        left = (now - start) * (1 - share) / max(share, 1e-9)
        line = f"\r{label} [{bar:<{_WIDTH}}] {share:4.0%} of {total:.3g}, {left:.0f} s left "
        sys.stderr.write(line)
        sys.stderr.flush()

    try:
        yield advance
    finally:
        if shown:
            sys.stderr.write("\r" + " " * 78 + "\r")
