"""The speed of the draws beside torch's, in one process, as ratios of medians.

Run: python benchmarks/draw.py [--write] [--clock wall] [--repeats 5] [--only SECTION]
Sections: elementwise, orthogonal, plan, memory. Both sides of a ratio are timed in turn, after the
kernels are compiled. On a machine that others use, `--clock processor` counts processor time
instead of waiting; what two threads gain is then not seen, and those rows are left out.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

import fanin
from fanin import draw
from fanin.torch.writing.write import write_
from record import record

Row = tuple[str, str, float, float | None]  # what, beside what, ratio, the ratio that is promised
Call = Callable[[], object]


CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
clock = "wall"


def seconds(call: Call) -> float:
    """The time of one call."""
    start = CLOCKS[clock]()
    call()
    return CLOCKS[clock]() - start


def ratio(theirs: Call, ours: Call, repeats: int) -> float:
    """Their median time over ours, timed in turn."""
    theirs(), ours()
    pairs = [(seconds(theirs), seconds(ours)) for _ in range(repeats)]
    return statistics.median(p[0] for p in pairs) / statistics.median(p[1] for p in pairs)


def ours(tensor: torch.Tensor, distribution: draw.Distribution) -> Call:
    """A draw of ours into the tensor."""
    return lambda: write_(tensor, distribution, seed=0, name="w")


def elementwise(elements: int, repeats: int) -> list[Row]:
    """Draws of independent elements."""
    rows: list[Row] = []
    w = torch.empty(elements).zero_()
    cases = {
        "normal": (torch.nn.init.normal_, draw.Normal(), {2: 5.0, 1: 2.5}),
        "uniform": (torch.nn.init.uniform_, draw.Uniform(), {2: 4.0}),
        "truncated normal": (torch.nn.init.trunc_normal_, draw.TruncatedNormal(), {2: 30.0}),
    }
    for threads in (2, 1) if clock == "wall" else (1,):
        torch.set_num_threads(threads)
        label = f"{threads} thread{'s' * (threads > 1)}"
        for what, (theirs, distribution, wanted) in cases.items():
            times = 1 if what == "truncated normal" else repeats
            found = ratio(functools.partial(theirs, w), ours(w, distribution), times)
            rows.append(
                (f"{what}, {label}", f"torch {theirs.__name__}", found, wanted.get(threads))
            )
        found = ratio(w.zero_, ours(w, draw.Normal()), repeats)
        rows.append((f"normal, {label}", "zero_()", found, 0.25 if threads == 2 else None))
    torch.set_num_threads(2 if clock == "wall" else 1)
    for dtype in (torch.bfloat16, torch.float16):
        narrow, name = torch.empty(elements, dtype=dtype).zero_(), str(dtype).removeprefix("torch.")
        found = ratio(ours(w, draw.Normal()), ours(narrow, draw.Normal()), repeats)
        rows.append((f"normal in {name}", "normal in float32", found, 1.0))
    return rows


def orthogonal(elements: int, repeats: int) -> list[Row]:
    """Orthogonal matrices."""
    rows: list[Row] = []
    torch.set_num_threads(2)
    for shape, wanted in (((4096, 4096), 1.0), ((16384, 1024), 2.0)):
        w = torch.empty(shape)
        mine = ours(w, draw.Orthogonal())
        found = ratio(lambda w=w: torch.nn.init.orthogonal_(w), mine, min(3, repeats))
        rows.append((f"orthogonal {shape[0]}x{shape[1]}", "torch orthogonal_", found, wanted))
    return rows


class Layer(nn.Module):
    """A transformer layer's parameters."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])


def plan(elements: int, repeats: int) -> list[Row]:
    """A model of about 10^9 parameters in bfloat16, beside the kernel alone into new memory."""
    width, layers = (2048, 20) if elements >= 2**26 else (256, 4)
    torch.set_num_threads(2)

    def model() -> nn.Module:
        with torch.device("meta"):
            return nn.Sequential(*(Layer(width) for _ in range(layers))).to(torch.bfloat16)

    weights = {"*.weight": draw.Normal(std=0.02), "*.bias": draw.Constant(0.0)}
    total = sum(p.numel() for p in model().parameters() if p.dim() > 1)

    def raw() -> None:
        fresh = torch.empty(total // layers, dtype=torch.bfloat16)
        write_(fresh, draw.Normal(std=0.02), seed=0, name="w")

    def filled() -> float:
        fresh = model()  # freed at once: a billion parameters are 2 GB
        return seconds(functools.partial(fanin.materialize_, fresh, plan=weights))

    filled()
    full = statistics.median(filled() for _ in range(repeats))
    kernel = layers * statistics.median(seconds(raw) for _ in range(repeats))
    return [
        (
            f"materialize_ of {total:.2g} parameters",
            "the kernel into new memory",
            kernel / full,
            0.8,
        )
    ]


_MEMORY = """
import sys, torch
from fanin import draw
from fanin.torch.writing.write import write_
d, shape = eval(sys.argv[1], vars(draw)), eval(sys.argv[2])
write_(torch.empty(300, 300), d, seed=0, name="w")
w = torch.empty(shape).zero_()
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
open("/proc/self/clear_refs", "w").write("5")  # forget the peak of compiling
before = peak()
write_(w, d, seed=0, name="w")
print(peak() - before)
"""


def memory(elements: int, repeats: int) -> list[Row]:
    """What a draw takes beside the tensor: 64 MiB over it, so at least 1 is promised."""
    rows: list[Row] = []
    cases = [
        ("Normal()", (elements,)),
        ("Orthogonal()", (4096, 4096)),
        ("Orthogonal()", (16384, 1024)),
    ]
    for what, shape in cases:
        command = [sys.executable, "-c", _MEMORY, what, repr(shape)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        used = max(float(done.stdout), 0.1)
        size = "x".join(map(str, shape))
        rows.append((f"{what} {size}: {used:.1f} MiB more", "64 MiB", 64 / used, 1.0))
    return rows


SECTIONS = {"elementwise": elementwise, "orthogonal": orthogonal, "plan": plan, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--elements", type=int, default=2**26)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=SECTIONS)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    asked = parser.parse_args()
    global clock
    clock = asked.clock
    lines = ["| draw | beside | times as fast | promised |", "|---|---|---|---|"]
    for name, section in SECTIONS.items():
        if asked.only in (None, name):
            for what, beside, found, wanted in section(asked.elements, asked.repeats):
                lines.append(f"| {what} | {beside} | {found:.2f} | {wanted or ''} |")
    title = (
        f"Draws beside torch's: {asked.elements} elements, medians of {asked.repeats}, {clock} time"
    )
    record(
        f"draw-{asked.only}" if asked.only else "draw",
        title,
        lines,
        asked.write,
        ("torch", "numpy", "numba"),
    )


if __name__ == "__main__":
    main()
