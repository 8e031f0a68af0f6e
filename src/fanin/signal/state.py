"""What is known of a tensor before a weight is drawn: its second moments, and its law.

A state is a table of second moments (`signal.table`) and, where it is known, the law of one
element: x = f(z) with z Gaussian. A chain of elementwise operations composes f and never loses the
Gaussian it started from, so a hand-written activation is integrated once, whole.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import roots_genlaguerre

from fanin.errors import ArgumentError, DivergentError
from fanin.signal.nodes import Once, coefficients, on_nodes
from fanin.signal.slices import Slices
from fanin.signal.table import Table, align, paired

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]
    Function = Callable[[Array], Array]

CLOSED, QUADRATURE, ASSUMED = "closed form", "quadrature", "assumed"

_SIZES = 8  # nodes over the size of a variance that is random


@dataclass(frozen=True, eq=False)
class State:
    """The distribution of one value of the graph, over data and over the draw of the weights.

    Args:
        table: mean and second moments of pairs of elements.
        how: how the numbers were obtained: "closed form", "quadrature", "sampled ± s" (s is the
            relative standard error of the second moment), or "assumed" with the assumption.
        token: names the content: two states with one token are one tensor.
        latent: the Gaussian z of x = function(z), element by element; None: z = x.
        function: f of x = f(z); None: the identity.
        source: the token of z.
        gaussian: whether z is Gaussian by derivation; if not, using the law is an assumption.
        nonnegative, nonpositive: whether no element is below (above) zero.
        roots: tokens that this tensor depends on without fresh zero-mean weights in between;
            two tensors without a common root are uncorrelated.
        average: for a function of an average: the tokens averaged, and whether it is their square.
        data: the content, where it is known.
        causal: for attention weights, whether row i averages over the columns up to i.
        allowed: for attention logits, which entries are not masked, and what stands in the others.
        slices: that it is a sum of slices of one tensor.
        size: the variance of a sample's own mean square, over the square of its mean.
        reach: the variance of the taps, along one axis, through which a position has seen it.
    """

    table: Table
    how: str = CLOSED
    token: Hashable = None
    latent: Table | None = None
    function: Function | None = None
    source: Hashable = None
    gaussian: bool = False
    nonnegative: bool = False
    nonpositive: bool = False
    roots: frozenset[Hashable] = frozenset()
    average: Average | None = None
    causal: bool = False
    data: Array | None = field(default=None, repr=False)
    allowed: Mask | None = field(default=None, repr=False)
    slices: Slices | None = field(default=None, repr=False)
    size: float = 0.0
    reach: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the dimensions."""
        return self.table.shape

    @property
    def mean(self) -> float:
        """E[x], averaged over the elements."""
        return self.table.average

    @property
    def second_moment(self) -> float:
        """E[x^2], averaged over the elements; masked entries included."""
        inside = self.table.second_moment
        if self.allowed is None:
            return inside
        share = float(self.allowed.keep.mean())
        return share * inside + (1 - share) * self.allowed.fill**2 if share < 1 else inside

    @property
    def variance(self) -> float:
        """E[x^2] - E[x]^2."""
        return self.second_moment - self.mean**2

    def covariance(self, *dims: int) -> float:
        """E[x_i x_j] of two elements that differ in these dimensions alone; 0: two samples."""
        return self.table.covariance(*dims)

    @property
    def value(self) -> float | None:
        """The number that all elements equal, if they do."""
        mean, spread = self.mean, self.table.variance
        flat = self.table.mean.size == 1
        return mean if flat and spread <= 1e-14 * max(mean * mean, 1e-300) else None

    def through(
        self, change: Callable[[Table], Table], key: Hashable, same_law: bool = True
    ) -> State:
        """The state after an operation that only moves elements, such as a view or a slice."""
        table = change(self.table)
        same_law = same_law and not isinstance(self.latent, Varied)
        latent = change(self.latent) if same_law and self.latent is not None else None
        if latent is not None and isinstance(self.latent, Mixed):
            shared = change(self.latent.shared)
            latent = Mixed(latent.dims, latent.mean, latent.pairs, self.latent.terms, shared)
        return replace(
            self,
            table=table,
            latent=latent,
            function=self.function if same_law else None,
            token=(self.token, key),
            source=(self.source, key) if same_law and self.function else (self.token, key),
            gaussian=self.gaussian and same_law,
            average=None,
            causal=self.causal and table.shape[-2:] == self.shape[-2:],
            data=None,
            allowed=None,
            slices=None,
        )


@dataclass(frozen=True)
class Average:
    """Where a tensor that is a function of an average came from."""

    tokens: frozenset[Hashable]
    squared: bool
    source: Table = field(repr=False)


@dataclass(frozen=True, eq=False)
class Mask:
    """Which attention logits are seen (broadcast from the right), and the others' value."""

    keep: Array
    fill: float


