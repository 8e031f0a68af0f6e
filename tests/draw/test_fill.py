"""`fill`: parts equal the whole, both paths have the same bytes, narrow types are rounded once."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fanin import draw
from fanin.errors import ArgumentError, ArgumentTypeError

DISTRIBUTIONS = {
    "normal": draw.Normal(0.25, 0.5),
    "uniform": draw.Uniform(-0.25, 1.0),
    "truncated at 2": draw.TruncatedNormal(0.125, 0.5, 2.0),
    "truncated at 6": draw.TruncatedNormal(0.0, 0.5, 6.0),
    "rademacher": draw.Rademacher(0.3),
    "constant": draw.Constant(0.7),
    "orthogonal": draw.Orthogonal(1.5),
    "delta": draw.DeltaOrthogonal(1.5),
}
TORCH = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}
ids = pytest.mark.parametrize("name", DISTRIBUTIONS)


def whole(
    distribution: draw.Distribution, shape: tuple[int, ...], dtype: str = "float32", **options: int
) -> np.ndarray:
    """A whole tensor; narrow types as bits."""
    storage = {"float16": "uint16", "bfloat16": "uint16"}.get(dtype, dtype)
    out = np.empty(shape, "uint8" if "float8" in dtype else storage)
    return draw.fill(out, distribution, seed=5, name="w", dtype=dtype, **options)


@ids
@pytest.mark.parametrize("dtype", ["float32", "float64", *TORCH])
def test_both_paths_have_the_same_bytes(name: str, dtype: str, force) -> None:
    shape = (37, 11, 3)
    force("plain")
    plain = whole(DISTRIBUTIONS[name], shape, dtype)
    force("compiled")
    assert whole(DISTRIBUTIONS[name], shape, dtype).tobytes() == plain.tobytes()


def test_both_paths_have_the_same_bytes_at_length(force) -> None:
    for name in ("normal", "uniform", "truncated at 2", "truncated at 6", "rademacher"):
        force("plain")
        plain = whole(DISTRIBUTIONS[name], (300_001,))
        force("compiled")
        assert whole(DISTRIBUTIONS[name], (300_001,)).tobytes() == plain.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_both_paths_multiply_in_the_same_order(dtype: str, force) -> None:
    """Over several stripes of columns and pieces of rows, and tiles that are not full."""
    force("plain")
    plain = whole(draw.Orthogonal(), (331, 291), dtype)
    force("compiled")
    assert whole(draw.Orthogonal(), (331, 291), dtype).tobytes() == plain.tobytes()


slices = st.builds(
    slice,
    st.integers(0, 9) | st.none(),
    st.integers(0, 12) | st.none(),
    st.integers(1, 4) | st.none(),
)


@ids
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(shape=st.lists(st.integers(1, 9), min_size=3, max_size=4), data=st.data())
def test_a_block_is_that_part_of_the_whole(name: str, shape: list[int], data) -> None:
    index = tuple(data.draw(slices) for _ in shape)
    distribution = DISTRIBUTIONS[name]
    expected = whole(distribution, tuple(shape))[index]
    out = np.empty(expected.shape, np.float32)
    draw.fill(out, distribution, seed=5, name="w", shape=tuple(shape), index=index)
    assert out.tobytes() == expected.tobytes()


@pytest.mark.parametrize("index", [(slice(3, 5), slice(0, 90)), (slice(0, 90), slice(31, 77))])
def test_a_block_of_an_orthogonal_tensor_needs_no_other(index: tuple, path: str) -> None:
    for shape in ((90, 300), (300, 90)):
        turned = index if shape[0] == 90 else index[::-1]
        expected = whole(draw.Orthogonal(), shape)[turned]
        out = np.empty(expected.shape, np.float32)
        draw.fill(out, draw.Orthogonal(), seed=5, name="w", shape=shape, index=turned)
        assert out.tobytes() == expected.tobytes()


def test_the_bytes_do_not_depend_on_threads(path: str) -> None:
    for distribution, shape in ((draw.Normal(), (2**18 + 5,)), (draw.Orthogonal(), (300, 200))):
        one = whole(distribution, shape, threads=1)
        for threads in (2, 5):
            assert whole(distribution, shape, threads=threads).tobytes() == one.tobytes()


def test_the_bytes_do_not_depend_on_strides(path: str) -> None:
    expected = whole(draw.Normal(), (50, 70, 3))
    for out in (
        np.empty((70, 3, 50), np.float32).transpose(2, 0, 1),
        np.empty((50, 70, 6), np.float32)[:, :, ::2],
        np.empty((50, 70, 3), np.float32, order="F"),
    ):
        draw.fill(out, draw.Normal(), seed=5, name="w")
        assert (out == expected).all()


def test_a_large_array_with_gaps_is_drawn_in_pieces(path: str) -> None:
    out = np.empty((2, 2**19 + 3, 2), np.float32)[:, :, 1]
    draw.fill(out, draw.Normal(), seed=5, name="w")
    assert out.tobytes() == whole(draw.Normal(), out.shape).tobytes()


@ids
@pytest.mark.parametrize("dtype", TORCH)
def test_narrow_types_are_float32_rounded_once(name: str, dtype: str) -> None:
    exact = torch.from_numpy(whole(DISTRIBUTIONS[name], (501, 7, 3)))
    bits = torch.from_numpy(whole(DISTRIBUTIONS[name], (501, 7, 3), dtype)).view(torch.uint8)
    assert torch.equal(exact.to(TORCH[dtype]).view(torch.uint8), bits)


@pytest.mark.parametrize("dtype", TORCH)
def test_small_numbers_round_to_the_subnormals(dtype: str, path: str) -> None:
    least = torch.finfo(TORCH[dtype]).smallest_normal
    exact = torch.from_numpy(whole(draw.Normal(0.0, least), (40_000,)))
    bits = torch.from_numpy(whole(draw.Normal(0.0, least), (40_000,), dtype)).view(torch.uint8)
    assert torch.equal(exact.to(TORCH[dtype]).view(torch.uint8), bits)


@pytest.mark.parametrize("dtype", TORCH)
def test_large_numbers_round_to_the_largest(dtype: str, path: str) -> None:
    most = torch.finfo(TORCH[dtype]).max
    distribution = draw.Uniform(-most, most)
    exact = torch.from_numpy(whole(distribution, (40_000,)))
    bits = torch.from_numpy(whole(distribution, (40_000,), dtype)).view(torch.uint8)
    assert torch.equal(exact.to(TORCH[dtype]).view(torch.uint8), bits)


@pytest.mark.parametrize("dtype", TORCH)
def test_blocks_of_narrow_types_may_start_anywhere(dtype: str, path: str) -> None:
    expected = whole(draw.Normal(), (9000,), dtype)
    for first in range(1, 6):
        out = np.empty(9000, expected.dtype)[first:]
        index = (slice(first, 9000),)
        draw.fill(out, draw.Normal(), seed=5, name="w", shape=(9000,), index=index, dtype=dtype)
        assert out.tobytes() == expected[first:].tobytes()


@ids
def test_float64_refines_float32(name: str) -> None:
    narrow, wide = (whole(DISTRIBUTIONS[name], (300, 70, 3), d) for d in ("float32", "float64"))
    gap = np.abs(wide - narrow)
    if "orthogonal" in name or name == "delta":
        assert gap.max() < 2e-5
    else:
        assert np.median(gap) < 1e-7
        assert gap.max() < 2e-3  # the last digits of the words decide near the ends
    assert name in ("constant", "rademacher") or (wide.astype(np.float32) != narrow).any()


def test_a_constant_is_exact_in_float64() -> None:
    assert (whole(draw.Constant(0.1), (3,), "float64") == 0.1).all()


def test_tensors_without_elements_and_without_dimensions(path: str) -> None:
    assert whole(draw.Normal(), (0, 3)).shape == (0, 3)
    scalar = whole(draw.Normal(), ())
    assert scalar == whole(draw.Normal(), (1,))[0]


def test_positions_beyond_32_bits(force) -> None:
    shape, index = (2**35, 4), (slice(2**34 - 3, 2**34 + 3), slice(0, 4))
    found = []
    for path in ("plain", "compiled"):
        force(path)
        out = np.empty((6, 4), np.float32)
        found.append(draw.fill(out, draw.Normal(), seed=5, name="w", shape=shape, index=index))
    assert found[0].tobytes() == found[1].tobytes()
    assert len(np.unique(found[0])) == 24


def test_no_random_state_is_touched() -> None:
    def states() -> tuple:
        numpy_state = np.random.get_state()[1].tobytes()
        return random.getstate(), numpy_state, torch.get_rng_state().numpy().tobytes()

    before = states()
    for distribution in DISTRIBUTIONS.values():
        whole(distribution, (9, 5, 3))
    assert states() == before


def test_nothing_is_compiled_or_imported_before_it_is_needed() -> None:
    code = (
        "import sys, numpy as np; from fanin import draw\n"
        "draw.fill(np.empty(100, np.float32), draw.Normal(), seed=0, name='w')\n"
        "print(sorted({'numba', 'torch', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    "broken",
    ["modules['numba'] = None", "modules['coverage'] = type(sys)('a script of the same name')"],
)
def test_without_numba_the_bytes_are_the_same(broken: str) -> None:
    """Numba is absent, or fails to import with an error that is no ImportError."""
    code = (
        f"import sys; sys.{broken}\n"
        "import hashlib, numpy as np; from fanin import draw\n"
        "out = draw.fill(np.empty(99_999, np.float32), draw.Normal(), seed=5, name='w')\n"
        "print(hashlib.sha256(out.tobytes()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = hashlib.sha256(whole(draw.Normal(), (99_999,)).tobytes()).hexdigest()
    assert done.stdout.strip() == expected


def refused(error: type[Exception], out: np.ndarray, d: draw.Distribution, **options) -> str:
    """The message of a call that must fail."""
    with pytest.raises(error) as caught:
        draw.fill(out, d, seed=0, name="w", **options)
    return str(caught.value)


def test_blocks_that_do_not_fit_are_refused() -> None:
    out, d = np.empty((2, 2), np.float32), draw.Normal()
    assert refused(ArgumentError, out, d, shape=(4, 4)) == (
        "draw.fill(out): expected an array of the block's shape (4, 4), got (2, 2)"
    )
    assert refused(ArgumentError, out, d, shape=(4, 4), index=(slice(2),)) == (
        "draw.fill(index): expected 2 slices, one for each dimension of (4, 4), "
        "got (slice(None, 2, None),)"
    )


def test_what_is_no_array_or_no_distribution_is_refused() -> None:
    assert refused(ArgumentTypeError, [0.0], draw.Normal()) == (  # type: ignore[arg-type]
        "draw.fill(out): expected a writable NumPy array, got list"
    )
    fixed = np.broadcast_to(np.zeros(2, np.float32), (3, 2))
    assert refused(ArgumentTypeError, fixed, draw.Normal()) == (
        "draw.fill(out): expected a writable NumPy array, got one that is read-only"
    )
    assert refused(ArgumentTypeError, np.empty(2), "normal") == (  # type: ignore[arg-type]
        "draw.fill(distribution): expected a distribution of fanin.draw, got str"
    )


def test_types_that_cannot_be_drawn_are_refused() -> None:
    assert refused(ArgumentTypeError, np.empty(2, np.int32), draw.Normal()) == (
        "draw.fill(out): expected one of float64, float32, float16, bfloat16, float8_e4m3fn, "
        "float8_e5m2, got int32"
    )
    bits = np.empty(2, np.uint8)
    assert refused(ArgumentTypeError, bits, draw.Normal(), dtype="bfloat16") == (
        "draw.fill(dtype='bfloat16'): expected an array of uint16, got uint8"
    )


def test_what_a_type_cannot_hold_is_refused() -> None:
    half = np.empty(2, np.float16)
    assert refused(ArgumentError, half, draw.Normal(0.0, 1e4)) == (
        "draw.fill(Normal(mean=0.0, std=10000.0)): expected values that float16 holds, up to "
        "65504, got values up to 66610; draw a smaller scale or a wider type"
    )
    assert refused(ArgumentError, half, draw.Uniform(-1e-8, 1e-8)) == (
        "draw.fill(Uniform(low=-1e-08, high=1e-08)): expected values that float16 holds, from "
        "5.96046e-08, got values up to 1e-08, which all round to 0; "
        "draw a larger scale or a wider type"
    )
