"""How much work a prediction is, told in operations and not in seconds."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from fanin.signal.propagate import backward, propagate
from fanin.signal.state import Given
from fanin.torch.tracing.kernel import Replay
from fanin.torch.tracing.trace import trace


def runs(model: nn.Module, inputs: Any, patch: pytest.MonkeyPatch, *, back: bool = True) -> int:
    """How often operations are run while the signal of a model is predicted."""
    graph = trace(model, inputs)
    count = 0

    def counted(run: Any) -> Any:
        def call(*args: Any) -> Any:
            nonlocal count
            count += 1
            return run(*args)

        return call

    given = {p.name: Given(variance=1 / p.shape[-1]) for p in graph.parameters}
    with patch.context() as inside:
        inside.setattr(Replay, "__call__", counted(Replay.__call__))
        inside.setattr(Replay, "vjp", counted(Replay.vjp))
        signal = propagate(graph, given)
        if back:
            backward(signal)
    return count
