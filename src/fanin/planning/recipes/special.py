"""Recipes for one kind of network or of use: SIREN, muP, LoRA, PPO, LSTM."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from fanin import draw
from fanin.errors import ArgumentError, ArgumentTypeError, NotCoveredError, PlanError
from fanin.planning.choice import Choice, normal, uniform
from fanin.planning.names import near
from fanin.planning.recipes.base import Recipe, zeros
from fanin.planning.roles import Scene, Weight
from fanin.planning.ruled import Activations, recurrent_bias


@dataclass(frozen=True)
class Siren(Recipe):
    """sin(w0 (W x + b)): the first layer U(+-1/n), the others U(+-sqrt(6/n)/w0), biases 0.

    The inputs lie in [-1, 1]. Biases are 0, not the framework's default of the published code,
    since that adds w0^2/(3n) to the unit variance of w0 times a pre-activation.

    Args:
        w0: 30.
    """

    w0: float = 30.0
    label: ClassVar[str] = "siren"
    citation: ClassVar[str] = "Sitzmann et al. 2020 (arXiv:2006.09661), section 3.2, theorem 1.8"

    def choose(self, weight: Weight, scene: Scene) -> Choice | None:
        """As the class says."""
        if not weight.is_matrix:
            return None
        n = weight.fans.fan_in
        assert weight.source is not None
        if weight.source.before == "input":
            return self.draws(draw.Uniform(-1 / n, 1 / n), "first layer, U(+-1/n)")
        bound = math.sqrt(6 / n) / self.w0
        return self.draws(draw.Uniform(-bound, bound), f"U(+-sqrt(6/n)/{self.w0:g})")


@dataclass(frozen=True)
class MuP(Recipe):
    """Maximal update parametrization by variances and learning rates alone.

    With r_in and r_out the widths' ratios to a base model, weights that grow in both axes have
    variance gain^2/fan_in and a rate 1/r_in (Adam) or 1 (SGD). Weights that read what does not
    grow have variance gain^2/fan_in and a rate 1 or r_out, weights whose outputs do not grow have
    variance gain^2/(fan_in r_in) and a rate 1/r_in. Biases start at 0 and have a rate 1 or r_out.
    At the base widths it is the standard parametrization. Attention logits must be scaled by 1/d
    instead of 1/sqrt(d) in the model itself.

    Args:
        base: the base model (it may be on meta), or its shapes by parameter name.
        optimizer: "adam" or "sgd"; rates are `Plan.lr_multipliers`.
        gain: of all matrices, 1.
    """

    base: Any = None
    optimizer: Literal["adam", "sgd"] = "adam"
    gain: float = 1.0
    label: ClassVar[str] = "mup"
    citation: ClassVar[str] = "Yang et al. 2021 (arXiv:2203.03466), table 3"

    def __post_init__(self) -> None:
        """The base model becomes its shapes."""
        if self.optimizer not in ("adam", "sgd"):
            raise ArgumentError("mup(optimizer)", expected="'adam' or 'sgd'", got=self.optimizer)
        object.__setattr__(self, "base", _shapes(self.base))

    def choose(self, weight: Weight, scene: Scene) -> Choice | None:
        """As the class says."""
        if weight.tied:
            raise NotCoveredError(
                f"mup({weight.path})",
                expected="a head of its own",
                got="a head that is also the embedding",
                fix="untie it; a tied head needs a factor in the model",
            )
        ratios = self._ratios(weight)
        if weight.role in ("bias", "norm scale", "norm shift") and len(weight.shape) == 1:
            lr = 1.0 if self.optimizer == "adam" else ratios[0]
            value = 1.0 if weight.role == "norm scale" else 0.0
            return self.draws(draw.Constant(value), "grows with its layer", lr=lr)
        if weight.role in ("embedding", "position"):
            lr = 1.0 if self.optimizer == "adam" else ratios[-1]
            return self.draws(normal(1.0), "rows do not grow in number", lr=lr)
        if not weight.is_matrix:
            return None
        return self._matrix(weight, ratios)

    def _matrix(self, weight: Weight, ratios: tuple[float, ...]) -> Choice:
        """The case by which axes grow."""
        words = weight.fans.axes.split()
        r_in, r_out = (
            math.prod(r for r, w in zip(ratios, words, strict=True) if w == side)
            for side in ("in", "out")
        )
        std = self.gain / math.sqrt(weight.fans.fan_in)
        adam = self.optimizer == "adam"
        if r_in == r_out == 1:
            return self.draws(normal(std), "as wide as in the base model")
        if r_in == 1:
            return self.draws(normal(std), "reads a fixed width", lr=1.0 if adam else r_out)
        if r_out == 1:
            return self.draws(normal(std / math.sqrt(r_in)), "fixed outputs", lr=1 / r_in)
        return self.draws(normal(std), "grows in both widths", lr=1 / r_in if adam else 1.0)

    def _ratios(self, weight: Weight) -> tuple[float, ...]:
        """The ratio of each axis to the base model's."""
        shape = next((self.base[n] for n in weight.names if n in self.base), None)
        if shape is None or len(shape) != len(weight.shape):
            raise PlanError(
                f"mup(base): {weight.path}",
                expected=f"a parameter of {len(weight.shape)} axes in the base model",
                got="none" if shape is None else f"shape {tuple(shape)}",
                fix=near(weight.path, self.base) if shape is None else None,
            )
        return tuple(n / m for n, m in zip(weight.shape, shape, strict=True))


