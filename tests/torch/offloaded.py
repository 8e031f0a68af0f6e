"""FSDP2 with its parameters on the CPU: two heads from a truncated normal, cut at 3 sigmas.

Run by torchrun on a mesh of the device that the argument names; rank 0 writes what it found.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard

from fanin.torch import init

STD, BOUND = 0.0625, 3.0


class Heads(nn.Module):
    """Two output layers of one shape."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = (nn.Linear(256, 2048, bias=False) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(x) + self.two(x)


def draw(net: Heads) -> float:
    """Draw both; the seconds that it took."""
    generator, start = torch.Generator().manual_seed(42), time.perf_counter()
    for head in (net.one, net.two):
        init.trunc_normal_(head.weight, std=STD, a=-BOUND, b=BOUND, generator=generator)
    return time.perf_counter() - start


def digest(*parts: bytes) -> str:
    """One hash of a tensor's parts in order."""
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def gathered(part: bytes) -> list[bytes]:
    """The parts of all ranks."""
    parts: list[bytes] = [b""] * dist.get_world_size()
    dist.all_gather_object(parts, part)
    return parts


def main(device: str, path: Path) -> None:
    dist.init_process_group("cuda:nccl,cpu:gloo" if device == "cuda" else "gloo")
    if device == "cuda":
        torch.cuda.set_device(dist.get_rank())
    net, mesh = Heads(), init_device_mesh(device, (dist.get_world_size(),))
    fully_shard(net, mesh=mesh, offload_policy=CPUOffloadPolicy(pin_memory=False))
    before = torch.cuda.get_rng_state_all() if device == "cuda" else []
    draw(net)  # the first draw waits for the kernels
    seconds = draw(net)
    after = torch.cuda.get_rng_state_all() if device == "cuda" else []
    local = [p.to_local().detach() for p in net.parameters()]
    found = {
        "seconds": seconds,
        "hashes": [digest(*gathered(part.numpy().tobytes())) for part in local],
        "largest": max(part.abs().max().item() for part in local),
        "untouched": all(torch.equal(a, b) for a, b in zip(before, after, strict=True)),
    }
    if dist.get_rank() == 0:
        path.write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
