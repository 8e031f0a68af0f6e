"""What an ATen operation says of itself: argument names, what it writes, what it draws."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch._C import DispatchKey

aten = torch.ops.aten

_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
# Composite operations that say more whole than in parts; all others are taken apart.
_WHOLE = frozenset(
    [
        *("linear", "matmul", "scaled_dot_product_attention", "bilinear", "log_sigmoid"),
        "_pad_circular",
        *("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"),
        *("layer_norm", "group_norm", "batch_norm", "instance_norm", "rms_norm"),
        *_RECURRENT,
        *("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"),
        *("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d"),
        *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
        *("softmax", "log_softmax", "embedding_bag", "pixel_shuffle", "channel_shuffle"),
        *("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d"),
    ]
)
# Pointwise, though torch does not tag them so.
_POINTWISE = frozenset(
    ["_prelu_kernel", "hardswish", "log_sigmoid", "_to_copy", "copy", "fill", "where"]
)
# The elements of the operand in a new tensor.
_COPIES = frozenset({"clone", "_to_copy", "_unsafe_view", "pixel_shuffle", "channel_shuffle"})
# Said to draw random numbers, but only if this argument says so.
_DRAWS_IF = {
    "scaled_dot_product_attention": "dropout_p",
    "rrelu": "training",
    **dict.fromkeys(_RECURRENT, "dropout"),
    **dict.fromkeys(
        ["dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"], "train"
    ),
}
# They say where a tensor lies, which is no part of the network.
_PLACEMENT = frozenset({"device", "layout", "pin_memory", "non_blocking", "generator"})


def bind(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments as given, by the names of the schema, in its order."""
    given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
    return {a.name: given[a.name] for a in func._schema.arguments if a.name in given}


def complete(func: Any, bound: dict[str, Any]) -> dict[str, Any]:
    """All arguments that concern the network, with the schema's defaults for those not given."""
    wanted = [a for a in func._schema.arguments if a.name not in _PLACEMENT and not a.is_out]
    return {a.name: bound.get(a.name, a.default_value) for a in wanted}


@cache
def short_name(func: Any) -> str:
    """The operation's name alone: "add_" of aten::add_.Tensor."""
    return str(func._schema.name).split("::")[1]


@cache
def composite(func: Any) -> bool:
    """Whether the operation is to be taken apart into those it is composed of."""
    key = "CompositeImplicitAutograd"
    made_of_others = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key)
    return bool(made_of_others) and short_name(func) not in _WHOLE


def body(func: Any) -> Callable[..., Any]:
    """What an operation on functions (`cond`, `flex_attention`) runs in eager mode."""
    if func is torch.ops.higher_order.cond:
        return _branch
    kernel = func.py_kernels.get(DispatchKey.CompositeExplicitAutograd)
    if kernel is None:
        raise NotImplementedError(f"{func.name()} has no form in operations on tensors")
    return kernel  # type: ignore[no-any-return]


def _branch(pred: Any, true: Callable[..., Any], false: Callable[..., Any], operands: Any) -> Any:
    """`torch.cond`, whose own form wants to run below every mode."""
    return true(*operands) if pred else false(*operands)


@cache
def written(func: Any) -> tuple[str, ...]:
    """Names of the arguments that the operation writes."""
    return tuple(a.name for a in func._schema.arguments if a.alias_info and a.alias_info.is_write)


@cache
def targets(func: Any) -> tuple[str, ...]:
    """Names of the written arguments that are its results; the noise of rrelu is none of them."""
    fresh = any(r.alias_info is None for r in func._schema.returns)
    return () if fresh else written(func)


@cache
def functional(func: Any) -> bool:
    """Whether results share no memory with arguments, by the schema, and follow from shapes."""
    members = (*func._schema.arguments, *func._schema.returns)
    return not by_content(func) and all(member.alias_info is None for member in members)


@cache
def writes_out(func: Any) -> bool:
    """Whether it writes its result into a tensor given as `out`."""
    return any(a.is_out for a in func._schema.arguments)


@cache
def device_arguments(func: Any) -> tuple[str, ...]:
    """Names of the arguments that are devices."""
    return tuple(a.name for a in func._schema.arguments if "Device" in str(a.type))


@cache
def recorded_name(func: Any) -> str:
    """The name in the graph; what writes in place stands under the name of what does not."""
    twin = out_of_place(func)
    return f"{twin.namespace}.{short_name(twin)}.{twin._overloadname}"


@cache
def out_of_place(func: Any) -> Any:
    """The operation that makes a new tensor where this one writes in place, if there is one."""
    if not written(func):
        return func
    same = [(a.name, str(a.type)) for a in func._schema.arguments if not a.is_out]
    name = short_name(func)
    for candidate in (name.removesuffix("_"), f"{name}functional"):
        packet = getattr(aten, candidate, None)
        for overload in packet.overloads() if packet is not None else ():
            twin = getattr(packet, overload)
            if (
                not written(twin)
                and [(a.name, str(a.type)) for a in twin._schema.arguments] == same
            ):
                return twin
    return func


@cache
def reshapes_in_place(func: Any) -> bool:
    """Whether it changes the sizes of a tensor in place, and no element (t_, unsqueeze_)."""
    return torch.Tag.inplace_view in func.tags


@cache
def pointwise(func: Any) -> bool:
    """Whether each element of the result depends on that element of the operands alone."""
    return torch.Tag.pointwise in func.tags or short_name(func).removesuffix("_") in _POINTWISE


def copies(func: Any, bound: dict[str, Any]) -> bool:
    """Whether the result is a new tensor with the elements of the first operand."""
    dtype = bound.get("dtype")
    return short_name(func) in _COPIES and (dtype is None or dtype.is_floating_point)


def random(func: Any, bound: dict[str, Any]) -> bool:
    """Whether this call draws random numbers."""
    name = short_name(func)
    if torch.Tag.nondeterministic_seeded not in func.tags and name not in _DRAWS_IF:
        return False
    return bool(bound.get(_DRAWS_IF[name], False)) if name in _DRAWS_IF else True


@cache
def by_content(func: Any) -> bool:
    """Whether the shape of the result, or a number it returns, follows from content."""
    tags = (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output)
    return any(tag in func.tags for tag in tags)


@cache
def recurrent(func: Any) -> bool:
    """Whether the operation is a whole recurrent layer over time."""
    return short_name(func) in _RECURRENT


def recurrent_shapes(bound: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    """Empty results of a recurrent layer; running it on meta would take every step apart."""
    first = bound["input"] if "input" in bound else bound["data"]
    states = bound["hx"] if isinstance(bound["hx"], (list, tuple)) else [bound["hx"]]
    directions = 2 if bound["bidirectional"] else 1
    width = directions * states[0].shape[-1]
    return first.new_empty((*first.shape[:-1], width)), *(s.new_empty(s.shape) for s in states)


def constant(item: Any) -> Any:
    """An argument that is no tensor, as a plain value that JSON can hold."""
    if item is None or isinstance(item, (bool, int, float, complex, str)):
        return item
    if isinstance(item, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return item.node.maybe_as_int() if isinstance(item, torch.SymInt) else float(item)
    return str(item).removeprefix("torch.")
