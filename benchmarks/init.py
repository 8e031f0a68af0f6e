"""What `fanin.init_` and `fanin.plan` cost beside what else initialises a network, in one run.

`python -m benchmarks.init`: a 50-layer MLP of width 512, planning included, by fanin, LSUV,
AnyInit and loops over torch's initializers; then the plans of ResNet-50, GPT-2 small and a model of
Llama's 70 billion parameters on meta. Processor time, one thread; medians of alternating repeats.
The peers come with `pip install fanin[benchmarks]`; `--write` keeps the table.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from benchmarks.record import record
from torch import Tensor, nn

import fanin

DEPTH, WIDTH, BATCH = 50, 512, 256
KINDS = {"ReLU": nn.ReLU, "GELU": nn.GELU}
SLOW = 2  # repeats of what takes seconds
GIB = 2**30

Method = Callable[[nn.Sequential, Tensor, int], object]


def mlp(activation: type[nn.Module]) -> nn.Sequential:
    """The network of the peers' own timings: linear layers with an activation between them."""
    layers: list[nn.Module] = []
    for _ in range(DEPTH):
        layers += [nn.Linear(WIDTH, WIDTH), activation()]
    return nn.Sequential(*layers[:-1])


def of_fanin(net: nn.Sequential, x: Tensor, seed: int) -> object:
    return fanin.init_(net, x, seed=seed)


def of_fanin_spec(net: nn.Sequential, x: Tensor, seed: int) -> object:
    return fanin.init_(net, fanin.spec(tuple(x.shape)), seed=seed)


def of_lsuv(net: nn.Sequential, x: Tensor, seed: int) -> object:
    from lsuv import lsuv_with_singlebatch

    torch.manual_seed(seed)
    return lsuv_with_singlebatch(net, x, verbose=False)


def of_anyinit(mode: str, batch: bool) -> Method:
    def run(net: nn.Sequential, x: Tensor, seed: int) -> object:
        import anyinit

        return anyinit.initialize(net, mode, x if batch else None, seed=seed)

    return run


def of_loop(weight: Callable[[Tensor], object]) -> Method:
    def run(net: nn.Sequential, x: Tensor, seed: int) -> object:
        torch.manual_seed(seed)
        for layer in net:
            if isinstance(layer, nn.Linear):
                weight(layer.weight)
                nn.init.zeros_(layer.bias)
        return net

    return run


METHODS: dict[str, tuple[Method, bool]] = {
    "fanin.init_(net, batch)": (of_fanin, False),
    "fanin.init_(net, spec)": (of_fanin_spec, False),
    "AnyInit analytic": (of_anyinit("analytic", False), False),
    "AnyInit analytic, checked on the batch": (of_anyinit("analytic", True), False),
    "AnyInit empirical": (of_anyinit("empirical", True), True),
    "LSUV": (of_lsuv, True),
    "torch kaiming_normal_ loop": (
        of_loop(lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu")),
        False,
    ),
    "torch orthogonal_ loop": (of_loop(nn.init.orthogonal_), False),
}


def ratio(net: nn.Sequential, x: Tensor) -> float:
    """Mean square of what comes out over that of what goes in."""
    with torch.no_grad():
        return (net(x).double().pow(2).mean() / x.double().pow(2).mean()).item()


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Processor and wall seconds of one call, its prints swallowed."""
    processor, wall = time.process_time(), time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run()
    return time.process_time() - processor, time.perf_counter() - wall


def initialised(name: str, activation: type[nn.Module], repeats: int) -> list[str]:
    """A row for each method; repeats alternate, so that what disturbs one disturbs all."""
    torch.manual_seed(0)
    net, x = mlp(activation), torch.randn(BATCH, WIDTH)
    found: dict[str, list[tuple[float, float, float]]] = {m: [] for m in METHODS}
    for seed in range(repeats):
        for label, (method, slow) in METHODS.items():
            if slow and seed >= SLOW:
                continue
            processor, wall = timed(lambda: method(net, x, seed))  # noqa: B023
            found[label].append((processor, wall, ratio(net, x)))
    medians = {
        m: [statistics.median(v) for v in zip(*runs, strict=True)] for m, runs in found.items()
    }
    ours = medians["fanin.init_(net, batch)"][0]
    return [
        f"| {name} | {label} | {processor:.3f} | {wall:.3f} | {processor / ours:.2f} | {q:.3g} |"
        for label, (processor, wall, q) in medians.items()
    ]


def warm() -> str:
    """The first call in a process, which imports, compiles or loads kernels; also the warm-up."""
    net, x = mlp(nn.Tanh), torch.randn(BATCH, WIDTH)
    processor, wall = timed(lambda: of_fanin(net, x, 0))
    for label, (method, slow) in METHODS.items():
        if not slow and label != "fanin.init_(net, batch)":
            timed(lambda: method(net, x, 0))  # noqa: B023
    return f"| tanh | the first fanin.init_ of the process | {processor:.3f} | {wall:.3f} | | |"


# --- plans ----------------------------------------------------------------------------------------


def llama() -> tuple[nn.Module, object]:
    """Llama's 70 billion parameters, from a configuration."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64,
        num_key_value_heads=8, vocab_size=128256,
    )  # fmt: skip
    return LlamaForCausalLM(config), {"input_ids": fanin.spec((1, 128), "int64", high=128256)}


