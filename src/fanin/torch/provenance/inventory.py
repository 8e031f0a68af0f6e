"""Every tensor that a model or a checkpoint holds: its values in numbers, and who wrote it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from fanin.errors import FaninError
from fanin.planning.fans import Fans
from fanin.torch.fans import fans
from fanin.torch.probing.statistics import places
from fanin.torch.probing.untouched import local
from fanin.torch.probing.weights import equal_rows
from fanin.torch.provenance.recording import Write, history, lost_writes

VALUES = 1 << 15
"""At most this many values enter a test of shape."""


@dataclass(frozen=True)
class Values:
    """The values of a tensor in numbers.

    Args:
        mean, std, low, high: of all values.
        kurtosis: E[(x - mean)^4] / std^4, from a sample; 3 for a normal, 1.8 for a uniform law.
        nonfinite: whether a value is NaN or infinite.
        constant: whether all values are the same.
        equal_rows: whether all rows of a matrix are the same.
        table: whether a row rises or falls all along, as positions and frequencies do.
        digest: of the bytes; empty where constant.
    """

    mean: float
    std: float
    low: float
    high: float
    kurtosis: float
    nonfinite: bool
    constant: bool
    equal_rows: bool
    table: bool
    digest: str

    def shape(self, count: int) -> str:
        """`constant`, `uniform`, `normal` or `other`: which law the values could have."""
        if self.constant:
            return "constant"
        if self.nonfinite or count < 8:
            return "other"
        error = 4 * math.sqrt(24 / min(count, VALUES))
        half = math.sqrt(3) * self.std
        inside = max(self.high - self.mean, self.mean - self.low) <= half * (1 + error)
        if inside and abs(self.kurtosis - 1.8) < error:
            return "uniform"
        return "normal" if abs(self.kurtosis - 3) < error else "other"


@dataclass(frozen=True)
class Held:
    """One tensor of a model, with every name that reaches it.

    Args:
        name: its first name.
        names: all its names.
        kind: `parameter`, `buffer`, or `tensor` of a file.
        shape, dtype: as held; of a sharded one the whole shape.
        trainable: whether it requires a gradient.
        persistent: whether a checkpoint holds it.
        owners: class of the module behind each name.
        count: elements that were looked at; those on this rank of a sharded one.
        meta: on the meta device.
        placeholder: a size-0 stand-in of a sharding framework.
        loaded: taken from a checkpoint by the library that built the model.
        values: None on meta and for placeholders.
        writes: who wrote it, oldest first; None where nothing was recorded.
        lost: recorded writes to something computed from it.
        fans: of the layer that owns it, where known.
        parametrized: whether the layer computes its weight from it.
        shard: this rank's place among the parts of a sharded tensor; empty for a whole one.
    """

    name: str
    names: tuple[str, ...]
    kind: str
    shape: tuple[int, ...]
    dtype: str
    trainable: bool
    persistent: bool
    owners: tuple[str, ...]
    count: int
    meta: bool
    placeholder: bool
    loaded: bool
    values: Values | None
    writes: tuple[Write, ...] | None
    lost: tuple[Write, ...]
    fans: Fans | None
    parametrized: bool
    shard: tuple[int, ...]


def inventory(model: nn.Module) -> tuple[Held, ...]:
    """Every parameter and buffer once, in the model's order.

    Args:
        model: on any device.

    Example:
        >>> [held.name for held in inventory(nn.BatchNorm1d(3))][:3]
        ['weight', 'bias', 'running_mean']
    """
    found: dict[int, tuple[torch.Tensor, list[tuple[str, nn.Module, str]]]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        tensors = {**module._parameters, **module._buffers}
        for leaf, tensor in tensors.items():
            if tensor is not None:
                name = f"{path}.{leaf}" if path else leaf
                _, homes = found.setdefault(_identity(tensor), (tensor, []))
                if name not in [n for n, _, _ in homes]:
                    homes.append((name, module, leaf))
    return tuple(_held(tensor, homes) for tensor, homes in found.values())


def _identity(tensor: torch.Tensor) -> int:
    """The same for two parameters that are one memory, as after `b.weight.data = a.weight.data`."""
    plain = type(tensor) in (torch.Tensor, nn.Parameter) and not tensor.is_meta
    return tensor.data_ptr() if plain and tensor.numel() else id(tensor)


def from_tensors(tensors: Mapping[str, torch.Tensor]) -> tuple[Held, ...]:
    """What a checkpoint holds: values alone, for there are no modules to ask."""
    found: dict[int, tuple[torch.Tensor, list[str]]] = {}
    for name, tensor in tensors.items():
        found.setdefault(_identity(tensor), (tensor, []))[1].append(name)
    return tuple(_of_file(tensor, names) for tensor, names in found.values())


def _of_file(tensor: torch.Tensor, names: list[str]) -> Held:
    return Held(
        names[0],
        tuple(names),
        "tensor",
        tuple(tensor.shape),
        _dtype(tensor),
        False,
        True,
        (),
        tensor.numel(),
        tensor.is_meta,
        False,
        False,
        _values(tensor),
        None,
        (),
        None,
        False,
        (),
    )


def _held(tensor: torch.Tensor, homes: list[tuple[str, nn.Module, str]]) -> Held:
    name, module, leaf = homes[0]
    parameter = isinstance(tensor, nn.Parameter)
    lazy = isinstance(tensor, nn.parameter.UninitializedTensorMixin)
    placeholder = not lazy and tensor.numel() == 0 and hasattr(tensor, "ds_shape")
    readable = not (lazy or tensor.is_meta or placeholder)
    inside = local(tensor) if readable else tensor
    return Held(
        name,
        tuple(n for n, _, _ in homes),
        "parameter" if parameter else "buffer",
        () if lazy else tuple(getattr(tensor, "ds_shape", tensor.shape)),
        _dtype(tensor),
        parameter and tensor.requires_grad,
        leaf not in module._non_persistent_buffers_set,
        tuple(type(m).__name__ for _, m, _ in homes),
        0 if lazy else inside.numel(),
        not lazy and tensor.is_meta,
        placeholder,
        bool(getattr(tensor, "_is_hf_initialized", False)),
        _values(inside) if readable else None,
        None if lazy else history(inside),
        () if lazy else lost_writes(inside),
        _fans(module, leaf),
        "parametrizations" in name.split(".") or leaf.endswith(("_orig", "_v", "_g")),
        _shard(tensor),
    )


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _fans(module: nn.Module, leaf: str) -> Fans | None:
    """The fans of a weight of a known layer."""
    try:
        return fans(module).get(leaf)
    except (FaninError, AttributeError, ValueError):
        return None


def _values(tensor: torch.Tensor) -> Values | None:
    """The numbers of a tensor in memory."""
    tensor = tensor.detach()
    if not tensor.numel() or tensor.is_complex() or tensor.is_quantized or tensor.is_meta:
        return None
    if tensor.layout != torch.strided:
        return None
    real = tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
    std, mean = torch.std_mean(real, correction=0)
    low, high = (float(v) for v in real.aminmax())
    broken = not math.isfinite(float(mean)) or not math.isfinite(float(std))
    constant = low == high
    digest = "" if constant else _digest(tensor)
    return Values(
        float(mean),
        float(std),
        low,
        high,
        _kurtosis(real),
        broken,
        constant,
        equal_rows(tensor),
        _table(real),
        digest,
    )


def _table(tensor: torch.Tensor) -> bool:
    """Whether the first row is monotone; of 8 random values or more it is once in 20,000."""
    if not tensor.dim() or tensor.shape[-1] < 8:
        return False
    steps = tensor.reshape(-1, tensor.shape[-1])[0].diff()
    return bool((steps > 0).all() or (steps < 0).all())


def _kurtosis(tensor: torch.Tensor) -> float:
    flat = tensor.reshape(-1)
    if flat.numel() > VALUES:
        flat = flat[places(flat.numel(), VALUES, flat.device)]
    deviation = flat.double() - flat.double().mean()
    variance = deviation.square().mean()
    return float(deviation.pow(4).mean() / variance.square()) if variance > 0 else 0.0


def _digest(tensor: torch.Tensor) -> str:
    """A digest of the bytes."""
    plain = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.blake2b(plain.cpu().numpy(), digest_size=16).hexdigest()


def across_ranks(tensors: Iterable[Held]) -> dict[str, dict[tuple[int, ...], str]]:
    """For each sharded tensor the digest of every shard, by its place; empty without ranks."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return {}
    mine = {t.name: (t.shard, t.values.digest) for t in tensors if t.shard and t.values is not None}
    ranks: list[dict[str, tuple[tuple[int, ...], str]]]
    ranks = [{} for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(ranks, mine)
    found: dict[str, dict[tuple[int, ...], str]] = {}
    for rank in ranks:
        for name, (place, digest) in rank.items():
            found.setdefault(name, {})[place] = digest
    return found


def _shard(tensor: torch.Tensor) -> tuple[int, ...]:
    """This rank's coordinates on the mesh axes that split the tensor; empty if none does."""
    if not hasattr(tensor, "to_local"):
        return ()
    coordinates = tensor.device_mesh.get_coordinate() or ()
    pairs = zip(coordinates, tensor.placements, strict=True)
    return tuple(c for c, placement in pairs if placement.is_shard())
