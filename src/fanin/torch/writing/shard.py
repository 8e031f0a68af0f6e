"""Which part of a sharded tensor this rank holds: blocks of it, and where each lies in the whole.

Nothing is communicated. The indices that a rank holds are found by splitting a row of indices as
the placements split the tensor, so every placement that can split is covered: uneven shards,
several mesh dimensions on one tensor dimension, strided shards of FSDP over tensor parallelism.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch

from fanin.errors import NotCoveredError


@dataclass(frozen=True)
class Region:
    """A block that lies on this rank without a gap.

    Attributes:
        local: where it lies in the rank's own tensor, one slice a dimension.
        whole: where it lies in the whole tensor.
    """

    local: tuple[slice, ...]
    whole: tuple[slice, ...]


def is_sharded(tensor: object) -> TypeGuard[Any]:
    """Whether a tensor is a DTensor, without importing what is not there."""
    return type(tensor).__name__ == "DTensor" and hasattr(tensor, "placements")


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that this rank holds; the tensor itself if it is not sharded."""
    return tensor._local_tensor if is_sharded(tensor) else tensor


def regions(tensor: torch.Tensor, where: str = "regions(tensor)") -> Iterator[Region]:
    """The blocks of a sharded tensor that this rank holds.

    Args:
        tensor: a DTensor, or a plain tensor, which is one block.
        where: what an error speaks of.

    Yields:
        `Region`s that cover the local tensor once; none where this rank holds nothing.

    Raises:
        NotCoveredError: a placement that does not say where elements are (Partial).

    Example:
        >>> [region.whole for region in regions(torch.empty(2, 3))]
        [(slice(0, 2, None), slice(0, 3, None))]
    """
    runs = [_runs(held) for held in _held(tensor, where)]
    for parts in itertools.product(*runs):
        yield Region(tuple(at for at, _ in parts), tuple(of for _, of in parts))


def _held(tensor: torch.Tensor, where: str) -> list[list[int] | range]:
    """For each dimension the indices of the whole tensor that this rank holds, in its order."""
    whole: list[list[int] | range] = [range(n) for n in tensor.shape]
    if not is_sharded(tensor):
        return whole
    mesh, placements = tensor.device_mesh, tensor.placements
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        return [range(0) for _ in tensor.shape] or [range(0)]
    for placement in placements:
        if placement.is_partial():
            raise NotCoveredError(
                where,
                expected="placements that shard or replicate",
                got=f"{placement}, whose ranks hold terms of a sum",
                fix="redistribute it to Shard or Replicate before",
            )
    for axis in _order(tensor):
        placement = placements[axis]
        dim = getattr(placement, "dim", None)
        if dim is not None:
            dim %= tensor.dim()
            whole[dim] = _split(placement, whole[dim], dim, mesh.size(axis), coordinate[axis])
    return whole


def _order(tensor: Any) -> Sequence[int]:
    """The mesh dimensions in the order in which they split."""
    spec = tensor._spec
    entries = getattr(spec, "shard_order", None)
    if not entries or getattr(spec, "use_strided_shard_as_shard_order", False):
        return range(len(tensor.placements))
    return [axis for entry in entries for axis in entry.mesh_dims]


def _split(
    placement: Any, held: list[int] | range, dim: int, parts: int, mine: int
) -> list[int] | range:
    """What remains of some indices after one placement has split them."""
    row = torch.tensor(held, dtype=torch.int64, device="cpu").view(*[1] * dim, len(held))
    pieces, _ = placement._split_tensor(row, parts, with_padding=False, contiguous=True)
    kept: list[int] = pieces[mine].flatten().tolist()
    return kept


def _runs(held: list[int] | range) -> list[tuple[slice, slice]]:
    """Consecutive indices as pairs of slices: in the rank's own order, and in the whole."""
    if isinstance(held, range):
        return [(slice(0, len(held)), slice(held.start, held.stop))] if len(held) else []
    runs, start = [], 0
    for i in range(1, len(held) + 1):
        if i == len(held) or held[i] != held[i - 1] + 1:
            runs.append((slice(start, i), slice(held[start], held[i - 1] + 1)))
            start = i
    return runs
