"""Runs a traced graph on arrays, operation by operation: what a right trace must reproduce."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from fanin.signal.graph import Graph
from fanin.signal.spec import Spec


def draw(inputs: Any, seed: int = 0) -> Any:
    """The inputs with a drawn tensor in place of each spec."""
    generator = torch.Generator().manual_seed(seed)

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, Spec):
            return leaf
        if leaf.floating:
            return torch.randn(leaf.shape, generator=generator)
        return torch.randint(leaf.high, leaf.shape, generator=generator)

    return tree_map(one, inputs)


def call(model: nn.Module, inputs: Any) -> Any:
    """The model on inputs as a trace takes them."""
    with torch.no_grad():
        if isinstance(inputs, dict):
            return model(**inputs)
        return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def replay(graph: Graph, model: nn.Module, inputs: Any) -> dict[int, np.ndarray]:
    """All values of the graph, by index, from the model's weights and these inputs."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    given = dict(zip(graph.inputs, tree_leaves(inputs), strict=True))
    arrays: dict[int, np.ndarray] = {}
    for value in graph.values:
        if value.kind == "input":
            arrays[value.index] = given[value.index].numpy()
        elif value.kind in ("parameter", "buffer"):
            arrays[value.index] = tensors[value.name].detach().numpy()
        elif value.kind == "constant":
            assert value.data is not None, value
            arrays[value.index] = value.data
    for node in graph.nodes:
        assert node.kernel is not None
        results = node.kernel(*(arrays[i] for i in node.inputs))
        for index, result in zip(node.outputs, results, strict=True):
            assert result.shape == graph.values[index].shape, node
            arrays[index] = result
    return arrays
