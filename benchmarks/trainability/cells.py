"""What is trained: a cell is one kind of network, one start, one optimiser; grids are data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from benchmarks.activations import ACTIVATIONS, BY_HAND

Family = Literal["plain", "conv", "residual", "gpt", "gpt without norm"]

Optimiser = Literal["sgd", "adam"]

OPTIMISERS: tuple[Optimiser, ...] = ("sgd", "adam")
DEPTHS = (10, 20, 50, 100, 200)
SGD_RATES = (0.001, 0.003, 0.01, 0.03, 0.1)
QUICK_RATES = (0.001, 0.003, 0.01)
ADAM_RATES = (1e-5, 1e-4, 1e-3)


@dataclass(frozen=True)
class Cell:
    """One entry of the tables: the configuration is all that its result depends on.

    Args:
        family: of networks.
        activation: a name of `ACTIVATIONS`.
        depth: number of nonlinear layers.
        start: a name of `STARTS`, or `normal(v,b)`: weight variance v / N, bias variance b.
        data: `mnist`, `fashion-mnist` or `alice`.
        optimiser: `sgd` with momentum 0.9, or `adam`.
        rates: learning rates, of which the best on held-out images is taken.
        seeds: of weights and order of images; the first chooses the rate.
        epochs: passes over the training images; for text, steps.
        width: units or channels of a layer.
        images: training images at most, a tenth of them held out for the choice of the rate.
        batch: images or lines of text in a step.
        clip: largest norm of the gradient.
    """

    family: Family
    activation: str
    depth: int
    start: str
    data: str = "mnist"
    optimiser: Optimiser = "sgd"
    rates: tuple[float, ...] = SGD_RATES
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 12
    width: int = 128
    images: int = 4000
    batch: int = 64
    clip: float | None = 1.0

    @property
    def facts(self) -> dict[str, Any]:
        """JSON values that name the cell."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def of(cls, facts: dict[str, Any]) -> Cell:
        """The cell of `facts`."""
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in facts.items()
        }
        return cls(**values)

    def __str__(self) -> str:
        return f"{self.family} {self.depth} {self.activation}, {self.start}, {self.optimiser}"


# --- grids: each is a generator of cells by importance ------------------------------------------

PLAIN = (
    "fanin",
    "second moment",
    "centred",
    "layer norm",
    "dks",
    "tat",
    "anyinit, centred",
    "xavier",
    "he",
    "kumar",
    "lsuv",
    "anyinit",
    "batch norm",
    "torch default",
    "orthogonal",
    "second moment, orthogonal",
    "fanin, orthogonal",
)
"""Starts of plain networks."""
USED = (
    "fanin",
    "torch default",
    "he",
    "xavier",
    "layer norm",
    "batch norm",
    "dks",
    "tat",
    "anyinit",
    "anyinit, centred",
    "lsuv",
    "kumar",
    "second moment",
    "centred",
    "orthogonal",
)
"""Starts of the climb, those first that users would take first."""
SHOWN = (
    "fanin",
    "torch default",
    "xavier",
    "he",
    "second moment",
    "orthogonal",
    "lsuv",
    "anyinit",
    "anyinit, centred",
)
"""Starts in the picture of one sigmoid network, all of them of the very same network."""
USUAL = ("relu", "tanh", "gelu")
PHASE_DEPTHS = (4, 8, 12, 16, 24, 32, 48, 64)
PHASE_VARIANCES = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.3, 2.6, 3.0, 3.5, 4.0)
PHASE_BIAS = 0.05


def picture() -> Iterator[Cell]:
    """One sigmoid network of 100 layers from every start that leaves it what it is."""
    for name in SHOWN:
        yield Cell("plain", "sigmoid", 100, name, rates=QUICK_RATES[1:], seeds=(0,))


def quick() -> Iterator[Cell]:
    """The picture; fanin's row at depth 100, and layer norm for a quarter of it; one seed."""
    yield from picture()
    yield from (_core(f, "fanin") for f in ACTIVATIONS)
    yield from (_core(f, "layer norm") for f in USUAL)


