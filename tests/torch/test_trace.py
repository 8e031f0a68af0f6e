"""Traces: what is recorded, what is left untouched, and what is said where tracing fails."""

from __future__ import annotations

import dataclasses
import random
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.zoo.replay import call, replay
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import fanin
from fanin.errors import ArgumentTypeError, TraceError
from fanin.signal.graph import Graph
from fanin.torch.tracing.trace import trace

X = torch.linspace(-2, 2, 32).reshape(4, 8)


class Made(nn.Module):
    """Two linear layers and a forward written in the test."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.written = forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.written(self, *args, **kwargs)


def ops(graph: Graph) -> list[str]:
    return [n.name for n in graph.nodes]


def agrees(model: nn.Module, inputs: Any = X) -> Graph:
    """The trace, after checking that it computes what the model computes."""
    graph = trace(model, inputs)
    arrays = replay(graph, model, inputs)
    wanted = call(model, inputs)
    np.testing.assert_allclose(arrays[graph.outputs[0]], wanted.numpy(), rtol=2e-5, atol=2e-6)
    return graph


# -- what is recorded --------------------------------------------------------------------------


def test_nodes_have_paths_arguments_by_name_and_kernels() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, groups=1), nn.ReLU(inplace=True))
    graph = trace(model, fanin.spec((2, 3, 8, 8)))
    convolution, relu = graph.nodes
    assert (convolution.op, convolution.path) == ("aten.convolution.default", "0")
    assert convolution["padding"] == (1, 1)
    assert convolution["transposed"] is False
    assert graph.value(convolution["weight"]).name == "0.weight"
    assert graph.results(convolution)[0].shape == (2, 4, 8, 8)
    assert (relu.op, relu.attrs) == ("aten.relu.default", {"inplace": True})
    assert relu.pointwise
    assert not convolution.pointwise
    x, w, b = (np.ones(graph.values[i].shape) for i in convolution.inputs)
    assert convolution.kernel is not None
    assert convolution.kernel(x, w, b)[0][0, 0, 4, 4] == 28.0
    assert convolution.kernel.vjp([x, w, b], [np.ones((2, 4, 8, 8))])[2].tolist() == [128.0] * 4


def test_shared_modules_and_tied_tensors() -> None:
    def forward(self: Made, x: Tensor) -> Tensor:
        return self.b(self.a(self.a(x)))

    model = Made(forward)
    model.b.weight = model.a.weight
    model.c = model.a
    graph = agrees(model)
    assert [(n.path, n.call) for n in graph.nodes] == [("a", 0), ("a", 1), ("b", 0)]
    weight = graph.parameter("b.weight")
    assert weight is not None
    assert weight.name == "a.weight"
    assert weight.names == ("a.weight", "b.weight", "c.weight")
    assert weight is graph.parameter("c.weight")
    assert len(graph.consumers(weight.value)) == 3
    a = graph.module("c")
    assert a is not None
    assert (a.path, a.calls, a.names) == ("a", 2, ("a", "c"))


def test_two_parameters_on_one_memory_are_tied() -> None:
    model = Made(lambda self, x: self.b(self.a(x)))
    model.b.weight = nn.Parameter(model.a.weight.detach())
    assert trace(model, X).parameter("b.weight").names == ("a.weight", "b.weight")


def test_unused_parameters_and_modules_are_listed() -> None:
    graph = trace(Made(lambda self, x: self.a(x)), X)
    assert [p.name for p in graph.parameters if p.value is None] == ["b.weight", "b.bias"]
    assert [m.path for m in graph.modules if not m.calls] == ["b"]


def test_writes_in_place_through_views() -> None:
    def forward(self: Made, x: Tensor) -> Tensor:
        h = self.a(x)
        h.unsqueeze_(0).relu_()
        first = h[0]
        first[:, :2] = 0.5
        turned = h.transpose(0, 1)
        turned.mul_(2.0)
        h.view(-1)[16:].add_(1.0)
        h.permute(2, 0, 1)[3].sub_(first.sum(1))
        torch.add(h, 1, out=h)
        h[:, 1] += h[:, 0]
        return self.b(h + first) * turned.diagonal(0, 0, 2).sum()

    graph = agrees(Made(forward))
    assert {"slice_scatter", "select_scatter"} <= set(ops(graph))
    assert not any(n.name.endswith("_") for n in graph.nodes)


def test_a_write_that_cannot_be_undone_is_an_error_that_names_it() -> None:
    def forward(self: Made, x: Tensor) -> Tensor:
        h = self.a(x)
        h.unfold(0, 2, 2).mul_(2.0)
        return h

    with pytest.raises(TraceError, match="write in place through unfold: expected a view whose"):
        trace(Made(forward), X)


def test_content_that_needs_no_weight_is_known() -> None:
    def forward(self: Made, x: Tensor) -> Tensor:
        h = self.a(x)
        mask = torch.zeros(4, 8, device=h.device)
        mask[:, 2:] = 1
        mask = mask * torch.tensor([2.0], device=h.device) * h.new_tensor([1.5])
        if mask.sum() > 10 and bool(mask.any()):
            h = h * mask
        return h[torch.tensor([True, False, True, True])]

    graph = agrees(Made(forward))
    mask = graph.operands(
        next(n for n in graph.nodes if n.name == "mul" and graph.values[n.outputs[0]].varying)
    )[1]
    wanted = np.zeros((4, 8))
    wanted[:, 2:] = 3
    assert mask.data is not None
    assert mask.data.tolist() == wanted.tolist()
    assert not mask.varying
    assert graph.results(graph.nodes[-1])[0].shape == (3, 8)


def test_a_tensor_that_receives_unknown_content_is_unknown() -> None:
    def forward(self: Made, x: Tensor) -> Tensor:
        out = torch.zeros(4, 8)
        out[1:] = self.a(x)[1:]
        out.index_add_(0, torch.tensor([0, 2]), self.b(x)[:2])
        return out

    graph = agrees(Made(forward))
    assert graph.values[graph.outputs[0]].data is None
    assert graph.values[graph.outputs[0]].depends


def test_buffers_keep_their_content_and_count_as_known() -> None:
    model = nn.BatchNorm1d(8)
    graph = trace(model, fanin.spec((4, 8)))
    values = {v.name: v for v in graph.values if v.kind == "buffer"}
    assert values["running_var"].data.tolist() == [1.0] * 8
    assert model.num_batches_tracked == 0
    assert graph.training


def test_random_operations_are_marked_and_draw_nothing() -> None:
    def forward(self: Made, x: Tensor) -> Tensor:
        return F.dropout(self.a(x), 0.5) + torch.rand(4, 8) + torch.empty(4, 8).normal_()

    model = Made(forward)
    state, numbers = torch.get_rng_state(), (random.getstate(), np.random.get_state()[1].tolist())
    graph = trace(model, X)
    assert [n.name for n in graph.nodes if n.random] == ["dropout", "rand", "normal_functional"]
    assert all(graph.values[n.outputs[0]].varying for n in graph.nodes if n.random)
    assert torch.equal(state, torch.get_rng_state())
    assert numbers == (random.getstate(), np.random.get_state()[1].tolist())
    still = trace(Made(lambda self, x: F.dropout(self.a(x), 0.5, training=False)), X)
    assert ops(still) == ["linear"]


# -- inputs and results --------------------------------------------------------------------------

Pair = namedtuple("Pair", "first second")


@dataclasses.dataclass
class Result:
    logits: Tensor
    hidden: tuple[Tensor, ...]
    nothing: None = None


def test_inputs_in_every_form() -> None:
    def names(graph: Graph) -> list[str]:
        return [graph.values[i].name for i in graph.inputs]

    class Named(nn.Linear):
        def forward(self, x: Tensor, extra: Any = None) -> Tensor:  # type: ignore[override]
            return super().forward(x if extra is None else x + extra[0])

    model, s = Named(8, 8), fanin.spec((4, 8))
    assert names(trace(model, s)) == ["x"]
    assert names(trace(model, (X, [s]))) == ["x", "extra.0"]
    assert names(trace(model, {"x": s, "extra": (X, s)})) == ["x", "extra.0", "extra.1"]
    assert names(trace(nn.Sequential(model), [X])) == ["input"]
    packed = Made(lambda self, batch: self.a(batch["image"]) + batch["more"][0])
    graph = trace(packed, ({"image": s, "more": (X,)},))
    assert names(graph) == ["args.image", "args.more.0"]
    pair = trace(Made(lambda self, p: self.a(p.first) + p.second), Pair(s, X))
    assert len(pair.inputs) == 2


def test_a_dict_that_forward_does_not_take_by_name_is_one_argument() -> None:
    class OneDict(nn.Linear):
        def forward(self, batch: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
            return super().forward(batch["image"])

    graph = trace(OneDict(8, 8), {"image": X})
    assert [graph.values[i].name for i in graph.inputs] == ["batch.image"]


def test_given_inputs_are_measured_and_a_spec_is_not() -> None:
    given, spec = trace(nn.Linear(8, 8), X), trace(nn.Linear(8, 8), fanin.spec((4, 8)))
    assert given.values[given.inputs[0]].data.tolist() == X.tolist()
    assert spec.values[spec.inputs[0]].data is None


def test_results_in_every_form() -> None:
    def forward(self: Made, x: Tensor) -> Any:
        h = self.a(x)
        return {"a": Result(h, (self.b(h), x)), "b": [None, (h.sum(),)], "c": "text"}

    graph = trace(Made(forward), X)
    assert [graph.values[i].shape for i in graph.outputs] == [(4, 8), (4, 8), (4, 8), ()]
    assert graph.values[graph.outputs[2]].kind == "input"


def test_an_input_that_forward_writes_is_left_as_it_was() -> None:
    x = X.clone()
    graph = trace(Made(lambda self, x: self.a(x.mul_(2.0)) + x), x)
    assert torch.equal(x, X)
    assert ops(graph) == ["mul", "linear", "add"]
    assert graph.nodes[2].inputs[1] == graph.nodes[0].outputs[0]
    assert graph.values[graph.inputs[0]].data.tolist() == X.tolist()


# -- wrappers, parametrizations, lazy modules ------------------------------------------------------


def test_weights_that_pass_a_parametrization() -> None:
    layers = (
        parametrizations.weight_norm(nn.Linear(8, 8)),
        parametrizations.spectral_norm(nn.Linear(8, 8)),
    )
    graph = trace(nn.Sequential(*layers), X)
    first, second = graph.parametrizations
    assert (first.name, first.how) == ("0.weight", ("_WeightNorm",))
    assert first.originals == (
        "0.parametrizations.weight.original0",
        "0.parametrizations.weight.original1",
    )
    linear = next(n for n in graph.nodes if n.path == "0")
    assert graph.parametrization(linear["weight"]) is first
    assert (second.name, second.how) == ("1.weight", ("_SpectralNorm",))
    assert second.originals[0] == "1.parametrizations.weight.original"


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_old_parametrizations_and_their_attributes() -> None:
    model = nn.Sequential(
        nn.utils.weight_norm(nn.Linear(8, 8)), nn.utils.spectral_norm(nn.Linear(8, 8))
    )
    weights, state = (
        [m.weight for m in model],
        {k: v.clone() for k, v in model.state_dict().items()},
    )
    graph = trace(model, X)
    assert [p.name for p in graph.parametrizations] == ["0.weight", "1.weight"]
    assert graph.parametrizations[0].originals == ("0.weight_g", "0.weight_v")
    assert graph.parametrizations[1].originals == ("1.weight_orig", "1.weight_u", "1.weight_v")
    assert all(m.weight is w for m, w in zip(model, weights, strict=True))
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())


def test_checkpointing_compiling_and_data_parallelism_are_seen_through() -> None:
    def forward(self: Made, x: Tensor) -> Tensor:
        h = checkpoint(self.a, x, use_reentrant=False)
        return checkpoint(self.b, h, use_reentrant=True)

    model = Made(forward)
    plain = [(n.op, n.path) for n in trace(model, X).nodes]
    assert plain == [("aten.linear.default", "a"), ("aten.linear.default", "b")]
    for wrapped in (
        torch.compile(model),
        nn.DataParallel(model),
        torch.compile(nn.DataParallel(model)),
    ):
        graph = trace(wrapped, X)
        assert [(n.op, n.path) for n in graph.nodes] == plain
        assert graph.parameters[0].name == "a.weight"
    inside = nn.Sequential(torch.compile(nn.Linear(8, 8)), nn.Tanh())
    assert ops(trace(inside, X)) == ["linear", "tanh"]


def test_lazy_modules_get_shapes_and_stay_lazy() -> None:
    model = nn.Sequential(nn.LazyConv1d(4, 3), nn.LazyBatchNorm1d(), nn.Flatten(), nn.LazyLinear(2))
    state = torch.get_rng_state()
    graph = trace(model, fanin.spec((2, 5, 7)))
    assert {p.name: p.shape for p in graph.parameters if p.name.endswith("weight")} == {
        "0.weight": (4, 5, 3),
        "1.weight": (4,),
        "3.weight": (2, 20),
    }
    assert ops(graph) == ["convolution", "add", "batch_norm", "view", "linear"]
    assert graph.notes[0].startswith(
        "lazy, with the shapes that these inputs give: 0.weight, 0.bias"
    )
    assert isinstance(model[3], nn.LazyLinear)
    assert isinstance(model[3].weight, nn.UninitializedParameter)
    assert torch.equal(state, torch.get_rng_state())
    assert model(torch.ones(2, 5, 7)).shape == (2, 2)
    assert isinstance(model[3], nn.Linear)


def test_a_lazy_module_that_is_never_called_is_an_error() -> None:
    model = Made(lambda self, x: self.a(x))
    model.late = nn.LazyLinear(3)
    with pytest.raises(TraceError) as caught:
        trace(model, X)
    assert str(caught.value) == (
        "trace(model): late.weight: expected every lazy module called, got a lazy parameter that "
        "no operation gave a shape; run the model's other parts once, or remove it"
    )


def test_attributes_that_forward_sets_are_put_back() -> None:
    def forward(self: Made, x: Tensor) -> Tensor:
        self.cache, self.steps = self.a(x), self.steps + 1
        self.seen.append(1)
        return self.cache

    model = Made(forward)
    model.steps, model.seen = 0, []
    trace(model, X)
    assert (model.steps, model.seen, hasattr(model, "cache")) == (0, [], False)


def test_attention_recurrence_and_encoders() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    x = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    graph = agrees(model, x)
    assert ops(graph).count("scaled_dot_product_attention") == 2
    assert "layers.1.self_attn" in {n.path for n in graph.nodes}
    for kind in (nn.LSTM, nn.GRU, nn.RNN):
        recurrent = Made(lambda self, x: self.r(x)[0])
        recurrent.r = kind(8, 5, 2, batch_first=True, bidirectional=True)
        assert agrees(recurrent, x).nodes[-1].name == kind.__name__.lower().replace(
            "rnn", "rnn_tanh"
        )
    cell = Made(lambda self, x: self.r(x[:, 0]))
    cell.r = nn.GRUCell(8, 3)
    assert agrees(cell, x).nodes[-1].name == "gru_cell"


# -- where it fails --------------------------------------------------------------------------


def test_control_flow_on_weights_falls_back_to_real_tensors_and_says_why() -> None:
    def forward(self: Made, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(h) if h.sum() < 1e9 else h

    model = Made(forward)
    model.register_buffer("count", torch.zeros(()))
    graph = trace(model, fanin.spec((4, 8)))
    assert ops(graph) == ["linear", "sum", "lt", "linear"]
    assert graph.notes == (
        "traced on real tensors; else the model itself ends in aten._local_scalar_dense.default: "
        "the value of a tensor decides what the model does next",
    )
    assert all(v.data is None for v in graph.values if v.kind == "produced")
    with torch.device("meta"):
        empty = Made(forward)
    with pytest.raises(TraceError, match="give a model with real weights"):
        trace(empty, fanin.spec((4, 8)))


def test_on_real_tensors_buffers_and_inputs_are_untouched_too() -> None:
    def forward(self: Made, x: Tensor) -> Tensor:
        self.count += 1
        h = self.norm(self.a(x.add_(1)))
        assert h.sum().item() < 1e9
        return F.dropout(h)

    model = Made(forward)
    model.norm = nn.BatchNorm1d(8)
    model.register_buffer("count", torch.zeros(()))
    x, state = X.clone(), torch.get_rng_state()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    graph = trace(model, x)
    assert graph.notes[0].startswith("traced on real tensors")
    assert torch.equal(x, X)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_model_that_differentiates_inside_its_forward() -> None:
    def forward(self: Made, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(self.a(x).pow(2).sum(), x, create_graph=True)[0]

    model = Made(forward)
    graph = trace(model, X)
    assert ops(graph)[-1] == "mm"
    assert model.a.weight.grad is None


def test_a_failing_model_is_an_error_with_path_and_operation() -> None:
    broken = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.ReLU(), nn.Linear(7, 8)))
    with pytest.raises(TraceError) as caught:
        trace(broken, X)
    assert str(caught.value) == (
        "trace(model): 1.1: expected a forward pass that runs, got aten.linear.default: mat1 and "
        "mat2 shapes cannot be multiplied (4x8 and 7x8); run the model on these inputs by itself "
        "to see the whole traceback"
    )

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        raise ValueError("no such head")

    raising = nn.Sequential(Made(forward))
    with pytest.raises(TraceError, match=r"trace\(model\): 0: .* got ValueError: no such head"):
        trace(raising, X)


def test_hooks_are_gone_after_a_failure() -> None:
    from torch.nn.modules import module as hooks

    with pytest.raises(TraceError):
        trace(nn.Linear(7, 8), X)
    assert not hooks._global_forward_hooks
    assert not hooks._global_forward_pre_hooks


def test_wrong_arguments() -> None:
    with pytest.raises(ArgumentTypeError) as caught:
        trace("resnet", X)  # type: ignore[arg-type]
    assert str(caught.value) == "trace(model): expected a torch.nn.Module, got 'resnet'"
    with pytest.raises(ArgumentTypeError) as caught:
        trace(nn.Linear(8, 8), (4, 8))
    assert str(caught.value) == (
        "trace(inputs): expected a tensor, a fanin.spec, or a tuple or dict with one of them, got "
        "tuple; write fanin.spec((batch, features)) if no data is at hand"
    )
