"""Plain networks, drawn layer by layer, and stacked so that many train in one pass."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import nn

from fanin.errors import UnknownNameError
from fanin.torch import init

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    Weight = Float[Tensor, "network input output"]
    Bias = Float[Tensor, "network 1 output"]
    Inputs = Float[Tensor, "network image input"]
    Outputs = Float[Tensor, "network image output"]

Elementwise = Callable[[torch.Tensor], torch.Tensor]
Position = Literal["first", "hidden", "last"]
Write = Callable[[nn.Module, Position, torch.Generator], object]
"""Sets the weights of one layer, by its position; biases are 0 before it is called."""

_ACTIVATIONS: dict[str, Elementwise] = {
    "arctan": torch.arctan,
    "asinh": torch.asinh,
    "celu(2)": lambda x: F.celu(x, 2.0),
    "elu": F.elu,
    "erf": torch.erf,
    "gelu": F.gelu,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "hardtanh": F.hardtanh,
    "identity": lambda x: x,
    "leaky_relu(0.1)": lambda x: F.leaky_relu(x, 0.1),
    "logsigmoid": F.logsigmoid,
    "mish": F.mish,
    "relu": F.relu,
    "selu": F.selu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "sin": torch.sin,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "tanh": torch.tanh,
    "tanhshrink": F.tanhshrink,
}


def torch_activation(name: str) -> Elementwise:
    """The torch function of an activation's name in `fanin.activation`.

    Raises:
        UnknownNameError: no torch function is listed for it.

    Example:
        >>> torch_activation("relu")(torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])
    """
    if name not in _ACTIVATIONS:
        raise UnknownNameError(
            "torch_activation(name)", expected=", ".join(_ACTIVATIONS), got=repr(name)
        )
    return _ACTIVATIONS[name]


def torch_activations() -> tuple[str, ...]:
    """The names that `torch_activation` knows.

    Example:
        >>> len(torch_activations()) >= 20
        True
    """
    return tuple(_ACTIVATIONS)


def draw(layers: Sequence[nn.Module], write: Write, seed: int) -> None:
    """Set all layers of a network, in order, from one seed.

    Args:
        layers: those with a weight and a bias, from input to output.
        write: sets the weight (and the bias, if it is not 0) of one layer.
        seed: of the generator that every layer takes its own seed from.
    """
    generator = torch.Generator().manual_seed(seed)
    last = len(layers) - 1
    with torch.no_grad():
        for i, layer in enumerate(layers):
            init.zeros_(layer.get_parameter("bias"))
            write(layer, "first" if i == 0 else "last" if i == last else "hidden", generator)


def plain(sizes: Sequence[int], write: Write, seed: int) -> list[nn.Linear]:
    """The linear layers of a plain network.

    Args:
        sizes: units of the input, of each layer, of the output.
        write: as in `draw`.
        seed: as in `draw`.

    Example:
        >>> [tuple(layer.weight.shape) for layer in plain([4, 3, 2], write_xavier, seed=0)]
        [(3, 4), (2, 3)]
    """
    pairs = itertools.pairwise(sizes)
    layers = [torch.nn.utils.skip_init(nn.Linear, a, b) for a, b in pairs]
    draw(layers, write, seed)
    return layers


def write_xavier(layer: nn.Module, position: Position, generator: torch.Generator) -> None:
    """Glorot and Bengio's normal initialization, the same at every position."""
    del position
    init.xavier_normal_(layer, generator=generator)


@dataclass(frozen=True)
class Stack:
    """Networks of one shape, one after another in the first axis of every array.

    Args:
        weights: of each layer, shape (network, input, output).
        biases: of each layer, shape (network, 1, output).
        activation: between layers, not after the last.
    """

    weights: list[Weight]
    biases: list[Bias]
    activation: Elementwise

    @classmethod
    def of(cls, networks: Sequence[Sequence[nn.Linear]], activation: Elementwise) -> Stack:
        """Copies of the networks' layers, stacked."""
        layers = list(zip(*networks, strict=True))
        with torch.no_grad():
            weights = [torch.stack([layer.weight.T for layer in each]) for each in layers]
            biases = [torch.stack([layer.bias[None] for layer in each]) for each in layers]
        return cls(weights, biases, activation)

    def __len__(self) -> int:
        return len(self.weights[0])

    @property
    def parameters(self) -> list[Tensor]:
        """All weights, then all biases."""
        return [*self.weights, *self.biases]

    def __call__(self, x: Inputs) -> Outputs:
        """Each network on its own images."""
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            x = self.activation(x) if i < last else x
        return x
