"""The graph as a value: navigation, text, and the way through JSON."""

from __future__ import annotations

import dataclasses
import json

import pytest
from torch import nn

import fanin
from fanin.errors import ArgumentError, ArgumentTypeError
from fanin.signal.graph import Graph, Ref, from_dict, refs, to_dict
from fanin.signal.spec import Spec
from fanin.torch.tracing.trace import trace


@pytest.fixture(scope="module")
def graph() -> Graph:
    attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return trace(
        nn.Sequential(nn.Embedding(10, 8), attention), fanin.spec((2, 3), "int64", high=10)
    )


def test_nodes_run_in_order_and_name_their_values(graph: Graph) -> None:
    made: set[int] = {v.index for v in graph.values if v.producer is None}
    for node, operands, results in graph.walk():
        assert node is graph.nodes[node.index]
        assert {v.index for v in operands} <= made
        assert [v.producer for v in results] == [node.index] * len(results)
        assert [v.position for v in results] == list(range(len(results)))
        assert node.inputs == tuple(refs(node.args))
        made |= {v.index for v in results}
    assert all(value is graph.values[value.index] for value in graph.values)


def test_producers_consumers_and_origins_agree(graph: Graph) -> None:
    for value in graph.values:
        for node in graph.consumers(value):
            assert value.index in node.inputs
        producer = graph.producer(value)
        assert (producer is None) == (value.kind != "produced")
        origin = graph.producer(graph.origin(value))
        assert origin is None or not origin.view
    attention = next(n for n in graph.nodes if n.name == "scaled_dot_product_attention")
    assert graph.origin(attention["query"]) == graph.origin(Ref(attention["key"].value))
    assert graph.producer(graph.origin(attention["query"])).name == "linear"


def test_parameters_by_name_and_by_value(graph: Graph) -> None:
    weight = graph.parameter("0.weight")
    assert weight is not None
    assert graph.parameter(graph.nodes[0]["weight"]) is weight
    assert graph.parameter(graph.outputs[0]) is None
    assert graph.parameter("none") is None
    assert graph.module("1.self_attn").kind.endswith("MultiheadAttention")


def test_text_has_a_line_for_each_leaf_and_operation(graph: Graph) -> None:
    lines = str(dataclasses.replace(graph, notes=("a note",))).splitlines()
    leaves = [v for v in graph.values if v.producer is None]
    assert len(lines) == len(leaves) + len(graph.nodes) + 2
    assert lines[0] == "%0: int64[2, 3]  # input input"
    assert lines[-1] == "# note: a note"
    embedding = "aten.embedding.default(weight=%1, indices=%0, padding_idx=-1, "
    assert str(graph.nodes[0]) == (f"%2 = {embedding}scale_grad_by_freq=False, sparse=False)  # 0")


def test_json_and_back(graph: Graph) -> None:
    again = from_dict(json.loads(json.dumps(to_dict(graph))))
    assert again == graph
    assert str(again) == str(graph)
    assert again.nodes[0].kernel is None
    with pytest.raises(ArgumentError) as caught:
        from_dict({"format": "other"})
    assert str(caught.value) == "from_dict(content): expected format fanin.graph/1, got 'other'"


def test_spec() -> None:
    import numpy as np
    import torch

    assert fanin.spec([2, 3]) == Spec((2, 3), "float32", 2)
    assert fanin.spec(torch.Size([2]), torch.bfloat16).dtype == "bfloat16"
    assert fanin.spec((2,), np.int64, high=5).dtype == "int64"
    assert str(fanin.spec((2,), "bool")) == "bool[2] of uniform on 0..1"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            (8,),
            ArgumentTypeError,
            "spec(shape): expected a sequence of whole numbers, got 8; "
            "write spec((batch, features))",
        ),
        (
            ((2.0, 3),),
            ArgumentTypeError,
            "spec(shape): expected a sequence of whole numbers, got (2.0, 3); "
            "write spec((batch, features))",
        ),
        (((2, 0),), ArgumentError, "spec(shape): expected sizes of at least 1, got (2, 0)"),
        (
            ((2,), "text"),
            ArgumentError,
            "spec(dtype): expected one of float64, float32, float16, bfloat16, int64, int32, "
            "int16, int8, uint8, bool, got 'text'",
        ),
    ],
)
def test_wrong_specs(arguments: tuple[object, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        fanin.spec(*arguments)
    assert str(caught.value) == message


def test_high_is_at_least_one() -> None:
    with pytest.raises(ArgumentError, match="expected a whole number of at least 1, got 0"):
        fanin.spec((2,), "int64", high=0)
