"""The modulus of complex numbers: Rayleigh's law, and the half normal one where they are real.

|z| of a complex Gaussian z with E|z|^2 = s has P(|z| > r) = exp(-r^2 / s), so that with a standard
normal u

    |z| = sqrt(s) q(u),    q(u) = sqrt(-log(1 - Phi(u)))

has exactly its law, and what follows elementwise (a power, a logarithm) is integrated like any
function of a Gaussian. The squares of two moduli correlate as rho^2, rho the correlation of the
numbers, which is what u is given here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import log_ndtr

from fanin.signal.nodes import Once
from fanin.signal.state import ASSUMED, QUADRATURE, State, Varied, integrate
from fanin.signal.table import Table, paired, product
from fanin.signal.transfer.call import Call, Gradients, amplitude, backward, forward
from fanin.signal.transfer.fourier import laid, real_shares


@forward("abs.complex")
def _modulus(call: Call) -> State:
    x = call.first
    table = laid(x.table, x.shape)
    real = real_shares(call)[..., 0] == 1
    mean, same = np.broadcast_arrays(table.mean, table.same)
    deviation = np.sqrt(np.maximum(same - mean**2, 0.0))
    centred = not (mean * ~real).any()
    latent = _standard(table, mean, deviation, real)
    own, spread, size, flag = (a[..., None] for a in (mean, deviation, np.sqrt(same), real))

    function = Once(
        lambda u: np.where(flag, np.abs(own + spread * u), size * np.sqrt(-log_ndtr(-u)))
    )
    found, _ = integrate(function, latent)
    exact = x.gaussian and x.function is None and centred
    how = QUADRATURE if exact else f"{ASSUMED}: Gaussian" + ("" if centred else " of mean 0")
    return State(found, how, call.token(), latent, function, ("modulus", call.token()), exact,
                 nonnegative=True, roots=x.roots)  # fmt: skip


def _standard(table: Table, mean: np.ndarray, deviation: np.ndarray, real: np.ndarray) -> Varied:
    """The normal variable behind the moduli; its law changes where theirs does."""
    one, other = paired(deviation, table)
    means = paired(mean, table)
    scale = one * other
    rho = (table.pairs - means[0] * means[1]) / np.where(scale > 0, scale, 1.0)
    square = np.where(scale > 0, np.clip(rho, -1.0, 1.0) ** 2, 1.0)
    profile = np.broadcast_shapes(mean.shape, real.shape)
    differ = tuple(a for a, n in enumerate(profile) if n > 1)
    return Varied(table.dims, np.zeros(profile), square, differ)


@backward("abs.complex")
def _modulus_back(call: Call, grads: Sequence[Table | None]) -> Gradients:
    """The gradient times z / |z|; where z is real none of it is lost at a real tensor."""
    (g,) = grads
    assert g is not None
    x = call.first
    phase, _ = integrate(np.sign, x.table)
    kept = np.sqrt(2 * real_shares(call)[..., 0])
    yield call.node.inputs[0], product(product(g, phase), amplitude(laid(x.table, x.shape), kept))
