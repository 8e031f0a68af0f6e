"""Initializers for one tensor or one layer, called as those of `torch.nn.init` are.

Same names, same arguments, same places; what differs is stated in each docstring. Given a layer
instead of a tensor, the fans come from what the layer does, values go through its
parametrizations, and each matrix that it fuses (gates, packed projections) counts on its own;
its bias is left alone, except by the rules that say what the bias must be (`kumar_*`,
`centred_`, `shaped_`).

Every call takes one 63-bit seed from `generator`, or from torch's default generator, so that
`torch.manual_seed` decides the result; values are then drawn in float32 (float64 for float64),
rounded once to the tensor's type, and are the same on every device and version of torch.

A weight whose layout is not torch's (out, in, taps...) is declared by keywords, here called
layout: `axes`, a word of `in`, `out`, `tap`, `expert` for each axis; `splits`, the matrices
stacked on the out axis, or their sizes; and for a layer with zero padding `size`, its input's
spatial size, to count the taps that fall inside. See `fanin.torch.fans.fan`.
"""

from __future__ import annotations

from typing import Unpack

import torch

from fanin import draw
from fanin.errors import ArgumentError
from fanin.planning.fans import Fans
from fanin.torch.fans import Layout
from fanin.torch.filling import (
    Initializer,
    Nonlinearity,
    Target,
    fan_average_scale,
    fan_in_scale,
    fill,
    fill_parts,
    fill_scaled,
    gain_for,
    kaiming_scale,
    normal,
    uniform,
)
from fanin.torch.ruled import centred_ as centred_
from fanin.torch.ruled import kumar_normal_ as kumar_normal_
from fanin.torch.ruled import kumar_uniform_ as kumar_uniform_
from fanin.torch.ruled import shaped_ as shaped_


@Initializer
def normal_(
    tensor: Target,
    mean: float = 0.0,
    std: float = 1.0,
    generator: torch.Generator | None = None,
) -> Target:
    r"""Fill with draws from N(mean, std^2).

    *Definition*: w ~ N(`mean`, `std`^2), independent.

    Args:
        tensor: a tensor of any floating type, or a layer, whose weights are filled.
        mean: the mean.
        std: the standard deviation.
        generator: where the seed is taken from; torch's default generator if not given.

    Returns:
        What was given.

    Raises:
        ArgumentTypeError: an integer, quantised or computed tensor.
        UninitializedError: a tensor on meta, a lazy one, or a placeholder without elements.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> float(normal_(torch.empty(1000, 100), std=0.02).std().mul(100).round())
        2.0
    """
    return fill("normal_", tensor, draw.Normal(mean, std), generator)


@Initializer
def uniform_(
    tensor: Target,
    a: float = 0.0,
    b: float = 1.0,
    generator: torch.Generator | None = None,
) -> Target:
    """Fill with draws from the uniform distribution on [a, b).

    *Definition*: w ~ U(`a`, `b`), independent.

    Args:
        tensor: a tensor of any floating type, or a layer.
        a: lower end.
        b: upper end.
        generator: where the seed is taken from.

    Example:
        >>> float(uniform_(torch.empty(10), -1.0, 1.0).abs().max()) <= 1.0
        True
    """
    return fill("uniform_", tensor, draw.Uniform(a, b), generator)


@Initializer
def trunc_normal_(
    tensor: Target,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    generator: torch.Generator | None = None,
) -> Target:
    """Fill with draws from a truncated normal whose standard deviation is `std`.

    *Definition*: w = `mean` + s z with z ~ N(0, 1) given `a` <= z <= `b`, and s such that
    Var(w) = `std`^2. Unlike torch's, the bounds count in sigmas of z, so that they cut whatever
    `std` is, and `std` is the standard deviation of what comes out.

    Args:
        tensor: a tensor of any floating type, or a layer.
        mean: the mean.
        std: the standard deviation after truncation.
        a: lower bound in sigmas; the negative of `b`.
        b: upper bound in sigmas, at least 1.
        generator: where the seed is taken from.

    Raises:
        ArgumentError: the bounds are not symmetric, or below one sigma, as bounds in units of
            the weight would be.

    Example:
        >>> w = trunc_normal_(torch.empty(300, 300), std=0.02)
        >>> round(float(w.std() / 0.02), 1), bool(w.abs().max() < 0.0456)
        (1.0, True)
    """
    if not (a == -b and b >= 1.0):
        raise ArgumentError(
            "trunc_normal_(a, b)",
            expected="bounds in sigmas, a = -b with b >= 1",
            got=f"a={a}, b={b}",
            fix="divide bounds in units of the weight by std",
        )
    return fill("trunc_normal_", tensor, draw.TruncatedNormal(mean, std, b), generator)


