"""The fans of a torch layer's weights: what one output sums and what one input feeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypedDict

import torch
from torch import nn

from fanin.errors import ArgumentError, ArgumentTypeError, UninitializedError
from fanin.planning.fans import Fans, convolution_fans, matrix_fans, one_part

Splits = int | Sequence[int]


class Layout(TypedDict, total=False):
    """What a tensor does not say of itself: see `fan`."""

    axes: str | None
    splits: Splits
    size: int | Sequence[int] | None


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_GATES = {"LSTM": 4, "LSTMCell": 4, "GRU": 3, "GRUCell": 3, "RNN": 1, "RNNCell": 1}


def fan(
    layer: nn.Module | torch.Tensor,
    name: str | None = None,
    *,
    axes: str | None = None,
    splits: Splits = 1,
    size: int | Sequence[int] | None = None,
) -> Fans:
    r"""The fans of a layer's weight, from what the layer does with it.

    *Definition*: fan_in is the number of terms in one output, fan_out the number of outputs that
    one input enters. For k taps, stride s and g groups a convolution has fan_in = k in/g and
    fan_out = k out/(g s); a transposed one has k in/(g s) and k out/g. With `size`, zero padding
    counts as well: taps outside the input read nothing.

    Args:
        layer: a module, or a tensor laid out as torch lays out weights, (out, in, taps...).
        name: which weight of a layer that has several; the first one if not given.
        axes: a word for each axis, of `in`, `out`, `tap`, `expert`; needed where the layout is
            another, such as "expert in out" for stacked experts.
        splits: how many matrices the out axis stacks (3 for a fused query, key, value), or
            their sizes.
        size: spatial size of the layer's input, for a mean over positions with zero padding.

    Returns:
        The fans of one matrix, in `.parts` those of each where a weight holds several: the gates
        of a recurrent layer, the packed projections of an attention.

    Raises:
        ArgumentError: the layer has no such weight, or it has less than two axes.
        ArgumentTypeError: the layer is of a kind whose fans are not known.
        UninitializedError: a lazy layer has no shapes yet.

    Example:
        >>> fan(nn.ConvTranspose2d(32, 64, 4, stride=2, padding=1))
        Fans(fan_in=128, fan_out=1024, 32 in, 64 out, 4x4 taps, stride 2x2, transposed)
        >>> fan(nn.LSTM(10, 20)).fan_out
        20

    Reference: the definition follows He et al. 2015 (arXiv:1502.01852), equations 10 and 14.
    """
    if isinstance(layer, torch.Tensor):
        if size is not None:
            raise ArgumentError(
                "fan(tensor, size=...)",
                expected="a layer, which knows its padding",
                got="a tensor",
                fix="pass the layer",
            )
        return _declared(layer.shape, axes, splits)
    known = fans(layer, size=size)
    chosen = name or next(iter(known))
    if chosen not in known:
        raise ArgumentError(
            f"fan({type(layer).__name__})",
            expected=f"one of its weights {', '.join(known)}",
            got=repr(name),
        )
    if axes is None and splits == 1:
        return known[chosen]
    return _declared(_weight(layer, chosen).shape, axes, splits).named(chosen)


def fans(layer: nn.Module, *, size: int | Sequence[int] | None = None) -> dict[str, Fans]:
    """The fans of every weight of one layer, by the weight's name in it.

    *Definition*: as in `fan`.

    Args:
        layer: a module with weights of its own.
        size: spatial size of the layer's input, for convolutions with zero padding.

    Raises:
        ArgumentTypeError: the layer is of a kind whose fans are not known.

    Example:
        >>> {name: f.fan_in for name, f in fans(nn.GRU(10, 20)).items()}
        {'weight_ih_l0': 10, 'weight_hh_l0': 20}
    """
    if any(isinstance(p, nn.UninitializedParameter) for p in layer.parameters(recurse=False)):
        raise UninitializedError(
            f"fan({type(layer).__name__})",
            expected="a layer that knows its shapes",
            got="a lazy layer",
            fix="run one forward pass first",
        )
    for kinds, count in _COUNTERS:
        if isinstance(layer, kinds):
            return count(layer, size)
    if type(layer).__name__ == "Conv1D" and hasattr(layer, "nf"):  # GPT-2's, laid out (in, out)
        return {"weight": matrix_fans(_weight(layer, "weight").shape, "in out")}
    raise ArgumentTypeError(
        f"fan({type(layer).__name__})",
        expected="a linear, convolution, recurrent, attention, embedding or bilinear layer",
        got=type(layer).__name__,
        fix="pass its weight tensor, with axes= where it is not laid out (out, in, taps...)",
    )


def row_sums(weight: torch.Tensor, counted: Fans) -> torch.Tensor:
    """For each output unit the float64 sum of the weights that reach it at one position."""
    return row_sums_by(weight, counted.axes, counted.groups, counted.shared_by)


def row_sums_by(weight: torch.Tensor, axes: str, groups: int, shared_by: int) -> torch.Tensor:
    """The sums of `row_sums`, from the layout alone."""
    weight, words = by_group(weight, axes, groups)
    summed = [i for i, word in enumerate(words) if word in ("in", "tap")]
    return weight.sum(summed, dtype=torch.float64) / shared_by


def by_group(weight: torch.Tensor, axes: str, groups: int) -> tuple[torch.Tensor, list[str]]:
    """A weight with an axis of its own for groups that its inputs would mix, and a word per axis.

    Only the weight of a transposed convolution mixes them. Where its groups lie on several ranks,
    they are gathered: torch takes no axis apart whose parts are uneven.
    """
    words = axes.split()
    if groups == 1 or words[0] != "in":
        return weight, words
    if hasattr(weight, "placements") and hasattr(weight, "redistribute"):
        from torch.distributed.tensor import Replicate

        whole = [Replicate() if getattr(p, "dim", None) == 0 else p for p in weight.placements]
        weight = weight.redistribute(placements=whole)
    return weight.unflatten(0, (groups, -1)), ["expert", *words]


def _declared(shape: Sequence[int], axes: str | None, splits: Splits) -> Fans:
    """Fans of a bare shape, laid out as torch does unless axes say otherwise."""
    if axes is None and len(shape) < 2:
        raise ArgumentError(
            "fan(tensor)",
            expected="a weight of two or more axes",
            got=f"shape {tuple(shape)}",
            fix="give axes= to say what its axes mean",
        )
    return matrix_fans(shape, axes or " ".join(["out", "in"] + ["tap"] * (len(shape) - 2)), splits)


def _weight(layer: nn.Module, name: str) -> torch.Tensor:
    """A weight by its name in the layer, as the layer computes it if parametrized."""
    tensor = getattr(layer, name)
    assert isinstance(tensor, torch.Tensor)
    return tensor


def _linear(layer: nn.Module, size: object) -> dict[str, Fans]:
    return {"weight": _declared(_weight(layer, "weight").shape, None, 1)}


def _convolution(layer: nn.Module, size: int | Sequence[int] | None) -> dict[str, Fans]:
    assert isinstance(layer, nn.modules.conv._ConvNd)
    axes = len(layer.kernel_size)
    return {
        "weight": convolution_fans(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            stride=layer.stride,
            dilation=layer.dilation,
            padding=_padding(layer),
            output_padding=layer.output_padding,
            groups=layer.groups,
            transposed=layer.transposed,
            zeros=layer.padding_mode == "zeros",
            size=_sizes(size, axes),
        )
    }


def _padding(layer: nn.modules.conv._ConvNd) -> tuple[tuple[int, int], ...]:
    """Positions before and after each axis; 'same' puts the odd one after."""
    spans = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    if layer.padding == "same":
        return tuple((span // 2, span - span // 2) for span in spans)
    if isinstance(layer.padding, str):
        return tuple((0, 0) for _ in spans)
    return tuple((int(p), int(p)) for p in layer.padding)


def _sizes(size: int | Sequence[int] | None, axes: int) -> tuple[int, ...] | None:
    """One length for each spatial axis."""
    if size is None:
        return None
    sizes = (size,) * axes if isinstance(size, int) else tuple(size)
    if len(sizes) != axes:
        raise ArgumentError("size", expected=f"{axes} lengths", got=str(size))
    return sizes


def _embedding(layer: nn.Module, size: object) -> dict[str, Fans]:
    rows, width = _weight(layer, "weight").shape
    words = f"one of {rows} rows, {width} out"
    return {"weight": one_part(1, width, words, "expert out")}


def _bilinear(layer: nn.Module, size: object) -> dict[str, Fans]:
    outs, first, second = _weight(layer, "weight").shape
    words = f"{first} x {second} products, {outs} out; outwards from the first input"
    return {"weight": one_part(first * second, outs * second, words, "out in in")}


def _recurrent(layer: nn.Module, size: object) -> dict[str, Fans]:
    gates = next(_GATES[k.__name__] for k in type(layer).__mro__ if k.__name__ in _GATES)
    found = {}
    for name, tensor in layer.named_parameters(recurse=False):
        if tensor.dim() == 2:
            split = 1 if name.startswith("weight_hr") else gates  # the projection has no gates
            found[name] = matrix_fans(tensor.shape, "out in", split).named(name)
    return found


def _attention(layer: nn.Module, size: object) -> dict[str, Fans]:
    found = {}
    for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
        tensor = getattr(layer, name)
        if tensor is not None:
            split = 3 if name == "in_proj_weight" else 1
            found[name] = matrix_fans(tensor.shape, "out in", split).named(name)
    out = _declared(_weight(layer.get_submodule("out_proj"), "weight").shape, None, 1)
    return {**found, "out_proj.weight": out.named("out_proj.weight")}


_Counter = Callable[[nn.Module, int | Sequence[int] | None], dict[str, Fans]]
_COUNTERS: tuple[tuple[tuple[type[nn.Module], ...], _Counter], ...] = (
    ((nn.Linear,), _linear),
    ((*_CONVOLUTIONS, *_TRANSPOSED), _convolution),
    ((nn.Embedding, nn.EmbeddingBag), _embedding),
    ((nn.Bilinear,), _bilinear),
    ((nn.RNNBase, nn.RNNCellBase), _recurrent),
    ((nn.MultiheadAttention,), _attention),
)
