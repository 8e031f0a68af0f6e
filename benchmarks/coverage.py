"""Predicted signals beside measured ones, over the zoo of models: `python -m benchmarks.coverage`.

Each model is traced on its specification, planned, and written five times with different seeds.
For each seed the graph runs forward on fresh inputs and backward from N(0, 1) cotangents. Where
the gradients scatter so much that five runs give no mean, there are 64. A row compares the
prediction with the mean over the seeds of the measured mean squares: of every tensor that the
trace holds, and of the gradient of every weight matrix or kernel.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.zoo import Entry, entries
from tests.zoo.replay import draw
from torch import nn

import fanin
from fanin.errors import FaninError
from fanin.planning.plan import Plan, Stack, moments
from fanin.signal.graph import Graph, Value
from fanin.signal.propagate import Signal, backward
from fanin.signal.spec import Spec
from fanin.signal.state import Given, Statement
from fanin.torch.probing.predict import swept
from fanin.torch.tracing.trace import trace

RESULTS = Path(__file__).parent / "results" / "coverage.json"
DOCUMENT = Path(__file__).parent.parent / "docs" / "coverage.md"
_SCATTER, _MORE = 0.2, 64  # above this median relative error of the gradients so many seeds are run
_HUGE = 1e30  # masked logits hold the least number that their dtype has


@dataclass(frozen=True)
class Row:
    """One number, predicted and measured.

    Args:
        what: the operation or weight.
        predicted: its second moment, as predicted.
        measured: the mean over seeds of the measured one.
        error: the standard error of that mean.
    """

    what: str
    predicted: float
    measured: float
    error: float

    @property
    def close(self) -> bool:
        """Within 10% or four standard errors."""
        return abs(self.predicted - self.measured) <= max(0.1 * self.measured, 4 * self.error)

    @property
    def near(self) -> bool:
        """Within a factor of 1.5."""
        return max(self.predicted, self.measured) <= 1.5 * min(self.predicted, self.measured)

    @property
    def likely(self) -> bool:
        """Within a factor of 1.5, or no further than chance takes five seeds."""
        return self.near or abs(self.predicted - self.measured) <= 4 * self.error


@dataclass(frozen=True)
class Coverage:
    """One model's comparison, as the table shows it; `failed` says why there is none.

    Args:
        close, near: shares of the tensors within 10% (or 4 standard errors), within a factor 1.5.
        likely: share of the tensors within a factor 1.5 or four standard errors.
        gradients: number of matrices and kernels; gradients_near: share within a factor 1.5;
            gradients_likely: or four standard errors.
        seeds: runs that the measured means are over.
        sampled: operations that no rule covers, which were run on samples.
        seconds: for the trace, and for the prediction of signal and gradient.
    """

    name: str
    parameters: int = 0
    operations: int = 0
    tensors: int = 0
    close: float = 0.0
    near: float = 0.0
    likely: float = 0.0
    gradients: int = 0
    gradients_near: float = 0.0
    gradients_likely: float | None = None
    seeds: int = 5
    sampled: int = 0
    seconds: tuple[float, float] = (0.0, 0.0)
    failed: str = ""
    date: str = ""

    @property
    def good(self) -> bool:
        """Whether the model meets the promise."""
        shares = self.close >= 0.95, self.likely == 1.0, self.gradients_near >= 0.9
        return not self.failed and all(shares)


def share(rows: tuple[Row, ...], how: str) -> float:
    """The share of rows that are `close` or `near`."""
    return float(np.mean([getattr(r, how) for r in rows])) if rows else 1.0


def cover(
    entry: Entry, *, small: bool, seeds: int, rule: str
) -> tuple[Coverage, tuple[Row, ...], tuple[Row, ...]]:
    """Compare prediction and measurement on one model, in training mode; the rows besides."""
    torch.manual_seed(0)
    model, specs = entry.build(small), entry.inputs(small)
    start = time.perf_counter()
    graph = trace(model, specs)
    traced = time.perf_counter()
    plan = fanin.plan(model, specs, rule)
    fanin.apply_(model, plan, seed=0)
    before = time.perf_counter()
    signal = backward(predicted(graph, model, plan, specs))
    seconds = (traced - start, time.perf_counter() - before)
    runs: list[tuple[dict[int, float], dict[int, float]]] = []
    tensors: tuple[Row, ...] = ()
    gradients: tuple[Row, ...] = ()
    scattered = True
    for wanted in (seeds, _MORE):
        for seed in range(len(runs), wanted):
            fanin.apply_(model, plan, seed=seed)
            runs.append(measure(graph, model, specs, seed, back=scattered))
        tensors = tuple(_tensors(signal, [r[0] for r in runs]))
        gradients = tuple(_gradients(signal, [r[1] for r in runs if r[1]]))
        errors = [r.error / r.measured for r in gradients]
        scattered = bool(errors) and float(np.median(errors)) > _SCATTER
        if not scattered and share(tensors, "likely") == 1:
            break
    found = Coverage(
        name=entry.name,
        parameters=sum(p.numel() for p in model.parameters()),
        operations=len(graph.nodes),
        tensors=len(tensors),
        close=share(tensors, "close"),
        near=share(tensors, "near"),
        likely=share(tensors, "likely"),
        gradients=len(gradients),
        gradients_near=share(gradients, "near"),
        gradients_likely=share(gradients, "likely"),
        seeds=len(runs),
        sampled=sum(how.startswith("sampled") for _, how in signal.doubts()),
        seconds=seconds,
        date=str(date.today()),
    )
    return found, tensors, gradients


def predicted(graph: Graph, model: nn.Module, plan: Plan, specs: Any) -> Signal:
    """The forward prediction for the weights of a plan.

    A centring bias, drawn value - m sum_j W_ij, is no independent parameter; its layer is one that
    reads x - m and has the drawn bias.
    """
    centres = {row.centre.weight: row.centre for row in plan.rows if row.centre is not None}
    return swept(graph, statements(model, plan), named_specs(graph, specs), centres)


def statements(model: nn.Module, plan: Plan) -> dict[str, Statement]:
    """What the plan says of each parameter; of gates and of those left alone, what they hold."""
    held = dict(model.named_parameters()) | dict(model.named_buffers())
    stated: dict[str, Statement] = {}
    for row in plan.rows:
        if row.values is not None and not isinstance(row.values, Stack):
            mean, std = moments(row.values, row.shape)
            stated[row.path] = Given(mean, std**2, "independent" if std else "constant")
        elif row.path in held:
            stated[row.path] = held[row.path].detach().numpy()
    return stated


def named_specs(graph: Graph, specs: Any) -> dict[str, Spec]:
    """The specifications by the names of the graph's inputs."""
    leaves = torch.utils._pytree.tree_leaves(specs)
    return {graph.values[i].name: s for i, s in zip(graph.inputs, leaves, strict=True)}


