"""What the plan sees in a graph: roles, fans, residual branches, gates, tables."""

from __future__ import annotations

import math

import pytest
import torch
from tests.planning import networks as net
from torch import nn

import fanin
from fanin.planning.flow import Flow
from fanin.planning.roles import Scene
from fanin.planning.ruled import branch_share
from fanin.planning.streams import Streams
from fanin.torch.tracing.trace import trace


def scene(model: nn.Module, inputs: object) -> Scene:
    return Scene(Flow(trace(model, inputs)))


def roles(model: nn.Module, inputs: object) -> dict[str, str]:
    return {path: weight.role for path, weight in scene(model, inputs).weights.items()}


def test_a_perceptron() -> None:
    found = scene(net.mlp(2, nn.GELU()), fanin.spec((4, 20))).weights
    assert {p: w.role for p, w in found.items()} == {
        "0.weight": "input",
        "0.bias": "bias",
        "2.weight": "hidden",
        "2.bias": "bias",
        "4.weight": "head",
        "4.bias": "bias",
    }
    source = found["2.weight"].source
    assert source is not None
    assert (source.before, source.weight) == ("weight", "0.weight")
    assert source.function is not None
    assert source.function.name == "gelu"
    assert (found["2.weight"].fans.fan_in, found["4.weight"].fans.fan_out) == (64, 10)


def test_a_transformer_block_written_by_hand() -> None:
    model = nn.Sequential(net.Block(), net.Block())
    found = scene(model, fanin.spec((2, 8, 64))).weights
    first = {p.removeprefix("0."): w.role for p, w in found.items() if p.startswith("0.")}
    assert first == {
        "n1.weight": "norm scale",
        "n2.weight": "norm scale",
        "q.weight": "query",
        "k.weight": "key",
        "v.weight": "value",
        "o.weight": "branch end",
        "w1.weight": "hidden",
        "w3.weight": "hidden",
        "w2.weight": "branch end",
    }
    ends = {p: (w.block, w.branches) for p, w in found.items() if w.end is not None}
    assert ends == {
        "0.o.weight": (0, 4),
        "0.w2.weight": (1, 4),
        "1.o.weight": (2, 4),
        "1.w2.weight": (3, 4),
    }
    assert found["0.q.weight"].projections[0].width == 16
    assert found["0.w2.weight"].inside == 3


def test_parallel_branches_each_have_an_end() -> None:
    model = nn.Sequential(net.ParallelBlock(), net.ParallelBlock())
    found = scene(model, fanin.spec((2, 5, 16))).weights
    ends = {p: w.branches for p, w in found.items() if w.end is not None}
    assert ends == {
        "0.attention.out_proj.weight": 4,
        "0.mlp.2.weight": 4,
        "1.attention.out_proj.weight": 4,
        "1.mlp.2.weight": 4,
    }
    packed = found["0.attention.in_proj_weight"]
    assert packed.role == "query key value"
    assert [(p.first, p.last, p.part) for p in packed.projections] == [
        (0, 16, "query"),
        (16, 32, "key"),
        (32, 48, "value"),
    ]


@pytest.mark.parametrize("norm", [True, False])
def test_residual_convolutions(norm: bool) -> None:
    found = scene(net.resnet(3, norm=norm), fanin.spec((2, 3, 12, 12))).weights
    ends = {p: (w.end.normed, w.branches) for p, w in found.items() if w.end is not None}
    assert ends == {f"{i}.c2.weight": (norm, 3) for i in (1, 2, 3)}
    assert found["3.down.weight"].role == "hidden"
    assert found["6.weight"].role == "head"
    inside = (12 * 3 - 2) / 12  # mean taps of a row of three at 12 positions
    assert found["1.c1.weight"].fans.fan_in == pytest.approx(16 * inside**2)


