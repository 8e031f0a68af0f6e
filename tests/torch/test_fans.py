"""Fans against counting: with weights and inputs of 1 an output is the number of its terms."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from fanin.errors import ArgumentError, ArgumentTypeError, UninitializedError
from fanin.planning.fans import matrix_fans
from fanin.torch.fans import fan, fans, row_sums

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def counted(layer: nn.Module, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean number of terms of an output, and of outputs that an input enters."""
    for parameter in layer.parameters():
        nn.init.ones_(parameter) if parameter.dim() > 1 else nn.init.zeros_(parameter)
    x = torch.ones(1, *shape, dtype=torch.float64, requires_grad=True)
    y = layer.double()(x)
    y.sum().backward()
    assert x.grad is not None
    return y.mean().item(), x.grad.mean().item()


geometry = st.fixed_dictionaries(
    {
        "rank": st.integers(1, 3),
        "kernel": st.integers(1, 4),
        "stride": st.integers(1, 3),
        "dilation": st.integers(1, 2),
        "padding": st.integers(0, 3),
        "groups": st.sampled_from([1, 2]),
        "size": st.integers(3, 8),
        "channels": st.sampled_from([(2, 4), (4, 2), (4, 4)]),
    }
)


@settings(max_examples=60, deadline=None)
@given(geometry)
def test_a_convolution_has_the_fans_that_counting_finds(g: dict) -> None:
    span = g["dilation"] * (g["kernel"] - 1) + 1
    assume(g["size"] + 2 * g["padding"] >= span)
    kind = CONVOLUTIONS[g["rank"] - 1]
    layer = kind(
        *g["channels"],
        g["kernel"],
        stride=g["stride"],
        padding=g["padding"],
        dilation=g["dilation"],
        groups=g["groups"],
    )
    size = (g["size"], *range(9, 8 + g["rank"]))
    assume(all(n + 2 * g["padding"] >= span for n in size))
    found = fan(layer, size=size)
    expected = counted(layer, (g["channels"][0], *size))
    assert (found.fan_in, found.fan_out) == pytest.approx(expected, rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(geometry, st.integers(0, 1))
def test_a_transposed_convolution_has_the_fans_that_counting_finds(g: dict, extra: int) -> None:
    span = g["dilation"] * (g["kernel"] - 1) + 1
    assume(extra < max(g["stride"], g["dilation"]))
    size = (g["size"], *range(9, 8 + g["rank"]))
    assume(all((n - 1) * g["stride"] - 2 * g["padding"] + span + extra > 0 for n in size))
    layer = TRANSPOSED[g["rank"] - 1](
        *g["channels"],
        g["kernel"],
        stride=g["stride"],
        padding=g["padding"],
        dilation=g["dilation"],
        output_padding=extra,
        groups=g["groups"],
    )
    found = fan(layer, size=size)
    expected = counted(layer, (g["channels"][0], *size))
    assert (found.fan_in, found.fan_out) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(2, 6, 5, stride=3, padding=2, dilation=2, groups=2),
        nn.ConvTranspose1d(6, 2, 5, stride=3, padding=2, dilation=2, groups=2),
        nn.ConvTranspose1d(3, 3, 2, stride=3),
    ],
)
def test_without_a_size_fans_are_the_limit_far_from_the_border(layer: nn.Module) -> None:
    far, inside = fan(layer, size=30_000), fan(layer)
    assert (inside.fan_in, inside.fan_out) == pytest.approx((far.fan_in, far.fan_out), rel=1e-3)


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_padding_that_is_not_zeros_reads_every_tap(mode: str) -> None:
    layer = nn.Conv2d(3, 5, 3, padding=1, padding_mode=mode)
    found = fan(layer, size=(6, 7))
    assert (found.fan_in, found.fan_out) == (27, 45)
    assert counted(layer, (3, 6, 7)) == pytest.approx((27, 45))


@pytest.mark.parametrize("kernel", [3, 4])
def test_padding_same_counts_as_torch_pads(kernel: int) -> None:
    layer = nn.Conv1d(1, 1, kernel, padding="same", dilation=3)
    found = fan(layer, size=11)
    assert (found.fan_in, found.fan_out) == pytest.approx(counted(layer, (1, 11)))


def test_the_loss_of_a_zero_padded_stack_is_in_the_fan() -> None:
    """A 3x3 kernel at 16x16 reads (46/48)^2 of its taps."""
    layer = nn.Conv2d(64, 64, 3, padding=1)
    assert fan(layer, size=16).fan_in == pytest.approx(64 * 9 * (46 / 48) ** 2)


def test_linear_embedding_and_bilinear() -> None:
    assert (fan(nn.Linear(7, 5)).fan_in, fan(nn.Linear(7, 5)).fan_out) == (7, 5)
    table = fan(nn.Embedding(1000, 64))
    assert (table.fan_in, table.fan_out) == (1, 64)
    product = fan(nn.Bilinear(3, 4, 5))
    assert (product.fan_in, product.fan_out) == (12, 20)


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_recurrent_weights_count_per_gate(kind: type[nn.RNNBase], gates: int) -> None:
    layer = kind(10, 20, num_layers=2, bidirectional=True)
    found = fans(layer)
    assert set(found) == {n for n, p in layer.named_parameters() if p.dim() == 2}
    first, deep = found["weight_ih_l0"], found["weight_ih_l1_reverse"]
    assert (first.fan_in, first.fan_out, len(first.parts)) == (10, 20, gates)
    assert (deep.fan_in, deep.fan_out, len(deep.parts)) == (40, 20, gates)
    assert found["weight_hh_l0"].fan_in == 20
    rows = torch.arange(20 * gates).reshape(gates, 20)
    for part, expected in zip(first.parts, rows, strict=True):
        assert torch.equal(torch.arange(20 * gates)[part.index[0]], expected)