def measure(
    graph: Graph, model: nn.Module, specs: Any, seed: int, *, back: bool = True
) -> tuple[dict[int, float], dict[int, float]]:
    """Mean squares of all tensors of the graph, and of the gradients of parameters (if wanted)."""
    with torch.set_grad_enabled(back):
        squares, tensors = _forward(graph, model, specs, seed)
    if not back:
        return squares, {}
    outputs = [tensors[i] for i in graph.outputs]
    ends = [y for y in outputs if y.requires_grad]
    torch.autograd.backward(ends, [_cotangent(y) if y.dim() else None for y in ends])
    weights = [v for v in graph.values if v.kind == "parameter"]
    return squares, {v.index: _mean_square(tensors[v.index].grad) for v in weights}


def _forward(
    graph: Graph, model: nn.Module, specs: Any, seed: int
) -> tuple[dict[int, float], dict[int, torch.Tensor]]:
    """Mean squares of all tensors of the graph; its leaves and outputs."""
    torch.manual_seed(1_000_003 + seed)  # other numbers than those of the inputs
    tensors = dict(_leaves(graph, model, draw(specs, seed)))
    squares = {}
    last = {i: n.index for n in graph.nodes for i in n.inputs}
    for node in graph.nodes:
        results = node.kernel.on_tensors(*(tensors[i] for i in node.inputs))
        for index, tensor in zip(node.outputs, results, strict=True):
            tensors[index] = tensor
            squares[index] = _mean_square(tensor)
        for index in {i for i in node.inputs if last[i] == node.index}:
            if index not in graph.outputs and graph.values[index].kind == "produced":
                del tensors[index]
    return squares, tensors


