"""Weights that read several activations side by side: each part's own mean is taken out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fanin
from fanin import draw
from fanin.errors import PlanError
from fanin.planning.plan import Centre
from fanin.planning.store import from_dict, to_dict
from fanin.torch.probing.measure import measure
from fanin.torch.probing.predict import predict
from fanin.torch.writing.centring import centre_
from fanin.torch.writing.write import write_

SIGMOIDS, RELUS = 24, 40


class Block(nn.Module):
    """Sigmoids beside ReLUs, of 3 x 3 kernels with zero padding."""

    def __init__(self, channels: int, sigmoids: int = SIGMOIDS, relus: int = RELUS) -> None:
        super().__init__()
        self.a = nn.Conv2d(channels, sigmoids, 3, padding=1)
        self.b = nn.Conv2d(channels, relus, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.sigmoid(self.a(x)), torch.relu(self.b(x))], 1)


class Inception(nn.Module):
    """Plain blocks without normalisation, then a linear layer on all of the maps."""

    def __init__(self, depth: int = 10, size: int = 6) -> None:
        super().__init__()
        width = SIGMOIDS + RELUS
        self.blocks = nn.ModuleList(Block(width if i else 3) for i in range(depth))
        self.head = nn.Linear(width * size * size, 10)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x.flatten(1))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_kernels_sum_to_zero_over_each_part_as_large_as_they_were_drawn() -> None:
    model = Inception(4)
    plan = fanin.init_(model, fanin.spec((4, 3, 6, 6)))
    row, weight = plan["blocks.2.a.weight"], model.blocks[2].a.weight.detach().double()
    assert row.centre is not None
    assert row.centre.parts == (SIGMOIDS, RELUS)
    assert row.reason.endswith("each part's inputs sum to zero")
    assert "zero sums of each part" in plan.table(width=200)
    for part in weight.split([SIGMOIDS, RELUS], 1):
        assert part.sum(1).abs().max() < 1e-6
        terms = part.numel() * (1 - 1 / part.shape[1])
        assert part.square().mean().item() == pytest.approx(row.std**2, rel=4 * (2 / terms) ** 0.5)


def test_the_mean_is_out_at_the_border_and_inside() -> None:
    """Units average over examples to 0, within what 4096 examples leave by chance."""
    sizes, examples, units = (24, 40), 4096, 200
    centre = Centre("w", 0.0, "out in tap tap", parts=sizes, means=(0.5, 0.4))
    weight = write_(torch.empty(units, 64, 3, 3), draw.Normal(0.0, 0.1), seed=1, name="w")
    whole = weight.clone()
    centre_(weight, centre, None)
    centre_(whole, Centre("w", 0.0, "out in tap tap"), None)
    z = noise(examples, 64, 3, 3)
    x = torch.cat([torch.sigmoid(z[:, :24]), torch.relu(z[:, 24:])], 1)

    def chance(w: Tensor, place: int) -> float:
        """The mean square of a unit's average, 1 where nothing but chance is left."""
        u = nn.functional.conv2d(x, w, padding=1)[:, :, place, place]
        return float((u.mean(0).square() * examples / u.var(0)).mean())

    for place in (0, 1):  # a corner and the middle of maps of 3 x 3
        assert chance(weight, place) == pytest.approx(1.0, abs=4 * (2 / units) ** 0.5)
        assert chance(whole, place) > 10
    var = nn.functional.conv2d(x, weight, padding=1)[:, :, 1, 1].var().item()
    expected = 0.09 * sum(p.shape[1] * float(p.var()) for p in x.split(sizes, 1))
    assert var == pytest.approx(expected, rel=0.05)


