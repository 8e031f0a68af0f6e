"""Average pooling and resampling: linear maps along each axis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fanin.signal.state import CLOSED, State
from fanin.signal.table import Table
from fanin.signal.transfer.call import Call, Gradients, backward, forward
from fanin.signal.transfer.convolution import _each, taps


def windows(call: Call) -> list[tuple[int, np.ndarray]]:
    """For each pooled dimension its windows: index [output, tap], -1 outside."""
    node, shape, out = call.node, call.first.shape, call.shape
    nd = int(node.name[node.name.index("pool") + 4])
    first = len(shape) - nd
    if "adaptive" in node.name:
        return [(d, _adaptive(shape[d], out[d])) for d in range(first, len(shape))]
    kernel = _each(node["kernel_size"], nd, 1)
    stride = _each(node.get("stride") or kernel, nd, 1)
    padding, dilation = _each(node.get("padding"), nd, 0), _each(node.get("dilation"), nd, 1)
    found = []
    for i in range(nd):
        d = first + i
        index = taps(shape[d], kernel[i], stride[i], padding[i], dilation[i], out[d])
        found.append((d, index))
    return found


def _adaptive(size: int, outputs: int) -> np.ndarray:
    """Windows of adaptive pooling: from floor(o n / m) to ceil((o + 1) n / m)."""
    starts = [o * size // outputs for o in range(outputs)]
    ends = [-(-(o + 1) * size // outputs) for o in range(outputs)]
    longest = max(e - s for s, e in zip(starts, ends, strict=True))
    index = np.full((outputs, longest), -1)
    for o, (s, e) in enumerate(zip(starts, ends, strict=True)):
        index[o, : e - s] = np.arange(s, e)
    return index


def _matrices(call: Call) -> list[tuple[int, np.ndarray]]:
    """The linear map of each dimension of an average pool or a resampling."""
    node, shape, out = call.node, call.first.shape, call.shape
    if "pool" not in node.name:
        n = len(shape)
        make = _bilinear if "linear" in node.name else _bicubic
        make = _smoothed if node.name.endswith("_aa") else make
        align = bool(node.get("align_corners", False))
        return [(d, make(shape[d], out[d], align)) for d in range(2, n)]
    divisor = node.get("divisor_override")
    found = []
    for i, (d, index) in enumerate(windows(call)):
        matrix = np.zeros((index.shape[0], shape[d]))
        rows, columns = np.nonzero(index >= 0)
        matrix[rows, index[rows, columns]] = 1.0
        count = (index >= 0).sum(1)
        if divisor:
            count = np.full(len(index), divisor if i == 0 else 1)
        elif "adaptive" not in node.name and node.get("count_include_pad", True):
            count = _padded_count(call, i, shape[d], index)
        found.append((d, matrix / count[:, None]))
    return found


def _padded_count(call: Call, axis: int, size: int, index: np.ndarray) -> np.ndarray:
    """Places of each window inside the padded input: `ceil_mode` lets windows hang over its end."""
    node = call.node
    nd = int(node.name[node.name.index("pool") + 4])
    kernel = _each(node["kernel_size"], nd, 1)
    stride = _each(node.get("stride") or kernel, nd, 1)[axis]
    padding = _each(node.get("padding"), nd, 0)[axis]
    start = np.arange(index.shape[0]) * stride - padding
    return np.minimum(start + kernel[axis], size + padding) - start


def _centres(size: int, outputs: int, align: bool) -> np.ndarray:
    """Where each output lies on the input's grid."""
    if align:
        return np.linspace(0, size - 1, outputs) if outputs > 1 else np.zeros(1)
    return (np.arange(outputs) + 0.5) * size / outputs - 0.5


def _bilinear(size: int, outputs: int, align: bool) -> np.ndarray:
    """Weights of linear interpolation along one axis."""
    place = np.clip(_centres(size, outputs, align), 0, size - 1)
    distance = np.abs(place[:, None] - np.arange(size))
    return np.asarray(np.maximum(0.0, 1.0 - distance))


def _smoothed(size: int, outputs: int, align: bool) -> np.ndarray:
    """The same where a smaller grid averages over all that its elements stand for."""
    step = (size - 1) / max(outputs - 1, 1) if align else size / outputs
    centres = (np.arange(outputs) + 0.5) * step - 0.5
    distance = np.abs(centres[:, None] - np.arange(size)) / max(step, 1.0)
    weights = np.maximum(0.0, 1.0 - distance)
    return np.asarray(weights / weights.sum(1, keepdims=True))


def _bicubic(size: int, outputs: int, align: bool) -> np.ndarray:
    """Weights of cubic convolution (a = -0.75) along one axis, the border repeated."""
    place, a = _centres(size, outputs, align), -0.75
    matrix = np.zeros((outputs, size))
    base = np.floor(place).astype(int)
    for step in range(-1, 3):
        x = np.abs(place - (base + step))
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
        column = np.clip(base + step, 0, size - 1)
        np.add.at(matrix, (np.arange(outputs), column), np.where(x <= 1, near, far * (x < 2)))
    return matrix


_LINEAR = (
    "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
    "_adaptive_avg_pool2d _adaptive_avg_pool3d mkldnn_adaptive_avg_pool2d upsample_linear1d "
    "upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa"
)


@forward(*_LINEAR.split())
def _average(call: Call) -> State:
    table = call.first.table
    for d, matrix in _matrices(call):
        table = table.mixed(d, matrix)
    x = call.first
    known = x.gaussian and x.function is None
    return State(
        table, CLOSED, call.token(), gaussian=known, nonnegative=x.nonnegative, roots=x.roots
    )


@backward(*_LINEAR.split())
def _average_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    (g,) = grads
    assert g is not None
    for d, matrix in _matrices(call):
        g = g.mixed(d, matrix.T)
    yield call.node.inputs[0], g
