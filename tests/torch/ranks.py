"""What each rank of a group does in the tests of sharding; run by torchrun, prints hashes.

For every scenario the hash of the whole tensors stands in one JSON line of rank 0, so runs on
different numbers of processes, and the single process of the test, can be compared.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, empty
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fanin import draw
from fanin.planning.plan import Centre
from fanin.torch import init
from fanin.torch.writing.centring import centre_
from fanin.torch.writing.materialize import materialize_
from fanin.torch.writing.write import write_

DISTRIBUTIONS = {
    "normal": draw.Normal(0.1, 0.02),
    "truncated": draw.TruncatedNormal(std=0.0625, bound=3.0),
    "orthogonal": draw.Orthogonal(1.5),
}
SHAPE = (21, 10)  # uneven over 2 and 4 ranks


class Block(nn.Module):
    """Two linear layers, a norm, and a table that only its constructor knows."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.width = width
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Net(nn.Module):
    """Blocks by name, so that stages of a pipeline may leave some out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(13, 12)
        self.blocks = nn.ModuleDict({str(i): Block() for i in range(2)})
        self.head = nn.Linear(12, 13, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for block in self.blocks.values():
            x = block(x)
        return self.head(x)


PLAN = {
    "*.up.weight": draw.Normal(std=0.3),
    "*.down.weight": draw.Orthogonal(0.5),
    "head.weight": draw.TruncatedNormal(std=0.1),
    "embed.weight": draw.Uniform(-0.2, 0.2),
}


def digest(tensors: dict[str, torch.Tensor]) -> str:
    """One hash of whole tensors, by name."""
    whole = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        whole.update(name.encode() + full.detach().contiguous().numpy().tobytes())
    return whole.hexdigest()[:16]


def meta_net() -> Net:
    with torch.device("meta"):
        return Net()


def net_digest(model: nn.Module) -> str:
    """The hash of a model's parameters, after a forward and backward pass of it."""
    found = digest(dict(model.named_parameters()))
    model(torch.arange(4).view(1, 4)).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    return found


def drawn(mesh: object, placements: list[object]) -> str:
    """All distributions into tensors of one sharding."""
    tensors = {}
    for name, distribution in DISTRIBUTIONS.items():
        w = empty(SHAPE, device_mesh=mesh, placements=placements)
        tensors[name] = write_(w, distribution, seed=42, name=name)
    return digest(tensors)


CENTRES = {
    "linear": ((21, 10), Centre("linear", 0.5)),
    "conv": ((8, 6, 3, 3), Centre("conv", 0.5, "out in tap tap")),
    "parts": ((8, 7, 3), Centre("parts", 0.5, "out in tap", parts=(2, 5), means=(0.3, 0.7))),
    "transposed": ((12, 5, 3), Centre("transposed", 0.5, "in out tap", groups=2)),
}


