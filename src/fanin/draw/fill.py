"""`fill`: any block of a tensor, drawn in place, without the rest of the tensor."""

from __future__ import annotations

import functools
import math
import os
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from fanin.draw import double, transform
from fanin.draw.blocks import Block, block
from fanin.draw.distributions import (
    Constant,
    DeltaOrthogonal,
    Distribution,
    Elementwise,
    Normal,
    Orthogonal,
)
from fanin.draw.philox import Stream, stream
from fanin.draw.rounding import FORMATS, Format, check_range, to_bits
from fanin.errors import ArgumentTypeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]
    Fill = Callable[[Array, NDArray[np.int64]], None]

SMALL = 2**15
"""Fewer elements than this do not wait for Numba to be imported; the bits are the same."""

_COMPILED, _PLAIN = 2**19, 2**16  # elements drawn at a time


def fill(
    out: Array,
    distribution: Distribution,
    *,
    seed: int,
    name: str,
    shape: tuple[int, ...] | None = None,
    index: tuple[slice, ...] | None = None,
    dtype: str | None = None,
    threads: int | None = None,
) -> Array:
    """Draw one block of a tensor into an array, in place.

    *Definition.* Element i of the tensor, counted in row-major order over `shape`, is a function of
    (seed, canonical name, i, distribution) alone: word i mod 4 of Philox block i // 4 (for a
    normal, the pair of words to which it belongs), transformed in float32 and rounded once to
    the array's type; float64 is computed in float64. `out` receives the elements at `index`.

    Args:
        out: float16, float32 or float64, or the bits of a narrow type as uint16 or uint8; any
            shape and strides.
        distribution: what to draw.
        seed: an integer in [0, 2^64).
        name: the tensor's full name; see `canonical_name`.
        shape: of the whole tensor; `out.shape` if not given.
        index: the block, one slice for each dimension; the whole tensor if not given.
        dtype: the type whose bits `out` holds: float16, bfloat16, float8_e4m3fn or float8_e5m2;
            that of `out` if not given.
        threads: how many to use; the processor's, or OMP_NUM_THREADS, if not given. The values
            do not depend on it.

    Returns:
        `out`.

    *Accuracy*: float32 within 4e-7 (1 + |z|) std of the exact transform of the same words;
    orthogonal matrices: see `Orthogonal`. Memory beyond `out` stays below 64 MiB.

    Raises:
        ArgumentError: the block does not fit `out`, or the type cannot hold what may be drawn.
        ArgumentTypeError: `out` is of a type that cannot be drawn.

    Example:
        >>> whole = fill(np.empty((4, 6), np.float32), Normal(), seed=0, name="w")
        >>> part = fill(np.empty((2, 3), np.float32), Normal(), seed=0, name="w", shape=(4, 6),
        ...             index=(slice(1, 3), slice(0, 6, 2)))
        >>> bool((part == whole[1:3, 0:6:2]).all())
        True
    """
    target = _format(out, dtype)
    if not isinstance(distribution, Distribution):
        raise ArgumentTypeError(
            "draw.fill(distribution)",
            expected="a distribution of fanin.draw",
            got=type(distribution).__name__,
        )
    shape = out.shape if shape is None else tuple(int(n) for n in shape)
    part = block(shape, index, out.shape)
    source = stream(seed, name)
    check_range(distribution, target)
    threads = max(1, threads or default_threads())
    if isinstance(distribution, (Orthogonal, DeltaOrthogonal)):
        from fanin.draw.orthogonal import fill_orthogonal

        fill_orthogonal(out, distribution, source, part, target, threads)
    elif isinstance(distribution, Constant):
        value = np.asarray(distribution.value, np.float64 if target.mantissa > 23 else np.float32)
        out[...] = rounded(value.reshape(1), target, out.dtype)[0]
    elif out.size:
        _fill_pieces(out, part, _drawer(distribution, source, target, out), threads)
    return out


