"""Queries and keys are drawn for logits of variance 1/16, wherever the scale stands."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fanin

WIDTH, HEADS, EACH = 256, 4, 64


class Attention(nn.Module):
    """One attention whose logits are kept.

    Args:
        kind: where the scale stands: "after", "before", "nowhere", or "whole" in one operation.
        fused: whether queries, keys and values come from one matrix.
        normed: whether queries and keys are normalised.
    """

    def __init__(self, kind: str, *, fused: bool = False, normed: bool = False) -> None:
        super().__init__()
        self.kind = kind
        parts = (("qkv", 3),) if fused else (("q", 1), ("k", 1), ("v", 1))
        self.parts = nn.ModuleDict({n: nn.Linear(WIDTH, WIDTH * m) for n, m in parts})
        self.norm = nn.LayerNorm(EACH) if normed else nn.Identity()
        self.out = nn.Linear(WIDTH, WIDTH)
        self.logits = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        made = [part(x) for part in self.parts.values()]
        if len(made) == 1:
            made = list(made[0].chunk(3, -1))
        q, k, v = (t.unflatten(-1, (HEADS, EACH)).transpose(1, 2) for t in made)
        q, k = self.norm(q), self.norm(k)
        if self.kind == "whole":
            self.logits = q.detach() @ k.detach().transpose(-1, -2) / math.sqrt(EACH)
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            if self.kind == "before":
                q = q * EACH**-0.5
            scores = q @ k.transpose(-1, -2)
            if self.kind == "after":
                scores = scores / EACH**0.5
            self.logits = scores.detach()
            mixed = scores.softmax(-1) @ v
        return x + self.out(mixed.transpose(1, 2).flatten(2))


class Reader(nn.Module):
    """An attention on a stream of variance 1, and a head."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.first, self.attention, self.head = nn.Linear(32, WIDTH), attention, nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(self.first(x)))


@pytest.mark.parametrize("kind", ["whole", "after", "before", "nowhere"])
@pytest.mark.parametrize("fused", [False, True])
def test_logits_have_variance_one_sixteenth(kind: str, fused: bool) -> None:
    """8 draws of 4 heads of 64 channels: each head's variance scatters by sqrt(2/64) or so."""
    x = torch.randn(4, 16, 32, generator=torch.Generator().manual_seed(0))
    found = []
    for seed in range(8):
        model = Reader(Attention(kind, fused=fused))
        fanin.init_(model, x, seed=seed)
        model(x)
        found.append(model.attention.logits.double().square().mean(0).mean((-1, -2)))
    heads = torch.cat(found)
    error = heads.std() / len(heads) ** 0.5
    assert error < 0.1 / 16
    assert (heads.mean() - 1 / 16).abs() < 4 * error


def test_normalised_queries_and_keys_keep_unit_weights() -> None:
    """Behind a norm the size of the weights says nothing of the logits."""
    plan = fanin.plan(Reader(Attention("whole", normed=True)), fanin.spec((4, 16, 32)))
    assert plan["attention.parts.q.weight"].std == pytest.approx(WIDTH**-0.5, rel=0.01)
    assert "logits" not in plan["attention.parts.k.weight"].reason


def test_values_of_their_own_are_of_unit_size() -> None:
    """What shares a matrix with queries and keys is drawn with them; the branch stays the same."""
    spec = fanin.spec((4, 16, 32))
    apart = fanin.plan(Reader(Attention("whole")), spec)
    fused = fanin.plan(Reader(Attention("whole", fused=True)), spec)
    assert apart["attention.parts.v.weight"].std == pytest.approx(WIDTH**-0.5, rel=0.01)
    assert fused["attention.parts.qkv.weight"].std == pytest.approx(WIDTH**-0.5 / 2, rel=0.01)
    one, other = apart["attention.out.weight"].std, fused["attention.out.weight"].std
    assert one is not None
    assert other == pytest.approx(2 * one, rel=0.01)


def test_a_bias_of_logits_is_found_behind_a_mask() -> None:
    """T5's decoder chooses between the bias and minus infinity before it adds them."""
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=50, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2
    )
    ids = torch.randint(5, 50, (2, 8), generator=torch.Generator().manual_seed(0))
    plan = fanin.plan(transformers.T5Model(config), {"input_ids": ids, "decoder_input_ids": ids})
    name = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    for side in ("encoder", "decoder"):
        assert plan[f"{side}.{name}"].std == pytest.approx(0.02)
    # logits without 1/sqrt(d): 16 channels, so that v² 16 = 1/16
    query = plan["decoder.block.0.layer.0.SelfAttention.q.weight"]
    assert query.std == pytest.approx(math.sqrt(1 / 16 / 32), rel=0.01)
