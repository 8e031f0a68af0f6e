"""Every model of the zoo is traced, on meta, and the graph computes what the model computes."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from tests.zoo import Entry, entries
from tests.zoo.replay import call, draw, replay
from torch import nn
from torch.utils._pytree import tree_leaves

from fanin.signal.graph import Graph
from fanin.torch.tracing.trace import _tensors, trace

ENTRIES = entries()
# Every operation of the small models; a new name here is one that transfer rules must know.
_NAMES = """
    _grouped_mm _to_copy _unsafe_view abs adaptive_avg_pool1d adaptive_avg_pool2d add addmm all
    arange avg_pool2d batch_norm cat clone constant_pad_nd convolution cos cumsum div dropout elu
    embedding empty_like eq exp expand floor floor_divide full_like gather ge gelu gru gt hardswish
    histc index index_put layer_norm linear log lstm lt masked_fill matmul max_pool2d mean minimum
    mish mul ne neg permute pow rand relu repeat roll rsqrt scalar_tensor
    scaled_dot_product_attention select sigmoid silu sin slice softmax softplus sort split
    split_with_sizes squeeze stack sub sum tanh topk transpose unsqueeze view where zeros zeros_like
"""
OPERATIONS = frozenset(_NAMES.split())
# Perceptrons differ in their activation alone: two are enough where the activation does not matter.
DISTINCT = [
    e
    for e in ENTRIES
    if not e.name.startswith("MLP ") or e.name in ("MLP relu", "MLP mish by hand")
]


@functools.cache
def graph_on_meta(entry: Entry) -> tuple[nn.Module, Graph]:
    with torch.device("meta"):
        model = entry.build(True)
    return model, trace(model, entry.inputs(True))


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)
def test_on_meta_every_parameter_is_read(entry: Entry) -> None:
    model, graph = graph_on_meta(entry)
    names = {name for p in graph.parameters for name in p.names}
    tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers())
    assert names == {name for name, _ in tensors}
    assert [p.name for p in graph.parameters if p.kind == "parameter" and p.value is None] == []
    assert {n.name for n in graph.nodes} <= OPERATIONS
    assert all(graph.module(n.path) is not None for n in graph.nodes)


@pytest.mark.parametrize("entry", DISTINCT, ids=lambda e: e.name)
def test_the_graph_computes_what_the_model_computes(entry: Entry) -> None:
    torch.manual_seed(0)
    model = entry.build(True).eval()
    inputs = draw(entry.inputs(True))
    graph = trace(model, entry.inputs(True))
    arrays = replay(graph, model, inputs)
    wanted = list(_tensors(call(model, inputs)))
    assert len(wanted) == len(graph.outputs)
    for index, tensor in zip(graph.outputs, wanted, strict=True):
        # The graph runs in float64, the model in float32.
        error = np.abs(arrays[index] - tensor.numpy()).max() / np.abs(tensor.numpy()).max()
        assert error < 2e-6


@pytest.mark.parametrize("entry", DISTINCT, ids=lambda e: e.name)
def test_the_model_and_the_generators_are_untouched(entry: Entry) -> None:
    torch.manual_seed(1)
    model = entry.build(True).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    objects = [dict(m.__dict__) for m in model.modules()]
    hooks = [{k: list(v) for k, v in d.items() if "hooks" in k} for d in objects]
    state, inputs = torch.get_rng_state(), draw(entry.inputs(True))
    copies = [t.clone() for t in tree_leaves(inputs)]
    trace(model, inputs)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(map(torch.equal, copies, tree_leaves(inputs)))
    assert all(m.training for m in model.modules())
    after = [dict(m.__dict__) for m in model.modules()]
    assert all(a.keys() == b.keys() for a, b in zip(objects, after, strict=True))
    assert all(a[k] is b[k] for a, b in zip(objects, after, strict=True) for k in a)
    assert hooks == [{k: list(v) for k, v in d.items() if "hooks" in k} for d in after]
    assert all(p.grad is None for p in model.parameters())


def test_all_listed_operations_occur() -> None:
    assert {n.name for e in ENTRIES for n in graph_on_meta(e)[1].nodes} == OPERATIONS