def test_cells_and_projections() -> None:
    assert fan(nn.LSTMCell(10, 20)).fan_out == 20
    assert fan(nn.GRUCell(10, 20), "weight_hh").fan_in == 20
    projected = fans(nn.LSTM(10, 20, proj_size=5))
    assert (projected["weight_hr_l0"].fan_in, projected["weight_hr_l0"].fan_out) == (20, 5)
    assert projected["weight_hh_l0"].fan_in == 5


def test_packed_attention_counts_per_matrix() -> None:
    packed = fan(nn.MultiheadAttention(256, 4))
    assert (packed.fan_in, packed.fan_out, len(packed.parts)) == (256, 256, 3)
    apart = fans(nn.MultiheadAttention(256, 4, kdim=64, vdim=32))
    assert [apart[f"{n}_proj_weight"].fan_in for n in "qkv"] == [256, 64, 32]
    assert apart["out_proj.weight"].fan_in == 256


def test_fused_projections_count_per_part() -> None:
    found = fan(nn.Linear(768, 768 + 2 * 192), splits=(768, 192, 192))
    assert [p.fan_out for p in found.parts] == [768, 192, 192]
    assert [p.index[0] for p in found.parts] == [
        slice(0, 768),
        slice(768, 960),
        slice(960, 1152),
    ]
    assert found.fan_in == 768


def test_stacked_experts_count_by_declared_axes() -> None:
    weight = torch.empty(8, 256, 512)
    found = fan(weight, axes="expert in out")
    assert (found.fan_in, found.fan_out, len(found.parts)) == (256, 512, 8)
    assert all(weight[p.index].shape == (256, 512) for p in found.parts)
    heads = fan(torch.empty(12, 64, 768), axes="out out in")
    assert (heads.fan_in, heads.fan_out) == (768, 768)


def test_groups_are_matrices_of_their_own() -> None:
    found = fan(nn.Conv2d(64, 64, 3, groups=64))
    assert (found.fan_in, found.fan_out, len(found.parts)) == (9, 9, 64)


def test_a_weight_laid_out_as_in_gpt2() -> None:
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    found = fan(pytorch_utils.Conv1D(3 * 32, 32))
    assert (found.fan_in, found.fan_out) == (32, 96)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(3, 4),
        nn.Conv2d(4, 6, 3, groups=2),
        nn.ConvTranspose2d(4, 6, 3, groups=2),
        nn.ConvTranspose1d(4, 6, 4, stride=2, groups=2),
    ],
)
def test_row_sums_are_the_outputs_of_a_constant_input(layer: nn.Module) -> None:
    """Far from the border, and on the mean over the phases of a stride."""
    layer = layer.double()
    n = {nn.Linear: (), nn.ConvTranspose1d: (20,)}.get(type(layer), (20, 20))
    width = 3 if not n else 4
    x = torch.ones(1, width, *n, dtype=torch.float64)
    y = layer(x) - layer.bias.reshape(-1, *[1] * len(n))
    y = y[(0, slice(None), *[slice(8, 12)] * len(n))].flatten(1).mean(1) if n else y[0]
    assert torch.allclose(row_sums(layer.weight, fan(layer)).flatten(), y)


def test_fans_print_how_they_were_counted() -> None:
    assert repr(fan(nn.ConvTranspose2d(32, 64, 4, stride=2, padding=1))) == (
        "Fans(fan_in=128, fan_out=1024, 32 in, 64 out, 4x4 taps, stride 2x2, transposed)"
    )


def message(call: object, kind: type[Exception]) -> str:
    with pytest.raises(kind) as caught:
        call()  # type: ignore[operator]
    return str(caught.value)


def test_what_has_no_fans_is_an_error_that_says_so() -> None:
    assert message(lambda: fan(nn.LayerNorm(4)), ArgumentTypeError) == (
        "fan(LayerNorm): expected a linear, convolution, recurrent, attention, embedding or "
        "bilinear layer, got LayerNorm; pass its weight tensor, with axes= where it is not laid "
        "out (out, in, taps...)"
    )
    assert message(lambda: fan(torch.empty(5)), ArgumentError) == (
        "fan(tensor): expected a weight of two or more axes, got shape (5,); give axes= to say "
        "what its axes mean"
    )
    assert message(lambda: fan(nn.LazyLinear(3)), UninitializedError) == (
        "fan(LazyLinear): expected a layer that knows its shapes, got a lazy layer; run one "
        "forward pass first"
    )
    assert message(lambda: fan(nn.LSTM(2, 3), "weight"), ArgumentError) == (
        "fan(LSTM): expected one of its weights weight_ih_l0, weight_hh_l0, got 'weight'"
    )
    assert message(lambda: fan(torch.empty(2, 3), axes="out up"), ArgumentError) == (
        "axes: expected 2 words of in, out, tap, expert, one of them 'out', got 'out up'"
    )
    assert message(lambda: fan(nn.Linear(4, 8), splits=3), ArgumentError) == (
        "splits: expected sizes that add up to the 8 outputs, got 3"
    )
    assert message(lambda: fan(torch.empty(2, 3, 3), size=4), ArgumentError) == (
        "fan(tensor, size=...): expected a layer, which knows its padding, got a tensor; pass the "
        "layer"
    )
    assert message(lambda: fan(nn.Conv2d(1, 1, 9), size=4), ArgumentError) == (
        "size: expected at least 9, got 4"
    )


def test_declared_axes_multiply_out() -> None:
    found = matrix_fans((3, 4, 5, 7), "in out tap expert")
    assert (found.fan_in, found.fan_out, len(found.parts)) == (15, 20, 7)
