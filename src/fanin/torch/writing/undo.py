"""Old values, put back where a model cannot be written to the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType

import torch

ROOM = 2**26  # bytes of old values that are kept
NOTE = "fanin was writing: some tensors have new values, others the old ones"


class Undo:
    """Puts old values back on an error: all of them, or those that there is room for.

    Args:
        total: bytes of all tensors that are written. Beyond ROOM only those stay in memory that
            must, and the first that may fail.
    """

    def __init__(self, total: int) -> None:
        self._all = total <= ROOM
        self._put_back: list[Callable[[], object]] = []
        self._changed = False

    @contextmanager
    def writing(
        self, remember: Callable[[], Callable[[], object]], *, must: bool, may_fail: bool
    ) -> Iterator[None]:
        """Write one tensor inside of this.

        Args:
            remember: copies its old values, and returns what puts them back.
            must: keep them whatever their size.
            may_fail: keep them while it is written, if it is the first.
        """
        for_good = self._all or must
        kept = for_good or (may_fail and not self._changed)
        if kept:
            self._put_back.append(remember())
        self._changed |= not kept
        yield
        if kept and not for_good:
            self._put_back.pop()
            self._changed = True

    def __enter__(self) -> Undo:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            return
        with torch.no_grad(), ExitStack() as stack:  # goes on with the others where one fails
            for put_back in self._put_back:
                stack.callback(put_back)
        if self._changed:
            error.add_note(NOTE)
