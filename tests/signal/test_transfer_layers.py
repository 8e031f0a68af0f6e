"""Transfer rules of real layers against simulations, forward and backward."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.signal.simulation import simulate
from torch import Tensor, nn

from fanin.signal.propagate import propagate
from fanin.signal.spec import Spec
from fanin.signal.state import Given
from fanin.signal.transfer.attention import concentration
from fanin.signal.transfer.embedding import coincidence
from fanin.torch.tracing.trace import trace


def _conv(**options: object) -> nn.Module:
    return nn.Conv2d(16, 32, 3, bias=False, **options)  # type: ignore[arg-type]


LAYERS = {
    "strided": (_conv(stride=2, padding=1), (8, 16, 9, 9)),
    "dilated": (_conv(dilation=2, padding=2), (8, 16, 9, 9)),
    "grouped": (_conv(groups=4), (8, 16, 8, 8)),
    "batch norm": (
        nn.Sequential(_conv(padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 8, 1)),
        (8, 16, 6, 6),
    ),
    "group norm": (
        nn.Sequential(_conv(), nn.GroupNorm(4, 32), nn.SiLU(), nn.Conv2d(32, 8, 1)),
        (8, 16, 6, 6),
    ),
    "layer norm": (
        nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 16)),
        (64, 64),
    ),
    "rms norm": (nn.Sequential(nn.Linear(64, 64), nn.RMSNorm(64), nn.Linear(64, 16)), (64, 64)),
    "average pool": (
        nn.Sequential(_conv(), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(32, 8, 1)),
        (8, 16, 8, 8),
    ),
    "upsampling": (
        nn.Sequential(nn.Upsample(scale_factor=2), _conv(padding=1)),
        (8, 16, 5, 5),
    ),
    "bilinear upsampling": (
        nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), _conv(padding=1)),
        (8, 16, 5, 5),
    ),
    "flattened positions": (
        nn.Sequential(_conv(), nn.Tanh(), nn.Flatten(), nn.Linear(32 * 9, 8)),
        (16, 16, 5, 5),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_against_simulation(name: str) -> None:
    model, shape = LAYERS[name]
    found = simulate(model, shape, draws=24)
    for node in found.graph.nodes:
        value = found.graph.values[node.outputs[0]]
        if value.floating and value.varying:
            # what a norm makes is the same in every draw, up to its eps and float32
            assert found.forward(node.name).agrees(share=1e-4), node
    for parameter, tensor in model.named_parameters():
        if tensor.ndim > 1:
            assert found.gradient(parameter).agrees(), parameter


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 9, "ceil_mode": True},
        {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
        {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False},
        {"kernel_size": 3, "stride": 4, "ceil_mode": True, "divisor_override": 5},
        {"kernel_size": (2, 3), "stride": (1, 2), "padding": (1, 0)},
    ],
)
def test_average_pooling_divides_as_torch_does(options: dict[str, object]) -> None:
    """Of independent inputs the second moment is the mean squared norm of the map's rows."""
    pool = nn.AvgPool2d(**options)  # type: ignore[arg-type]
    units = torch.eye(36, dtype=torch.float64).reshape(36, 1, 6, 6)
    expected = float((pool(units) ** 2).sum(0).mean())
    signal = propagate(trace(pool, Spec((4, 8, 6, 6))), {})
    assert signal[signal.graph.outputs[0]].second_moment == pytest.approx(expected, rel=1e-12)


class Attention(nn.Module):
    def __init__(self, causal: bool, *, shared: bool = False) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(64, 64, bias=False) for _ in range(4))
        self.causal, self.shared = causal, shared

    def forward(self, x: Tensor) -> Tensor:
        x = x + x.mean(1, keepdim=True) * 3 if self.shared else x
        q, k, v = (w(x).unflatten(-1, (4, 16)).transpose(1, 2) for w in list(self.parts)[:3])
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.parts[3](y.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("causal", [False, True])
def test_attention_averages_values(causal: bool) -> None:
    found = simulate(Attention(causal), (8, 12, 64), draws=24)
    assert found.forward("scaled_dot_product_attention").agrees()
    for i in range(4):
        # theory of infinite width: the mean of what attention sees leans towards the query by
        # 1/width of the variance, beside 1/keys or more, and gradients of logits have its square
        assert found.gradient(f"parts.{i}.weight").agrees(share=0.15), i


def test_causal_attention_twice_keeps_pairs_of_positions() -> None:
    model = nn.Sequential(Attention(True), nn.RMSNorm(64), Attention(True))
    found = simulate(model, (8, 16, 64), draws=24)
    assert found.forward("scaled_dot_product_attention").agrees()
    state = found.signal[found.last("scaled_dot_product_attention")]
    profile = state.table.same.ravel()
    assert (np.diff(profile) < 0).all()  # later positions average more values


class Grouped(nn.Module):
    """Causal attention of four heads of queries to two of keys and values, and a layer."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (64, 32, 32, 64)
        self.parts = nn.ModuleList(nn.Linear(64, n, bias=False) for n in sizes)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (w(x).unflatten(-1, (-1, 16)).transpose(1, 2) for w in list(self.parts)[:3])
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.parts[3](y.transpose(1, 2).flatten(2))


def test_long_causal_attention_keeps_pairs_of_positions() -> None:
    """The first two positions share half of what they see, the last two next to nothing."""
    model, weights = nn.Sequential(Grouped(), Grouped()), Given(variance=1 / 64)
    graph = trace(model, Spec((2, 128, 64)))
    signal = propagate(graph, {n: weights for n, _ in model.named_parameters()})
    first, last = (
        signal[n.outputs[0]].table for n in graph.nodes if n.path in ("0.parts.3", "1.parts.3")
    )
    pairs = first.pairs[0, :, 0, 0, :, 0]
    assert pairs.shape == (128, 128)
    assert pairs[0, 1] == pytest.approx(0.5 * pairs[0, 0], rel=0.02)
    assert pairs[126, 127] < 0.02 * pairs[0, 0]
    assert last.pairs[0, 1, 0, 0, 0, 0] > 0.7 * last.pairs[0, 0, 0, 0, 0, 0]


def test_concentration_of_softmax_weights() -> None:
    rng = np.random.default_rng(0)
    for variance, keys in [(1.0, 64), (4.0, 10), (0.1, 5), (9.0, 100)]:
        a = np.exp(rng.standard_normal((40_000, keys)) * variance**0.5)
        a /= a.sum(1, keepdims=True)
        for power in (2, 3):
            draws = (a**power).sum(1)
            error = draws.std() / 200
            assert abs(concentration(variance, keys, power) - draws.mean()) < 4 * error


def test_equal_tokens_give_equal_rows() -> None:
    tokens = torch.tensor([[0, 1, 1, 2], [2, 2, 2, 3]])
    shares = coincidence(tokens.numpy())
    assert shares[0, 0] == 1
    assert shares[0, 1] == pytest.approx((1 + 3) / 12)  # pairs of one sample: 1 of 6, 3 of 6
    assert shares[1, 0] == 0  # no position has one token in both samples
    model = nn.Sequential(nn.Embedding(4, 32), nn.Flatten(), nn.Linear(128, 8, bias=False))
    found = simulate(model, tokens, draws=60, variances={"0.weight": 1.0})
    assert found.signal[found.last("embedding")].covariance(1) == pytest.approx(1 / 3)
    assert found.gradient("0.weight").agrees()
