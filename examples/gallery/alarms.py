"""How often fanin is wrong: `python examples/gallery/alarms.py` writes a dated page.

Every healthy model of the gallery with ten seeds, which must not fail; and plain networks of
depth 20 and 50 with each activation, which must fail with torch's default weights for the right
cause and not after `fanin.init_`.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import warnings
from collections import Counter
from pathlib import Path

import torch
from blocks import mlp
from healthy import HEALTHY, Healthy
from torch import nn

import fanin

HOME = Path(__file__).resolve().parents[2] / "docs" / "gallery"
ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.ReLU6, nn.LeakyReLU, nn.Mish, nn.ELU,
    nn.CELU, nn.SELU, nn.Softplus, nn.Softsign, nn.Hardswish, nn.Tanhshrink,
)  # fmt: skip
"""Those of the table of gains that torch has a module for."""


def false_alarms(case: Healthy, seeds: int) -> str:
    """One line: verdicts and the most warnings of a model over the seeds."""
    verdicts: Counter[str] = Counter()
    named: Counter[str] = Counter()
    most = 0
    for seed in range(seeds):
        torch.manual_seed(100 + seed)
        model, inputs, loss = case.build()
        report = fanin.check(model, inputs, loss)
        warned = [f.name for f in report.findings if f.severity == "WARN"]
        verdicts[report.verdict] += 1
        named.update(set(warned))
        most = max(most, len(warned))
    warned_of = ", ".join(f"{name} {count}" for name, count in sorted(named.items())) or "none"
    said = " ".join(f"{verdicts[v]} {v}" for v in ("PASS", "WARN", "FAIL") if verdicts[v])
    return f"| {case.name} | {said} | {most} | {warned_of} |"


def before_and_after(make: type[nn.Module], depth: int) -> str:
    """One line: what is said of a plain network, before and after `fanin.init_`."""
    torch.manual_seed(0)
    model, inputs = mlp(256, depth, make), torch.randn(512, 784)
    before = fanin.check(model, inputs, "ce")
    first = before.findings[0]
    fanin.init_(model, inputs, seed=0)
    after = fanin.check(model, inputs, "ce")
    left = ", ".join(f.name for f in after.findings if f.severity != "NOTE") or "none"
    return (
        f"| {make.__name__} | {depth} | {before.verdict} {first.name} at layer {first.where} "
        f"| {after.verdict} | {left} |"
    )


def main() -> None:
    """Run all of it and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=HOME)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    today = datetime.date.today().isoformat()
    lines = [
        "# False alarms",
        "",
        f"{today}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}; by `python examples/gallery/alarms.py`.",
        "",
        f"## Healthy models, {options.seeds} seeds",
        "",
        "| model | verdicts | most warnings | warnings: seeds |",
        "|---|---|---|---|",
    ]
    for case in HEALTHY:
        lines.append(false_alarms(case, options.seeds))
        print(lines[-1], flush=True)
    lines += [
        "",
        "## Plain networks, 784-256 x depth-10, batch 512",
        "",
        "| activation | depth | torch's default | after `init_` | findings left |",
        "|---|---|---|---|---|",
    ]
    for make in ACTIVATIONS:
        for depth in (20, 50):
            lines.append(before_and_after(make, depth))
            print(lines[-1], flush=True)
    (options.out / f"alarms-{today}.md").write_text("\n".join([*lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
