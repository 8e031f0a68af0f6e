"""What initialisers do to signal and gradient of a plain network before the first step.

Run: python -m benchmarks.signal_at_start [--write] [--seeds 5] [--rows LSUV,He] [--activations elu]
30 linear layers of width 256, an activation after all but the last, N(0, 1) inputs and a fixed
N(0, 1) cotangent, float32, one thread. DKS and TAT put a transformed activation into the network;
every other row leaves it as it is. Needs the extra `benchmarks`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from benchmarks.activations import ACTIVATIONS
from benchmarks.record import record
from torch import Tensor, nn

import fanin
from fanin.errors import FaninError

LAYERS, WIDTH, BATCH = 30, 256, 512
PROBED = 128  # examples that initialisers which measure are given
LOW, HIGH, COSINE = 0.5, 2.0, 0.9

Function = Callable[[Tensor], Tensor]


DKS_NAMES = {"gelu": "gelu_exact"}


class Plain(nn.Module):
    """Linear layers with one activation between them."""

    def __init__(self, act: Function) -> None:
        super().__init__()
        self.act = act
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = self.act(layer(x))
        return self.layers[-1](x)


# --- initialisers ---------------------------------------------------------------------------------


def normal_(net: Plain, variances: list[float]) -> None:
    """Weights of these variances times the fan-in, biases 0."""
    for layer, variance in zip(net.layers, variances, strict=True):
        nn.init.normal_(layer.weight, std=math.sqrt(variance / WIDTH))
        nn.init.zeros_(layer.bias)


def by_gain(rule: str) -> Callable[[Plain, int], None]:
    """A published number per layer: 1 for the first, that of the activation behind it."""

    def start(net: Plain, seed: int) -> None:
        gain = _gain(rule, net.act)
        normal_(net, [1.0] + [gain**2] * (LAYERS - 1))

    return start


@cache
def _gain(rule: str, act: Function) -> float:
    return float(fanin.gain(act, rule=rule))


def default(net: Plain, seed: int) -> None:
    """What torch's layers do by themselves."""


def he(net: Plain, seed: int) -> None:
    """2 / fan-in everywhere."""
    normal_(net, [2.0] * LAYERS)


def lsuv(net: Plain, seed: int) -> None:
    """Layer by layer to unit variance on one batch."""
    from lsuv import lsuv_with_singlebatch

    lsuv_with_singlebatch(net, torch.randn(PROBED, WIDTH), verbose=False)


def anyinit(mode: str, **options: bool) -> Callable[[Plain, int], None]:
    """The peer that traces the model."""

    def start(net: Plain, seed: int) -> None:
        from anyinit import initialize

        data = torch.randn(PROBED, WIDTH) if mode == "empirical" else None
        initialize(net, mode, data, seed=seed + 1, **options)

    return start


def shaped_by(method: str) -> Callable[[Plain, int], None]:
    """DKS or TAT: a transformed activation, scaled orthogonal weights, biases 0."""

    def start(net: Plain, seed: int) -> None:
        from dks.pytorch.parameter_sampling_functions import scaled_uniform_orthogonal_

        net.act = _transformed(method, net.act)
        for layer in net.layers:
            scaled_uniform_orthogonal_(layer.weight)
            nn.init.zeros_(layer.bias)

    return start


@cache
def _transformed(method: str, act: Function) -> Function:
    from dks.pytorch.activation_transform import get_transformed_activations

    name = next(n for n, f in ACTIVATIONS.items() if f is act)
    name = DKS_NAMES.get(name, name)

    def composed(x: float, local: Callable[[float], float]) -> float:
        for _ in range(LAYERS - 1):
            x = local(x)
        return x

    return get_transformed_activations([name], method, subnet_max_func=composed)[name]


def shaped(net: Plain, seed: int) -> None:
    """The library as it comes."""
    fanin.init_(net, fanin.spec((BATCH, WIDTH)), seed=seed)


ROWS: dict[str, Callable[[Plain, int], None]] = {
    "fanin.init_": shaped,
    "torch default": default,
    "He": he,
    "second moment": by_gain("second_moment"),
    "Kumar": by_gain("kumar"),
    "LSUV": lsuv,
    "AnyInit analytic": anyinit("analytic"),
    "AnyInit empirical": anyinit("empirical"),
    "AnyInit centred": anyinit("analytic", center=True),
    "DKS (changes f)": shaped_by("DKS"),
    "TAT (changes f)": shaped_by("TAT"),
}


