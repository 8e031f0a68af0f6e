"""Recurrent classifiers."""

from __future__ import annotations

from functools import partial

from tests.zoo import Entry
from torch import Tensor, nn

import fanin


class Recurrent(nn.Module):
    """Token embedding, a recurrence, and a head on the last step."""

    def __init__(self, kind: type[nn.RNNBase], tokens: int, width: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.recurrence = kind(width, width, layers, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.recurrence(self.embedding(tokens))
        return self.head(states[:, -1])


def _build(kind: type[nn.RNNBase], small: bool) -> nn.Module:
    return Recurrent(kind, *((50, 16, 1) if small else (10000, 256, 2)))


def _tokens(small: bool) -> fanin.signal.spec.Spec:
    return (
        fanin.spec((2, 6), "int64", high=50) if small else fanin.spec((16, 64), "int64", high=10000)
    )


ENTRIES = (
    Entry("LSTM classifier", partial(_build, nn.LSTM), _tokens),
    Entry("GRU classifier", partial(_build, nn.GRU), _tokens),
)
