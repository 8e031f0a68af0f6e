"""Inputs by their shape alone: what a model is given when no data is at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fanin.errors import ArgumentError, ArgumentTypeError

FLOATS = ("float64", "float32", "float16", "bfloat16")
INTEGERS = ("int64", "int32", "int16", "int8", "uint8", "bool")


@dataclass(frozen=True)
class Spec:
    """An input that is known by shape: N(0, 1) values, or integers uniform on [0, high)."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    high: int = 2

    @property
    def floating(self) -> bool:
        """Whether the values are real numbers, drawn from N(0, 1)."""
        return self.dtype in FLOATS

    def __str__(self) -> str:
        law = "N(0, 1)" if self.floating else f"uniform on 0..{self.high - 1}"
        return f"{self.dtype}[{', '.join(map(str, self.shape))}] of {law}"


def spec(shape: Sequence[int], dtype: object = "float32", *, high: int = 2) -> Spec:
    r"""An input of this shape, for `plan`, `init_` and `check` where no data is at hand.

    *Definition*: x_i ~ N(0, 1) independent for a floating dtype, x_i ~ U{0, ..., high - 1} for
    an integer one.

    Args:
        shape: the whole shape, with the batch axis; whole numbers of at least 1.
        dtype: a name ("float32", "int64", ...) or a framework's dtype of that name.
        high: integers are below it, such as the vocabulary of token ids; at least 1.

    Returns:
        The specification, a value.

    Raises:
        ArgumentError: a size below 1, an unknown dtype, or high below 1.
        ArgumentTypeError: the shape is not a sequence of whole numbers.

    Example:
        >>> print(spec((8, 3, 224, 224)))
        float32[8, 3, 224, 224] of N(0, 1)
        >>> print(spec((2, 128), "int64", high=50257))
        int64[2, 128] of uniform on 0..50256
    """
    sizes = tuple(shape) if isinstance(shape, Sequence) else ()
    whole = all(isinstance(n, int) and not isinstance(n, bool) for n in sizes)
    if not isinstance(shape, Sequence) or not whole:
        raise ArgumentTypeError(
            "spec(shape)",
            expected="a sequence of whole numbers",
            got=repr(shape),
            fix="write spec((batch, features))",
        )
    if any(n < 1 for n in sizes):
        raise ArgumentError("spec(shape)", expected="sizes of at least 1", got=repr(sizes))
    name = str(dtype).removeprefix("torch.")
    name = getattr(dtype, "__name__", name) if not isinstance(dtype, str) else name
    if name not in FLOATS + INTEGERS:
        raise ArgumentError(
            "spec(dtype)", expected=f"one of {', '.join(FLOATS + INTEGERS)}", got=repr(dtype)
        )
    if high < 1:
        raise ArgumentError("spec(high)", expected="a whole number of at least 1", got=repr(high))
    return Spec(sizes, name, high)
