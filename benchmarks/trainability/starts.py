"""Where training starts: initialisers, peers with their own activations, networks with norms."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from benchmarks.activations import ACTIVATIONS, BY_HAND
from benchmarks.trainability.networks import Elementwise, Norm
from torch import Tensor, nn

import fanin
from fanin.reproduce.networks import Position
from fanin.reproduce.networks import draw as draw_layers
from fanin.torch import init

Write = Callable[[nn.Module, Tensor, str, int], object]
"""Writes a model, given inputs, the name of its activation and a seed."""


class UnsupportedError(Exception):
    """The start does not exist for this activation; the reason is told in the tables."""


@dataclass(frozen=True)
class Start:
    """One way to begin.

    Args:
        says: what it is, for the page.
        write: sets all parameters; None leaves those of torch's constructors.
        norm: put before every activation.
        transform: `DKS` or `TAT`, which change the activation.
        changes: whether the network is another one than the user wrote.
    """

    says: str
    write: Write | None = None
    norm: Norm | None = None
    transform: str | None = None

    @property
    def changes(self) -> bool:
        """Whether the network that is trained is another one than the user wrote."""
        return self.norm is not None or self.transform is not None


def layers_of(model: nn.Module) -> list[nn.Module]:
    """Linear and convolutional layers, in order."""
    return [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]


def _by_layer(
    set_: Callable[[nn.Module, str, Position, torch.Generator], object],
) -> Write:
    """A start that sets one layer at a time: variance 1/N at both ends, zero biases."""

    def write(model: nn.Module, inputs: Tensor, activation: str, seed: int) -> None:
        del inputs
        draw_layers(
            layers_of(model),
            lambda layer, position, generator: set_(layer, activation, position, generator),
            seed,
        )

    return write


def _theory(activation: str) -> Any:
    """What fanin's rules take for an activation of the tables."""
    return ACTIVATIONS[activation] if activation == BY_HAND else activation


def _xavier(layer: nn.Module, f: str, position: Position, g: torch.Generator) -> None:
    init.xavier_normal_(layer, generator=g)


def _he(layer: nn.Module, f: str, position: Position, g: torch.Generator) -> None:
    init.kaiming_normal_(layer, nonlinearity="relu", generator=g)


def _kumar(layer: nn.Module, f: str, position: Position, g: torch.Generator) -> None:
    if position != "hidden":
        init.lecun_normal_(layer, generator=g)
        return
    if f == "square":
        raise UnsupportedError("f'(0) = 0")
    if f == "relu":
        init.kaiming_normal_(layer, nonlinearity="relu", generator=g)
        return
    init.kumar_normal_(layer, _theory(f), generator=g)


def _second_moment(layer: nn.Module, f: str, position: Position, g: torch.Generator) -> None:
    if position == "hidden":
        init.kaiming_normal_(layer, nonlinearity=_theory(f), generator=g)
    else:
        init.lecun_normal_(layer, generator=g)


def _centred(layer: nn.Module, f: str, position: Position, g: torch.Generator) -> None:
    init.centred_(layer, _theory(f), generator=g, position=position)


def _orthogonal(layer: nn.Module, f: str, position: Position, g: torch.Generator) -> None:
    init.orthogonal_(layer, generator=g)


def _second_moment_orthogonal(
    layer: nn.Module, f: str, position: Position, g: torch.Generator
) -> None:
    gain = float(fanin.gain(_theory(f))) if position == "hidden" else 1.0
    init.orthogonal_(layer, gain, generator=g)


def _fanin(model: nn.Module, inputs: Tensor, activation: str, seed: int) -> None:
    fanin.init_(model, inputs, seed=seed)


def _lsuv(model: nn.Module, inputs: Tensor, activation: str, seed: int) -> None:
    import lsuv

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        lsuv.lsuv_with_singlebatch(model, inputs, verbose=False)


def _anyinit(
    model: nn.Module, inputs: Tensor, activation: str, seed: int, *, center: bool = False
) -> None:
    import anyinit

    try:
        anyinit.initialize(model, "analytic", inputs, center=center, seed=seed + 1)
    except (ValueError, ArithmeticError) as error:
        raise UnsupportedError(f"AnyInit: {error}") from error