@Initializer
def orthogonal_(
    tensor: Target, gain: float = 1.0, generator: torch.Generator | None = None
) -> Target:
    r"""Fill with a (semi-)orthogonal matrix drawn from the Haar measure.

    *Definition*: the axes after the first are flattened, and W W^T = `gain`^2 I, or
    W^T W = `gain`^2 I where W is taller than wide. Each gate, packed projection or group of a
    layer is a matrix of its own. Any floating type.

    Args:
        tensor: a tensor of two or more axes, or a layer.
        gain: the common singular value.
        generator: where the seed is taken from.

    *Accuracy*: entries of W W^T are right within 1e-5 `gain`^2 in float32; in lower precision
    the float32 matrix is rounded once.

    Example:
        >>> w = orthogonal_(torch.empty(3, 5), gain=2.0)
        >>> bool((w @ w.T - 4 * torch.eye(3)).abs().max() < 1e-5)
        True

    Reference: Saxe, McClelland and Ganguli 2013 (arXiv:1312.6120).
    """

    def blocks(counted: Fans) -> list[draw.Distribution]:
        return [draw.Orthogonal(gain, groups=len(counted.parts))] * len(counted.parts)

    return fill_parts("orthogonal_", tensor, blocks, generator, {})


@Initializer
def constant_(tensor: Target, val: float) -> Target:
    """Fill with one value.

    Args:
        tensor: a tensor of any floating type, or a layer, whose weights are filled.
        val: the value.

    Example:
        >>> constant_(torch.empty(2), 0.5)
        tensor([0.5000, 0.5000])
    """
    return fill("constant_", tensor, draw.Constant(val), None)


@Initializer
def zeros_(tensor: Target) -> Target:
    """Fill with zeros.

    Example:
        >>> zeros_(torch.empty(2))
        tensor([0., 0.])
    """
    return fill("zeros_", tensor, draw.Constant(0.0), None)


@Initializer
def ones_(tensor: Target) -> Target:
    """Fill with ones.

    Example:
        >>> ones_(torch.empty(2))
        tensor([1., 1.])
    """
    return fill("ones_", tensor, draw.Constant(1.0), None)


@Initializer
def kaiming_normal_(
    tensor: Target,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: Nonlinearity = "leaky_relu",
    generator: torch.Generator | None = None,
    **layout: Unpack[Layout],
) -> Target:
    r"""Fill with N(0, gain^2 / fan) for the activation whose output the layer reads.

    *Definition*: std = gain / sqrt(fan); gain = 1/sqrt(E[f(z)^2]) with `mode` fan_in, which
    keeps the signal, and 1/sqrt(E[f'(z)^2]) with fan_out, which keeps the gradient. Both are
    sqrt(2 / (1 + a^2)) for leaky ReLU.

    Args:
        tensor: a weight, laid out (out, in, taps...), or a layer.
        a: negative slope, only with leaky_relu.
        mode: "fan_in" or "fan_out".
        nonlinearity: any activation of `fanin.activation`; "linear" and torch's layer names
            for none.
        generator: where the seed is taken from.
        layout: `axes`, `splits`, `size`, where the tensor does not say it itself.

    Raises:
        ArgumentError: an unknown mode, or `a` with another activation.
        UnknownNameError: an unknown activation.

    Example:
        >>> from functools import partial
        >>> partial(kaiming_normal_, nonlinearity="gelu")
        functools.partial(fanin.torch.init.kaiming_normal_, nonlinearity='gelu')
        >>> w = kaiming_normal_(torch.empty(8, 256, 512), nonlinearity="linear",
        ...                     axes="expert in out")
        >>> round(float(w.std() * 16), 1)
        1.0

    Reference: He et al. 2015 (arXiv:1502.01852), equations 10, 14 and 15.
    """
    scale = kaiming_scale(a, mode, nonlinearity)
    return fill_scaled("kaiming_normal_", tensor, scale, normal, generator, layout)