def _shapes(base: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of a base model by all its names."""
    if isinstance(base, Mapping):
        return {str(name): tuple(shape) for name, shape in base.items()}
    if hasattr(base, "named_parameters"):
        return {n: tuple(p.shape) for n, p in base.named_parameters(remove_duplicate=False)}
    raise ArgumentTypeError(
        "mup(base)",
        expected="a model of the base widths, or its shapes by name",
        got=repr(base),
        fix="build the same model narrower, on meta, and pass it",
    )


@dataclass(frozen=True)
class LoRA(Recipe):
    """A uniform as the framework's linear layers, B zero, so that the adapter starts at nothing."""

    label: ClassVar[str] = "lora"
    citation: ClassVar[str] = "Hu et al. 2021 (arXiv:2106.09685), section 4.1, and its public code"

    def choose(self, weight: Weight, scene: Scene) -> Choice | None:
        """By the adapter's names, lora_A and lora_B; the rest is left alone."""
        names = weight.path.split(".")
        if any(n.startswith("lora_B") for n in names):
            return self.draws(zeros(), "B starts at 0")
        if any(n.startswith("lora_A") for n in names) and weight.use is not None:
            std = 1.0 / math.sqrt(3 * weight.fans.fan_in)
            return self.draws(uniform(std), "A: U(+-1/sqrt(fan_in))")
        if any(n.startswith("lora_embedding_A") for n in names):
            return self.draws(zeros(), "A of a table starts at 0")
        if any(n.startswith("lora_embedding_B") for n in names):
            return self.draws(normal(1.0), "B of a table")
        return Choice("left alone", "no part of an adapter")


@dataclass(frozen=True)
class PPO(Recipe):
    """Orthogonal: hidden layers with the gain of their activation, heads 0.01 or 1; biases 0.

    A head with one output is a value, others are policies.

    Args:
        policy: gain of policy heads, 0.01.
        value: gain of value heads, 1.
    """

    policy: float = 0.01
    value: float = 1.0
    label: ClassVar[str] = "ppo"
    citation: ClassVar[str] = "Engstrom et al. 2020; Andrychowicz et al. 2021 (arXiv:2006.05990)"

    def choose(self, weight: Weight, scene: Scene) -> Choice | None:
        """As the class says."""
        if not weight.is_matrix:
            return None
        if weight.role == "head":
            single = weight.fans.fan_out == 1
            gain = self.value if single else self.policy
            return self.draws(draw.Orthogonal(gain), "value head" if single else "policy head")
        after = [scene.weights[p].source for p in scene.by_stretch.get(weight.path, ())]
        functions = [s.function for s in after if s is not None and s.function is not None]
        if not functions:
            return self.draws(draw.Orthogonal(1.0), "no activation behind it")
        rule = Activations().rule("second_moment", functions[0])
        gain = math.sqrt(rule.weight_variance_times_fan_in)
        return self.draws(draw.Orthogonal(gain), f"gain of {rule.activation}")


@dataclass(frozen=True)
class LSTM(Recipe):
    """Xavier uniform from the input and orthogonal from the state, gate by gate; forget gate 1."""

    label: ClassVar[str] = "lstm"
    citation: ClassVar[str] = "Jozefowicz et al. 2015; Saxe et al. 2013; Keras' defaults"

    def choose(self, weight: Weight, scene: Scene) -> Choice | None:
        """As the class says."""
        use = weight.use
        if weight.role == "recurrent" and use is not None:
            if use.hidden:
                return self.draws(draw.Orthogonal(1.0, groups=use.gates), "each gate orthogonal")
            part = weight.fans.parts[0]
            std = math.sqrt(2.0 / (part.fan_in + part.fan_out))
            return self.draws(uniform(std), "Xavier uniform, each gate")
        if weight.role == "bias" and use is not None and use.gates > 1:
            return recurrent_bias(weight)
        if weight.is_matrix:
            std = math.sqrt(2.0 / (weight.fans.fan_in + weight.fans.fan_out))
            return self.draws(uniform(std), "Xavier uniform")
        return None
