"""What a layer can do about the mean of what it reads: by its bias, or by weights of zero sum."""

from __future__ import annotations

import math

from fanin.planning.roles import Scene, Weight


def lacks_bias(weight: Weight, scene: Scene, *, head: bool = False) -> bool:
    """Whether a weight of a stretch has no bias of its own; a head can do without."""
    return (head or weight.role != "head") and weight.path not in scene.biases


def can_sum_to_zero(weight: Weight) -> bool:
    """Whether a unit reads enough channels for its weights to sum to zero at every tap."""
    words = weight.fans.axes.split()
    sizes = [n for n, word in zip(weight.shape, words, strict=True) if word == "in"]
    groups = weight.fans.groups if words[0] == "in" else 1
    return math.prod(sizes) // groups > 1


def misses_taps(weight: Weight) -> bool:
    """Whether some outputs see fewer taps than others, so that no bias takes one mean out of all.

    So it is where zeros are padded to what an activation made, and with transposed convolutions.
    """
    assert weight.use is not None
    node = weight.use.node
    source = weight.source
    behind = source is not None and (source.function is not None or source.before == "other")
    if node.name != "convolution" or not behind:
        return False
    return bool((node["transposed"] and math.prod(weight.shape[2:]) > 1) or any(node["padding"]))
