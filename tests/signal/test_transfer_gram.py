"""Inner products of rows at finite width, and what an attention makes of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.signal.simulation import simulate
from tests.signal.test_transfer_layers import Attention
from torch import Tensor, nn

from fanin.signal.transfer.call import Call
from fanin.signal.transfer.gram import spread


class Skip(nn.Module):
    """x + w2 gelu(w1 x) / 2."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(48, 96, bias=False), nn.Linear(96, 48, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(nn.functional.gelu(self.first(x))) / 2


class Placed(nn.Module):
    """A layer and a known table of positions of few dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(24, 32, bias=False)
        angles = torch.arange(40.0)[:, None] * torch.tensor([0.3, 0.7])
        waves = torch.cat([angles.sin(), angles.cos()], 1)
        self.register_buffer("table", waves.repeat(1, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.table


class LookedUp(Placed):
    """The same where the positions are looked up in their table."""

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + nn.functional.embedding(torch.arange(40), self.table)


class Patches(nn.Module):
    """Patches of an image, four of them merged, and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.cut, self.layer = nn.Conv2d(3, 16, 2, 2, bias=False), nn.Linear(64, 24, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.cut(x).permute(0, 2, 3, 1)
        parts = [y[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
        return self.layer(torch.cat(parts, -1)).flatten(1, 2)


class Series(nn.Module):
    """A signal over time, averaged twice over neighbours, as rows of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(3, 48, 3, bias=False), nn.Conv1d(48, 64, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.second(self.first(x))).permute(0, 2, 1)


MODELS = {
    "two layers": (nn.Sequential(*(nn.Linear(n, 48, bias=False) for n in (24, 48))), (4, 40, 24)),
    "merged patches": (Patches(), (4, 3, 24, 24)),
    "known positions": (Placed(), (4, 40, 24)),
    "positions looked up": (LookedUp(), (4, 40, 24)),
    "an activation": (nn.Sequential(nn.Linear(24, 48, bias=False), nn.ReLU()), (4, 40, 24)),
    "a signal over time": (Series(), (4, 3, 60)),
}


def measured(model: nn.Module, shape: tuple[int, ...], draws: int) -> np.ndarray:
    """The spread in each draw of weights N(0, 1 / fan_in) and inputs N(0, 1)."""
    torch.manual_seed(0)
    found = []
    for _ in range(draws):
        for p in model.parameters():
            nn.init.normal_(p, 0.0, p[0].numel() ** -0.5)
        with torch.no_grad():
            x = model(torch.randn(shape)).double()
        x = x - x.mean(1, keepdim=True)  # what all rows share is no deviation
        gram = x @ x.transpose(1, 2)
        apart = ~torch.eye(gram.shape[-1], dtype=torch.bool)
        found.append(float(gram[:, apart].var() / gram.diagonal(dim1=1, dim2=2).mean() ** 2))
    return np.array(found)


@pytest.mark.parametrize("name", MODELS)
def test_spread_of_inner_products(name: str) -> None:
    model, shape = MODELS[name]
    signal = simulate(model, shape, draws=2).signal
    (out,) = signal.graph.outputs
    drawn = measured(model, shape, 60)
    predicted = spread(Call(signal.graph.nodes[-1], signal.graph, signal.states), out)
    # the squares of a layer's covariance have further terms of relative order 1/width
    assert predicted == pytest.approx(drawn.mean(), rel=0.06, abs=4 * drawn.std() / 60**0.5)


def test_a_branch_adds_to_the_spread_of_its_skip() -> None:
    model = Skip()
    signal = simulate(nn.Sequential(nn.Linear(24, 48, bias=False), model), (4, 40, 24)).signal
    add = [n for n in signal.graph.nodes if n.name == "add"][-1]
    found = spread(Call(add, signal.graph, signal.states), add.outputs[0])
    before = spread(Call(add, signal.graph, signal.states), add.inputs[0])
    assert before == pytest.approx(1 / 24 + 1 / 48)
    drawn = measured(nn.Sequential(nn.Linear(24, 48, bias=False), model), (4, 40, 24), 60)
    assert found == pytest.approx(drawn.mean(), rel=0.1, abs=4 * drawn.std() / 60**0.5)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_leans_to_its_query(causal: bool) -> None:
    """With as many keys as features the part is as large as what averages leave."""
    found = simulate(Attention(causal), (4, 64, 64), draws=24)
    # the next order of s^2/d is a few percent
    assert found.forward("scaled_dot_product_attention").agrees(share=0.05)
    for i in range(4):
        assert found.gradient(f"parts.{i}.weight").agrees(share=0.1), i


def test_low_rank_inputs_make_it_lean_further() -> None:
    model = nn.Sequential(nn.Linear(24, 64, bias=False), Attention(False))
    found = simulate(model, (4, 64, 24), draws=24)
    assert found.forward("scaled_dot_product_attention").agrees(share=0.1)
    for i in range(4):
        assert found.gradient(f"1.parts.{i}.weight").agrees(share=0.13), i