@Initializer
def kaiming_uniform_(
    tensor: Target,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: Nonlinearity = "leaky_relu",
    generator: torch.Generator | None = None,
    **layout: Unpack[Layout],
) -> Target:
    """Fill with a uniform distribution of the variance of `kaiming_normal_`.

    *Definition*: U(-r, r) with r = sqrt(3) gain / sqrt(fan); arguments as in `kaiming_normal_`.

    Example:
        >>> w = kaiming_uniform_(torch.empty(10, 100), a=5 ** 0.5)   # torch's default for Linear
        >>> bool(w.abs().max() <= 0.1)
        True
    """
    scale = kaiming_scale(a, mode, nonlinearity)
    return fill_scaled("kaiming_uniform_", tensor, scale, uniform, generator, layout)


@Initializer
def xavier_normal_(
    tensor: Target,
    gain: float = 1.0,
    generator: torch.Generator | None = None,
    **layout: Unpack[Layout],
) -> Target:
    """Fill with N(0, gain^2 * 2 / (fan_in + fan_out)).

    *Definition*: std = `gain` sqrt(2 / (fan_in + fan_out)); each part of a fused weight has its
    own fans.

    Example:
        >>> w = xavier_normal_(torch.empty(768, 256), splits=3)   # query, key, value
        >>> round(float(w.std() * 16), 1)
        1.0

    Reference: Glorot and Bengio 2010, equation 16.
    """
    scale = fan_average_scale(gain)
    return fill_scaled("xavier_normal_", tensor, scale, normal, generator, layout)


@Initializer
def xavier_uniform_(
    tensor: Target,
    gain: float = 1.0,
    generator: torch.Generator | None = None,
    **layout: Unpack[Layout],
) -> Target:
    """Fill with a uniform distribution of the variance of `xavier_normal_`.

    *Definition*: U(-r, r) with r = `gain` sqrt(6 / (fan_in + fan_out)).

    Example:
        >>> bool(xavier_uniform_(torch.empty(3, 3)).abs().max() <= 1.0)
        True
    """
    return fill_scaled(
        "xavier_uniform_", tensor, fan_average_scale(gain), uniform, generator, layout
    )


@Initializer
def lecun_normal_(
    tensor: Target,
    generator: torch.Generator | None = None,
    **layout: Unpack[Layout],
) -> Target:
    """Fill with N(0, 1 / fan_in).

    *Definition*: std = 1 / sqrt(fan_in).

    Example:
        >>> round(float(lecun_normal_(torch.empty(400, 400)).std() * 20), 1)
        1.0

    Reference: LeCun, Bottou, Orr and Müller 1998, equation 16.
    """
    return fill_scaled("lecun_normal_", tensor, fan_in_scale(1.0), normal, generator, layout)


@Initializer
def lecun_uniform_(
    tensor: Target,
    generator: torch.Generator | None = None,
    **layout: Unpack[Layout],
) -> Target:
    """Fill with a uniform distribution of variance 1 / fan_in.

    *Definition*: U(-r, r) with r = sqrt(3 / fan_in).

    Example:
        >>> bool(lecun_uniform_(torch.empty(4, 3)).abs().max() <= 1.0)
        True
    """
    return fill_scaled("lecun_uniform_", tensor, fan_in_scale(1.0), uniform, generator, layout)


def calculate_gain(nonlinearity: Nonlinearity, param: float | None = None) -> float:
    r"""The gain that keeps the second moment through an activation, for any activation.

    *Definition*: 1 / sqrt(E[f(z)^2]), z ~ N(0, 1). Differs from torch's table where that is not
    derived: tanh 1.5925 (5/3 there), selu 1 (3/4), sigmoid 1.8462 (1).

    Args:
        nonlinearity: any activation of `fanin.activation`, "linear", or a torch layer name.
        param: the slope of leaky_relu, 0.01 if not given.

    Returns:
        The gain, dimensionless.

    Example:
        >>> round(calculate_gain("gelu"), 6), calculate_gain("conv2d")
        (1.53353, 1.0)
    """
    slope = 0.0 if nonlinearity != "leaky_relu" else 0.01
    return gain_for(nonlinearity, slope if param is None else param, "second_moment")
