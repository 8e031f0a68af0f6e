"""The speed of the draws beside torch's, in one process, as ratios of medians.

Run: python -m benchmarks.draw [--write] [--clock wall] [--repeats 5] [--only SECTION]
Sections: elementwise, orthogonal, plan, memory. Both sides of a ratio are timed in turn, after the
kernels are compiled; the whole takes less than ten minutes. `--write` keeps the result under
results/ and, if all sections ran, puts the table into docs/draw.md. On a machine that others use,
`--clock processor` counts processor time instead of waiting; what two threads gain is then not
seen, and those rows are left out.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from benchmarks.record import record
from torch import nn

import fanin
from fanin import draw
from fanin.planning.plan import Plan
from fanin.planning.plan import Row as Planned
from fanin.torch.writing.write import write_

# What, beside what, on how many threads, how many times as fast, and the goal.
Row = tuple[str, str, int, float, float | None]
Call = Callable[[], object]

DOCS = Path(__file__).parents[1] / "docs" / "draw.md"
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


def threads() -> int:
    """How many threads the rows for two cores use."""
    torch.set_num_threads(2 if clock == "wall" else 1)
    return torch.get_num_threads()


def elementwise(elements: int, repeats: int) -> list[Row]:
    """Draws of independent elements."""
    rows: list[Row] = []
    w = torch.empty(elements).zero_()
    many = threads()
    cases = [
        ("normal", nn.init.normal_, draw.Normal(), many, 5.0 if many == 2 else 2.5),
        ("normal", torch.Tensor.zero_, draw.Normal(), many, 0.25 if many == 2 else None),
        ("uniform", nn.init.uniform_, draw.Uniform(), many, 4.0),
        ("truncated normal", nn.init.trunc_normal_, draw.TruncatedNormal(), many, 30.0),
        ("normal", nn.init.normal_, draw.Normal(), 1, 2.5),
        ("uniform", nn.init.uniform_, draw.Uniform(), 1, None),
    ]
    for what, theirs, distribution, count, wanted in cases[: 6 if many == 2 else 4]:
        torch.set_num_threads(count)
        found = ratio(functools.partial(theirs, w), ours(w, distribution), repeats)
        rows.append((what, f"torch `{theirs.__name__}`", count, found, wanted))
    threads()
    for dtype in (torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2):
        narrow = torch.empty(elements, dtype=dtype)
        found = ratio(ours(w, draw.Normal()), ours(narrow, draw.Normal()), repeats)
        what = f"normal in {str(dtype).removeprefix('torch.')}"
        wanted = 1.0 if dtype.itemsize == 2 else None
        rows.append((what, "normal in float32", many, found, wanted))
    return rows


def orthogonal(elements: int, repeats: int) -> list[Row]:
    """Orthogonal matrices."""
    rows: list[Row] = []
    count = threads()
    for shape, wanted in (((4096, 4096), 1.0), ((16384, 1024), 2.0)):
        w = torch.empty(shape)
        mine = ours(w, draw.Orthogonal())
        found = ratio(functools.partial(nn.init.orthogonal_, w), mine, repeats)
        what = f"orthogonal {shape[0]}x{shape[1]}"
        rows.append((what, "torch `orthogonal_`", count, found, wanted))
    return rows


class Layer(nn.Module):
    """A transformer layer's parameters."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])


def plan(elements: int, repeats: int) -> list[Row]:
    """A model of about 10^9 parameters in bfloat16, beside the kernel alone.

    `apply_` fills a model that has memory, beside the kernel into memory that is in use.
    `materialize_` gets new memory too, beside the kernel into new memory of the same size: the
    system hands it out page by page, zeroed, while it is written, which takes as long as drawing.
    """
    width, layers = (2048, 20) if elements >= 2**26 else (512, 4)
    count = threads()

    def model() -> nn.Module:
        with torch.device("meta"):
            return nn.Sequential(*(Layer(width) for _ in range(layers))).to(torch.bfloat16)

    def values(name: str) -> draw.Distribution:
        return draw.Constant(0.0) if name.endswith("bias") else draw.Normal(std=0.02)

    shapes = {name: tuple(p.shape) for name, p in model().named_parameters()}
    rows = [Planned(n, s, "hidden", "given", "", values(n)) for n, s in shapes.items()]
    made = Plan(tuple(rows), rule="given")
    total = sum(p.numel() for p in model().parameters())

    def alone(memory: torch.Tensor) -> object:
        return write_(memory, draw.Normal(std=0.02), seed=0, name="w")

    def new_model() -> float:
        fresh = model()  # freed at once: a billion parameters are 2 GB
        return seconds(lambda: fanin.materialize_(fresh, plan=made))

    def new_memory() -> float:
        return seconds(lambda: alone(torch.empty(total, dtype=torch.bfloat16)))

    new_model(), new_memory()
    pairs = [(new_memory(), new_model()) for _ in range(repeats)]
    found = [statistics.median(side) for side in zip(*pairs, strict=True)]
    what, size = "`materialize_` of a plan", f"{total:.2g} parameters in bfloat16"
    result: list[Row] = [
        (f"{what}, {size}", "the kernel into new memory", count, found[0] / found[1], 0.8)
    ]
    real = model().to_empty(device="cpu")
    memory = next(p.detach() for p in real.parameters() if p.dim() > 1)
    times = total / memory.numel()
    in_use = ratio(lambda: alone(memory), lambda: fanin.apply_(real, made), repeats) * times
    result.append(
        (f"`apply_` of a plan, {size}", "the kernel into memory in use", count, in_use, 0.8)
    )
    return result


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
    """What a draw takes beside the tensor: 64 MiB over it, so at least 1 is the goal."""
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
        rows.append((f"memory beside {what} {size}: {used:.1f} MiB", "64 MiB", 2, 64 / used, 1.0))
    return rows


SECTIONS = {"elementwise": elementwise, "orthogonal": orthogonal, "plan": plan, "memory": memory}


def line(row: Row) -> str:
    """One row of the table."""
    what, beside, count, found, wanted = row
    goal = "" if wanted is None else f"{wanted:g}" + ("" if found >= wanted else ": missed")
    return f"| {what} | {beside} | {count} | {found:.2f} | {goal} |"


def put_into_docs(text: str) -> None:
    """Replace what stands between the markers."""
    page = DOCS.read_text()
    marked = re.compile(r"(<!-- speed -->\n).*?(<!-- end of speed -->)", re.DOTALL)
    assert marked.search(page) is not None
    DOCS.write_text(marked.sub(lambda found: f"{found[1]}{text}\n{found[2]}", page))


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
    load = os.getloadavg()[0]
    lines = ["| draw | beside | threads | times as fast | goal |", "|---|---|---|---|---|"]
    for name, section in SECTIONS.items():
        if asked.only in (None, name):
            for row in section(asked.elements, asked.repeats):
                lines.append(line(row))
                print(lines[-1], file=sys.stderr, flush=True)
    title = (
        f"Draws beside torch's: {asked.elements} elements, medians of {asked.repeats}, "
        f"{clock} time, load {load:.1f} at the start"
    )
    name = f"draw-{asked.only}" if asked.only else "draw"
    text = record(name, title, lines, asked.write, ("torch", "numpy", "numba"))
    if asked.write and asked.only is None:
        put_into_docs(text.removeprefix("# ").strip() + "\n")


if __name__ == "__main__":
    main()
