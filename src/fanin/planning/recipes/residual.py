"""Recipes that make residual networks trainable at any depth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from fanin.planning.choice import Choice, normal, uniform
from fanin.planning.recipes.base import Recipe, xavier, zeros
from fanin.planning.roles import Scene, Weight


def _he_fan_out(weight: Weight) -> float:
    """sqrt(2 / (outputs * taps)), the count of the published code: strides and groups aside."""
    words = weight.fans.axes.split()
    sizes = [n for n, w in zip(weight.shape, words, strict=True) if w in ("out", "tap")]
    return math.sqrt(2.0 / math.prod(sizes))


@dataclass(frozen=True)
class ResNet(Recipe):
    """He et al.'s normal by fan_out for convolutions; norms at 1 and 0; the head uniform.

    Args:
        zero_last_norm: whether the norm that ends each branch starts at 0.
    """

    zero_last_norm: bool = False
    label: ClassVar[str] = "resnet"
    citation: ClassVar[str] = (
        "He et al. 2015 (arXiv:1502.01852), 2016; Goyal et al. 2017, section 5.1; torchvision"
    )

    def choose(self, weight: Weight, scene: Scene) -> Choice | None:
        """As the class says."""
        if weight.role == "norm scale" and self.zero_last_norm and _ends_branch(weight, scene):
            return self.draws(zeros(), "the norm that ends a branch")
        if weight.role == "head" and len(weight.shape) == 2:
            std = 1.0 / math.sqrt(3 * weight.fans.fan_in)
            return self.draws(uniform(std), "U(+-1/sqrt(fan_in))")
        if weight.is_matrix and len(weight.shape) > 2:
            return self.draws(normal(_he_fan_out(weight)), "sqrt(2/(outputs taps))")
        if weight.is_matrix:
            return self.draws(normal(math.sqrt(2 / weight.fans.fan_in)), "sqrt(2/fan_in)")
        return None


def _ends_branch(weight: Weight, scene: Scene) -> bool:
    """Whether a norm's result is the branch of a residual sum."""
    assert weight.use is not None
    origin = scene.graph.origin
    ends = {origin(join.branch).index for join in scene.flow.streams.joins}
    return origin(weight.use.output).index in ends


@dataclass(frozen=True)
class DeepNorm(Recipe):
    """Xavier normal; values, attention outputs and MLPs times beta, which the depth decides.

    Encoder of N layers, or decoder of N: beta = (8N)^(-1/4); encoder-decoder: 0.87 (N^4 M)^(-1/16)
    in the encoder and (12M)^(-1/4) in the decoder. The model multiplies its skips by alpha itself:
    (2N)^(1/4), or 0.81 (N^4 M)^(1/16) and (3M)^(1/4).
    """

    label: ClassVar[str] = "deepnorm"
    citation: ClassVar[str] = "Wang et al. 2022 (arXiv:2203.00555), figure 2"

    def choose(self, weight: Weight, scene: Scene) -> Choice | None:
        """As the class says."""
        if weight.role == "embedding":
            return self.draws(normal(weight.shape[-1] ** -0.5), "d^(-1/2)")
        if not weight.is_matrix:
            return None
        beta = self._beta(weight, scene)
        gains = {"query": 1.0, "key": 1.0, "value": beta, "other": beta}
        if weight.role in ("query", "key") or weight.join is None:
            return self.draws(xavier(weight), "Xavier")
        if weight.role == "query key value":
            return self.draws(xavier(weight, gains), f"Xavier; values times {beta:.4g}")
        return self.draws(xavier(weight, beta), f"Xavier times {beta:.4g}")

    def _beta(self, weight: Weight, scene: Scene) -> float:
        """The factor of the stream in which a weight stands."""
        if weight.join is None:
            return 1.0
        encoder, decoder = layers_of(scene)
        if encoder and decoder:
            if reads_another_stream(scene, weight.join.stream):
                return float((12 * decoder) ** -0.25)
            return 0.87 * float((encoder**4 * decoder) ** (-1 / 16))
        return float((8 * (encoder + decoder)) ** -0.25)