def test_what_ends_a_branch_is_in_a_stream_of_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is no member of the branch, so that no share is over 0 branches."""
    monkeypatch.setattr(Streams, "members", lambda *_: [])
    model, x = net.resnet(3, norm=False), fanin.spec((2, 3, 12, 12))
    ends = [w for w in scene(model, x).weights.values() if w.end is not None]
    assert [branch_share(w)[0] for w in ends] == [1 / 3] * 3
    assert fanin.plan(model, x, "lecun")["1.c2.weight"].std == pytest.approx(
        (3 * 16 * (34 / 12) ** 2) ** -0.5
    )


def test_scales_behind_a_branch() -> None:
    found = scene(net.Scaled(torch.full((16,), 1e-4)), fanin.spec((2, 16))).weights
    assert found["scale"].role == "gate"
    assert found["scale"].scaled_branch
    end = found["mlp.2.weight"].end
    assert end is not None
    assert end.scaled
    assert found["norm.weight"].role == "norm scale"


def test_a_gated_recurrence_has_no_residual_branch() -> None:
    found = scene(net.GatedRecurrence(), fanin.spec((3, 4, 8)))
    assert found.flow.streams.joins == ()


def test_a_state_space_keeps_its_special_tensors_apart() -> None:
    found = roles(net.StateSpace(), fanin.spec((2, 6, 16)))
    assert {p: r for p, r in found.items() if r in ("special", "gate")} == {
        "A_log": "special",
        "dt_proj.weight": "special",
        "dt_proj.bias": "special",
        "D": "gate",
    }
    assert found["out_proj.weight"] == "head"


def test_stacked_experts_and_their_router() -> None:
    found = scene(net.Experts(), fanin.spec((12, 16))).weights
    assert (found["up"].fans.fan_in, found["up"].fans.fan_out) == (16, 32)
    assert len(found["up"].fans.parts) == 4
    assert found["down"].role == "branch end"
    assert found["router.weight"].role == "input"  # it weighs experts, its outputs are no logits


def test_tables_and_tied_heads() -> None:
    tied = scene(net.Tied(), fanin.spec((2, 7), "int64", high=500)).weights
    assert list(tied) == ["embedding.weight", "mix.weight", "norm.weight", "norm.bias"]
    assert (tied["embedding.weight"].role, tied["embedding.weight"].tied) == ("head", True)
    assert tied["embedding.weight"].names == ("embedding.weight", "head.weight")


class Special(nn.Module):
    """What enters in other ways: classes, positions, slopes, a table of logit biases, nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.positions = nn.Embedding(32, 16)
        self.table = nn.Parameter(torch.randn(16, 2))
        self.prelu = nn.PReLU()
        self.first, self.second = nn.Linear(16, 48), nn.Linear(16, 16)
        self.unused = nn.Linear(3, 3)
        self.register_buffer("index", torch.arange(64).reshape(8, 8) % 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        x = x + self.positions(torch.arange(x.shape[1]))
        q, k, v = (y.unflatten(-1, (2, 8)).transpose(1, 2) for y in self.first(x).chunk(3, -1))
        scores = q @ k.transpose(-1, -2) / 8**0.5
        scores = torch.softmax(scores + self.table[self.index].permute(2, 0, 1), -1)
        return self.second(self.prelu((scores @ v).transpose(1, 2).flatten(2)))


def test_what_is_no_matrix_has_a_role_too() -> None:
    found = roles(Special(), fanin.spec((2, 7, 16)))
    assert found == {
        "token": "position",
        "table": "logit bias",
        "positions.weight": "position",
        "prelu.weight": "special",
        "first.weight": "query key value",
        "first.bias": "bias",
        "second.weight": "head",
        "second.bias": "bias",
        "unused.weight": "unused",
        "unused.bias": "unused",
    }


class MultiQuery(nn.Module):
    """Two query heads beside one key and one value, which are picked by a list of indices."""

    def __init__(self) -> None:
        super().__init__()
        self.fused, self.out = nn.Linear(16, 32), nn.Linear(16, 16)
        self.third = torch.tensor([2])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.fused(x).unflatten(-1, (4, 8))
        q, k, v = heads[..., :2, :], heads[..., self.third, :], heads[..., [3], :]
        q, k, v = (y.transpose(1, 2).reshape(len(x), -1, x.shape[1], 8) for y in (q, k, v))
        return self.out((torch.softmax(q @ k.mT / 8**0.5, -1) @ v).transpose(1, 2).flatten(2))


def test_rows_of_a_fused_projection_are_followed_where_the_indices_are_known() -> None:
    """Those of a list never reach the trace: then all rows are meant."""
    read = scene(MultiQuery(), fanin.spec((2, 5, 16))).flow.heads.projections["fused.weight"]
    found = {p.part: (p.first, p.last) for p in read}
    assert found == {"query": (0, 16), "key": (16, 24), "value": (0, 32)}


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers(kind: type[nn.RNNBase]) -> None:
    found = scene(kind(4, 6, num_layers=2, bidirectional=True), fanin.spec((5, 2, 4))).weights
    assert {w.role for w in found.values()} == {"recurrent", "bias"}
    deep = found["weight_ih_l1_reverse"]
    assert (deep.fans.fan_in, deep.fans.fan_out) == (12, 6)
    hidden = [p for p, w in found.items() if w.use and w.use.hidden and w.role == "recurrent"]
    assert hidden == [p for p in found if p.startswith("weight_hh")]


class Words(nn.Module):
    """Words, whose table is the head too, with kinds and positions that are told from the words."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.kinds, self.places = (nn.Embedding(n, 16) for n in (50, 2, 9))
        self.norm = nn.LayerNorm(16)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        here = self.words(tokens) + self.kinds(tokens % 2) + self.places((tokens > 0).cumsum(1))
        return self.norm(here) @ self.words.weight.T


def test_tables_are_as_large_as_the_tied_one_that_they_are_added_to() -> None:
    plan = fanin.plan(Words(), torch.randint(50, (4, 8)))
    small = plan["words.weight"].std
    assert small < 0.3
    assert plan["kinds.weight"].std == pytest.approx(small)
    assert plan["places.weight"].std == pytest.approx(math.sqrt(2) * small)


class Mixture(nn.Module):
    """Behind a norm a position is mixed with the one before it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(16), nn.Parameter(torch.linspace(0.0, 1.0, 16))
        self.key = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        return self.key(x * self.mix + x.roll(1, 1) * (1 - self.mix))


def test_the_share_of_a_mixture_is_no_norm_scale() -> None:
    model = Mixture()
    found = roles(model, fanin.spec((2, 6, 16)))
    assert (found["mix"], found["norm.weight"]) == ("gate", "norm scale")
    assert fanin.plan(model, fanin.spec((2, 6, 16)))["mix"].values is None