@dataclass(frozen=True)
class Given:
    """The statement of a parameter's distribution.

    Args:
        mean: E[w].
        variance: of one element.
        structure: "independent" elements; "centred rows" (each output's weights sum to zero);
            "orthogonal" (uniform on matrices with W W^T = c I; its second moments are those of
            independent elements); "constant" (all elements are `mean`).

    Example:
        >>> Given(variance=0.02**2).table((64, 32)).second_moment
        0.0004
    """

    mean: float = 0.0
    variance: float = 0.0
    structure: str = "independent"

    def table(self, shape: tuple[int, ...]) -> Table:
        """The table of a parameter of this shape; the first dimension is the outputs."""
        known = ("independent", "centred rows", "orthogonal", "constant")
        if self.structure not in known:
            raise ArgumentError(
                "Given(structure)", expected=f"one of {', '.join(known)}", got=repr(self.structure)
            )
        if not (np.isfinite(self.mean) and self.variance >= 0):
            raise ArgumentError(
                "Given(mean, variance)",
                expected="a finite mean and a variance of at least 0",
                got=f"{self.mean}, {self.variance}",
            )
        table = Table.iid(shape, self.mean, self.mean**2 + self.variance)
        if self.structure == "centred rows" and len(shape) > 1:
            n = int(np.prod(shape[1:]))
            inputs = np.zeros(table.pairs.shape, dtype=bool)
            kept = table.axes((0,))
            inputs[tuple(0 if a in kept else slice(None) for a in range(len(table.factors)))] = True
            inputs[(0,) * len(table.factors)] = False
            if n > 1:
                table = Table(
                    table.dims, table.mean, table.pairs - inputs * self.variance / (n - 1)
                )
        return table


Statement = Given | np.ndarray
Statements = Mapping[str, Statement]


# --- functions of Gaussians --------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Mixed(Table):
    """A Gaussian whose variance has a random factor: the sum of the squares of few weights.

    *Definition.* y = sum_i w_i x_i of n independent normal weights is, given them, Gaussian with a
    variance proportional to sum_i w_i^2 ~ chi^2_n / n.

    Args:
        terms: n.
        shared: a table whose pairs are the probability that two elements have the same weights.
    """

    terms: int = 1
    shared: Table = field(default_factory=lambda: Table.constant((), 1.0))

    @property
    def sizes(self) -> tuple[Array, Array]:
        """Nodes of the factor and their probabilities."""
        nodes, weights = roots_genlaguerre(_SIZES, self.terms / 2 - 1)
        return 2 * nodes / self.terms, weights / weights.sum()


@dataclass(frozen=True, eq=False)
class Varied(Table):
    """A Gaussian for functions that are not the same for all elements, as after a fixed factor.

    Such a function takes arrays with one axis for each factor of the table and the nodes last.

    Args:
        differ: the axes along which the function changes.
    """

    differ: tuple[int, ...] = ()


def integrate(function: Function, latent: Table) -> tuple[Table, bool]:
    """The table of f(z) for a jointly Gaussian z, and whether f was defined wherever z lies.

    *Definition.* With the coefficients c_k = E[f(m + s z) h_k(z)] over normalised Hermite
    polynomials, E[f(u) f(v)] = sum_k c_k(u) c_k(v) rho^k (Mehler); what the first coefficients
    leave of E[f^2] is put on the next power of rho.

    *Accuracy.* Relative: 1e-8 for smooth functions, 2e-5 with kinks, 1e-2 with jumps, and where a
    profile has more than 48 different means.

    Raises:
        DivergentError: E[f^2] is beyond float64, as of x^2 where the variance runs away.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if isinstance(latent, Mixed):
            table, defined = _over_scales(function, latent)
        else:
            table, defined = _over_nodes(function, latent)
    if np.isfinite(latent.pairs).all() and not np.isfinite(table.pairs).all():
        raise DivergentError(
            "the signal",
            expected="E[f^2] within float64",
            got=f"E[z^2] = {latent.second_moment:.3g} in front of f",
            fix="start from weights that hold the variance",
        )
    return table, defined


def _over_nodes(function: Function, latent: Table) -> tuple[Table, bool]:
    """The same where the variance is no random one."""
    mean, same = np.broadcast_arrays(latent.mean, latent.same)
    variance = np.maximum(same - mean**2, 0.0)
    variance = np.where(variance < 1e-13 * (same + 1e-300), 0.0, variance)
    differ = latent.differ if isinstance(latent, Varied) else ()
    found, power, defined = coefficients(function, mean, variance, differ)
    tail = np.sqrt(np.maximum(power - (found**2).sum(0), 0.0))
    pairs = _pairs(found, tail, _correlation(latent, mean, variance), latent)
    return Table(latent.dims, found[0], pairs)._compact(), defined


def _correlation(latent: Table, mean: Array, variance: Array) -> Array:
    """The correlations of a Gaussian's pairs."""

    def outer(profile: Array) -> Array:
        one, other = paired(profile, latent)
        return one * other

    scale = outer(np.sqrt(variance))
    rho = (latent.pairs - outer(mean)) / np.where(scale > 0, scale, 1.0)
    return np.clip(np.where(scale > 0, rho, 1.0), -1.0, 1.0)


