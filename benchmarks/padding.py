"""Ways to take the mean out of plain convolutions with zero padding, side by side.

Run: python -m benchmarks.padding [--write] [--depth 40] [--channels 32] [--size 12]
3x3 convolutions, shaped for the depth, N(0, 1) inputs. Cells: variance of the pre-activation over
s^2 at the last layer, in the middle and at a corner of the image / norm of the weight gradient of
layer 2 to that of the last but one. Wanted: 1, 1 / 1.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from benchmarks.record import record
from torch import Tensor

from fanin.theory import rules
from fanin.theory.rules.layer import LayerRule

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "sigmoid": torch.sigmoid,
}
WAYS = {
    "bias -m sum W": "bias",
    "bias -m sum W over the mean of taps inside": "mean bias",
    "rows of zero sum": "row",
    "taps of zero sum": "tap",
    "taps of zero sum, variance by the taps inside": "tap inside",
    "taps of zero sum, variance as propagated": "tap propagated",
    "padding with m": "pad",
    "circular padding": "circular",
}


def weights(way: str, shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    """Unit-variance weights, with the sums that this way holds at zero."""
    w = torch.randn(shape, generator=g)
    if way.startswith("tap"):
        n = shape[1]
        return (w - w.mean(1, keepdim=True)) * math.sqrt(n / (n - 1))
    if way == "row":
        n = shape[1] * 9
        return (w - w.mean((1, 2, 3), keepdim=True)) * math.sqrt(n / (n - 1))
    return w


def inside(size: int) -> float:
    """Mean number of taps that fall inside the image."""
    return (9 * size**2 - 12 * size + 4) / size**2


def convolved(way: str, x: Tensor, w: Tensor, m: float) -> Tensor:
    """The sum over taps, with what the way makes of padding and mean."""
    if way == "pad":
        return F.conv2d(x - m, w, padding=1)
    if way == "circular":
        return F.conv2d(F.pad(x - m, (1, 1, 1, 1), mode="circular"), w)
    made = F.conv2d(x, w, padding=1)
    if way == "bias":
        return made - m * w.sum((1, 2, 3))[:, None, None]
    if way == "mean bias":
        share = F.conv2d(torch.ones_like(x[:1, :1]), torch.ones(1, 1, 3, 3), padding=1).mean() / 9
        return made - m * share * w.sum((1, 2, 3))[:, None, None]
    return made


def run(
    act: Callable[[Tensor], Tensor],
    rule: LayerRule,
    way: str,
    depth: int,
    c: int,
    n: int,
    seed: int,
) -> tuple[float, float, float]:
    """Variance in the middle and at a corner over s^2, and the gradient ratio."""
    g = torch.Generator().manual_seed(seed)
    s2, v = rule.operating_point.variance, float(rule.moments.variance)
    x, kept = torch.randn(8, c, n, n, generator=g), []
    profile = torch.ones(1, 1, n, n)
    for layer in range(depth):
        first = layer == 0
        taps = inside(n) if way in ("tap inside", "pad") else 9.0
        if way == "tap propagated":
            profile = F.conv2d(profile, torch.ones(1, 1, 3, 3), padding=1)
            taps, profile = profile.mean().item(), profile / profile.mean()
        w = weights(way if not first else "bias", (c, c, 3, 3), g)
        w = (w * math.sqrt(s2 / ((1.0 if first else v) * taps * c))).requires_grad_()
        kept.append(w)
        m = 0.0 if first else rule.centre
        z = rule.bias + convolved(way, x, w, m)
        x = act(z)
    deviation = (z.detach() - rule.bias).square().mean((0, 1)) / s2
    (z * torch.randn(z.shape, generator=g)).sum().backward()
    norms = [w.grad.norm().item() for w in kept]
    middle = deviation[n // 2 - 1 : n // 2 + 1, n // 2 - 1 : n // 2 + 1].mean().item()
    corner = torch.stack([deviation[i, j] for i in (0, -1) for j in (0, -1)]).mean().item()
    return middle, corner, norms[1] / norms[-2]


def main() -> None:
    """Every way and every activation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="keep the result under results/")
    parser.add_argument("--depth", type=int, default=40)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--size", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    depth, c, n = options.depth, options.channels, options.size
    torch.set_num_threads(1)
    lines = [
        f"`python -m benchmarks.padding --depth {depth} --channels {c} --size {n} --seeds "
        f"{options.seeds}`: {' '.join(__doc__.split('Cells: ')[1].split())}",
        "",
        "| | " + " | ".join(ACTIVATIONS) + " |",
        "|---" * (len(ACTIVATIONS) + 1) + "|",
    ]
    found = {name: rules.shaped(name, depth, width=9 * c) for name in ACTIVATIONS}
    for label, way in WAYS.items():
        cells = []
        for name, act in ACTIVATIONS.items():
            runs = [run(act, found[name], way, depth, c, n, seed) for seed in range(options.seeds)]
            a, b, r = torch.tensor(runs).double().log().mean(0).exp().tolist()
            cells.append(f"{a:.2g}, {b:.2g} / {r:.2g}")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
        print(lines[-1], file=sys.stderr, flush=True)
    record("padding", "Centring at padded borders", lines, options.write, ("torch", "numpy"))


if __name__ == "__main__":
    main()
