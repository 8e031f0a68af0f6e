"""Trains one cell and says what came out, as JSON values."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.activations import ACTIVATIONS
from benchmarks.trainability import language, starts
from benchmarks.trainability.cells import Cell
from benchmarks.trainability.convolutional import Conv, Residual, Stacked
from benchmarks.trainability.networks import Plain, stacked
from benchmarks.trainability.starts import UnsupportedError, transformed
from torch import nn

from fanin.reproduce import images
from fanin.reproduce.training import Flat, Networks, Recipe, best_rate, one_thread

_SHOWN = 256
"""Training images that a start may look at."""
FASHION = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's dataset-fashion-mnist puts its files."""


def measure(cell: Cell, known: dict[str, Any] | None = None) -> dict[str, Any]:
    """The result of a cell: JSON values.

    Args:
        cell: what to train.
        known: the result of the same networks of images with the first seed alone, to go on from.

    Returns:
        `rate`, `tried`, `final`, `curves` as `best_rate` or `language.measure` give them, with
        `start`, the fingerprint of the first seed's parameters; or `unsupported`, a reason.
    """
    with one_thread():
        try:
            start = _digest(model(cell, cell.seeds[0]))
        except UnsupportedError as reason:
            return {"unsupported": str(reason)}
        if known is not None and known["start"] != start:
            known = None  # of other weights than the first seed has now
        trained = language.measure(cell) if cell.data == "alice" else _images(cell, known)
        return {**trained, "start": start}


def fingerprint(cell: Cell) -> str | None:
    """That of the parameters which the first seed starts from now; None where unsupported."""
    with one_thread():
        try:
            return _digest(model(cell, cell.seeds[0]))
        except UnsupportedError:
            return None


@functools.cache
def flat(name: str, limit: int) -> Flat:
    """The images of a cell."""
    root = FASHION if name == "fashion-mnist" else None
    return Flat.of(images.load(name, root), limit)


def model(cell: Cell, seed: int) -> nn.Module:
    """One network, started.

    Raises:
        UnsupportedError: the start does not exist for this activation.
    """
    if cell.data == "alice":
        return language.model(cell, seed)
    how, f = starts.start(cell.start), ACTIVATIONS[cell.activation]
    data = flat(cell.data, cell.images).train
    if how.transform:
        f = transformed(cell.activation, how.transform, cell.depth)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if cell.family == "plain":
            made: nn.Module = Plain(data.shape[1], cell.width, cell.depth, f, how.norm)
        else:
            family = {"conv": Conv, "residual": Residual}[cell.family]
            made = family(cell.width, cell.depth, f, how.norm)
    if how.write is not None:
        how.write(made, data[:_SHOWN], cell.activation, seed)
    return made


def _images(cell: Cell, known: dict[str, Any] | None) -> dict[str, Any]:
    """Train the networks of a cell on images."""
    recipe = Recipe(cell.epochs, cell.batch, clip=cell.clip, optimiser=cell.optimiser)
    made = functools.cache(functools.partial(model, cell))

    def build(seeds: Sequence[int]) -> Networks:
        models = [made(seed) for seed in seeds]
        return stacked(models) if cell.family == "plain" else Stacked(models)

    data = flat(cell.data, cell.images)
    return best_rate(build, cell.rates, cell.seeds, data, recipe, lambda share: None, known)


def _digest(made: nn.Module) -> str:
    total = hashlib.sha256()
    for parameter in made.parameters():
        total.update(parameter.detach().numpy().tobytes())
    return total.hexdigest()[:16]
