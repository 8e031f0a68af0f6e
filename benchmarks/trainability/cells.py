"""What is trained: a cell is one kind of network, one start, one optimiser; grids are data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from benchmarks.activations import ACTIVATIONS

Family = Literal["plain", "conv", "residual", "gpt", "gpt without norm"]

Optimiser = Literal["sgd", "adam"]

OPTIMISERS: tuple[Optimiser, ...] = ("sgd", "adam")
DEPTHS = (10, 20, 50, 100, 200)
RATES = (0.001, 0.003, 0.01)
FEW_STEPS_RATES = (0.003, 0.01, 0.03)
ADAM_RATES = (3e-5, 2e-4, 1e-3)


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
    rates: tuple[float, ...] = RATES
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

    @property
    def first(self) -> Cell:
        """The same with the first seed alone."""
        return replace(self, seeds=self.seeds[:1])

    def __str__(self) -> str:
        return f"{self.family} {self.depth} {self.activation}, {self.start}, {self.optimiser}"


# --- grids: each is a generator of cells by importance ------------------------------------------

PLAIN = (
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
    "second moment, orthogonal",
)
"""Starts of plain networks, those first that users would take first."""
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
        yield Cell("plain", "sigmoid", 100, name, rates=RATES[1:], seeds=(0,))


def quick() -> Iterator[Cell]:
    """The picture; fanin's row at depth 100, and layer norm for a quarter of it; one seed."""
    yield from picture()
    yield from (Cell("plain", f, 100, "fanin", seeds=(0,)) for f in ACTIVATIONS)
    yield from (Cell("plain", f, 100, "layer norm", seeds=(0,)) for f in USUAL)


def phase() -> Iterator[Cell]:
    """Tanh over depth and weight variance, after Schoenholz et al. 2017."""
    for depth in PHASE_DEPTHS:
        for v in PHASE_VARIANCES:
            name = f"normal({v},{PHASE_BIAS})"
            yield Cell("plain", "tanh", depth, name, rates=(0.01,), seeds=(0,), epochs=5)


def plain(data: str = "mnist", optimiser: Optimiser = "sgd") -> Iterator[Cell]:
    """Plain networks from every start, shallow ones first.

    MNIST by SGD is trained for 672 steps, the other three combinations for a third of that: 224
    steps of the same images by Adam, 225 of ever new ones of Fashion-MNIST.
    """
    whole = Cell("plain", "relu", 10, "fanin", data, optimiser)
    if optimiser == "adam":
        whole = replace(whole, rates=ADAM_RATES, epochs=4)
    if data == "fashion-mnist":
        rates = ADAM_RATES if optimiser == "adam" else FEW_STEPS_RATES
        whole = replace(whole, rates=rates, epochs=1, images=16000)
    for depth, name, f in itertools.product(DEPTHS, PLAIN, ACTIVATIONS):
        yield replace(whole, depth=depth, start=name, activation=f)


def conv() -> Iterator[Cell]:
    """Plain convolutional networks."""
    starts = ("fanin", "second moment", "he", "batch norm", "torch default", "anyinit")
    for depth, name, f in itertools.product((20, 50, 100), starts, ACTIVATIONS):
        yield _small(Cell("conv", f, depth, name))


def residual() -> Iterator[Cell]:
    """Residual networks without norm, and with."""
    starts = ("fanin", "torch default", "he", "second moment", "batch norm")
    for depth, name, f in itertools.product((21, 51), starts, (*USUAL, "silu", "sigmoid")):
        yield _small(Cell("residual", f, depth, name))


def _small(cell: Cell) -> Cell:
    """Convolutions: 16 channels, two rates, 6 epochs."""
    return replace(cell, rates=RATES[1:], width=16, epochs=6)


def gpt() -> Iterator[Cell]:
    """A GPT of 6 blocks, 1,000 steps on the letters of a book."""
    for family in ("gpt", "gpt without norm"):
        for name in ("fanin", "torch default", "gpt2"):
            yield Cell(
                family, "gelu", 6, name, "alice", "adam", (1e-3, 3e-3), epochs=1000, width=64,
                batch=8, images=0,
            )  # fmt: skip


def climb() -> Iterator[Cell]:
    """Every network of images: all with the first seed, then with three.

    `climb.due` leaves out what a shallower network or the first seed has ruled out.
    """
    most = plain(), conv(), plain("fashion-mnist"), plain("mnist", "adam")
    rest = residual(), plain("fashion-mnist", "adam")
    order = [
        cell
        for cells in (itertools.chain(*most), *rest)
        # Of two depths the greater costs as much as all that are less.
        for cell in sorted(cells, key=lambda cell: max(cell.depth, 51))
    ]
    yield from (cell.first for cell in order)
    yield from order


def full() -> Iterator[Cell]:
    """Everything."""
    yield from quick()
    yield from phase()
    yield from gpt()
    yield from climb()


SETS: dict[str, Callable[[], Iterator[Cell]]] = {
    "picture": picture,
    "quick": quick,
    "phase": phase,
    "gpt": gpt,
    "climb": climb,
    "full": full,
}
CLIMBING = frozenset({"climb", "full"})
"""Sets of which only those cells are trained that `climb.due` leaves."""
