"""Time of moments, by name and by callable: `OMP_NUM_THREADS=1 python -m benchmarks.theory`.

"cold" makes the activation, finds its breaks and integrates; "warm" integrates at a new variance.
CPU time, so that other processes do not count; the ratio is to one pass of tanh over 1000 numbers.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

from fanin.theory import activation as registry
from fanin.theory.activation import Activation, activation, names
from fanin.theory.gaussian import moments


def cpu_ms(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return 1e3 * (time.process_time() - start)


def fresh(name: str) -> Activation:
    registry._named.cache_clear()
    return activation(name)


def rows() -> dict[str, tuple[list[float], list[float]]]:
    """For named activations and for the same functions as callables: cold and warm times in ms."""
    result: dict[str, tuple[list[float], list[float]]] = {"name": ([], []), "callable": ([], [])}
    for name in names():
        f = activation(name)
        # A function that the library cannot recognise, without a derivative.
        for kind, make in (
            ("name", lambda name=name: fresh(name)),
            ("callable", lambda f=f: activation(lambda x: f(x) * 1.0)),
        ):
            made: list[Activation] = []
            cold = cpu_ms(lambda make=make, made=made: moments(made.append(make()) or made[0]))
            warm = statistics.median(
                cpu_ms(lambda k=k, made=made: moments(made[0], 0.0, 1 + 1e-3 * k))
                for k in range(1, 6)
            )
            result[kind][0].append(cold)
            result[kind][1].append(warm)
    return result


def main() -> None:
    moments("tanh")  # the imports
    x = np.linspace(-8, 8, 1000)
    unit = statistics.median(
        cpu_ms(lambda: [np.tanh(x) for _ in range(100)]) / 100 for _ in range(9)
    )
    print(f"{'':10} {'':5} {'median ms':>10} {'worst ms':>10} {'ratio':>8}")
    for kind, (cold, warm) in rows().items():
        for label, times in (("cold", cold), ("warm", warm)):
            middle = statistics.median(times)
            print(f"{kind:10} {label:5} {middle:10.2f} {max(times):10.2f} {middle / unit:8.0f}")


if __name__ == "__main__":
    main()
