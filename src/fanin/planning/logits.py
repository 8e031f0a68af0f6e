"""How large an attention's logits become, and how large queries and keys should be for that."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fanin.planning.roles import Scene, Weight

if TYPE_CHECKING:
    from fanin.planning.flow import Flow
    from fanin.signal.compound import Attention
    from fanin.signal.graph import Node

LOGITS = 1 / 16
"""Variance of the logits of an attention: its rows start near averages over all positions. What a
row attends to before training is an accident, which costs a small GPT a tenth of what it learns
(docs/theory.md, "Logits")."""


def attended(weight: Weight, scene: Scene) -> tuple[float, str] | None:
    """The second moment of queries and keys, and why; None for weights that make neither.

    *Definition*: independent queries and keys of variance v have logits of variance v² g, with g
    that of `per_unit`; v = (LOGITS/g)^(1/2). Values that share a matrix with them are as large.
    """
    if weight.role not in ("query", "key", "query key value"):
        return None
    found = [
        size
        for attention in scene.flow.attentions.values()
        if weight.path in _readers(scene.flow, attention)
        and (size := per_unit(scene.flow, attention)) is not None
    ]
    if not found:
        return None
    return math.sqrt(LOGITS / max(found)), f"; for logits of variance {LOGITS:g}"


def per_unit(flow: Flow, attention: Attention) -> float | None:
    """Variance of an attention's logits for queries and keys of variance 1.

    *Definition*: D c², with D their number of channels and c the product of the constants by which
    queries, keys and logits are multiplied.

    Returns:
        None where queries or keys are normalised, whose size is not that of their weights.
    """
    query, key, _ = flow.heads.operands(attention)
    width = flow.graph.values[query].shape[-1]
    before = [_factor_before(flow, index) for index in (query, key)]
    if None in before:
        return None
    scale = math.prod(c for c in before if c is not None) * _scale(flow, attention, width)
    return width * scale**2 or None


def _readers(flow: Flow, attention: Attention) -> set[str]:
    """The weights that make an attention's queries and keys."""
    query, key, _ = flow.heads.operands(attention)
    return {path for index in (query, key) for path, _, _ in flow.heads.feeding(index)}


def _scale(flow: Flow, attention: Attention, width: int) -> float:
    """The constant between the product of queries and keys and the softmax."""
    nodes = [flow.graph.nodes[i] for i in attention.nodes]
    if len(nodes) == 1:
        scale = nodes[0].get("scale")
        return width**-0.5 if scale is None else float(scale)
    product = [n for n in nodes[:-1] if n.name in ("matmul", "bmm", "baddbmm")][-1]
    alpha = product.get("alpha")
    factor = 1.0 if alpha is None else float(alpha)
    index, inside = product.outputs[0], set(attention.nodes)
    while (node := _only_step(flow, index, inside)) is not None:
        factor *= flow.factor_after(index)
        index = node.outputs[0]
    return factor


def _only_step(flow: Flow, index: int, inside: set[int]) -> Node | None:
    """The operation that takes logits on, if it changes no more than their size and bias."""
    readers = [n for n in flow.graph.consumers(index) if n.index in inside]
    if len(readers) != 1:
        return None
    node = readers[0]
    return node if node.view or node.name in ("mul", "div", "add") else None


def _factor_before(flow: Flow, index: int) -> float | None:
    """The constant by which queries or keys were multiplied; None where a norm made them."""
    factor = 1.0
    while index not in flow.matrices:
        if index in flow.norms:
            return None
        node = flow.graph.producer(index)
        operands = flow.data(node) if node is not None else []
        if node is None or not operands:
            break
        before = max(operands, key=lambda i: flow.graph.values[i].size)
        if node.name in ("mul", "div") and len(operands) == 1:
            factor *= flow.factor_after(before)
        index = before
    return factor