def rivals() -> Iterator[Cell]:
    """The other rows at depth 100, one seed.

    Only fanin has to see through an activation that is written as a product.
    """
    for name in ("layer norm", "dks", "second moment", "centred"):
        yield from (_core(f, name) for f in ACTIVATIONS if f != BY_HAND)


def deep() -> Iterator[Cell]:
    """Twice as deep, one seed; then fanin's row at depth 100 again with three."""
    yield from (_core(f, "fanin", depth=200) for f in ACTIVATIONS)
    yield from (_core(f, "fanin", seeds=(0, 1, 2)) for f in ACTIVATIONS)


def _core(activation: str, name: str, *, depth: int = 100, seeds: tuple[int, ...] = (0,)) -> Cell:
    return Cell("plain", activation, depth, name, rates=QUICK_RATES, seeds=seeds)


def phase() -> Iterator[Cell]:
    """Tanh over depth and weight variance, after Schoenholz et al. 2017."""
    for depth in PHASE_DEPTHS:
        for v in PHASE_VARIANCES:
            name = f"normal({v},{PHASE_BIAS})"
            yield Cell("plain", "tanh", depth, name, rates=(0.01,), seeds=(0,), epochs=5)


def plain(data: str = "mnist", optimiser: Optimiser = "sgd") -> Iterator[Cell]:
    """The whole table of plain networks: deep and fanin's first."""
    rates = SGD_RATES if optimiser == "sgd" else ADAM_RATES
    for depth in sorted(DEPTHS, key=lambda d: abs(d - 100)):
        for name in PLAIN:
            for f in ACTIVATIONS:
                yield Cell("plain", f, depth, name, data, optimiser, rates)


def climb() -> Iterator[Cell]:
    """Plain networks from every start, shallow ones first; `climb.due` leaves out what failed."""
    kinds: tuple[tuple[str, Optimiser], ...] = (
        ("mnist", "sgd"),
        ("fashion-mnist", "sgd"),
        ("mnist", "adam"),
    )
    late = tuple(name for name in PLAIN if name not in USED)
    for names, (data, optimiser) in itertools.product((USED, late), kinds):
        rates = QUICK_RATES if optimiser == "sgd" else ADAM_RATES
        for depth, name, f in itertools.product(DEPTHS, names, ACTIVATIONS):
            yield Cell("plain", f, depth, name, data, optimiser, rates, (0,))


def conv() -> Iterator[Cell]:
    """Plain convolutional networks."""
    for depth in (50, 20, 100):
        for name in ("fanin", "second moment", "he", "batch norm", "torch default", "anyinit"):
            for f in ACTIVATIONS:
                yield _small(Cell("conv", f, depth, name, rates=(0.003, 0.01)))


def residual() -> Iterator[Cell]:
    """Residual networks without norm, and with."""
    for depth in (21, 51):
        for name in ("fanin", "torch default", "he", "second moment", "batch norm"):
            for f in ("relu", "gelu", "silu", "tanh", "sigmoid"):
                yield _small(Cell("residual", f, depth, name, rates=(0.003, 0.01)))


def _small(cell: Cell) -> Cell:
    """Convolutions: 16 channels, one seed, 6 epochs."""
    return replace(cell, width=16, seeds=(0,), epochs=6)


def gpt() -> Iterator[Cell]:
    """A GPT of 6 blocks, 1,000 steps on the letters of a book."""
    for family in ("gpt", "gpt without norm"):
        for name in ("fanin", "torch default", "gpt2"):
            yield Cell(
                family, "gelu", 6, name, "alice", "adam", (1e-3, 3e-3), epochs=1000, width=64,
                batch=8, images=0,
            )  # fmt: skip


def full() -> Iterator[Cell]:
    """Everything."""
    yield from quick()
    yield from rivals()
    yield from deep()
    yield from phase()
    yield from gpt()
    yield from conv()
    yield from residual()
    for data, optimiser in itertools.product(("mnist", "fashion-mnist"), OPTIMISERS):
        yield from plain(data, optimiser)


SETS: dict[str, Callable[[], Iterator[Cell]]] = {
    "picture": picture,
    "quick": quick,
    "rivals": rivals,
    "deep": deep,
    "climb": climb,
    "phase": phase,
    "conv": conv,
    "residual": residual,
    "gpt": gpt,
    "plain": plain,
    "full": full,
}
