"""Convolutions of all kinds: sums over the taps that fall inside, axis by axis.

A tap of a strided, dilated, padded or transposed convolution is an index into the input (-1
outside). Weights are independent between taps, so pairs of equal taps carry their variance; what
weights share (a mean, centred rows) multiplies the other pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np

from fanin.signal.state import State
from fanin.signal.table import Table, add, product
from fanin.signal.transfer.call import Call, Gradients, backward, forward
from fanin.signal.transfer.linear import contracted, of_few

_FEW = 16  # up to so many weights, what they make is no Gaussian


def taps(
    size: int, kernel: int, stride: int, padding: int, dilation: int, output: int
) -> np.ndarray:
    """Index [output, tap] into the input of a convolution; -1 in the padding."""
    index = np.arange(output)[:, None] * stride - padding + np.arange(kernel) * dilation
    return np.where((index >= 0) & (index < size), index, -1)


def transposed_taps(
    size: int, kernel: int, stride: int, padding: int, dilation: int, output: int
) -> np.ndarray:
    """Index [output, tap] into the input of a transposed convolution; -1 where none arrives."""
    place = np.arange(output)[:, None] + padding - np.arange(kernel) * dilation
    index = place // stride
    return np.where((place % stride == 0) & (index >= 0) & (index < size), index, -1)


def reversed_taps(index: np.ndarray, size: int) -> np.ndarray:
    """For each input and tap the output that it goes to: the taps of the gradient."""
    back = np.full((size, index.shape[1]), -1)
    rows, columns = np.nonzero(index >= 0)
    back[index[rows, columns], columns] = rows
    return back


def one_tap(shape: Sequence[int], at: Sequence[int], second_moment: float) -> Table:
    """The table of a kernel [out, in, taps...] that is zero but at one tap, independent there."""
    table = Table.iid(shape, 0.0, second_moment)
    k = len(table.factors)
    profile = np.zeros([n if d > 1 else 1 for d, n in enumerate(shape) if n != 1])
    profile[tuple(at[d - 2] if d > 1 else 0 for d, n in enumerate(shape) if n != 1)] = 1.0
    return Table(table.dims, table.mean, table.pairs.reshape((2,) * k + (1,) * k) * profile)


def only_tap(table: Table) -> tuple[tuple[int, ...], float] | None:
    """The tap of a `one_tap` kernel, and its second moment; None for other kernels."""
    k, taps = len(table.factors), table.shape[2:]
    if any(len(factors) > 1 for factors in table.dims) or table.resolved:
        return None
    whole = [n for d, n in enumerate(table.shape) if d > 1 and n != 1]
    lead = sum(n != 1 for n in table.shape[:2])
    second = table.pairs[(0,) * k]
    if not whole or second.shape[lead:] != tuple(whole) or np.count_nonzero(table.pairs) != 1:
        return None
    at = iter(np.argwhere(second)[0][lead:])
    return tuple(int(next(at)) if n != 1 else 0 for n in taps), float(second.max())


class _Setting:
    """The geometry of one convolution: groups, taps of each spatial axis, parted tables."""

    def __init__(self, call: Call) -> None:
        node = call.node
        self.x, self.w, self.bias = call.first, call["weight"], call["bias"]
        self.transposed = bool(node.get("transposed", False)) or "transpose" in node.name
        self.groups = int(node.get("groups", 1))
        self.batched = len(self.x.shape) == len(self.w.shape)
        nd = len(self.w.shape) - 2
        wide = [_each(node.get(key), nd, default) for key, default in _SETTINGS]
        inputs, outputs = self.x.shape[-nd:], call.shape[-nd:]
        kernel = self.w.shape[2:]
        padding = node.get("padding", 0)
        if isinstance(padding, str):
            spread = [d * (k - 1) // 2 for d, k in zip(wide[1], kernel, strict=True)]
            wide[2] = tuple(spread) if padding == "same" else (0,) * nd
        make = transposed_taps if self.transposed else taps
        self.taps = [
            make(inputs[d], kernel[d], wide[0][d], wide[2][d], wide[1][d], outputs[d])
            for d in range(nd)
        ]
        self.kernel_table = self.w.table
        only = only_tap(self.w.table)
        if only is not None:
            at, second = only
            self.taps = [index[:, [i]] for index, i in zip(self.taps, at, strict=True)]
            self.kernel_table = Table.iid((*self.w.shape[:2], *(1,) * nd), 0.0, second)
        self.nd, self.inputs = nd, inputs
        self.fan = (
            self.w.shape[0 if self.transposed else 1]
            // (self.groups if self.transposed else 1)
            * prod(self.kernel_table.shape[2:])
        )

    def parted(self, table: Table) -> Table:
        """[N, channels, ...] as [N, groups, channels / groups, ...]."""
        table = table if self.batched else table.unsqueeze(0)
        n, c, *space = table.shape
        return table.reshape((n, self.groups, c // self.groups, *space))

    def weight(self) -> Table:
        """The weight as [groups, out / groups, in / groups, ...]."""
        a, b, *kernel = self.kernel_table.shape
        table: Table = self.kernel_table.reshape((self.groups, a // self.groups, b, *kernel))
        if self.transposed:
            table = table.permute((0, 2, 1, *range(3, 3 + self.nd)))
        return table.coarse(tuple(range(3, 3 + self.nd)))

    def joined(self, table: Table, shape: Sequence[int]) -> Table:
        """Groups and channels together again, in the shape of the whole tensor."""
        return table.reshape(shape)


_SETTINGS = (("stride", 1), ("dilation", 1), ("padding", 0))


def _each(setting: object, nd: int, default: int) -> tuple[int, ...]:
    """A setting for each spatial axis."""
    if setting is None or isinstance(setting, str):
        return (default,) * nd
    values = setting if isinstance(setting, tuple) else (setting,)
    return tuple(values) * nd if len(values) == 1 else tuple(values)


def _slided(x: Table, weight: Table, index: Sequence[np.ndarray]) -> Table:
    """Sums over taps and input channels: x [N, g, in, ...], weight [g, out, in, taps ...]."""
    nd = len(index)
    lead = len(weight.axes((0, 1, 2)))
    total: Table | None = None
    kernel_axes = weight.axes(tuple(range(3, 3 + nd)))
    has = [bool(weight.dims[3 + d]) for d in range(nd)]
    for mask in np.ndindex(*(2,) * len(kernel_axes)):
        entry = (slice(None),) * lead + mask
        part = weight.pairs[entry]
        part = part.reshape(*part.shape[:lead], *part.shape[lead : 2 * lead])
        mean = weight.mean.reshape(weight.mean.shape[:lead])
        if not part.any():
            continue
        wanted = iter(mask)
        moved = x
        for d in range(nd):
            other = next(wanted) if has[d] else 0
            moved = _tap_sum(moved, 3 + d, index[d], bool(other))
        filters = Table(weight.dims[:3], mean, part).reshape(
            (weight.shape[0], *weight.shape[1:3], *(1,) * nd)
        )
        rows = moved.unsqueeze(2)  # [N, g, 1, in, ...] beside [g, out, in, 1 ...]
        term = product(rows, filters).sum((3,))
        total = term if total is None else Table(*_joined(total, term))
    if total is None:
        shape = (x.shape[0], x.shape[1], weight.shape[1], *(i.shape[0] for i in index))
        return Table.constant(shape, 0.0)
    return total._compact()


def _joined(
    first: Table, second: Table
) -> tuple[tuple[tuple[int, ...], ...], np.ndarray, np.ndarray]:
    """Parts of one sum over pairs of taps: the pairs add, the mean is the same."""
    return first.dims, first.mean, first.pairs + second.pairs


def _tap_sum(x: Table, dim: int, index: np.ndarray, other: bool) -> Table:
    """Pairs of equal taps, or (`other`) pairs of different taps."""
    equal = x.tapped(dim, index)
    if not other:
        return equal
    matrix = np.zeros((index.shape[0], x.shape[dim]))
    rows, columns = np.nonzero(index >= 0)
    np.add.at(matrix, (rows, index[rows, columns]), 1.0)
    every = x.mixed(dim, matrix)
    return Table(every.dims, every.mean, every.pairs - equal.pairs)


@forward("convolution", "_convolution", "conv1d", "conv2d", "conv3d", "mkldnn_convolution",
         "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution_overrideable",
         "cudnn_convolution")  # fmt: skip
def _convolution(call: Call) -> State:
    s = _Setting(call)
    table = _slided(s.parted(s.x.table), s.weight(), s.taps).reshape(call.shape)
    wide = s.x.reach + (s.w.shape[2] ** 2 - 1) / 12
    state = replace(contracted(call, table, s.fan, (s.x, s.w)), size=s.x.size, reach=wide)
    if s.bias is not None:
        bias = s.bias.table.reshape((s.bias.shape[0], *(1,) * s.nd))
        state = replace(state, table=add(state.table, bias), roots=state.roots | s.bias.roots)
    few = s.fan <= _FEW and s.x.gaussian and s.w.gaussian and not s.w.mean
    return of_few(state, s.fan, 1) if few and s.batched and not s.transposed else state


@backward("convolution", "_convolution", "conv1d", "conv2d", "conv3d", "mkldnn_convolution",
          "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution_overrideable",
          "cudnn_convolution")  # fmt: skip
def _convolution_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    (g,) = grads
    assert g is not None
    s = _Setting(call)
    g, x, w = s.parted(g), s.parted(s.x.table), s.weight()
    back = [reversed_taps(t, n) for t, n in zip(s.taps, s.inputs, strict=True)]
    turned = w.permute((0, 2, 1, *range(3, 3 + s.nd)))
    yield call.node.inputs[0], _slided(g, turned, back).reshape(s.x.shape)
    moved = x
    for d, index in enumerate(s.taps):
        moved = moved.tapped(3 + d, index)
        moved = Table(moved.dims, moved.mean * 0, moved.pairs / index.shape[1])
    g, moved = g.flat((2,)), moved.flat((2,))  # a mean over channels is all that is asked
    outer = product(g.unsqueeze(3), moved.unsqueeze(2))
    second = outer.sum((0, *range(4, 4 + s.nd))).second_moment
    yield call.index("weight"), Table.iid(s.w.shape, 0.0, max(second, 0.0))
    if s.bias is not None:
        over = (0, *range(3, 3 + s.nd))
        yield call.index("bias"), g.sum(over).reshape(s.bias.shape)
