"""What `fanin.check` and `fanin.torch.Watch` cost, as ratios measured side by side in one run.

`python -m benchmarks.check --write`: a check against one forward and backward pass of the same
model and batch; a training step that `Watch` measures against the same step alone. They alternate
in one process; medians of ratios. What `Watch` costs a step that it does not measure is far below
what a timer resolves on a whole step: it is the same for every model, and timed on its own. On a
machine that others use, `--clock processor` counts the processor time of one thread instead; of
two threads it would count the one that waits, too.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from benchmarks.record import record
from torch import nn

import fanin
import fanin.torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "gallery"))
from blocks import GPT, BasicBlock, ViT, mlp, resnet

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
clock = "wall"
Case = tuple[nn.Module, torch.Tensor]
EVERY = 50
"""Steps from one measurement of a Watch to the next."""


def cases() -> dict[str, Callable[[], Case]]:
    """Models at sizes and batches that people train with."""
    return {
        "MLP 10 x 1024, batch 512": lambda: (mlp(1024, 10, nn.ReLU), torch.randn(512, 784)),
        "ResNet-18, 32 x 3 x 64 x 64": lambda: (
            resnet(BasicBlock, (2, 2, 2, 2)), torch.randn(32, 3, 64, 64)
        ),
        "ResNet-18, 32 x 3 x 128 x 128": lambda: (
            resnet(BasicBlock, (2, 2, 2, 2)), torch.randn(32, 3, 128, 128)
        ),
        "ViT-S, 16 x 3 x 128 x 128": lambda: (ViT(12, 384, 6, 128), torch.randn(16, 3, 128, 128)),
        "GPT 6 x 384, 8 x 128 tokens": lambda: (
            GPT(6, 384, 6, 4000, 128), torch.randint(4000, (8, 128))
        ),
        "GPT-2 small, 2 x 256 tokens": lambda: (
            GPT(12, 768, 12, 50257, 256), torch.randint(50257, (2, 256))
        ),
    }  # fmt: skip


def seconds(run: Callable[[], object]) -> float:
    """Seconds of one run by the clock that was asked for."""
    start = CLOCKS[clock]()
    run()
    return CLOCKS[clock]() - start


def step(model: nn.Module, inputs: torch.Tensor) -> Callable[[], None]:
    """One forward and one backward pass with cross-entropy."""

    def run() -> None:
        logits = model(inputs)
        targets = torch.randint(logits.shape[-1], logits.shape[:-1])
        F.cross_entropy(logits.flatten(0, -2), targets.flatten()).backward()
        model.zero_grad()

    return run


def round_of(model: nn.Module, inputs: torch.Tensor) -> tuple[float, float, float]:
    """Seconds of a plain step, of a check, and of a step that is watched and measured."""
    plain = step(model, inputs)

    def measured() -> None:
        with fanin.torch.Watch(model, every=EVERY):
            plain()

    check = seconds(lambda: fanin.check(model, inputs, "ce"))
    return seconds(plain), check, seconds(measured)


def between(calls: int = 5000) -> float:
    """Seconds that Watch adds to a step that is not due: its hooks, on a module without work."""

    def run(module: nn.Module) -> Callable[[], None]:
        return lambda: [module(x) for _ in range(calls)] and None

    x, ratios = torch.zeros(1), []
    for _ in range(5):
        alone, watched = nn.Identity(), nn.Identity()
        with fanin.torch.Watch(watched, every=2 * calls):
            watched(x)  # the step that is measured
            ratios.append(seconds(run(watched)) - seconds(run(alone)))
    return statistics.median(ratios) / calls


def line(name: str, rounds: list[tuple[float, float, float]], idle: float) -> str:
    """A row of the table: medians of the ratios within each round, and how far they scatter."""
    alone = statistics.median(r[0] for r in rounds)
    check, due = ([r[i] / r[0] for r in rounds] for i in (1, 2))
    middle = statistics.median
    spread = middle(abs(c - middle(check)) for c in check)
    watch = (middle(due) - 1 + (EVERY - 1) * idle / alone) / EVERY
    return (
        f"| {name} | {alone:.2f} s | {middle(check):.2f} ± {spread:.2f} "
        f"| {middle(due):.2f} | {100 * watch:.2f}% |"
    )


def main() -> None:
    """Print a table; with `--write`, keep it under results/."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--only", default="")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    global clock
    clock = options.clock
    torch.set_num_threads(2 if clock == "wall" else 1)
    warnings.simplefilter("ignore")
    idle = between()
    lines = [
        f"{torch.get_num_threads()} threads; medians of {options.repeats} rounds, {clock} time. "
        f"A Watch adds {1e6 * idle:.0f} microseconds to a step that it does not measure.",
        "",
        f"| model and batch | step | check / step | measured step / step | Watch every {EVERY} |",
        "|---|---|---|---|---|",
    ]
    for name, build in cases().items():
        if options.only not in name:
            continue
        torch.manual_seed(0)
        model, inputs = build()
        round_of(model, inputs)
        lines.append(line(name, [round_of(model, inputs) for _ in range(options.repeats)], idle))
        print(lines[-1], flush=True)
        del model, inputs
        gc.collect()
    record("check", "What check and Watch cost", lines, options.write, ("torch", "numpy"))


if __name__ == "__main__":
    main()
