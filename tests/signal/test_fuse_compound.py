"""Norms, softmax and attention by hand are recognised by what they compute."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fanin
from fanin.signal.compound import attentions, compounds
from fanin.torch.tracing.trace import trace


class Model(nn.Module):
    def __init__(self, forward: Callable[[Model, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.gain, self.written = nn.Linear(16, 16), nn.Parameter(torch.ones(16)), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.written(self, self.a(x))


def mean(h: Tensor) -> Tensor:
    return h.mean(-1, keepdim=True)


# kind, scale, eps, and the way it is written
NORMS: dict[str, tuple[str, float, float, Callable[[Model, Tensor], Tensor]]] = {
    "RMSNorm of Llama": (
        "rms_norm",
        1.0,
        1e-6,
        lambda m, h: m.gain * (h.float() * torch.rsqrt(mean(h.float().pow(2)) + 1e-6)).type_as(h),
    ),
    "RMS over norm": (
        "rms_norm",
        1.0,
        0.0,
        lambda m, h: h / (h.norm(dim=-1, keepdim=True) * 16**-0.5) * m.gain,
    ),
    "l2 normalised": ("rms_norm", 0.25, 0.0, lambda m, h: F.normalize(h, dim=-1)),
    "LayerNorm in one line": (
        "layer_norm",
        1.0,
        1e-5,
        lambda m, h: (h - mean(h)) / torch.sqrt(h.var(-1, keepdim=True, unbiased=False) + 1e-5),
    ),
    "LayerNorm in steps": (
        "layer_norm",
        1.0,
        1e-6,
        lambda m, h: (
            m.gain * ((h - mean(h)) * ((h - mean(h)) ** 2).mean(-1, True).add(1e-6).rsqrt())
        ),
    ),
    "standardised": (
        "layer_norm",
        (15 / 16) ** 0.5,
        0.0,
        lambda m, h: (h - mean(h)) / h.std(-1, keepdim=True),
    ),
    "softmax": (
        "softmax",
        1.0,
        0.0,
        lambda m, h: (lambda e: e / e.sum(-1, keepdim=True))(
            torch.exp(h - h.amax(-1, keepdim=True))
        ),
    ),
    "log softmax": ("log_softmax", 1.0, 0.0, lambda m, h: h - h.logsumexp(-1, keepdim=True)),
    "LayerNorm of what is centred": (
        "layer_norm",
        1.0,
        1e-5,
        lambda m, h: (lambda d: d / torch.sqrt(mean(d * d) + 1e-5))(h - mean(h)),
    ),
    "RMSNorm of an activation": (
        "rms_norm",
        1.0,
        1e-5,
        lambda m, h: (lambda d: d / torch.sqrt(mean(d * d) + 1e-5))(F.gelu(h)),
    ),
    "centred": ("centre", 1.0, 0.0, lambda m, h: h - mean(h)),
}


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_by_hand_is_recognised(name: str) -> None:
    kind, scale, eps, forward = NORMS[name]
    graph = trace(Model(forward), fanin.spec((2, 3, 16)))
    (found,) = compounds(graph)
    assert found.kind == kind
    assert found.axes == (2,)
    assert found.scale == pytest.approx(scale, rel=1e-8)
    assert found.eps == pytest.approx(eps, rel=1e-3, abs=1e-12)
    before = graph.producer(found.source)
    assert before.name == ("gelu" if "activation" in name else "linear")


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, h: h * torch.rsqrt(h.abs().mean(-1, keepdim=True)),
        lambda m, h: h / h.sum(-1, keepdim=True),
        lambda m, h: h * torch.sigmoid(mean(h)),
        lambda m, h: h * torch.rsqrt(mean(m.a(h) ** 2)),
    ],
    ids=["mean of |x|", "sum", "gate", "another source"],
)
def test_what_is_no_norm_is_none(forward: Callable[[Model, Tensor], Tensor]) -> None:
    assert compounds(trace(Model(forward), fanin.spec((2, 3, 16)))) == ()


def test_large_values_are_tried_on_few_rows() -> None:
    forward = NORMS["RMSNorm of Llama"][3]
    with torch.device("meta"):
        model = Model(forward)
    (found,) = compounds(trace(model, fanin.spec((64, 4096, 16))))
    assert (found.kind, found.eps) == ("rms_norm", 1e-6)


def by_hand(m: Model, h: Tensor) -> Tensor:
    q, k, v = (h.view(2, 3, 2, 8).transpose(1, 2) * s for s in (1.0, 2.0, 3.0))
    logits = q @ k.transpose(-1, -2) / 8**0.5
    logits = logits.masked_fill(torch.ones(3, 3).triu(1).bool(), float("-inf"))
    return (F.dropout(logits.softmax(-1), 0.1) @ v).transpose(1, 2).reshape(2, 3, 16)


def test_attention_whole_and_by_hand() -> None:
    graph = trace(Model(by_hand), fanin.spec((2, 3, 16)))
    (found,) = attentions(graph)
    heads = [graph.producer(i) for i in (found.query, found.key, found.value)]
    assert [n["other"] for n in heads] == [1.0, 2.0, 3.0]
    assert graph.producer(found.output).name == "matmul"
    whole = trace(nn.MultiheadAttention(16, 2, batch_first=True), (fanin.spec((2, 3, 16)),) * 3)
    (found,) = attentions(whole)
    assert found.path == ""
    ends = [whole.producer(i).name for i in (found.query, found.key, found.value)]
    assert ends == ["mul", "linear", "linear"]  # torch scales the query before the product


def test_a_softmax_that_weighs_nothing_is_no_attention() -> None:
    graph = trace(Model(lambda m, h: h.softmax(-1) @ m.a.weight), fanin.spec((2, 3, 16)))
    assert attentions(graph) == ()
