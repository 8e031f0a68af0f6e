"""The generator against its authors' known answers, and the streams that seeds and names give."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanin.draw import canonical_name
from fanin.draw.philox import philox4x32, stream
from fanin.errors import ArgumentError, ArgumentTypeError

PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
ONES = (0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2
ZEROS = (0,) * 4, (0,) * 2


# From the file kat_vectors that the generator's authors distribute with Random123.
@pytest.mark.parametrize(
    ("rounds", "given_", "answer"),
    [
        (7, ZEROS, (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)),
        (7, ONES, (0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662)),
        (7, PI, (0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A)),
        (10, ZEROS, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (10, ONES, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (10, PI, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ],
)
def test_known_answers(rounds: int, given_: tuple, answer: tuple) -> None:
    counter, key = given_
    words = philox4x32(tuple(np.array([c], np.uint32) for c in counter), key, rounds)
    assert tuple(int(word[0]) for word in words) == answer


def test_the_block_number_is_the_lower_half_of_the_counter() -> None:
    source = stream(1, "w")
    blocks = np.array([0, 1, 2**32 + 7], np.uint64)
    for i, (low, high) in enumerate([(0, 0), (1, 0), (7, 1)]):
        counter = tuple(np.array([c], np.uint32) for c in (low, high, *source.lane))
        direct = philox4x32(counter, source.key)
        assert [int(w[0]) for w in direct] == [int(w) for w in source.words(blocks)[:, i]]


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.text(max_size=20))
def test_every_seed_has_its_own_stream(a: int, b: int, name: str) -> None:
    assert (stream(a, name) == stream(b, name)) == (a == b)


@given(st.text(max_size=20), st.text(max_size=20))
def test_every_name_has_its_own_stream(a: str, b: str) -> None:
    assert (stream(0, a) == stream(0, b)) == (canonical_name(a) == canonical_name(b))


@pytest.mark.parametrize(
    "name",
    [
        "module.blocks.0.fc.weight",
        "_orig_mod.blocks.0.fc.weight",
        "blocks.0._checkpoint_wrapped_module.fc.weight",
        "_fsdp_wrapped_module.module.blocks.0._orig_mod.fc.weight",
    ],
)
def test_what_wrappers_put_into_names_does_not_count(name: str) -> None:
    assert canonical_name(name) == "blocks.0.fc.weight"
    assert stream(3, name) == stream(3, "blocks.0.fc.weight")


def test_a_tensor_may_be_called_as_a_wrapper_is() -> None:
    assert canonical_name("a.module") == "a.module"
    assert canonical_name("modules.weight") == "modules.weight"


def test_seeds_out_of_range_are_refused() -> None:
    with pytest.raises(ArgumentError) as error:
        stream(-1, "w")
    assert str(error.value) == "draw(seed): expected 0 <= seed < 2**64, got -1"
    with pytest.raises(ArgumentTypeError, match=r"draw\(seed\): expected an integer, got float"):
        stream(1.0, "w")  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError) as error:
        stream(1, None)  # type: ignore[arg-type]
    assert str(error.value) == (
        "draw(name): expected the tensor's name, a string, got NoneType; "
        "pass the name of model.named_parameters()"
    )
