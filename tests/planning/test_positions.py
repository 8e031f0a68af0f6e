"""Tables of positions: what all examples share takes a tenth, whatever is read first."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fanin


class Words(nn.Module):
    """Words with learned positions, looked up before them or after.

    Args:
        first: whether positions are looked up first.
    """

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.positions, self.words = nn.Embedding(64, 256), nn.Embedding(500, 256)
        self.head, self.first = nn.Linear(256, 500), first

    def stream(self, ids: Tensor) -> Tensor:
        at = torch.arange(ids.shape[1])
        if self.first:
            return self.positions(at) + self.words(ids)
        return self.words(ids) + self.positions(at)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.stream(ids))


class Patches(nn.Module):
    """Patches behind a class token, positions added to both; none of them starts at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.ones(1, 5, 8))
        self.token = nn.Parameter(torch.ones(1, 1, 8))
        self.patch, self.head = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.patch(x)], 1) + self.positions
        return self.head(x)


@pytest.mark.parametrize("first", [False, True])
def test_positions_leave_ten_elevenths_of_the_distance(first: bool) -> None:
    """Squared distance of two texts over the sum of their squares; alike tables would leave 1/2."""
    generator = torch.Generator().manual_seed(0)
    model, ids = Words(first), torch.randint(500, (16, 64), generator=generator)
    plan = fanin.init_(model, ids, seed=0)
    assert plan["words.weight"].std == pytest.approx(1.0)
    with torch.no_grad():
        x = model.stream(ids).double()
    one, other = x[0::2], x[1::2]
    apart = (one - other).square().sum() / (one.square().sum() + other.square().sum())
    # 16384 elements a text: shares scatter by less than a percent; equal words by 1 of 500.
    assert float(apart) == pytest.approx(10 / 11, abs=0.01)


def test_what_stands_beside_others_is_as_large_and_what_is_added_is_not() -> None:
    """A class token is one of the patches; the positions are those of all."""
    plan = fanin.plan(Patches(), fanin.spec((4, 4, 3)))
    assert plan["token"].std == pytest.approx(1.0, rel=0.01)
    assert plan["positions"].std ** 2 == pytest.approx(0.1, rel=0.01)  # type: ignore[operator]
    assert "a tenth of the variance" in plan["positions"].reason
