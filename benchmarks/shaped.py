"""Time of the shaped solver: `OMP_NUM_THREADS=1 python -m benchmarks.shaped`.

Every registered activation by name, and callables that the library cannot recognise, each made
anew, at depths 2 to 1000. CPU time, so that other processes count little; the ratio is to one pass
of tanh over 1000 numbers.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from fanin.errors import NoSolutionError
from fanin.theory import activation as registry
from fanin.theory import rules
from fanin.theory.activation import names

DEPTHS = (2, 10, 50, 200, 1000)
CALLABLES: dict[str, Callable[[Any], Any]] = {
    "sin(30 x)": lambda x: torch.sin(30 * x),
    "x x": lambda x: x * x,
    "hardswish by hand": lambda x: x * torch.clamp(x + 3, 0, 6) / 6,
    "relu6 by hand": lambda x: torch.clamp(x, 0, 6),
    "x tanh(softplus(x))": lambda x: x * torch.tanh(F.softplus(x)),
    "a ramp of slope 1e4": lambda x: torch.clamp(1e4 * (x - 0.3), 0, 1),
    "a steep sigmoid": lambda x: torch.sigmoid(200 * (x - 0.3)),
    "five pieces": lambda x: np.interp(x, [-2.0, -1.0, 0.5, 1.5], [-1.0, 0.3, -0.2, 2.0]),
    "x + cos(3 x)": lambda x: x + np.cos(3 * x),
    "x^3 - x": lambda x: x**3 - x,
    "a bump": lambda x: np.exp(-x * x),
    "max(x, 0)^1.5": lambda x: np.maximum(x, 0) ** 1.5,
    "log(1 + |x|)": lambda x: np.log1p(np.abs(x)),
    "a triangle wave": lambda x: np.abs((x + 1) % 4 - 2),
    "sqrt|x|": lambda x: np.sqrt(np.abs(x)),
    "floor": np.floor,
    "a constant": lambda x: 0 * x + 1,
}


def cpu_ms(f: Any, depth: int) -> tuple[float, bool]:
    """Milliseconds, and whether there was a solution."""
    registry._named.cache_clear()
    start, found = time.process_time(), True
    try:
        rules.shaped(f, depth)
    except NoSolutionError:
        found = False
    return 1e3 * (time.process_time() - start), found


def main() -> None:
    rules.shaped("tanh", 10)  # the imports
    x = np.linspace(-8, 8, 1000)
    passes = []
    for _ in range(9):
        start = time.process_time()
        for _ in range(100):
            np.tanh(x)
        passes.append(10 * (time.process_time() - start))
    unit = statistics.median(passes)
    print(f"{'':22} " + " ".join(f"{f'L = {depth}':>10}" for depth in DEPTHS) + "   ms; - : none")
    times: dict[str, list[float]] = {"names": [], "callables": []}
    for kind, functions in (("names", {n: n for n in names()}), ("callables", CALLABLES)):
        for name, f in functions.items():
            row = [min(cpu_ms(f, depth) for _ in range(3)) for depth in DEPTHS]
            times[kind] += [ms for ms, _ in row]
            cells = " ".join(f"{ms:9.1f}{' ' if found else '-'}" for ms, found in row)
            print(f"{name:22} {cells}")
    for kind, found in times.items():
        median, worst = statistics.median(found), max(found)
        ratios = f"ratios {median / unit:.0f} and {worst / unit:.0f}"
        print(f"{kind}: median {median:.1f} ms, worst {worst:.1f} ms; {ratios}")


if __name__ == "__main__":
    main()