def centred(empty_like: Callable[[str, tuple[int, ...]], torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights whose inputs sum to zero, and biases that take out what a weight adds up."""
    tensors = {}
    for name, (shape, centre) in CENTRES.items():
        weight = write_(empty_like(name, shape), draw.Normal(), seed=42, name=name)
        outputs = shape[0] if name != "transposed" else 2 * shape[1]
        bias = write_(empty_like("bias", (outputs,)), draw.Constant(0.25), seed=42, name="bias")
        centre_(bias, centre, weight)
        centre_(weight, centre, None)
        tensors |= {name: weight, f"{name}.bias": bias}
    return tensors


def centred_scenarios(ranks: int) -> dict[str, str]:
    """The same on DTensors that are sharded by outputs, by inputs, or not at all."""
    mesh = init_device_mesh("cpu", (ranks,))
    placements = {"centred0": Shard(0), "centred1": Shard(1), "centred": Replicate()}

    def sharded_by(placement: object) -> dict[str, torch.Tensor]:
        def like(name: str, shape: tuple[int, ...]) -> torch.Tensor:
            its = Shard(0) if name == "bias" and placement == Shard(1) else placement
            return empty(shape, device_mesh=mesh, placements=[its])

        return centred(like)

    return {case: digest(sharded_by(placement)) for case, placement in placements.items()}


def tensor_scenarios(ranks: int) -> dict[str, str]:
    """DTensors of every placement."""
    line = init_device_mesh("cpu", (ranks,))
    found = {
        "shard0": drawn(line, [Shard(0)]),
        "shard1": drawn(line, [Shard(1)]),
        "replicate": drawn(line, [Replicate()]),
    }
    if ranks == 4:
        square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
        found["both"] = drawn(square, [Shard(0), Shard(1)])
        found["twice"] = drawn(square, [Shard(0), Shard(0)])
        found["half"] = drawn(square, [Replicate(), Shard(0)])
    return found


def sharded(mesh: object, **options: object) -> Net:
    """A net on meta under FSDP2."""
    model = meta_net()
    for block in model.blocks.values():
        fully_shard(block, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    return model


def model_scenarios(ranks: int) -> dict[str, str]:
    """Models under FSDP2, before and after, with a plan and without."""
    line = init_device_mesh("cpu", (ranks,))
    found = {}
    model = sharded(line)
    materialize_(model, plan=PLAN, seed=7)
    found["fsdp"] = net_digest(model)
    model = meta_net()
    materialize_(model, plan=PLAN, seed=7)
    fully_shard(model, mesh=line)
    found["fsdp after"] = net_digest(model)
    model = sharded(line, offload_policy=CPUOffloadPolicy(pin_memory=False))
    materialize_(model, plan=PLAN, seed=7)
    found["offload"] = digest(dict(model.named_parameters()))
    model = sharded(line)
    materialize_(model, seed=7)
    found["defaults"] = net_digest(model)
    found["stages"] = stages(ranks)
    if ranks == 4:
        square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
        model = sharded(square)
        materialize_(model, plan=PLAN, seed=7)
        found["hsdp"] = net_digest(model)
        model = meta_net()
        for block in model.blocks.values():
            layout = {"up": ColwiseParallel(), "down": RowwiseParallel()}
            parallelize_module(block, square["tp"], layout)
        fully_shard(model, mesh=square["dp"])
        materialize_(model, plan=PLAN, seed=7)
        found["tp"] = net_digest(model)
    return found


def stages(ranks: int) -> str:
    """A pipeline: every rank has one block at most, and rank 0 collects the parameters."""
    rank, model = dist.get_rank(), meta_net()
    for i in list(model.blocks):
        if ranks > 1 and int(i) != rank:
            del model.blocks[i]
    if ranks > 1 and rank != 0:
        del model.embed, model.head
    materialize_(model, plan=None if rank > 1 else _present(model), seed=7)
    mine = {k: v.detach() for k, v in model.named_parameters()}
    everyone: list[dict[str, torch.Tensor]] = [{} for _ in range(ranks)]
    dist.all_gather_object(everyone, mine)
    return digest({k: v for part in everyone for k, v in part.items()})


def _present(model: nn.Module) -> dict[str, draw.Distribution]:
    """The part of the plan whose tensors stand on this rank."""
    names = dict(model.named_parameters())
    return {rule: d for rule, d in PLAN.items() if rule[0] == "*" or rule in names}


def global_fans(ranks: int) -> dict[str, object]:
    """A drop-in initializer on [8, 4096], sharded by columns: each rank's own std, and the hash."""
    w = empty((8, 4096), device_mesh=init_device_mesh("cpu", (ranks,)), placements=[Shard(1)])
    init.xavier_normal_(w, generator=torch.Generator().manual_seed(42))
    stds: list[float] = [0.0] * ranks
    dist.all_gather_object(stds, w.to_local().std().item())
    return {"xavier": digest({"w": w}), "xavier stds": stds}


class Largest(TorchDispatchMode):
    """Remembers the bytes of the largest tensor that an operation made."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and not isinstance(tensor, DTensor):
                self.bytes = max(self.bytes, tensor.nbytes)
        return made


def room(ranks: int) -> dict[str, object]:
    """The memory that drawing a sharded tensor of 32 MiB takes on this rank, beside its part."""
    w = empty((4096, 2048), device_mesh=init_device_mesh("cpu", (ranks,)), placements=[Shard(1)])
    sys.modules["fanin.draw.fill"].kernels_for = lambda size=0: None  # NumPy's memory is traced
    tracemalloc.start()
    with Largest() as largest:
        write_(w, draw.Normal(), seed=0, name="w")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {"room": max(peak, largest.bytes)}


def main(path: Path) -> None:
    dist.init_process_group("gloo")
    ranks = dist.get_world_size()
    before = torch.get_rng_state()
    found = tensor_scenarios(ranks) | model_scenarios(ranks) | global_fans(ranks)
    found |= centred_scenarios(ranks) | room(ranks)
    assert torch.equal(before, torch.get_rng_state())
    if dist.get_rank() == 0:
        path.write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