def test_a_plain_network_with_concatenations_keeps_signal_and_gradient() -> None:
    """At a corner as in the middle, layer by layer; what examples share stays small."""
    model = Inception(10)
    plan = fanin.init_(model, fanin.spec((16, 3, 6, 6)))
    assert plan.stretches[0].rule == "shaped"
    x, variances = noise(256, 3, 6, 6), []
    with torch.no_grad():
        z = x
        for i, block in enumerate(model.blocks):
            beta = plan[f"blocks.{i}.a.bias"].mean
            assert beta is not None
            u = block.a(z) - beta
            variances.append(u.square().mean((0, 1)))
            if i:
                shared = u.mean(0).square().mean(0)
                assert (shared < 0.1 * variances[-1]).all()
            z = block(z)
    assert 0.5 < variances[-1][2, 2] / variances[1][2, 2] < 2
    assert 0.5 < variances[-1][0, 0] / variances[1][0, 0] < 2
    model(x).square().mean().backward()
    norms = [float(block.a.weight.grad.norm()) for block in model.blocks]
    assert 0.4 < norms[-1] / norms[1] < 2.5


def test_the_plan_predicts_what_is_measured() -> None:
    model, x = Inception(6), noise(128, 3, 6, 6)
    plan = fanin.init_(model, x, seed=2)
    found = predict(model, x, measure(model, x), plan)
    pairs = [(row.second_moment, row.predicted) for row in found.layers]
    assert sum(p is not None for _, p in pairs) > 10
    assert all(p is None or 0.7 < q / p < 1.4 for q, p in pairs[:-1])


class Features(nn.Module):
    """Linear layers that read sigmoids beside ReLUs, joined twice."""

    def __init__(self, depth: int = 8) -> None:
        super().__init__()
        self.a = nn.ModuleList(nn.Linear(96 if i else 20, 32) for i in range(depth))
        self.b = nn.ModuleList(nn.Linear(96 if i else 20, 32) for i in range(depth))
        self.c = nn.ModuleList(nn.Linear(96 if i else 20, 32) for i in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for a, b, c in zip(self.a, self.b, self.c, strict=True):
            first = torch.cat([torch.sigmoid(a(x)), torch.relu(b(x))], 1)
            x = torch.cat([first, torch.sigmoid(c(x))], -1)
        return x


def test_a_bias_takes_the_mean_of_each_part_out() -> None:
    model = Features()
    plan = fanin.init_(model, fanin.spec((64, 20)))
    row = plan["a.5.bias"]
    assert row.centre is not None
    assert row.centre.parts == (32, 32, 32)
    weight = model.a[5].weight.detach().double()
    sums = [m * w.sum(1) for m, w in zip(row.centre.means, weight.split(32, 1), strict=True)]
    expected = row.mean - sum(sums)
    torch.testing.assert_close(model.a[5].bias.detach().double(), expected, atol=1e-6, rtol=0)
    with torch.no_grad():
        x = noise(2048, 20)
        shared = []
        for a, b, c in zip(model.a, model.b, model.c, strict=True):
            u = a(x) - plan["a.5.bias"].mean
            shared.append(float(u.mean(0).square().mean() / u.square().mean()))
            x = torch.cat([torch.sigmoid(a(x)), torch.relu(b(x)), torch.sigmoid(c(x))], 1)
    assert max(shared[1:-1]) < 0.05  # the last layer is nobody's input


def test_parts_are_stored() -> None:
    plan = fanin.plan(Inception(3), fanin.spec((4, 3, 6, 6)))
    content = to_dict(plan)
    assert from_dict(content) == plan
    row = next(r for r in content["rows"] if r["path"] == "blocks.1.a.weight")
    assert row["centre"]["parts"] == [SIGMOIDS, RELUS]
    row["centre"]["means"] = [0.5, "half"]
    with pytest.raises(PlanError, match=r"centre.means: expected a list of float, got \[0.5, 'ha"):
        from_dict(content)


class Alone(nn.Module):
    """One sigmoid beside ReLUs: its weight would have to be 0."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(41 if i else 3, 1, 40) for i in range(8))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def test_a_part_of_one_channel_shares_the_sum_of_all() -> None:
    plan = fanin.plan(Alone(), fanin.spec((4, 3, 6, 6)))
    row = plan["blocks.3.b.weight"]
    assert row.centre is not None
    assert row.centre.parts == ()
    assert row.reason.endswith("its inputs sum to zero")
