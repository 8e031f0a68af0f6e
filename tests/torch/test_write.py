"""`write_`: drawn values in tensors of any type, layout and device, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fanin import draw
from fanin.errors import ArgumentError, ArgumentTypeError, UninitializedError
from fanin.planning.plan import Stack
from fanin.torch.writing import device
from fanin.torch.writing.shard import regions
from fanin.torch.writing.write import write_

TYPES = [
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]
ELEMENTWISE = [
    draw.Normal(0.1, 0.02),
    draw.Uniform(-0.3, 0.5),
    draw.TruncatedNormal(0.0, 0.02, 2.0),
    draw.TruncatedNormal(0.1, 0.02, 6.0),
    draw.Rademacher(0.1),
]


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_a_tensor_holds_what_the_array_holds(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    storage = {1: np.uint8, 2: np.uint16, 4: np.float32, 8: np.float64}[dtype.itemsize]
    expected = np.empty((30, 7), storage)
    draw.fill(expected, draw.Normal(std=0.5), seed=1, name="w", dtype=name)
    tensor = write_(torch.empty(30, 7, dtype=dtype), draw.Normal(std=0.5), seed=1, name="w")
    assert bits(tensor) == expected.tobytes()
    scalar = write_(torch.empty((), dtype=dtype), draw.Normal(std=0.5), seed=1, name="w")
    assert bits(scalar.view(1)) == expected.reshape(-1)[:1].tobytes()


def test_the_layout_in_memory_does_not_count() -> None:
    expected = write_(torch.empty(6, 4, 3, 3), draw.Normal(), seed=1, name="w")
    last = torch.empty(6, 4, 3, 3).to(memory_format=torch.channels_last)
    assert torch.equal(write_(last, draw.Normal(), seed=1, name="w"), expected)
    turned = torch.empty(4, 6, 3, 3, dtype=torch.bfloat16).transpose(0, 1)
    write_(turned, draw.Normal(), seed=1, name="w")
    assert torch.equal(turned, expected.to(torch.bfloat16))


def test_parameters_are_written_in_place_and_random_state_is_kept() -> None:
    layer, before = nn.Linear(5, 3), torch.get_rng_state()
    address = layer.weight.data_ptr()
    assert write_(layer.weight, draw.Constant(2.0), seed=0, name="w") is layer.weight
    assert (layer.weight == 2).all()
    assert layer.weight.requires_grad
    assert layer.weight.data_ptr() == address
    assert torch.equal(torch.get_rng_state(), before)


def test_a_layer_in_front_changes_nothing_behind_it() -> None:
    def drawn(*names: str) -> dict[str, torch.Tensor]:
        return {n: write_(torch.empty(9, 9), draw.Normal(), seed=3, name=n) for n in names}

    short, long = drawn("a", "b"), drawn("a", "extra", "b")
    assert torch.equal(short["a"], long["a"])
    assert torch.equal(short["b"], long["b"])
    assert not torch.equal(long["extra"], long["b"])


def test_blocks_of_a_stack_are_tensors_of_their_own() -> None:
    stack = Stack(((2, draw.Normal()), (3, draw.Orthogonal()), (1, draw.Constant(4.0))))
    tensor = write_(torch.empty(6, 8), stack, seed=3, name="w")
    assert torch.equal(tensor[:2], write_(torch.empty(2, 8), draw.Normal(), seed=3, name="w[0]"))
    second = write_(torch.empty(3, 8), draw.Orthogonal(), seed=3, name="w[1]")
    assert torch.equal(tensor[2:5], second)
    assert (tensor[5] == 4).all()


@pytest.mark.parametrize("distribution", ELEMENTWISE, ids=str)
@pytest.mark.parametrize("dtype", TYPES[1:], ids=str)
def test_torch_operations_have_the_kernels_bits(
    distribution: draw.Distribution, dtype: torch.dtype
) -> None:
    """The path for GPUs, run on the CPU: the same words, the same arithmetic, the same bytes."""
    shape, index = (70, 401), (slice(2, 35), slice(7, 107))
    expected = write_(torch.empty(shape, dtype=dtype), distribution, seed=3, name="w")[index]
    for out in (torch.empty(33, 100, dtype=dtype), torch.empty(100, 33, dtype=dtype).t()):
        device.fill(out, distribution, seed=3, name="w", shape=shape, index=index)
        assert bits(out) == bits(expected)


def test_a_plain_tensor_is_one_region() -> None:
    (region,) = regions(torch.empty(2, 3))
    assert region.local == region.whole == (slice(0, 2), slice(0, 3))
    (scalar,) = regions(torch.empty(()))
    assert scalar.local == ()


class Placeholder(nn.Parameter):
    """What ZeRO-3 leaves of a parameter whose parts lie elsewhere."""

    ds_shape = (4, 3)


@pytest.mark.parametrize(
    ("tensor", "error", "message"),
    [
        (
            torch.zeros(3, dtype=torch.int64),
            ArgumentTypeError,
            "write_(w): expected a floating type, got torch.int64",
        ),
        (
            torch.empty(3, device="meta"),
            UninitializedError,
            "write_(w): expected a tensor in memory, got one on the meta device; "
            "use fanin.materialize_",
        ),
        (
            Placeholder(torch.empty(0)),
            UninitializedError,
            "write_(w): expected a tensor of shape (4, 3), got ZeRO-3's placeholder of shape (0,); "
            "gather it first: with deepspeed.zero.GatheredParameters(parameter)",
        ),
        (
            torch.zeros(3, dtype=torch.complex64),
            ArgumentTypeError,
            "write_(w): expected a floating type, got torch.complex64",
        ),
        ([1.0], ArgumentTypeError, "write_(w): expected a tensor, got list"),
        (
            torch.eye(3).to_sparse(),
            ArgumentTypeError,
            "write_(w): expected a dense tensor, got torch.sparse_coo",
        ),
        (
            torch.zeros(1, 4).expand(3, 4),
            ArgumentTypeError,
            "write_(w): expected a tensor with memory of its own for every element, "
            "got an expanded one; write into a copy",
        ),
        (
            torch.imag(torch.zeros(3, dtype=torch.complex64).conj()),
            ArgumentTypeError,
            "write_(w): expected a tensor with memory of its own for every element, "
            "got a negated view; write into a copy",
        ),
    ],
    ids=str,
)
def test_tensors_that_cannot_be_written_are_refused(tensor, error, message: str) -> None:
    with pytest.raises(error) as caught:
        write_(tensor, draw.Normal(), seed=0, name="w")
    assert str(caught.value) == message


def test_a_stack_of_another_height_is_refused() -> None:
    with pytest.raises(ArgumentError) as caught:
        write_(torch.empty(5, 2), Stack(((4, draw.Normal()),)), seed=0, name="w")
    assert str(caught.value) == "write_(w): expected 4 rows, as the blocks have, got shape (5, 2)"


def test_what_is_no_distribution_is_refused() -> None:
    with pytest.raises(ArgumentTypeError) as caught:
        write_(torch.empty(5), "normal", seed=0, name="w")  # type: ignore[arg-type]
    assert str(caught.value) == (
        "write_(w): expected a distribution of fanin.draw or a Stack, got str"
    )


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0,), ()])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_tensors_without_elements_or_dimensions(shape: tuple, dtype: torch.dtype) -> None:
    w = write_(torch.empty(shape, dtype=dtype), draw.Normal(), seed=0, name="w")
    assert w.shape == shape
    expected = write_(torch.empty(w.numel(), dtype=dtype), draw.Normal(), seed=0, name="w")
    assert bits(w.reshape(-1)) == bits(expected)
