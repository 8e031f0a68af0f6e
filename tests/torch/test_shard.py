"""Sharded tensors have the single process's bytes: real gloo groups of 1, 2 and 4 processes."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fanin import draw
from fanin.torch import init
from fanin.torch.writing.materialize import materialize_
from fanin.torch.writing.write import write_

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def launch(ranks: int, script: Path, *arguments: str) -> str:
    """Run a script under torchrun and return what it prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}"]
    command += ["--master-addr=127.0.0.1", f"--master-port={port}", str(script), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, str]]:
    """The hashes of every scenario, by the number of processes."""
    folder = tmp_path_factory.mktemp("ranks")
    hashes = {}
    for ranks in (1, 2, 4):
        launch(ranks, HERE / "ranks.py", str(folder / f"{ranks}.json"))
        hashes[ranks] = json.loads((folder / f"{ranks}.json").read_text())
    return hashes


@pytest.fixture(scope="module")
def ranks_module() -> ModuleType:
    """The script that the ranks run, for its models and hashes."""
    spec = importlib.util.spec_from_file_location("ranks", HERE / "ranks.py")
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_placement_holds_the_same_tensors(found, ranks_module: ModuleType) -> None:
    alone = {
        name: write_(torch.empty(ranks_module.SHAPE), d, seed=42, name=name)
        for name, d in ranks_module.DISTRIBUTIONS.items()
    }
    expected = ranks_module.digest(alone)
    assert {r: len(f) for r, f in found.items()} == {1: 14, 2: 14, 4: 19}
    for hashes in found.values():
        for case in ("shard0", "shard1", "replicate", "both", "twice", "half"):
            assert hashes.get(case, expected) == expected, case


def test_every_way_of_sharding_a_model_holds_the_same_weights(found, ranks_module) -> None:
    model = ranks_module.meta_net()
    materialize_(model, plan=ranks_module.PLAN, seed=7)
    expected = ranks_module.digest(dict(model.named_parameters()))
    for hashes in found.values():
        for case in ("fsdp", "fsdp after", "offload", "stages", "hsdp", "tp"):
            assert hashes.get(case, expected) == expected, case


def test_torchs_own_initialization_is_the_same_when_sharded(found, ranks_module) -> None:
    model = ranks_module.meta_net()
    materialize_(model, seed=7)
    expected = ranks_module.digest(dict(model.named_parameters()))
    assert {hashes["defaults"] for hashes in found.values()} == {expected}


def test_fans_are_those_of_the_whole_tensor(found, ranks_module) -> None:
    """[8, 4096] in 4 column blocks: std (2 / 4104)^(1/2) = 0.0221 on each, not 0.0439."""
    whole = init.xavier_normal_(torch.empty(8, 4096), generator=torch.Generator().manual_seed(42))
    expected = ranks_module.digest({"w": whole})
    for ranks, hashes in found.items():
        assert hashes["xavier"] == expected
        assert len(hashes["xavier stds"]) == ranks
        count = whole.numel() // ranks
        for std in hashes["xavier stds"]:  # within 4 standard errors
            assert abs(std / (2 / 4104) ** 0.5 - 1) < 4 / (2 * count) ** 0.5
    assert len(set(found[4]["xavier stds"])) == 4


def test_zero_sums_and_centred_biases_are_the_same_when_sharded(found, ranks_module) -> None:
    """Along the inputs too, where a sum lies on several ranks."""
    alone = ranks_module.centred(lambda name, shape: torch.empty(shape))
    for name, words in (("linear", (1,)), ("conv", (1,)), ("transposed", (1,))):
        weight = alone[name].unflatten(0, (2, -1)) if name == "transposed" else alone[name]
        assert weight.sum(words).abs().max() < 1e-5
        assert weight.std() > 0.8
    for part in alone["parts"].split([2, 5], 1):
        assert part.sum(1).abs().max() < 1e-5
    expected = ranks_module.digest(alone)
    for hashes in found.values():
        assert {hashes[case] for case in ("centred0", "centred1", "centred")} == {expected}


def test_no_rank_holds_the_whole_tensor(found) -> None:
    """While 32 MiB are drawn, no array and no tensor of a rank is larger than its own part."""
    assert found[2]["room"] <= 2**24
    assert found[4]["room"] <= 2**23


def test_shards_differ_across_ranks() -> None:
    whole = write_(torch.empty(64, 32), draw.Normal(), seed=42, name="w")
    assert len({hashlib.sha256(p.numpy().tobytes()).digest() for p in whole.chunk(4)}) == 4


def test_the_example_prints_one_hash_for_1_2_and_4_processes() -> None:
    lines = [launch(n, ROOT / "examples" / "fsdp2.py", "--steps", "3") for n in (1, 2, 4)]
    hashes = {line.split()[1] for text in lines for line in text.splitlines() if "weights" in line}
    assert len(hashes) == 1
    for text in lines:
        losses = [float(line.split()[-1]) for line in text.splitlines() if "loss" in line]
        assert losses[-1] < losses[0]