def gpt2() -> tuple[nn.Module, object]:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config()), {"input_ids": fanin.spec((2, 128), "int64", high=50257)}


def resnet50() -> tuple[nn.Module, object]:
    from transformers import ResNetConfig, ResNetForImageClassification

    model = ResNetForImageClassification(ResNetConfig(num_labels=1000))
    return model, fanin.spec((4, 3, 224, 224))


def resident() -> int:
    """Bytes that this process holds in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def peak() -> int:
    """The most bytes that this process held since the count was last cleared."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def planned(name: str, build: Callable[[], tuple[nn.Module, object]], promised: float) -> str:
    """The row of one plan: median of three, and the memory that the first one took."""
    with torch.device("meta"):
        model, inputs = build()
    size = sum(p.numel() for p in model.parameters())
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = resident()
    runs = [timed(lambda: fanin.plan(model, inputs))]  # type: ignore[arg-type]
    extra = (peak() - before) / 2**20
    runs += [timed(lambda: fanin.plan(model, inputs)) for _ in range(2)]  # type: ignore[arg-type]
    processor, wall = (statistics.median(v) for v in zip(*runs, strict=True))
    return f"| {name} | {size:.3g} | {processor:.2f} | {wall:.2f} | {promised:g} | {extra:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--write", action="store_true", help="keep the result under results/")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    lines = [
        "Seconds of processor time and of wall clock, one thread, medians. `times`: processor time",
        "over that of fanin.init_ with the batch. q: mean square out over mean square in, on the",
        f"same batch of {BATCH}. One process, repeats alternate: {arguments.repeats} of each,",
        f"{SLOW} of the slow ones. The first call of a process imports parts of torch and loads",
        "Numba's kernels (or compiles them, once an installation); it warms up the others.",
        "",
        f"| {DEPTH} layers of {WIDTH} | method | processor | wall | times | q |",
        "|---|---|---|---|---|---|",
        warm(),
    ]
    for name, activation in KINDS.items():
        lines += initialised(name, activation, arguments.repeats)
    lines += [
        "",
        "`fanin.plan` of a model on meta: seconds, medians of three; memory of the first of them.",
        "",
        "| model | parameters | processor | wall | promised | MiB more |",
        "|---|---|---|---|---|---|",
        planned("ResNet-50", resnet50, 3),
        planned("GPT-2 small", gpt2, 3),
        planned("Llama 70B", llama, 30),
    ]
    packages = ("torch", "numpy", "numba", "transformers", "lsuv", "anyinit")
    title = f"Initialising {DEPTH} layers of width {WIDTH}, and planning"
    record("init", title, lines, arguments.write, packages)


if __name__ == "__main__":
    main()