def _scaled_orthogonal(model: nn.Module, inputs: Tensor, activation: str, seed: int) -> None:
    """DKS's own sampler, on transposes: it reads weights as (in, out)."""
    from dks.pytorch.parameter_sampling_functions import scaled_uniform_orthogonal_

    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for layer in layers_of(model):
            layer.weight.copy_(
                scaled_uniform_orthogonal_(layer.weight.transpose(0, 1).clone()).transpose(0, 1)
            )
            nn.init.zeros_(layer.bias)


def _gpt2(model: nn.Module, inputs: Tensor, activation: str, seed: int) -> None:
    """Radford et al. 2019: N(0, 0.02²), the last layer of each branch over sqrt(branches)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        branches = sum(name.endswith(("proj", "down")) for name, _ in model.named_modules())
        for name, module in model.named_modules():
            last = name.endswith(("proj", "down"))
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02 / math.sqrt(branches) if last else 0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)


def normal(v: float, b: float) -> Start:
    """Weights N(0, v / N) and biases N(0, b), as in mean-field theory."""

    def write(layer: nn.Module, f: str, position: Position, g: torch.Generator) -> None:
        init.normal_(layer.weight, 0.0, math.sqrt(v / layer.weight.shape[1]), generator=g)
        init.normal_(layer.bias, 0.0, math.sqrt(b), generator=g)

    return Start(f"weight variance {v}/N, bias variance {b}", _by_layer(write))


KNOWN = {"gelu": "gelu_exact", **{n: n for n in ("relu", "tanh", "sigmoid", "softplus", "elu")}}
"""The activations of the tables that dks takes in torch, and what it calls them."""


@functools.cache
def transformed(name: str, method: str, depth: int) -> Elementwise:
    """DKS's or TAT's own version of an activation for a plain network of this depth.

    Raises:
        UnsupportedError: the package has no such activation, or refuses it.
    """
    from dks.pytorch import activation_transform

    if name not in KNOWN:
        raise UnsupportedError("dks 0.1.2 does not take it in torch")
    asked = "leaky_relu" if name == "relu" and method == "TAT" else KNOWN[name]

    def composed(x: float, local: Callable[[float], float]) -> float:
        for _ in range(depth):
            x = local(x)
        return x

    try:
        found = activation_transform.get_transformed_activations(
            [asked], method=method, subnet_max_func=composed
        )
    except ValueError as error:
        raise UnsupportedError(f"dks 0.1.2: {str(error).partition('.')[0]}") from error
    return cast(Elementwise, found[asked])


STARTS: dict[str, Start] = {
    "fanin": Start("`fanin.init_(model, inputs)`", _fanin),
    "torch default": Start("what `nn.Linear` does by itself"),
    "xavier": Start("Glorot and Bengio, normal", _by_layer(_xavier)),
    "he": Start("He et al., normal, gain of ReLU", _by_layer(_he)),
    "kumar": Start("the paper's rule; He's for ReLU", _by_layer(_kumar)),
    "second moment": Start("E[f²] kept; the same as He's for ReLU", _by_layer(_second_moment)),
    "centred": Start("Var f kept, mean taken out by the bias", _by_layer(_centred)),
    "orthogonal": Start("orthogonal matrices, gain 1", _by_layer(_orthogonal)),
    "second moment, orthogonal": Start(
        "orthogonal, gain of second moment", _by_layer(_second_moment_orthogonal)
    ),
    "lsuv": Start("lsuv 0.3.0 on 256 training images", _lsuv),
    "anyinit": Start("AnyInit 0.4.0, analytic", _anyinit),
    "anyinit, centred": Start(
        "AnyInit 0.4.0, analytic, center=True", functools.partial(_anyinit, center=True)
    ),
    "dks": Start(
        "dks 0.1.2: changed activation, scaled orthogonal", _scaled_orthogonal, transform="DKS"
    ),
    "tat": Start(
        "dks 0.1.2, TAT: changed activation (leaky for ReLU)", _scaled_orthogonal, transform="TAT"
    ),
    "gpt2": Start("GPT-2's recipe", _gpt2),
    "layer norm": Start("torch's defaults, LayerNorm before each activation", norm="layer"),
    "batch norm": Start("torch's defaults, BatchNorm before each activation", norm="batch"),
}


def start(name: str) -> Start:
    """A start by its name; `normal(1.5,0.05)` makes one."""
    if name.startswith("normal("):
        v, b = name.removeprefix("normal(").removesuffix(")").split(",")
        return normal(float(v), float(b))
    return STARTS[name]
