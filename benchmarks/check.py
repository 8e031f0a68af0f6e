"""What `fanin.check` and `fanin.torch.Watch` cost, as ratios measured side by side in one run.

`python benchmarks/check.py`: check against one forward and backward pass of the same model and
batch; training steps with Watch against the same steps without. Medians of alternating repeats.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import fanin
import fanin.torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "gallery"))
from blocks import GPT, BasicBlock, ViT, mlp, resnet

Case = tuple[nn.Module, torch.Tensor]


def cases() -> dict[str, Callable[[], Case]]:
    """Models at batch sizes that people train with on a CPU."""
    return {
        "MLP 20 x 512, batch 512": lambda: (mlp(512, 20, nn.ReLU), torch.randn(512, 784)),
        "ResNet-18, 16 x 3 x 96 x 96": lambda: (
            resnet(BasicBlock, (2, 2, 2, 2)), torch.randn(16, 3, 96, 96)
        ),
        "ViT-S, 8 x 3 x 128 x 128": lambda: (ViT(12, 384, 6, 128), torch.randn(8, 3, 128, 128)),
        "GPT 6 x 384, 8 x 128 tokens": lambda: (
            GPT(6, 384, 6, 4000, 128), torch.randint(4000, (8, 128))
        ),
    }  # fmt: skip


def seconds(run: Callable[[], object]) -> float:
    """CPU seconds of this process: what others do on the machine does not count."""
    start = time.process_time()
    run()
    return time.process_time() - start


def plain_pass(model: nn.Module, inputs: torch.Tensor) -> Callable[[], object]:
    """One forward and one backward pass with cross-entropy."""

    def run() -> None:
        logits = model(inputs)
        targets = torch.randint(logits.shape[-1], logits.shape[:-1])
        F.cross_entropy(logits.flatten(0, -2), targets.flatten()).backward()
        for parameter in model.parameters():
            parameter.grad = None

    return run


def check_ratio(model: nn.Module, inputs: torch.Tensor, repeats: int) -> float:
    """CPU time of a check over that of a plain pass; the pairs alternate."""
    plain = plain_pass(model, inputs)
    plain()
    fanin.check(model, inputs, "ce")
    ratios = [
        seconds(lambda: fanin.check(model, inputs, "ce")) / seconds(plain) for _ in range(repeats)
    ]
    return statistics.median(ratios)


def watch_ratio(model: nn.Module, inputs: torch.Tensor, repeats: int, every: int = 50) -> float:
    """CPU time of `every` steps with one measurement over the same steps without."""
    plain = plain_pass(model, inputs)
    plain()
    ratios = []
    for _ in range(repeats):
        with fanin.torch.Watch(model, every=every):
            watched = seconds(plain)
            rest = [seconds(plain) for _ in range(3)]
        unwatched = [seconds(plain) for _ in range(4)]
        step = statistics.median(unwatched)
        # One measured step and every - 1 others, of which three were timed.
        total = watched + (every - 1) * statistics.median(rest)
        ratios.append(total / (every * step))
    return statistics.median(ratios)


def main() -> None:
    """Print one line a model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print("model                          check / (forward + backward)   Watch every 50, overhead")
    for name, build in cases().items():
        if arguments.only not in name:
            continue
        torch.manual_seed(0)
        model, inputs = build()
        check = check_ratio(model, inputs, arguments.repeats)
        watch = watch_ratio(model, inputs, arguments.repeats)
        print(f"{name:30} {check:28.2f}   {100 * (watch - 1):22.2f}%", flush=True)


if __name__ == "__main__":
    main()
