"""The coordinate check of muP: how far activations move in four Adam steps, over widths.

Run by torchrun it does the same after `fully_shard`, and rank 0 writes what it found.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import fanin
from fanin.planning.recipes import MuP

WIDTHS, FEW_WIDTHS, SEEDS = (128, 256, 512, 1024, 2048), (128, 512, 2048), 3
RATE, BASE = 0.01, 64


def network(width: int) -> nn.Sequential:
    """Three linear layers of which the outer ones keep a side."""
    return nn.Sequential(
        nn.Linear(16, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4)
    )


def moved(width: int, seed: int, rule: str, mesh: object = None) -> list[tuple[float, float]]:
    """For each linear layer the mean size of its outputs, and how far four steps moved them."""
    generator = torch.Generator().manual_seed(1000 + seed)
    x = torch.randn(64, 16, generator=generator)
    y = torch.randint(0, 4, (64,), generator=generator)
    model = network(width)
    if mesh is not None:
        for layer in (model[2], model):
            fully_shard(layer, mesh=mesh)
    with torch.device("meta"):
        base = network(BASE)
    plan = fanin.init_(model, x, MuP(base=base) if rule == "mup" else rule, seed=seed)
    rates = plan.lr_multipliers if rule == "mup" else dict.fromkeys(plan.lr_multipliers, 1.0)
    optimizer = torch.optim.Adam(
        [{"params": [p], "lr": RATE * rates[n]} for n, p in model.named_parameters()]
    )
    before = outputs(model, x)
    for _ in range(4):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return [
        (new.abs().mean().item(), (new - old).pow(2).mean().sqrt().item())
        for new, old in zip(outputs(model, x), before, strict=True)
    ]


def outputs(model: nn.Sequential, x: Tensor) -> list[Tensor]:
    """What each linear layer gives."""
    found: list[Tensor] = []
    handles = [model[i].register_forward_hook(lambda _m, _x, y: found.append(y)) for i in (0, 2, 4)]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found


def slopes(rule: str, widths: tuple[int, ...], mesh: object = None) -> list[list[float]]:
    """Slopes in log width of size and of movement, layer by layer: geometric means over seeds."""
    points = []
    for width in widths:
        runs = [moved(width, seed, rule, mesh) for seed in range(SEEDS)]
        points.append(
            [
                [
                    statistics.fmean(math.log(value) for value in same)
                    for same in zip(*r, strict=True)
                ]
                for r in zip(*runs, strict=True)
            ]
        )
    logs = [math.log(width) for width in widths]
    return [
        [statistics.linear_regression(logs, [p[layer][k] for p in points]).slope for k in (0, 1)]
        for layer in range(3)
    ]


def main(path: Path) -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    found = slopes("mup", FEW_WIDTHS, mesh)
    if dist.get_rank() == 0:
        path.write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
