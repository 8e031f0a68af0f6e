"""A pytest plugin: the fixture `assert_healthy(model, inputs)`.

It is found by itself where fanin is installed; nothing is imported until a test asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest


@pytest.fixture
def assert_healthy() -> Callable[..., Any]:
    """A function that checks a model and fails the test with the report where it is not healthy."""
    return _assert_healthy


def _assert_healthy(
    model: Any,
    inputs: Any,
    loss: Any = None,
    *,
    strict: bool = False,
    ignore: Sequence[str] = (),
    **more: Any,
) -> Any:
    """Check a model as `fanin.check` does; returns the report.

    Args:
        model, inputs, loss, ignore, more: as in `fanin.check`.
        strict: also fail on warnings.
    """
    __tracebackhide__ = True
    from fanin.report.check import check

    report = check(model, inputs, loss, ignore=ignore, **more)
    if report.verdict in (("FAIL", "WARN") if strict else ("FAIL",)):
        pytest.fail(str(report), pytrace=False)
    return report
