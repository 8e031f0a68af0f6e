"""On a CUDA device: the CPU's bytes, and random states as they were. Run with `-m gpu`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.torch import offloaded
from tests.torch.test_shard import launch
from tests.torch.test_write import ELEMENTWISE, TYPES, bits
from torch import nn

import fanin
from fanin import draw
from fanin.torch import init
from fanin.torch.writing.device import AT_A_TIME
from fanin.torch.writing.write import write_

HERE = Path(__file__).parent
has_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def on_gpu(test):
    """Tests of a device; they skip where there is none."""
    return pytest.mark.gpu(has_cuda(test))


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GELU(), nn.Flatten(), nn.Linear(8 * 36, 40), nn.LayerNorm(40),
        nn.Dropout(), nn.Linear(40, 5),
    )  # fmt: skip


@on_gpu
@pytest.mark.parametrize("distribution", [*ELEMENTWISE, draw.Orthogonal()], ids=str)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_a_gpu_holds_what_the_cpu_holds(
    distribution: draw.Distribution, dtype: torch.dtype
) -> None:
    shape = (300, 401)
    expected = write_(torch.empty(shape, dtype=dtype), distribution, seed=3, name="w")
    there = torch.empty(shape, dtype=dtype, device="cuda")
    turned = torch.empty(shape[::-1], dtype=dtype, device="cuda").t()
    for tensor in (there, turned):
        assert bits(write_(tensor, distribution, seed=3, name="w").cpu()) == bits(expected)


@on_gpu
@pytest.mark.parametrize("distribution", ELEMENTWISE, ids=str)
def test_several_pieces_on_a_gpu_are_one_tensor(distribution: draw.Distribution) -> None:
    shape = (5, 2 * AT_A_TIME // 3)
    expected = write_(torch.empty(shape), distribution, seed=3, name="w")
    there = write_(torch.empty(shape, device="cuda"), distribution, seed=3, name="w")
    assert torch.equal(there.cpu(), expected)


@on_gpu
def test_a_plan_writes_the_same_model_on_a_gpu() -> None:
    here, there = network(), network().cuda()
    made = fanin.init_(here, fanin.spec((4, 3, 8, 8)), seed=5)
    fanin.apply_(there, made)
    for name, tensor in there.state_dict().items():
        assert torch.equal(tensor.cpu(), here.state_dict()[name]), name


@on_gpu
def test_random_states_of_every_device_are_as_they_were() -> None:
    torch.cuda.manual_seed_all(11)
    before, plain = torch.cuda.get_rng_state_all(), torch.get_rng_state()
    model, x = network().cuda(), torch.full((8, 3, 8, 8), 0.5, device="cuda")
    drawn = torch.get_rng_state()
    fanin.init_(model, x)
    fanin.check(model, x)
    with torch.device("meta"):
        deferred = network()
    fanin.materialize_(deferred, "cuda")
    generator = torch.Generator().manual_seed(0)
    init.normal_(model[0].weight, generator=generator)
    for one, two in zip(before, torch.cuda.get_rng_state_all(), strict=True):
        assert torch.equal(one, two)
    assert torch.equal(drawn, torch.get_rng_state())
    assert not torch.equal(plain, drawn)  # torch's own constructors draw


@on_gpu
def test_a_seed_may_come_from_a_gpus_generator() -> None:
    before = torch.cuda.get_rng_state_all()
    drawn = [
        init.normal_(torch.empty(9), generator=torch.Generator("cuda").manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert all(map(torch.equal, before, torch.cuda.get_rng_state_all()))


def offloaded_on(device: str, ranks: int, folder: Path) -> None:
    """FSDP2 with offloaded parameters has the single process's heads, which differ, and at once."""
    alone = offloaded.Heads()
    offloaded.draw(alone)
    expected = [offloaded.digest(p.detach().numpy().tobytes()) for p in alone.parameters()]
    launch(ranks, HERE / "offloaded.py", device, str(folder / "found.json"))
    found = json.loads((folder / "found.json").read_text())
    assert found["hashes"] == expected
    assert len(set(expected)) == 2
    assert found["largest"] <= draw.TruncatedNormal(0.0, offloaded.STD, offloaded.BOUND).limit
    assert found["untouched"]
    if device == "cuda":
        assert found["seconds"] < 1  # where others hang for minutes


@on_gpu
def test_offloaded_heads_on_a_cuda_mesh(tmp_path: Path) -> None:
    offloaded_on("cuda", 1, tmp_path)


def test_offloaded_heads_on_a_cpu_mesh(tmp_path: Path) -> None:
    offloaded_on("cpu", 2, tmp_path)
