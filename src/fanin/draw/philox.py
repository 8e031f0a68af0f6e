"""Philox 4x32-10: random words as a pure function of (seed, name, position)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fanin.draw.names import canonical_name
from fanin.errors import ArgumentError, ArgumentTypeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Words = NDArray[np.uint32]

STREAM_VERSION = 1
"""The values of a stream version never change; a better stream gets the next number."""

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def philox4x32(
    counter: tuple[Words, Words, Words, Words], key: tuple[int, int], rounds: int = ROUNDS
) -> tuple[Words, Words, Words, Words]:
    """The four output words of each counter under one key.

    *Definition.* One round maps (c0, c1, c2, c3) to (hi(M1 c2) ^ c1 ^ k0, lo(M1 c2),
    hi(M0 c0) ^ c3 ^ k1, lo(M0 c0)), then adds the key steps to (k0, k1) modulo 2^32.

    Args:
        counter: four uint32 arrays of one shape, the low word first.
        key: two words, each in [0, 2^32).
        rounds: 10 is the generator that the library uses.

    Returns:
        Four uint32 arrays of the counter's shape.

    Example:
        >>> zero = np.zeros(1, np.uint32)
        >>> [hex(int(word[0])) for word in philox4x32((zero, zero, zero, zero), (0, 0))]
        ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']

    Reference:
        Salmon, Moraes, Dror & Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3", 4.3.
    """
    m0, m1 = (np.uint64(m) for m in MULTIPLIERS)
    c0, c1, c2, c3 = (np.asarray(word, np.uint64) for word in counter)
    for i in range(rounds):
        k0, k1 = (
            np.uint64((k + i * step) & 0xFFFFFFFF) for k, step in zip(key, KEY_STEPS, strict=True)
        )
        a, b = m0 * c0, m1 * c2
        c0, c1, c2, c3 = (b >> _SHIFT) ^ c1 ^ k0, b & _LOW, (a >> _SHIFT) ^ c3 ^ k1, a & _LOW
    return tuple(word.astype(np.uint32) for word in (c0, c1, c2, c3))  # type: ignore[return-value]


@dataclass(frozen=True)
class Stream:
    """The random words of one tensor: 2^64 blocks of four words each.

    Attributes:
        key: the Philox key, two words.
        lane: the upper half of the Philox counter, two words; the lower half counts blocks.
    """

    key: tuple[int, int]
    lane: tuple[int, int]

    def words(self, blocks: NDArray[np.uint64]) -> Words:
        """The words of numbered blocks [n] as a uint32 array [4, n]."""
        low, high = (blocks & _LOW).astype(np.uint32), (blocks >> _SHIFT).astype(np.uint32)
        lane = [np.full(len(blocks), word, np.uint32) for word in self.lane]
        return np.stack(philox4x32((low, high, lane[0], lane[1]), self.key))

    def refined(self) -> Stream:
        """The stream of further digits for the same elements: the next lane."""
        return Stream(self.key, (self.lane[0], self.lane[1] ^ 1))


def stream(seed: int, name: str) -> Stream:
    """The stream of one tensor, from the seed and the tensor's canonical name.

    *Definition.* The 16 bytes BLAKE2b(seed as 8 little-endian bytes, then the name in UTF-8) are
    the Philox key and the upper half of its counter.

    Args:
        seed: an integer in [0, 2^64).
        name: the tensor's full name; wrappers' prefixes are removed by `canonical_name`.

    Returns:
        A `Stream`. Different seeds or names give different keys and counters: a chance of 2^-128.

    Raises:
        ArgumentTypeError: the seed is no integer, or the name is no string.
        ArgumentError: the seed is out of range.

    Example:
        >>> stream(0, "module.head.weight") == stream(0, "head.weight")
        True
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise ArgumentTypeError("draw(seed)", expected="an integer", got=type(seed).__name__)
    if not 0 <= seed < 2**64:
        raise ArgumentError("draw(seed)", expected="0 <= seed < 2**64", got=str(seed))
    payload = int(seed).to_bytes(8, "little") + canonical_name(name).encode(
        "utf-8", "surrogatepass"
    )
    digest = hashlib.blake2b(payload, digest_size=16, person=b"fanin stream").digest()
    k0, k1, lane0, lane1 = (int.from_bytes(digest[i : i + 4], "little") for i in range(0, 16, 4))
    return Stream((k0, k1), (lane0, lane1))
