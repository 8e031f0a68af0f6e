"""Recipes of language and vision transformers as their code publishes them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from fanin import draw
from fanin.planning.choice import Choice, normal
from fanin.planning.recipes.base import Recipe, zeros
from fanin.planning.roles import Scene, Weight

_TABLES = ("embedding", "position", "logit bias")


@dataclass(frozen=True)
class GPT2(Recipe):
    """N(0, 0.02^2); the last projection of each of the 2L branches std 0.02 / sqrt(2L); biases 0.

    Args:
        std: 0.02.
    """

    std: float = 0.02
    label: ClassVar[str] = "gpt2"
    citation: ClassVar[str] = "Radford et al. 2019, section 2.3, and the public code of GPT-2"

    def choose(self, weight: Weight, scene: Scene) -> Choice | None:
        """As the class says."""
        if weight.role == "branch end":
            n = weight.branches
            return self.draws(normal(self.std / math.sqrt(n)), f"{self.std:g}/sqrt({n}), once")
        if weight.is_matrix or weight.role in _TABLES:
            return self.draws(normal(self.std), f"std {self.std:g}")
        return None


@dataclass(frozen=True)
class Llama(Recipe):
    """N(0, 0.02^2); in block l = 0, 1, ... the branch ends std 0.02 / sqrt(2 (l + 1)).

    The tokens' embedding is N(0, 1), the head truncated at 3 sigma with std d^(-1/2), or of 0.02 if
    it is also the embedding. The gate and the up projection carry no depth factor: only the last
    projection ends in the residual stream.

    Args:
        std: 0.02.
    """

    std: float = 0.02
    label: ClassVar[str] = "llama"
    citation: ClassVar[str] = "the public Llama 3 code of torchtitan, without its factor on w3"

    def choose(self, weight: Weight, scene: Scene) -> Choice | None:
        """As the class says."""
        if weight.tied:
            return self.draws(normal(self.std), "embedding and head in one")
        if weight.role == "embedding":
            return self.draws(normal(1.0), "unit rows")
        if weight.role == "head":
            std = weight.fans.fan_in**-0.5
            return self.draws(draw.TruncatedNormal(0.0, std, 3.0), "1/sqrt(d), cut at 3 sigma")
        if weight.role == "branch end":
            layer = weight.block // 2
            std = self.std / math.sqrt(2 * (layer + 1))
            return self.draws(normal(std), f"{self.std:g}/sqrt(2*{layer + 1})")
        if weight.is_matrix or weight.role in _TABLES:
            return self.draws(normal(self.std), f"std {self.std:g}")
        return None


@dataclass(frozen=True)
class T5(Recipe):
    """Each weight by the size of what it reads, queries by the head's size too; no biases.

    std: shared embedding 1; query (d_model d_kv)^(-1/2); key, value and the MLP's first matrices
    d_model^(-1/2); attention output (heads d_kv)^(-1/2); the MLP's last d_ff^(-1/2); the relative
    position table d_model^(-1/2).

    Args:
        factor: on all of them, 1.
    """

    factor: float = 1.0
    label: ClassVar[str] = "t5"
    citation: ClassVar[str] = "Raffel et al. 2020, and the public code of T5 (Mesh TensorFlow)"

    def choose(self, weight: Weight, scene: Scene) -> Choice | None:
        """As the class says."""
        if weight.tied or weight.role == "embedding":
            return self.draws(normal(self.factor), "shared embedding")
        if weight.role == "head":
            return self.draws(normal(self.factor), "a head of its own, as the embedding")
        if weight.role == "logit bias":
            width = _model_width(scene)
            return self.draws(normal(self.factor * width**-0.5), f"{width:g}^(-1/2)")
        if weight.role == "query":
            heads = weight.projections[0].width
            std = (weight.fans.fan_in * heads) ** -0.5
            return self.draws(normal(self.factor * std), f"(d_model {heads})^(-1/2)")
        if weight.is_matrix:
            return self.draws(normal(self.factor * weight.fans.fan_in**-0.5), "fan_in^(-1/2)")
        return None


def _model_width(scene: Scene) -> float:
    """The width of the residual stream."""
    found = [w for w in scene.weights.values() if w.role == "embedding" or w.tied]
    return float(found[0].shape[-1]) if found else 1.0


@dataclass(frozen=True)
class ViT(Recipe):
    """N(0, 0.02^2) for every matrix, the patches, the class token and the positions; biases 0.

    The published code cuts at +-2, which is 100 sigma and never happens.

    Args:
        std: 0.02.
        zero_head: whether the head starts at 0, as in fine-tuning.
    """

    std: float = 0.02
    zero_head: bool = False
    label: ClassVar[str] = "vit"
    citation: ClassVar[str] = "Dosovitskiy et al. 2021; Touvron et al. 2021 (DeiT), public code"

    def choose(self, weight: Weight, scene: Scene) -> Choice | None:
        """As the class says."""
        if weight.role == "head" and self.zero_head:
            return self.draws(zeros(), "a zero head")
        if weight.is_matrix or weight.role in _TABLES:
            return self.draws(normal(self.std), f"std {self.std:g}")
        return None