def _cotangent(output: torch.Tensor) -> torch.Tensor:
    """Normal entries, scaled to mean square 1: the few entries of a head would be noise.

    Scaled like this they are still uncorrelated with unit variance, which is all that a second
    moment of the gradient depends on.
    """
    drawn = torch.randn_like(output)
    return drawn / drawn.square().mean().sqrt()


def _leaves(graph: Graph, model: nn.Module, inputs: Any) -> Iterator[tuple[int, torch.Tensor]]:
    """The tensors that the graph starts from."""
    held = dict(model.named_parameters()) | dict(model.named_buffers())
    given = dict(zip(graph.inputs, torch.utils._pytree.tree_leaves(inputs), strict=True))
    for value in graph.values:
        if value.kind == "input":
            yield value.index, given[value.index]
        elif value.kind in ("parameter", "buffer"):
            tensor = held[value.name].detach().clone()
            yield value.index, tensor.requires_grad_(value.kind == "parameter")
        elif value.kind == "constant":
            yield value.index, torch.from_numpy(np.array(value.data))


def _mean_square(tensor: torch.Tensor | None) -> float:
    """The mean square of the entries that are no masks; NaN if there are none."""
    if tensor is None or not tensor.is_floating_point() or not tensor.numel():
        return float("nan")
    real = tensor.detach().double()
    return float(real[real.abs() < _HUGE].square().mean())


def _tensors(signal: Signal, runs: list[dict[int, float]]) -> Iterator[Row]:
    """A row for each real tensor that operations made of inputs and weights."""
    for value in signal.graph.values:
        if value.kind == "produced" and value.floating and (value.varying or value.depends):
            state = signal.states[value.index]
            yield from _row(_said(signal.graph, value), state.table.second_moment, value, runs)


def _gradients(signal: Signal, runs: list[dict[int, float]]) -> Iterator[Row]:
    """A row for the gradient of each matrix and kernel."""
    for value in signal.graph.values:
        if value.kind == "parameter" and len(value.shape) > 1:
            yield from _row(value.name, signal.gradient(value), value, runs)


def _row(what: str, predicted: float, value: Value, runs: list[dict[int, float]]) -> Iterator[Row]:
    """The row of one value; none where nothing was measured in some run."""
    measured = np.array([run[value.index] for run in runs])
    if np.isfinite(measured).all() and measured.any():
        error = measured.std(ddof=1) / len(runs) ** 0.5
        yield Row(what, predicted, float(measured.mean()), float(error))


def _said(graph: Graph, value: Value) -> str:
    """Where a tensor is made."""
    node = graph.producer(value)
    assert node is not None
    return f"%{value.index} {node.name} in {node.path or 'the model'}"


def table(found: dict[str, Coverage]) -> str:
    """The document: a row for every model of the zoo."""
    rows = [found.get(e.name, Coverage(e.name, failed="not run")) for e in entries()]
    return "\n".join([_HEAD, *map(_line, rows), "", _verdict(rows), ""])


