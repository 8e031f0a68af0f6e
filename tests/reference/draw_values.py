"""Makes tests/reference/draw_values.json: exact transforms of random words, with mpmath.

The words come from a Philox of its own, in Python integers; the transforms are the definitions
(logarithm, cosine, inverse error function), not the polynomials of the library.

Run: python tests/reference/draw_values.py
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import mpmath as mp

mp.mp.dps = 40
SEED, NAME, BLOCKS = 11, "layers.3.fc.weight", (0, 1, 2, 3, 500, 70_000, 2**33 + 1)
BOUND = 2.5


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Ten rounds, as the paper writes them."""
    for _ in range(10):
        a, b = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [
            b >> 32 ^ counter[1] ^ key[0],
            b & 0xFFFFFFFF,
            a >> 32 ^ counter[3] ^ key[1],
            a & 0xFFFFFFFF,
        ]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return counter


def words(block: int, further: int = 0) -> list[int]:
    """The words of a block; `further` gives those of the digits that float64 adds."""
    payload = SEED.to_bytes(8, "little") + NAME.encode()
    digest = hashlib.blake2b(payload, digest_size=16, person=b"fanin stream").digest()
    k0, k1, lane0, lane1 = (int.from_bytes(digest[i : i + 4], "little") for i in range(0, 16, 4))
    return philox([block % 2**32, block >> 32, lane0, lane1 ^ further], [k0, k1])


def upper(word: int, more: int | None) -> mp.mpf:
    """A number in (0, 1): the middle of the cell that 31, or 52, bits name."""
    if more is None:
        return (mp.mpf(word >> 1) + 0.5) / 2**31
    return (mp.mpf((word >> 1) * 2**21 + (more >> 11)) + 0.5) / 2**52


def normals(w: list[int], more: list[int | None]) -> list[mp.mpf]:
    """Four standard normals of one block."""
    found = []
    for i in (0, 2):
        radius = mp.sqrt(-2 * mp.log(upper(w[i], more[i])))
        angle = w[i + 1]
        place = mp.mpf(angle >> 9) / 2**23
        if more[i + 1] is not None:
            place += mp.mpf(more[i + 1] >> 3) / 2**52
        first, second = radius * mp.cospi(place / 2), radius * mp.sinpi(place / 2)
        found += [-first if angle & 1 else first, -second if angle & 2 else second]
    return found


def uniforms(w: list[int], more: list[int | None]) -> list[mp.mpf]:
    """Four numbers of (-1, 1)."""
    signed = [x - 2**32 if x >> 31 else x for x in w]
    if more[0] is None:
        return [(mp.mpf(x >> 8) + 0.5) / 2**23 for x in signed]
    return [
        (mp.mpf((x >> 8) * 2**29 + (m >> 3)) + 0.5) / 2**52
        for x, m in zip(signed, more, strict=True)
    ]


def truncated(w: list[int], more: list[int | None]) -> list[mp.mpf]:
    """Four normals given |z| <= BOUND."""
    inside = mp.erf(mp.mpf(BOUND) / mp.sqrt(2))
    found = []
    for x, m in zip(w, more, strict=True):
        z = mp.sqrt(2) * mp.erfinv(inside * (1 - upper(x, m)))
        found.append(-z if x & 1 else z)
    return found


def main() -> None:
    table = {}
    for kind, transform in (("normal", normals), ("uniform", uniforms), ("truncated", truncated)):
        for dtype, further in (("float32", False), ("float64", True)):
            rows = [
                transform(words(b), words(b, 1) if further else [None] * 4)  # type: ignore[list-item]
                for b in BLOCKS
            ]
            table[f"{kind} {dtype}"] = [[mp.nstr(v, 20) for v in row] for row in rows]
    value = {"seed": SEED, "name": NAME, "blocks": BLOCKS, "bound": BOUND, "values": table}
    Path(__file__).with_suffix(".json").write_text(json.dumps(value, indent=1) + "\n")


if __name__ == "__main__":
    main()
