"""What a function call of torch is, to one who follows the signal: by the function's name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


ACTIVATIONS = _names(
    """relu relu6 leaky_relu prelu rrelu elu selu celu gelu silu mish tanh sigmoid logsigmoid
    softplus softsign softshrink hardshrink tanhshrink hardswish hardsigmoid hardtanh
    threshold sin cos square exp erf atan arctan pow clamp clamp_min"""
)
WEIGHT_OPERATIONS = _names(
    "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d bilinear"
)
PRODUCTS_WITH_A_WEIGHT = _names("matmul mm bmm addmm baddbmm addbmm mv einsum tensordot rmatmul")
NORMS = _names(
    "layer_norm batch_norm group_norm instance_norm rms_norm normalize local_response_norm"
)
RECURRENT = _names("lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell")
DROPOUTS = _names(
    """dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout
    feature_alpha_dropout"""
)
ADDS = _names("add iadd radd")
PRODUCTS = _names("mul imul rmul multiply")
CHANNELS_FIRST = _names(
    """conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d batch_norm
    group_norm instance_norm"""
)


def name_of(function: Callable[..., Any]) -> str:
    """The bare name: `relu` for F.relu, torch.relu_, Tensor.relu; `add` for `+`."""
    return getattr(function, "__name__", "").strip("_")


def kind_of(name: str, weights: Sequence[str], sources: int) -> str | None:
    """The kind of row that a call makes, or None where it makes none.

    Args:
        name: of the function.
        weights: parameters among the arguments.
        sources: how many arguments were computed from the model's input.
    """
    if name in WEIGHT_OPERATIONS:
        return "linear"
    if name in PRODUCTS_WITH_A_WEIGHT:
        return "linear" if weights else None
    if name in ("embedding", "embedding_bag"):
        return "embedding"
    if name in ("scaled_dot_product_attention", "multi_head_attention_forward"):
        return "attention"
    if name in RECURRENT:
        return "recurrent"
    if name in NORMS:
        return "norm"
    if name in ACTIVATIONS:
        return "activation"
    if sources == 2 and name in ADDS:
        return "add"
    if sources == 2 and name in PRODUCTS:
        return "product"
    return None


def without_dropout(
    name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call with its dropout off: masks would part inputs that are alike."""
    changed = dict(kwargs)
    if name == "scaled_dot_product_attention":
        place = 4  # after query, key, value and mask
        if len(args) > place:
            args = (*args[:place], 0.0, *args[place + 1 :])
        else:
            changed["dropout_p"] = 0.0
    elif name == "multi_head_attention_forward":
        changed["training"] = False
    return args, changed
