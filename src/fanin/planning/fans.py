"""How many terms a weight's outputs sum, and how many outputs each of its inputs feeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fanin.errors import ArgumentError

Index = tuple[slice | int, ...]

AXES = ("in", "out", "tap", "expert")


@dataclass(frozen=True)
class Part:
    """One matrix among those that a weight holds side by side: where, and its own fans."""

    index: Index
    fan_in: float
    fan_out: float


@dataclass(frozen=True)
class Fans:
    """The fans of one weight, and in words how they were counted.

    *Definition*: `fan_in` is the number of terms in one output of the operation, `fan_out` the
    number of outputs that one input enters; both are means over positions where positions differ.
    A weight of variance v multiplies the second moment by v * fan_in forwards and that of the
    gradient by v * fan_out backwards.

    Args:
        fan_in: terms summed by one output; positive, not always an integer.
        fan_out: outputs fed by one input.
        counted: how, in words.
        parts: the matrices side by side in a fused or grouped weight; one part where there is
            one matrix.
            Where their fans differ, `fan_in` and `fan_out` are means weighted by elements.
        axes: the meaning of each axis, a word of `in`, `out`, `tap`, `expert`.
        groups: independent groups of channels, on the first axis.
        shared_by: neighbouring positions that share the taps of a transposed convolution.
        name: the weight's name in its layer.

    Example:
        >>> matrix_fans((8, 256, 512), axes="expert in out")
        Fans(fan_in=256, fan_out=512, 8 experts of 256 in, 512 out)
    """

    fan_in: float
    fan_out: float
    counted: str
    parts: tuple[Part, ...]
    axes: str
    groups: int = 1
    shared_by: int = 1
    name: str = "weight"

    def __repr__(self) -> str:
        return f"Fans(fan_in={self.fan_in:g}, fan_out={self.fan_out:g}, {self.counted})"

    def named(self, name: str, counted: str | None = None) -> Fans:
        """These fans under another name, and if given in other words."""
        return replace(self, name=name, counted=counted or self.counted)


def one_part(fan_in: float, fan_out: float, counted: str, axes: str) -> Fans:
    """Fans of a weight that is a single matrix."""
    return Fans(fan_in, fan_out, counted, (Part((), fan_in, fan_out),), axes)


def matrix_fans(shape: Sequence[int], axes: str, splits: int | Sequence[int] = 1) -> Fans:
    """Fans of a weight from the meaning of its axes.

    *Definition*: fan_in = prod(in axes) * prod(tap axes), fan_out = prod(out axes) * prod(tap
    axes); an expert axis counts the matrices and enters neither.

    Args:
        shape: the full (unsharded) shape.
        axes: one word for each axis: `in`, `out`, `tap` or `expert`, as in "expert in out".
        splits: the number of equal matrices stacked on the first `out` axis, or their sizes.

    Returns:
        The fans of one matrix.

    Raises:
        ArgumentError: the words do not fit the shape, or the splits do not fill the axis.

    Example:
        >>> matrix_fans((768, 256), "out in", splits=3).fan_out
        256
    """
    words = axes.split()
    if len(words) != len(shape) or not set(words) <= set(AXES) or "out" not in words:
        raise ArgumentError(
            "axes",
            expected=f"{len(shape)} words of {', '.join(AXES)}, one of them 'out'",
            got=repr(axes),
        )
    sizes = {w: math.prod(n for n, a in zip(shape, words, strict=True) if a == w) for w in AXES}
    experts = _products(shape, [i for i, a in enumerate(words) if a == "expert"])
    along = words.index("out")
    parts = tuple(
        _part(len(shape), sizes, shape[along], expert, along, piece)
        for expert in experts
        for piece in _pieces(splits, shape[along])
    )
    return _fused(parts, _in_words(sizes, len(_pieces(splits, shape[along]))), axes)


def convolution_fans(
    in_channels: int,
    out_channels: int,
    kernel: Sequence[int],
    *,
    stride: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[tuple[int, int]],
    output_padding: Sequence[int] | None = None,
    groups: int = 1,
    transposed: bool = False,
    zeros: bool = True,
    size: Sequence[int] | None = None,
) -> Fans:
    """Fans of a convolution of any dimension, transposed or not.

    *Definition*: per axis, with k taps, stride s, input length n and output length m, an output
    reads on average P/m inputs and an input enters P/n outputs, where P counts the pairs (output,
    tap) that fall inside; far from the border that is k and k/s, for a transposed convolution
    k/s and k. Channels multiply by in/groups and out/groups.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: taps of each axis.
        stride: stride of each axis.
        dilation: dilation of each axis.
        padding: positions added before and after each axis.
        output_padding: positions added to a transposed convolution's output.
        groups: number of independent groups of channels.
        transposed: whether this is the transposed operation.
        zeros: whether the padding is zeros, so that taps outside read nothing.
        size: length of each axis of the input; without it the border is ignored.

    Example:
        >>> convolution_fans(64, 64, (3, 3), stride=(1, 1), dilation=(1, 1),
        ...                  padding=((1, 1), (1, 1)), size=(16, 16)).fan_in
        529.0
    """
    outs, ins = out_channels // groups, in_channels // groups
    reads, feeds = 1.0, 1.0
    extra = output_padding or (0,) * len(kernel)
    for axis, taps in enumerate(kernel):
        geometry = (taps, stride[axis], dilation[axis], padding[axis], extra[axis])
        length = None if size is None else size[axis]
        read, feed = _axis(*geometry, transposed=transposed, zeros=zeros, length=length)
        reads, feeds = reads * read, feeds * feed
    taps_text = "x".join(map(str, kernel))
    words = [f"{ins} in, {outs} out", f"{taps_text} taps"]
    words += [f"{groups} groups"] if groups > 1 else []
    words += ["stride " + "x".join(map(str, stride))] if math.prod(stride) > 1 else []
    words += ["transposed"] if transposed else []
    if size is not None:
        words.append(f"mean over {'x'.join(map(str, size))} positions")
    rows = (in_channels if transposed else out_channels) // groups  # of one group's matrix
    fans = (ins * reads, outs * feeds)
    parts = tuple(Part((slice(g * rows, (g + 1) * rows),), *fans) for g in range(groups))
    return Fans(
        *fans,
        ", ".join(words),
        parts if groups > 1 else (Part((), *fans),),
        " ".join([*(("in", "out") if transposed else ("out", "in")), *["tap"] * len(kernel)]),
        groups,
        math.prod(stride) if transposed else 1,
    )


def _axis(
    taps: int,
    stride: int,
    dilation: int,
    padding: tuple[int, int],
    extra: int,
    *,
    transposed: bool,
    zeros: bool,
    length: int | None,
) -> tuple[float, float]:
    """Mean inputs per output and outputs per input along one axis."""
    if length is None:
        return (taps / stride, taps) if transposed else (taps, taps / stride)
    low, high = padding
    span = dilation * (taps - 1) + 1
    if transposed:  # the adjoint of the convolution that maps its output back
        long = (length - 1) * stride - low - high + span + extra
        pairs = _pairs(long, length, taps, stride, dilation, low)
        return pairs / long, pairs / length
    short = (length + low + high - span) // stride + 1
    if short < 1:
        raise ArgumentError("size", expected=f"at least {span - low - high}", got=str(length))
    pairs = _pairs(length, short, taps, stride, dilation, low) if zeros else taps * short
    return pairs / short, pairs / length


def _pairs(long: int, short: int, taps: int, stride: int, dilation: int, low: int) -> int:
    """Pairs (position among `short`, tap) that read one of `long` positions."""
    pairs = 0
    for tap in range(taps):
        first = max(0, -((tap * dilation - low) // stride))
        last = min(short - 1, (long - 1 + low - tap * dilation) // stride)
        pairs += max(0, last - first + 1)
    return pairs


def _products(shape: Sequence[int], axes: Sequence[int]) -> list[dict[int, int]]:
    """Every choice of one index on each of the given axes."""
    choices: list[dict[int, int]] = [{}]
    for axis in axes:
        choices = [{**c, axis: i} for c in choices for i in range(shape[axis])]
    return choices


def _pieces(splits: int | Sequence[int], length: int) -> list[slice]:
    """The slices of an axis that hold one matrix each."""
    sizes = [length // max(splits, 1)] * splits if isinstance(splits, int) else list(splits)
    if sum(sizes) != length or not sizes or min(sizes) < 1:
        raise ArgumentError(
            "splits", expected=f"sizes that add up to the {length} outputs", got=str(splits)
        )
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [slice(a, a + n) for a, n in zip(starts, sizes, strict=True)]


def _part(
    rank: int, sizes: dict[str, int], outs: int, expert: dict[int, int], along: int, piece: slice
) -> Part:
    """The part of one expert and one split."""
    whole: list[slice | int] = [slice(None)] * rank
    for axis, i in expert.items():
        whole[axis] = i
    if piece != slice(0, outs):
        whole[along] = piece
    fan_out = sizes["out"] // outs * (piece.stop - piece.start) * sizes["tap"]
    return Part(tuple(whole), sizes["in"] * sizes["tap"], fan_out)


def _fused(parts: tuple[Part, ...], counted: str, axes: str) -> Fans:
    """The parts together; fan_out is their mean by elements where they differ."""
    outs = [p.fan_out for p in parts]
    mean = outs[0] if len(set(outs)) == 1 else sum(n * n for n in outs) / sum(outs)
    return Fans(parts[0].fan_in, mean, counted, parts, axes)


def _in_words(sizes: dict[str, int], splits: int) -> str:
    """How a matrix was counted."""
    words = f"{sizes['in']} in, {sizes['out']} out"
    words += f", {sizes['tap']} taps" if sizes["tap"] > 1 else ""
    words += f" in {splits} parts" if splits > 1 else ""
    return f"{sizes['expert']} experts of {words}" if sizes["expert"] > 1 else words