def default_threads() -> int:
    """OMP_NUM_THREADS where it is set, else the processors that this process may use."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() and int(asked) else len(os.sched_getaffinity(0))


def normals(out: Array, source: Stream, starts: NDArray[np.int64]) -> None:
    """Standard normals, float32 or float64, from given positions of a stream on, in rows."""
    _drawer(Normal(), source, FORMATS[out.dtype.name], out)(out, starts)


def rounded(values: Array, target: Format, dtype: np.dtype[Any]) -> Array:
    """float32 or float64 values as elements of an array that holds the target format."""
    return (
        to_bits(values, target).view(dtype) if target.narrow else values.astype(dtype, copy=False)
    )


def _format(out: Array, dtype: str | None) -> Format:
    """The floating type that `out` holds."""
    if not isinstance(out, np.ndarray) or not out.flags.writeable:
        got = "one that is read-only" if isinstance(out, np.ndarray) else type(out).__name__
        raise ArgumentTypeError("draw.fill(out)", expected="a writable NumPy array", got=got)
    name = dtype or out.dtype.name
    if name not in FORMATS:
        raise ArgumentTypeError("draw.fill(out)", expected="one of " + ", ".join(FORMATS), got=name)
    target = FORMATS[name]
    if out.dtype != target.storage and out.dtype.name != name:
        raise ArgumentTypeError(
            f"draw.fill(dtype={name!r})",
            expected=f"an array of {np.dtype(target.storage).name}",
            got=out.dtype.name,
        )
    return target


def _fill_pieces(out: Array, part: Block, draw: Fill, threads: int) -> None:
    """Draw a block; an array with gaps goes through contiguous pieces of it."""
    if out.flags.c_contiguous:
        _fill_contiguous(out.reshape(-1), part, draw, threads)
        return
    step = max(1, _COMPILED // max(1, out[0].size))
    for i in range(0, len(out), step):
        piece = out[i : i + step]
        inner = Block(part.tensor, (part.picked[0][i : i + step], *part.picked[1:]))
        if len(piece) == 1 and piece.size > _COMPILED:
            first = part.picked[0][i]
            rest = Block(part.tensor[1:], part.picked[1:])
            offset = first * math.prod(part.tensor[1:])
            _fill_pieces(piece[0], rest, lambda o, s, by=offset: draw(o, s + by), threads)  # type: ignore[misc]
            continue
        buffer = np.empty(piece.shape, out.dtype)
        _fill_contiguous(buffer.reshape(-1), inner, draw, threads)
        piece[...] = buffer


def _fill_contiguous(flat: Array, part: Block, draw: Fill, threads: int) -> None:
    """Draw a block into its flattened array, several rows at a time in every thread."""
    at_most = _COMPILED if kernels_for(flat.size) else _PLAIN
    if flat.size < 2 * at_most:
        at_most = max(_PLAIN, 4 * math.ceil(flat.size / threads / 4))
    groups = part.rows(at_most)
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                group = next(groups, None)
            if group is None:
                return
            at, starts, length = group
            draw(flat[at : at + len(starts) * length].reshape(len(starts), length), starts)

    in_threads(work, min(threads, math.ceil(flat.size / at_most)))


def in_threads(work: Callable[[], None], count: int) -> None:
    """Run the same function in so many threads, this one included; its error is raised here."""
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    others = [threading.Thread(target=guarded) for _ in range(count - 1)]
    for thread in others:
        thread.start()
    guarded()
    for thread in others:
        thread.join()
    if errors:
        raise errors[0]


@functools.cache
def _import_kernels() -> ModuleType | None:
    """The compiled kernels, where Numba is installed and imports; the same bytes come without."""
    try:
        from fanin.draw import kernels
    except Exception:  # one that is broken, or meets a stranger's coverage.py, raises anything
        return None
    return kernels


def kernels_for(size: int = SMALL) -> ModuleType | None:
    """The compiled kernels, if they are worth their import."""
    if size < SMALL and "fanin.draw.kernels" not in sys.modules:
        return None
    return _import_kernels()


def _drawer(distribution: Elementwise, source: Stream, target: Format, out: Array) -> Fill:
    """The function that draws rows of consecutive elements."""
    kind, numbers = distribution.transform()
    kernels = None if target.name == "float64" else kernels_for(out.size)
    if kernels is None:
        return functools.partial(_draw_plain, source, target, kind, numbers)
    p, words = kernels.parameters(kind, numbers), (*source.key, *source.lane)
    arguments = kernels.KINDS.index(kind), p, tuple(np.uint64(word) for word in words)
    form = kernels.FORMS.index(target.name)

    def draw(rows: Array, starts: NDArray[np.int64]) -> None:
        kernels.draw(rows.view(np.uint8), starts, *arguments, form)

    return draw


def _draw_plain(
    source: Stream,
    target: Format,
    kind: str,
    numbers: tuple[float, ...],
    out: Array,
    starts: NDArray[np.int64],
) -> None:
    """The NumPy path: the blocks that the rows touch, then the elements asked for."""
    length = out.shape[1]
    skip = starts % 4
    touched = (int(skip.max()) + length + 3) // 4
    together = max(1, _PLAIN // (4 * touched))
    for i in range(0, len(starts), together):
        rows = slice(i, i + together)
        blocks = (starts[rows, None] // 4 + np.arange(touched)).reshape(-1).astype(np.uint64)
        words = source.words(blocks)
        if target.name == "float64":
            values = getattr(double, kind)(words, source.refined().words(blocks), *numbers)
        else:
            values = getattr(transform, kind)(words, *numbers)
        ordered = values.T.reshape(-1, 4 * touched)
        wanted = skip[rows, None] + np.arange(length)
        picked = np.take_along_axis(ordered, wanted, axis=1)
        out[rows] = rounded(picked, target, out.dtype)