def _pairs(coefficients: Array, tail: Array, rho: Array, latent: Table) -> Array:
    """E[f(u) f(v)] of all pairs, from Hermite coefficients and correlations."""
    if tail.size == 1 and rho.size > 4 * len(GRID):  # one curve for all pairs
        return np.interp(rho, GRID, mehler(GRID, coefficients.ravel(), float(tail.item())))
    one, other = paired(np.concatenate([coefficients, tail[None]]), latent, lead=1)
    pairs = one[-1] * other[-1] * rho
    for i in range(len(coefficients) - 1, 0, -1):
        pairs = (pairs + one[i] * other[i]) * rho
    return np.asarray(pairs + one[0] * other[0])


def _over_scales(function: Function, latent: Mixed) -> tuple[Table, bool]:
    """The table of f(z) where z's variance is random: averages over its size.

    Pairs with one size are averaged together, pairs with different sizes each on its own.
    """
    mean, same = np.broadcast_arrays(latent.mean, latent.same)
    variance = np.maximum(same - mean**2, 0.0)
    rho = _correlation(latent, mean, variance)
    found = [coefficients(function, mean, variance * size) for size in latent.sizes[0]]
    weights = latent.sizes[1]
    tails = [np.sqrt(np.maximum(power - (c**2).sum(0), 0.0)) for c, power, _ in found]
    alike: Array = sum(
        w * _pairs(c, t, rho, latent) for w, (c, _, _), t in zip(weights, found, tails, strict=True)
    )
    average, tail = (np.tensordot(weights, x, 1) for x in ([c for c, _, _ in found], tails))
    apart = _pairs(average, tail, rho, latent)
    shared, laid = align(latent.shared, latent)
    share = shared.pairs if laid.dims == latent.dims else 1.0
    table = Table(latent.dims, average[0], apart + share * (alike - apart))
    return table._compact(), all(defined for _, _, defined in found)


GRID = np.sin(np.linspace(-np.pi / 2, np.pi / 2, 1025))


def mehler(rho: Array, coefficients: Array, tail: float) -> Array:
    """E[f(u) f(v)] at each correlation."""
    value = tail**2 * rho
    for c in coefficients[:0:-1]:
        value = (value + c * c) * rho
    return np.asarray(value + coefficients[0] ** 2)


def hermite(function: Function) -> tuple[Array, float]:
    """Coefficients of f(z) over normalised Hermite polynomials, z ~ N(0, 1); root of the rest."""
    found, power, _ = coefficients(function, np.zeros(1), np.ones(1))
    rest = np.maximum(power - (found**2).sum(0), 0.0)
    return found.ravel(), float(np.sqrt(rest).item())


def law(state: State) -> tuple[Table, Function | None, Hashable, bool]:
    """The Gaussian behind a state, the function of it, its token, and whether that is derived.

    A state without a law is taken as Gaussian with its own moments, or as lognormal (or minus
    that) if all its elements have one sign; both are assumptions.
    """
    if state.latent is not None:
        return state.latent, state.function, state.source, state.gaussian
    if state.nonnegative and not state.gaussian:
        return _log_table(state.table), np.exp, ("log", state.token), False
    if state.nonpositive and not state.gaussian:
        return _log_table(state.table * -1.0), _minus_exp, ("log", state.token), False
    return state.table, None, state.token, state.gaussian


def _minus_exp(z: Array) -> Array:
    """-exp(z)."""
    return -np.exp(z)


def _log_table(table: Table) -> Table:
    """The Gaussian whose exponential has this mean and these second moments."""
    mean = np.maximum(table.mean, 1e-150)
    one, other = paired(mean, table)
    covariance = np.log(np.clip(table.pairs / (one * other), 1e-2, 1e12))
    logs = Table(table.dims, np.log(mean), covariance)
    level = np.log(mean) - logs.same / 2
    one, other = paired(level, logs)
    return Table(table.dims, level, covariance + one * other)


def applied(state: State, function: Function, token: Hashable) -> State:
    """The state of function(x), element by element."""
    latent, inner, source, exact = law(state)

    composed = Once(lambda z: function(z if inner is None else inner(z)), [inner])
    table, total = integrate(composed, latent)
    how = QUADRATURE if exact and total else f"{ASSUMED}: Gaussian"
    low, high = _range(composed, latent)
    return State(
        table, how, token, latent, composed, source, exact, low >= 0, high <= 0, state.roots,
        state.average,
    )  # fmt: skip


def _range(function: Function, latent: Table) -> tuple[float, float]:
    """Lowest and highest value that a function takes on a Gaussian, within the nodes' reach."""
    z = on_nodes(latent.average, max(latent.variance, 0.0) ** 0.5)
    values = np.asarray(function(z), dtype=np.float64)
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
