"""An interrupt that waits until a model is written, so that it is never found half written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def held_interrupts() -> Iterator[None]:
    """Hold back the first interrupt (Ctrl-C) until the end; a second one does not wait.

    To put back what was there before, a second copy of the model would have to be kept. Outside
    the main thread, and where no Python function handles interrupts, nothing is changed.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    waiting: list[tuple[int, FrameType | None]] = []

    def hold(number: int, frame: FrameType | None) -> None:
        if waiting:
            signal.signal(signal.SIGINT, before)
            before(number, frame)
        waiting.append((number, frame))

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if waiting:
        before(*waiting[0])
