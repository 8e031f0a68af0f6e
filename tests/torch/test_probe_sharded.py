"""Models inside DDP and FSDP2, in a real gloo process group of two ranks."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

import fanin


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def work(rank: int, port: int, results: Any) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        torch.manual_seed(0)
        x = torch.randn(16, 8)
        results[f"{rank} ddp"] = check_ddp(x)
        results[f"{rank} fsdp"] = check_fsdp(x)
        results[f"{rank} shards"] = audit_shards()
    finally:
        dist.destroy_process_group()


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


def check_ddp(x: torch.Tensor) -> Any:
    model = nn.parallel.DistributedDataParallel(net())
    report = fanin.check(model, x)
    model(x).sum().backward()  # the reducer is as it was: a step still works
    return [row.name for row in report.measured.layers], report.measured.notes[0]


def check_fsdp(x: torch.Tensor) -> Any:
    from torch.distributed.fsdp import fully_shard

    model = net()
    expected = fanin.check(model, x).measured
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    fully_shard(model)
    before = [p.to_local().clone() for p in model.parameters()]
    report = fanin.check(model, x)
    same = all(
        torch.equal(a, p.to_local()) for a, p in zip(before, model.parameters(), strict=True)
    )
    clean = all(p.grad is None for p in model.parameters())
    moments = [
        abs(a.second_moment - b.second_moment) < 1e-5
        for a, b in zip(expected.layers, report.measured.layers, strict=True)
    ]
    gradients = [w.gradient is not None for w in report.measured.weights.values()]
    model(x).sum().backward()
    return [row.name for row in report.measured.layers], same, clean, all(moments), all(gradients)


def audit_shards() -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    mesh = init_device_mesh("cpu", (2,))
    found = []
    for seed in (0, dist.get_rank()):
        generator = torch.Generator().manual_seed(seed)
        local = torch.randn(4, 8, generator=generator)
        model = nn.Module()
        model.weight = nn.Parameter(DTensor.from_local(local, mesh, [Shard(0)]))
        found.append([f.name for f in fanin.audit(model).findings if f.severity == "FAIL"])
    return found


@pytest.mark.skipif(not dist.is_gloo_available(), reason="gloo is not built in")
def test_wrapped_and_sharded_models() -> None:
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(work, (free_port(), results), nprocs=2)
        names = ["0", "1", "2"]
        for rank in (0, 1):
            assert results[f"{rank} ddp"] == (
                names,
                "the module inside DistributedDataParallel was run",
            )
            assert results[f"{rank} fsdp"] == (names, True, True, True, True)
            assert results[f"{rank} shards"] == [["duplicate-values"], []]
