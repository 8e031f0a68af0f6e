"""Operations that few models use: what is predicted agrees with runs, or says that it may not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.signal.simulation import Simulation, simulate
from torch import Tensor, nn

from fanin.signal.state import ASSUMED

WIDTH = 64


class Between(nn.Module):
    """A function between two linear layers."""

    def __init__(self, function: Callable[[Tensor], Tensor], width: int = WIDTH) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(width, 8, bias=False)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self.a(x)))


def away(found: Simulation, *, doubtful: bool) -> Iterator[str]:
    """Tensors further than 10% and 4 standard errors from their runs.

    Those that an assumption or a sample stands before are left out, unless they are asked for.
    """
    unsure: set[int] = set()
    for node in found.graph.nodes:
        behind = not unsure.isdisjoint(node.inputs)
        if node.name == "empty_like":  # holds what lay there
            continue
        for index in node.outputs:
            how = found.signal[index].how
            if behind or how.startswith(("sampled", ASSUMED)):
                unsure.add(index)
            if index not in found.squares or (index in unsure and not doubtful):
                continue
            draws = found.squares[index]
            predicted, measured = found.signal[index].second_moment, draws.mean()
            error = draws.std(ddof=1) / len(draws) ** 0.5
            if abs(predicted - measured) > max(0.1 * measured, 4 * error):
                yield f"{node}: {predicted:.4g}, measured {measured:.4g} ± {error:.2g}, {how}"


def largest(h: Tensor) -> Tensor:
    """The greatest entry of each row, found by its place."""
    return h.take_along_dim(h.argmax(-1, keepdim=True), -1).expand(-1, WIDTH)


def stable_softmax(h: Tensor) -> Tensor:
    e = (h - h.amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True)


PREDICTED: dict[str, Callable[[Tensor], Tensor]] = {
    "truth values": lambda h: (h > 0.5).float() + h,
    "integers": lambda h: (3 * h).int().float(),
    "odd numbers": lambda h: ((3 * h).int() & 1).float(),
    "largest entry": largest,
    "entries above the eighth": lambda h: h * (h >= h.topk(8, -1).values[..., -1:]),
    "running sums": lambda h: h.cumsum(-1)[:, -WIDTH:],
    "last of sorted": lambda h: h.sort(-1).values[:, -1:].expand(-1, WIDTH),
    "gram matrix": lambda h: (h @ h.T).repeat(1, WIDTH // 8),
    "gram matrix of views": lambda h: (
        h.view(8, 8, 8) @ h.view(8, 8, 8).transpose(1, 2)
    ).flatten(1),
    "attention without weights": lambda h: F.scaled_dot_product_attention(h, h, h),
    "a start of a maximum": lambda h: torch.maximum(torch.zeros_like(h) - 1e38, h),
    "difference of a maximum": lambda h: torch.maximum(h, h * h - 1) - h,
    "exponential noise": lambda h: h - torch.empty_like(h).exponential_().log(),
    "an empty index": lambda h: h.index_add(0, torch.zeros(0, dtype=torch.long), h[:0]),
    "three factors": lambda h: torch.einsum("bi,bj,ij->bj", h, h.roll(1, 0), torch.eye(WIDTH)),
}  # fmt: skip


@pytest.mark.parametrize("name", PREDICTED)
def test_is_predicted(name: str) -> None:
    found = simulate(Between(PREDICTED[name]), (8, WIDTH), draws=60)
    assert not list(away(found, doubtful=True))


UNSURE: dict[str, Callable[[Tensor], Tensor]] = {
    "products of a row": lambda h: h.cumprod(-1),
    "neighbours": lambda h: h * h.roll(1, -1) + h.roll(2, -1),
    "softmax by hand": stable_softmax,
    "distances": lambda h: torch.exp(-torch.cdist(h, h)).repeat(1, WIDTH // 8),
    "angles": lambda h: torch.complex(h, 2 * h).angle(),
    "singular values": lambda h: torch.linalg.svdvals(h.view(8, 8, 8)).repeat(1, 8),
    "inverses": lambda h: torch.linalg.inv(h.view(8, 8, 8) + 30 * torch.eye(8)).flatten(1),
    "rows by data": lambda h: h[(h[:, 0] > 0).long()],
    "soft and hard": lambda h: F.gumbel_softmax(h, hard=True),
}


@pytest.mark.parametrize("name", UNSURE)
def test_is_right_or_says_that_it_may_not_be(name: str) -> None:
    found = simulate(Between(UNSURE[name]), (8, WIDTH), draws=60)
    assert not list(away(found, doubtful=False))


def test_the_gradient_of_a_gram_matrix_arrives_twice() -> None:
    """d/dh of sum g h h^T is (g + g^T) h: 2 n E[h^2], where apart each factor had n."""
    found = simulate(Between(PREDICTED["gram matrix"]), (8, WIDTH), draws=60)
    gradient = found.gradient("a.weight")
    assert gradient.agrees(share=0.25)


# --- tables, masks, complex weights ---------------------------------------------------------------


class Bag(nn.Module):
    """Sums or averages of a table's rows."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.rows = nn.EmbeddingBag(50, WIDTH, mode=mode)
        self.b = nn.Linear(WIDTH, 8, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.b(self.rows(tokens))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_rows(mode: str) -> None:
    tokens = torch.randint(50, (16, 5), generator=torch.Generator().manual_seed(0))
    found = simulate(Bag(mode), tokens, draws=60)
    assert not list(away(found, doubtful=True))
    if mode != "max":
        assert found.gradient("rows.weight").agrees(share=0.15)


class Resized(nn.Module):
    """Linear interpolation that averages where it has fewer elements."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=self.scale, mode="bilinear", antialias=True)


def convolved(*between: nn.Module) -> nn.Sequential:
    """Something between two convolutions."""
    return nn.Sequential(
        nn.Conv2d(4, 16, 3, padding=1, bias=False), *between, nn.Conv2d(16, 8, 3, bias=False)
    )


def trained(module: nn.PReLU) -> nn.PReLU:
    """Slopes that differ from channel to channel."""
    with torch.no_grad():
        module.weight.copy_(torch.linspace(-1, 1, len(module.weight)))
    return module


LAYERS = {
    "slopes of channels": convolved(trained(nn.PReLU(16))),
    "alpha dropout": Between(nn.AlphaDropout(0.3)),
    "alpha dropout behind SELU": Between(nn.Sequential(nn.SELU(), nn.AlphaDropout(0.2))),
    "alpha dropout of channels": convolved(nn.FeatureAlphaDropout(0.3)),
    "smoothed sampling": convolved(Resized(0.5)),
    "smoothed sampling to more": convolved(Resized(1.5)),
    "random slopes": Between(nn.RReLU()),
    "mean slopes": Between(nn.RReLU()).eval(),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str) -> None:
    shape = (8, 4, 12, 12) if isinstance(LAYERS[name], nn.Sequential) else (16, WIDTH)
    found = simulate(LAYERS[name], shape, draws=60)
    assert not list(away(found, doubtful=True))


class Masked(nn.Module):
    """Attention that adds its mask inside the product, as torch's does to show its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.ones(6, 6, dtype=torch.bool).triu(1)
        return self.attention(x, x, x, attn_mask=hidden)[0]


def test_a_mask_inside_a_product() -> None:
    found = simulate(Masked(), (8, 6, WIDTH), draws=60)
    index = found.last("softmax")
    draws = found.squares[index]
    assert found.signal[index].second_moment == pytest.approx(draws.mean(), rel=0.1)


class Spectrum(nn.Module):
    """A filter with complex weights, as global filter networks have."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        shape = (WIDTH // 2 + 1,)
        self.filter = nn.Parameter(
            torch.randn(shape, dtype=torch.complex64, generator=generator) * 3
        )
        self.b = nn.Linear(WIDTH, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.fft.irfft(torch.fft.rfft(x) * self.filter, n=WIDTH))


def test_complex_weights_have_both_parts() -> None:
    found = simulate(Spectrum(), (64, WIDTH), draws=60)
    assert found.forward("_fft_c2r").agrees(share=0.1)
    assert found.forward("_fft_c2r").predicted == pytest.approx(9.0, rel=0.35)


def test_experts_are_weighed_by_their_own_choice() -> None:
    """The weights of a topk and its places are one: their product is no independent one."""

    def weighed(h: Tensor) -> Tensor:
        weights, places = h[:, :4].softmax(-1).topk(2, -1)
        return torch.cat([h * (weights * (places == e)).sum(-1, keepdim=True) for e in range(2)], 1)

    found = simulate(Between(weighed, 2 * WIDTH), (64, WIDTH), draws=60)
    assert not list(away(found, doubtful=True))


def test_logits_with_a_known_slope_are_no_gaussian() -> None:
    """As ALiBi has them: keys count less with their distance."""

    def leaning(h: Tensor) -> Tensor:
        q = k = v = h.view(1, 8, WIDTH)
        far = -3.0 * (torch.arange(8)[:, None] - torch.arange(8)).abs()
        return F.scaled_dot_product_attention(q.roll(1, 2), k, v, attn_mask=far).view(8, WIDTH)

    found = simulate(Between(leaning), (8, WIDTH), draws=40)
    index = found.last("scaled_dot_product_attention")
    assert found.signal[index].how.startswith(("sampled", ASSUMED))


def test_a_loss_that_writes_into_a_scalar() -> None:
    def similar(h: Tensor) -> Tensor:
        return F.cosine_embedding_loss(h[:4], h[4:], torch.ones(4)) + h.sum()

    found = simulate(Between(lambda h: h * similar(h)), (8, WIDTH), draws=2)
    assert found.signal[found.last("linear")].second_moment > 0


def test_an_operation_without_a_derivative_is_named() -> None:
    from fanin.errors import NotCoveredError

    def distinct(h: Tensor) -> Any:
        return h.unique(dim=0)

    with pytest.raises(NotCoveredError, match=r"the gradient of aten\.unique_dim\.default"):
        simulate(Between(distinct), (8, WIDTH), draws=2)


def test_a_gradient_that_runs_away_is_an_error_that_says_where() -> None:
    from fanin.errors import DivergentError

    def steep(h: Tensor) -> Tensor:  # slopes of 1e10 / sqrt(2), 20 times
        return 1e5 * torch.sin(1e5 * h)

    model = nn.Sequential(*(Between(steep, WIDTH) for _ in range(20)))
    for layer in model:
        layer.b = nn.Linear(WIDTH, WIDTH, bias=False)
    with pytest.raises(DivergentError, match=r"the gradient in aten\.\w+\.\w+ in \d+"):
        simulate(model, (8, WIDTH), draws=2)