@dataclass(frozen=True)
class TFixup(Recipe):
    """Xavier; embeddings d^(-1/2); values, attention outputs and MLPs scaled by depth, no norms.

    Encoder: 0.67 N^(-1/4) on values, outputs and MLPs. Decoder: (9N)^(-1/4) on these and on the
    embeddings.
    """

    label: ClassVar[str] = "t_fixup"
    citation: ClassVar[str] = "Huang et al. 2020, section 3.2, and its public code"

    def choose(self, weight: Weight, scene: Scene) -> Choice | None:
        """As the class says."""
        encoder, decoder = layers_of(scene)
        if weight.role == "embedding" or weight.tied:
            factor = (9 * decoder) ** -0.25 if decoder else 0.67 * encoder**-0.25
            reason = f"d^(-1/2) times {factor:.4g}"
            return self.draws(normal(factor * weight.shape[-1] ** -0.5), reason)
        if not weight.is_matrix:
            return None
        if weight.join is None or weight.role in ("query", "key"):
            return self.draws(xavier(weight), "Xavier")
        in_decoder = reads_another_stream(scene, weight.join.stream) or not encoder
        factor = (9 * decoder) ** -0.25 if in_decoder else 0.67 * encoder**-0.25
        if weight.role == "query key value":
            gains = {"query": 1.0, "key": 1.0, "value": factor, "other": factor}
            return self.draws(xavier(weight, gains), f"Xavier; values times {factor:.4g}")
        return self.draws(xavier(weight, factor), f"Xavier times {factor:.4g}")


def layers_of(scene: Scene) -> tuple[int, int]:
    """Layers of the encoder and of the decoder; a stream alone is a decoder if it is causal."""
    streams = sorted({join.stream for join in scene.flow.streams.joins})
    if not streams:
        return 0, 0
    crossing = [s for s in streams if reads_another_stream(scene, s)]
    if crossing:
        encoder = sum(scene.flow.streams.branches(s) // 2 for s in streams if s not in crossing)
        return encoder, sum(scene.flow.streams.branches(s) // 3 for s in crossing)
    layers = sum(scene.flow.streams.branches(s) // 2 for s in streams)
    nodes = (scene.graph.nodes[a.nodes[-1]] for a in scene.flow.attentions.values())
    causal = any(bool(node.get("is_causal")) for node in nodes)
    return (0, layers) if causal else (layers, 0)


def reads_another_stream(scene: Scene, stream: int) -> bool:
    """Whether a stream depends on the sums of another one without being built on them."""
    joins = [join for join in scene.flow.streams.joins if join.stream == stream]
    others = [join.node.outputs[0] for join in scene.flow.streams.joins if join.stream != stream]
    start = scene.flow.ancestors[joins[0].start]
    end = scene.flow.ancestors[joins[-1].node.outputs[0]]
    return any(end >> i & 1 and not start >> i & 1 for i in others)


@dataclass(frozen=True)
class Fixup(Recipe):
    """He's normal; in branches of m layers times L^(-1/(2m-2)), their last layer and the head 0.

    The scalar multipliers (1) and biases (0) that the scheme adds are the model's own.
    """

    label: ClassVar[str] = "fixup"
    citation: ClassVar[str] = "Zhang et al. 2019 (arXiv:1901.09321), section 3, and its public code"

    def choose(self, weight: Weight, scene: Scene) -> Choice | None:
        """As the class says."""
        if not weight.is_matrix:
            return None
        if weight.role == "branch end":
            return self.draws(zeros(), "the last layer of a branch")
        if weight.role == "head":
            return self.draws(zeros(), "the classifier")
        std = _he_fan_out(weight)
        if weight.join is None or weight.inside < 2:
            return self.draws(normal(std), "He, outside of branches")
        m, depth = weight.inside, weight.branches
        factor = depth ** (-1.0 / (2 * m - 2))
        return self.draws(normal(std * factor), f"He times {depth}^(-1/{2 * m - 2})")


@dataclass(frozen=True)
class ReZero(Recipe):
    """The scale of each residual branch starts at 0; matrices Xavier uniform."""

    label: ClassVar[str] = "rezero"
    citation: ClassVar[str] = "Bachlechner et al. 2020 (arXiv:2003.04887), equation 2"

    def choose(self, weight: Weight, scene: Scene) -> Choice | None:
        """As the class says."""
        if weight.role == "gate" and weight.scaled_branch:
            return self.draws(zeros(), "the scale of a residual branch")
        if weight.is_matrix:
            values = xavier(weight)
            return self.draws(uniform(values.std), "Xavier uniform")  # type: ignore[union-attr]
        return None