_HEAD = f"""# Coverage: predicted and measured signals

Generated by `python -m benchmarks.coverage --write`; do not edit. Every model of the zoo
(`tests/zoo`, usual sizes) is planned with rule `auto` and written with several seeds; for each, the
traced graph runs forward on fresh inputs and backward from N(0, 1) cotangents (each scaled to mean
square 1, which keeps their second moments), in training mode. The prediction is made before, from
the plan alone. torch {torch.__version__}, {platform.machine()}.

- *tensors*: real tensors in the trace. *10%*: share whose second moment is predicted within 10% or
  four standard errors of the mean over the seeds. *x1.5*: share within a factor 1.5; in brackets,
  within a factor 1.5 or four standard errors, since a tensor of few elements, such as the draw of
  a stochastic depth, varies by more than that between seeds.
- *weights*: matrices and kernels. *x1.5*: share whose gradient's second moment is predicted within
  a factor 1.5; in brackets, within a factor 1.5 or four standard errors.
- *seeds*: 5; {_MORE} where after five the standard error of the gradients is above {_SCATTER:.0%}
  of their means (median over the weights). In L layers of width N without norm or skip the
  logarithm of a squared gradient spreads between seeds by (2L/N)^(1/2) or more, and the mean over
  five is then most often too small. Tensors alone are run {_MORE} times where after five one is
  beyond a factor 1.5 and four standard errors: five numbers are that far off by chance in one case
  of sixty (Student's t), and a trace of a scan has thousands of small tensors.
- *sampled*: operations that no rule covers, and that were run on samples of the incoming state.
- *trace*, *predict*: seconds on one shared core; *date*: of the run; *earlier code*: a run before
  the last change of the rules, to be repeated.

| model | parameters | operations | tensors | 10% | x1.5 | weights | x1.5 | seeds | sampled \
| trace | predict | date |
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|"""


def _line(found: Coverage) -> str:
    """One row of the table."""
    if found.failed:
        return f"| {found.name} | {found.failed} {'|' * 12}"
    likely = found.gradients_likely
    cells = [
        found.name,
        f"{found.parameters:,}",
        found.operations,
        found.tensors,
        f"{found.close:.1%}",
        f"{found.near:.1%} ({found.likely:.1%})",
        found.gradients,
        f"{found.gradients_near:.1%}" + (f" ({likely:.1%})" if likely is not None else ""),
        found.seeds,
        found.sampled,
        *(f"{s:.2f}" for s in found.seconds),
        found.date,
    ]
    return f"| {' | '.join(map(str, cells))} |"


def _verdict(rows: list[Coverage]) -> str:
    """Which models keep the promise."""
    bad = [r.name for r in rows if not r.good]
    text = "The promise is 95% of the tensors, all of them (in brackets), and 90% of the weights: "
    text += f"{len(rows) - len(bad)} of {len(rows)} models keep it."
    return text + (f" Not yet: {', '.join(bad)}." if bad else "")


def misses(tensors: tuple[Row, ...], gradients: tuple[Row, ...], count: int) -> str:
    """The first tensors that are not close or likely, and the gradients that are not near."""
    bad = [r for r in tensors if not (r.close and r.likely)][:count]
    bad += [r for r in gradients if not r.near][:count]
    return "".join(
        f"    {r.what}: predicted {r.predicted:.4g}, measured {r.measured:.4g} ± {r.error:.2g}\n"
        for r in bad
    )


def _remember(found: Coverage) -> None:
    """Put one model's result beside the others, and write the document anew."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[found.name] = asdict(found)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    DOCUMENT.write_text(table({name: Coverage(**r) for name, r in results.items()}))


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison; exit code 1 if a model does not keep the promise."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument("--models", default="*", help="a glob pattern of names")
    parser.add_argument("--small", action="store_true", help="the small model of each kind")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rule", default="auto")
    parser.add_argument("--misses", type=int, default=0, help="print so many rows that disagree")
    parser.add_argument("--write", action="store_true", help="renew docs/coverage.md")
    given = parser.parse_args(arguments)
    if given.write and (given.small or given.seeds != 5 or given.rule != "auto"):
        parser.error("--write is for the usual sizes, 5 seeds and rule auto")
    good = True
    for entry in (e for e in entries() if fnmatch.fnmatch(e.name, given.models)):
        rows: tuple[tuple[Row, ...], ...] = ((), ())
        try:
            one, *rows = cover(entry, small=given.small, seeds=given.seeds, rule=given.rule)
        except FaninError as error:
            one = Coverage(entry.name, failed=f"{type(error).__name__}: {error}")
        good &= one.good
        print(_line(one), flush=True)
        print(misses(*rows, given.misses), end="", flush=True)
        if given.write:
            _remember(one)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
