"""Drawn values into torch tensors, in place: of any type, on any device, sharded or whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fanin import draw
from fanin.draw.rounding import FORMATS
from fanin.errors import ArgumentError, ArgumentTypeError, FaninError, UninitializedError
from fanin.planning.plan import Mirrored, Stack, Values
from fanin.torch.provenance.recording import wrote
from fanin.torch.writing import device
from fanin.torch.writing.shard import local, regions

_BITS = {1: torch.uint8, 2: torch.uint16}
_STAGED = 2**22  # elements that pass through memory at a time on their way to another device


def write_(tensor: torch.Tensor, values: Values, *, seed: int, name: str) -> torch.Tensor:
    """Draw a tensor's values in place, as a function of (seed, name, position) alone.

    Of a DTensor each rank draws what it holds and nothing else, without communication; the whole
    has the values of an unsharded tensor of the same name. Consecutive blocks of a `Stack` are
    drawn as tensors of their own, called name[0], name[1], ...; of a `Mirrored` the half is drawn.

    Args:
        tensor: of any floating type; any strides; on any device.
        values: what to draw.
        seed: an integer in [0, 2^64).
        name: the tensor's full name in the model; see `fanin.draw.canonical_name`.

    Returns:
        `tensor`.

    Raises:
        ArgumentTypeError: no tensor, one whose type or layout cannot be drawn, or no distribution.
        ArgumentError: blocks that do not add up to the tensor, or values beyond its type.
        UninitializedError: a tensor without memory: on meta, or a placeholder without elements.
        NotCoveredError: a DTensor with Partial placements.

    Example:
        >>> w = write_(torch.empty(3, 2, dtype=torch.bfloat16), draw.Normal(), seed=0, name="w")
        >>> w.dtype, bool(w.isfinite().all())
        (torch.bfloat16, True)
    """
    where = f"write_({name})"
    refuse_placeholder(where, tensor)
    if not isinstance(values, Stack | Mirrored | draw.Distribution):
        raise ArgumentTypeError(
            where, expected="a distribution of fanin.draw or a Stack", got=type(values).__name__
        )
    for region in regions(tensor, where):
        part = local(tensor).detach()[region.local]
        if isinstance(values, Mirrored):
            _write_mirrored(part, values, seed, name, tuple(tensor.shape), region.whole)
            continue
        for drawn, its_name, rows, shape, block in _stacked(where, values, name, tensor, region):
            _write(part[rows] if tensor.dim() else part, drawn, seed, its_name, shape, block)
    wrote(local(tensor), values, tuple(tensor.shape))
    return tensor


def refuse_placeholder(where: str, tensor: torch.Tensor) -> None:
    """Raise for a tensor that has no memory to write to, or no floating type."""
    if not isinstance(tensor, torch.Tensor):
        raise ArgumentTypeError(where, expected="a tensor", got=type(tensor).__name__)
    if not tensor.is_floating_point():
        raise ArgumentTypeError(where, expected="a floating type", got=str(tensor.dtype))
    if hasattr(tensor, "ds_shape") and tensor.numel() != np.prod(tensor.ds_shape, dtype=int):
        raise UninitializedError(
            where,
            expected=f"a tensor of shape {tuple(tensor.ds_shape)}",
            got=f"ZeRO-3's placeholder of shape {tuple(tensor.shape)}",
            fix="gather it first: with deepspeed.zero.GatheredParameters(parameter)",
        )
    if tensor.layout != torch.strided:
        raise ArgumentTypeError(where, expected="a dense tensor", got=str(tensor.layout))
    mine = local(tensor)
    if mine.is_neg() or any(
        s == 0 and n > 1 for s, n in zip(mine.stride(), mine.shape, strict=True)
    ):
        raise ArgumentTypeError(
            where,
            expected="a tensor with memory of its own for every element",
            got="a negated view" if mine.is_neg() else "an expanded one",
            fix="write into a copy",
        )
    if mine.is_meta:
        raise UninitializedError(
            where,
            expected="a tensor in memory",
            got="one on the meta device",
            fix="use fanin.materialize_",
        )


def refuse_values(where: str, tensor: torch.Tensor, values: Values) -> None:
    """Raise for values that `write_` would not draw: of another shape, or beyond the type."""
    dtype, whole = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
    storage = FORMATS[dtype].storage if dtype in FORMATS else np.uint8
    for _ in regions(tensor, where):
        break
    parts: list[tuple[tuple[int, ...], draw.Distribution]]
    if isinstance(values, Stack):
        parts = [((rows, *whole[1:]), distribution) for rows, distribution in values.blocks]
    elif isinstance(values, Mirrored):
        parts = [(values.half(whole), values.values)]
    else:
        parts = [(whole, values)]
    for shape, distribution in parts:
        nothing = np.empty([0] * len(shape), storage)
        index = (slice(0, 0),) * len(shape)
        try:
            draw.fill(nothing, distribution, seed=0, name="", shape=shape, index=index, dtype=dtype)
        except FaninError as error:
            error.add_note(where)
            raise


def _stacked(where: str, values: Values, name: str, tensor: Any, region: Any) -> Any:
    """What to draw into which rows of a region: a distribution, its name, shape and block."""
    if not isinstance(values, Stack):
        yield values, name, slice(None), tuple(tensor.shape), region.whole
        return
    total = sum(rows for rows, _ in values.blocks)
    if tensor.dim() == 0 or total != tensor.shape[0]:
        raise ArgumentError(
            where, expected=f"{total} rows, as the blocks have", got=f"shape {tuple(tensor.shape)}"
        )
    mine, before = region.whole[0], 0
    for i, (rows, distribution) in enumerate(values.blocks):
        first, last = max(mine.start, before), min(mine.stop, before + rows)
        if first < last:
            block = (slice(first - before, last - before), *region.whole[1:])
            shape = (rows, *tensor.shape[1:])
            yield (
                distribution,
                f"{name}[{i}]",
                slice(first - mine.start, last - mine.start),
                shape,
                block,
            )
        before += rows


def _write_mirrored(
    part: torch.Tensor,
    values: Mirrored,
    seed: int,
    name: str,
    shape: tuple[int, ...],
    index: tuple[slice, ...],
) -> None:
    """Draw the half that a block needs, and put it and its negative where they belong."""
    if not values.fits(shape):
        raise ArgumentError(
            f"write_({name})", expected=f"pairs along {values.pairs}", got=f"shape {shape}"
        )
    wanted = list(index)
    places: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for axis, span in values.pairs:
        at = torch.arange(index[axis].start, index[axis].stop)
        block, within = at // span, at % span
        half = block // 2 * span + within
        first = int(half.min()) if len(half) else 0
        wanted[axis] = slice(first, int(half.max()) + 1 if len(half) else first)
        places[axis] = half - first, 1.0 - 2.0 * (block % 2)
    drawn = torch.empty([s.stop - s.start for s in wanted], dtype=part.dtype)
    _write(drawn, values.values, seed, name, values.half(shape), tuple(wanted))
    whole = drawn if drawn.dtype == torch.float64 else drawn.float()  # exact, and back again
    for axis, (half, sign) in places.items():
        along = [-1 if a == axis else 1 for a in range(whole.dim())]
        whole = whole.index_select(axis, half) * sign.to(whole.dtype).view(along)
    part.copy_(whole)


def _write(
    part: torch.Tensor,
    distribution: draw.Distribution,
    seed: int,
    name: str,
    shape: tuple[int, ...],
    index: tuple[slice, ...],
) -> None:
    """Draw one block of a tensor into memory."""
    dtype = str(part.dtype).removeprefix("torch.")
    if part.device.type == "cpu":
        threads = torch.get_num_threads()
        draw.fill(
            _array(part), distribution, seed=seed, name=name, shape=shape, index=index,
            dtype=dtype, threads=threads,
        )  # fmt: skip
    elif device.covers(part, distribution):
        device.fill(part, distribution, seed=seed, name=name, shape=shape, index=index)
    elif part.numel() > _STAGED and len(part) > 1:
        middle, start = len(part) // 2, index[0].start
        halves = (slice(start, start + middle), slice(start + middle, index[0].stop))
        for rows, half in zip((part[:middle], part[middle:]), halves, strict=True):
            _write(rows, distribution, seed, name, shape, (half, *index[1:]))
    else:
        staged = torch.empty(part.shape, dtype=part.dtype)
        _write(staged, distribution, seed, name, shape, index)
        part.copy_(staged)


def _array(tensor: torch.Tensor) -> Any:
    """The tensor's memory as a NumPy array; narrow types as their bits."""
    narrow = tensor.dtype not in (torch.float32, torch.float64)
    if narrow and tensor.dim() == 0:
        tensor = tensor.view(1)
        return tensor.view(_BITS[tensor.element_size()]).numpy().reshape(())
    return (tensor.view(_BITS[tensor.element_size()]) if narrow else tensor).numpy()
