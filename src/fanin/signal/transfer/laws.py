"""Functions of one Gaussian that are linear, and what is known of a state's law."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fanin.signal.nodes import Once
from fanin.signal.slices import scaled
from fanin.signal.state import CLOSED, State, Varied, law
from fanin.signal.table import Table

if TYPE_CHECKING:
    from fanin.signal.state import Function


@dataclass(frozen=True)
class Affine:
    """x -> scale x + shift."""

    scale: float
    shift: float

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.scale * x + self.shift


def affine(state: State, scale: float, shift: float, token: object) -> State:
    """The state of scale x + shift: moments exact, and the Gaussian behind it kept."""
    latent, inner, source, exact = law(state)
    if inner is None or isinstance(inner, Affine):
        first = inner or Affine(1.0, 0.0)
        function: Function = Affine(scale * first.scale, scale * first.shift + shift)
    else:
        function = Once(lambda z: scale * inner(z) + shift, [inner])
    return replace(
        state, table=state.table * scale + shift, how=CLOSED, token=token, latent=latent,
        slices=scaled(state.slices, Table.constant(state.shape, scale)),
        function=function, source=source, gaussian=exact, data=None, allowed=None,
        nonnegative=shift >= 0 and (state.nonnegative if scale >= 0 else state.nonpositive),
        nonpositive=shift <= 0 and (state.nonpositive if scale >= 0 else state.nonnegative),
    )  # fmt: skip


def linear_in_z(state: State) -> bool:
    """Whether the state is Gaussian itself, not a nonlinear function of a Gaussian."""
    return state.function is None or isinstance(state.function, Affine)


def lawful(state: State) -> bool:
    """Whether the law of one element is known, and the same for all."""
    known = state.latent is not None or state.gaussian
    return known and not isinstance(state.latent, Varied)


def varies(state: State, share: float = 1e-3) -> bool:
    """Whether an operand's variance is more than a small share of its squared mean."""
    return state.table.variance > share * max(state.mean**2, 1e-300)