# --- measuring ------------------------------------------------------------------------------------


def measure(net: Plain, seed: int) -> tuple[float, float, float, float]:
    """Output over input second moment, gradient ratios of 2 to 29 and 1 to 30, output cosine."""
    g = torch.Generator().manual_seed(10_000 + seed)
    x, cotangent = (torch.randn(BATCH, WIDTH, generator=g) for _ in range(2))
    y = net(x)
    (y * cotangent).sum().div(BATCH * WIDTH).backward()
    norms = [layer.weight.grad.double().norm().item() for layer in net.layers]
    out = y.detach().double()
    half = BATCH // 2
    cosine = F.cosine_similarity(out[:half], out[half:], dim=1, eps=1e-300).mean().item()
    grown = out.square().mean().item() / x.double().square().mean().item()
    return grown, _ratio(norms[1], norms[28]), _ratio(norms[0], norms[29]), cosine


def _ratio(a: float, b: float) -> float:
    return a / b if b else math.nan


def cell(start: Callable[[Plain, int], None], act: Function, seeds: int) -> np.ndarray | str:
    """Geometric means over seeds, of the cosine the arithmetic one; or why there is none."""
    found = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        net = Plain(act)
        try:
            with quiet():
                start(net, seed)
        except FaninError as error:
            return f"err: {error}"
        except Exception as error:  # a peer's own
            return f"err: {type(error).__name__}: {error}"
        found.append(measure(net, seed))
    table = np.array(found)
    if not np.isfinite(table).all():
        return "overflow"
    with np.errstate(divide="ignore"):
        means = np.exp(np.log(table[:, :3]).mean(axis=0))
    return np.append(means, table[:, 3].mean())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what peers print and warn."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def holds(found: np.ndarray | str) -> bool:
    """Whether signal, gradient and distance are kept."""
    if isinstance(found, str):
        return False
    grown, ratio, _, cosine = found
    return bool(LOW <= grown <= HIGH and LOW <= ratio <= HIGH and cosine < COSINE)


def shown(found: np.ndarray | str) -> str:
    """One cell: four numbers, bold where all is kept."""
    if isinstance(found, str):
        return found.partition(":")[0]
    *ratios, cosine = found
    text = " / ".join([*(f"{r:.2g}" for r in ratios), f"{cosine:.2f}".replace("-0.00", "0.00")])
    return f"**{text}**" if holds(found) else text


def main() -> None:
    """Every row and every activation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="keep the result under results/")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--activations", default=",".join(ACTIVATIONS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = options.activations.split(",")
    lines = [
        f"`python -m benchmarks.signal_at_start {' '.join(sys.argv[1:])}`. Cells: output to input "
        "second moment / norm of the weight gradient of layer 2 to layer 29 / the same of layers 1 "
        "and 30, whose scales differ by nature / cosine of two outputs. Geometric means over "
        f"{options.seeds} seeds, of the cosine the arithmetic mean. Bold: the first two within "
        f"[{LOW}, {HIGH}] and the cosine below {COSINE}.",
        "",
        "| init | holds | " + " | ".join(names) + " |",
        "|---" * (len(names) + 2) + "|",
    ]
    failures = {}
    for row in options.rows.split(","):
        cells = {name: cell(ROWS[row], ACTIVATIONS[name], options.seeds) for name in names}
        kept = sum(holds(c) for c in cells.values())
        texts = " | ".join(shown(c) for c in cells.values())
        lines.append(f"| {row} | {kept} of {len(names)} | {texts} |")
        print(lines[-1], file=sys.stderr, flush=True)
        failures.update({(row, n): c for n, c in cells.items() if isinstance(c, str)})
    lines += ["", "Cells without numbers:", ""] if failures else []
    lines += [
        f"- {row}, {name}: {' '.join(why.split())[:160]}" for (row, name), why in failures.items()
    ]
    packages = ("torch", "numpy", "lsuv", "anyinit", "dks")
    record("signal", "Signal and gradient at the start", lines, options.write, packages)


if __name__ == "__main__":
    main()
