"""Who wrote each tensor: function, line, law; through Parameter, tying, copying and loading."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

import fanin
import fanin.torch.init
from fanin.torch.provenance.asked import Asked
from fanin.torch.provenance.recording import history, lost_writes


def last(tensor: torch.Tensor) -> tuple[str, str, str]:
    writes = history(tensor)
    assert writes is not None
    return writes[-1].kind, writes[-1].function, writes[-1].site.owner


def test_constructors_and_initializers_are_named_with_their_line() -> None:
    with fanin.recording():
        layer = nn.Linear(8, 16)
        nn.init.orthogonal_(layer.weight)  # this line
    kind, function, owner = last(layer.bias)
    assert (kind, function, owner) == (
        "filled",
        "torch.nn.init.uniform_",
        "Linear.reset_parameters",
    )
    writes = history(layer.weight)
    assert writes is not None
    assert [w.function for w in writes] == [
        "torch.empty",
        "torch.nn.init.kaiming_uniform_",
        "torch.nn.init.orthogonal_",
    ]
    assert writes[1].site.default
    assert not writes[2].site.default
    file, line = writes[2].site.place.rsplit(":", 1)
    assert file.endswith("test_recording.py")
    assert "# this line" in Path(__file__).read_text(encoding="utf-8").splitlines()[int(line) - 1]


@pytest.mark.parametrize(
    ("call", "law", "std"),
    [
        (lambda w: nn.init.normal_(w, std=0.3), "normal", 0.3),
        (lambda w: nn.init.uniform_(w, -0.2, 0.2), "uniform", 0.2 / math.sqrt(3)),
        (lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu"), "normal", math.sqrt(2 / 64)),
        (lambda w: nn.init.kaiming_uniform_(w, a=math.sqrt(5)), "uniform", 1 / math.sqrt(3 * 64)),
        (lambda w: nn.init.xavier_normal_(w, 2.0), "normal", 2 * math.sqrt(2 / 160)),
        (lambda w: nn.init.xavier_uniform_(w), "uniform", math.sqrt(2 / 160)),
        (lambda w: nn.init.orthogonal_(w, 0.5), "orthogonal", 0.5 / math.sqrt(96)),
        (
            lambda w: nn.init.trunc_normal_(w, std=0.5, a=-1.0, b=1.0),
            "truncated normal",
            0.5 * 0.87962566103423978,
        ),
        (lambda w: nn.init.constant_(w, 3.0), "constant", 0.0),
        (lambda w: w.data.normal_(0, 0.7), "normal", 0.7),
        (lambda w: w.data.uniform_(-1, 1), "uniform", 1 / math.sqrt(3)),
        (lambda w: w.data.zero_(), "constant", 0.0),
    ],
)
def test_the_law_that_was_asked_is_the_one_that_comes_out(
    call: object, law: str, std: float
) -> None:
    torch.manual_seed(0)
    with fanin.recording():
        w = nn.Parameter(torch.empty(96, 64))
        call(w)  # type: ignore[operator]
    writes = history(w)
    assert writes is not None
    asked = writes[-1].asked
    assert asked is not None
    assert asked.law == law
    assert asked.true_std == pytest.approx(std, rel=1e-9)
    # 4 standard errors of a std of 6144 values
    assert float(w.detach().std()) == pytest.approx(std, rel=4 / math.sqrt(2 * 6144), abs=1e-12)


def test_copies_carry_their_history() -> None:
    with fanin.recording():
        encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(16, 2, batch_first=True), 2, enable_nested_tensor=False
        )
        target = nn.Linear(4, 4)
        source = nn.Linear(4, 4)
        target.load_state_dict(source.state_dict())
        computed = nn.Parameter(torch.randn(3, 3) * 0.02)
    copied = history(encoder.layers[1].linear1.weight)
    assert copied is not None
    assert [w.kind for w in copied][-2:] == ["filled", "copied"]
    assert last(target.weight)[0] == "loaded"
    assert last(computed)[:2] == ("created", "torch.mul")


def test_moves_keep_it_and_to_empty_loses_it() -> None:
    with fanin.recording():
        kept = nn.Linear(4, 4).double()
        with torch.device("meta"):
            lost = nn.Linear(4, 4)
        lost.to_empty(device="cpu")
    assert last(kept.weight)[1] == "torch.nn.init.kaiming_uniform_"
    assert last(lost.weight)[:2] == ("unset", "torch.empty_like")


def test_tied_tensors_share_one_history() -> None:
    with fanin.recording():
        embed, head = nn.Embedding(8, 4), nn.Linear(4, 8, bias=False)
        head.weight = embed.weight
        nn.init.ones_(head.weight)
    assert history(embed.weight) == history(head.weight)
    assert last(embed.weight)[1] == "torch.nn.init.ones_"


def test_partial_writes_are_not_whole() -> None:
    with fanin.recording():
        w = nn.Parameter(torch.empty(4, 4))
        with torch.no_grad():
            w[:2].fill_(1.0)
    writes = history(w)
    assert writes is not None
    assert (writes[-1].whole, writes[-1].elements) == (False, 8)


def test_a_write_to_a_computed_weight_is_lost_and_said_so() -> None:
    with fanin.recording():
        layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        nn.init.constant_(layer.weight, 5.0)
    original = layer.parametrizations.weight.original1
    assert [w.function for w in lost_writes(original)] == ["torch.nn.init.constant_"]
    assert lost_writes(layer.bias) == ()


def test_fanin_s_own_initializers_are_seen() -> None:
    with fanin.recording():
        layer = nn.Linear(64, 64)

        fanin.torch.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    kind, function, _ = last(layer.weight)
    assert (kind, function) == ("filled", "fanin.torch.init.kaiming_normal_")


def test_nothing_is_recorded_outside_and_nothing_stays_behind() -> None:
    layer = nn.Linear(4, 4)
    assert history(layer.weight) is None
    with pytest.raises(RuntimeError, match=r"^stop$"), fanin.recording():
        raise RuntimeError("stop")
    after = nn.Linear(4, 4)
    assert history(after.weight) is None


def test_a_storage_that_is_gone_takes_its_history_with_it() -> None:
    """Memory is used again: a new tensor at an old address must not inherit."""
    with fanin.recording():
        for _ in range(200):
            nn.init.ones_(torch.empty(1000))
    for _ in range(200):
        assert history(torch.empty(1000)) is None


def test_laws_print_as_one_would_write_them() -> None:
    assert str(Asked("normal", 0.0, 0.02)) == "N(0, 0.02²)"
    assert str(Asked("uniform", 0.0, 0.2, -0.35, 0.35)) == "U(±0.35)"
    assert str(Asked("truncated normal", 0.0, 0.02, -2.0, 2.0)) == "N(0, 0.02²) cut to [-2, 2]"
