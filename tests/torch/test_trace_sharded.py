"""Sharded models are traced as the whole tensors that they are parts of."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import fanin
from fanin.torch.tracing.trace import trace


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def shard(model: nn.Sequential, mesh: DeviceMesh) -> None:
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh)


def split(model: nn.Sequential, mesh: DeviceMesh) -> None:
    parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


@pytest.mark.parametrize("apply", [shard, split])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_shards_are_seen_as_whole_tensors(
    mesh: DeviceMesh, apply: Callable[[nn.Sequential, DeviceMesh], None], device: str
) -> None:
    with torch.device(device):
        model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    wanted = [str(n) for n in trace(model, fanin.spec((2, 8))).nodes]
    apply(model, mesh)
    hooks = [len(m._forward_pre_hooks) for m in model]
    graph = trace(model, fanin.spec((2, 8)))
    assert [str(n) for n in graph.nodes] == wanted
    assert [(p.name, p.shape, p.value is None) for p in graph.parameters] == [
        ("0.weight", (6, 8), False),
        ("0.bias", (6,), False),
        ("2.weight", (4, 6), False),
        ("2.bias", (4,), False),
    ]
    assert isinstance(model[0].weight, DTensor)
    assert [len(m._forward_pre_hooks) for m in model] == hooks
