"""The values themselves: against exact transforms of the words, and frozen for a stream version."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from fanin import draw
from fanin.draw import double, transform

REFERENCE = Path(__file__).parents[1] / "reference"
TABLE = json.loads((REFERENCE / "draw_values.json").read_text())


@pytest.mark.parametrize("case", TABLE["values"])
def test_values_are_the_transforms_of_the_words(case: str, path: str) -> None:
    """float32 within 4e-7 (1 + |z|), float64 within 4e-15 (1 + |z|)."""
    kind, dtype = case.split()
    distribution = {
        "normal": draw.Normal(),
        "uniform": draw.Uniform(-1.0, 1.0),
        "truncated": draw.TruncatedNormal(bound=TABLE["bound"]),
    }[kind]
    scale = getattr(distribution, "scale", 1.0)
    for block, row in zip(TABLE["blocks"], TABLE["values"][case], strict=True):
        exact = np.array(row, np.float64)
        out = np.empty(4, dtype)
        index = (slice(4 * block, 4 * block + 4),)
        draw.fill(
            out, distribution, seed=TABLE["seed"], name=TABLE["name"], shape=(2**40,), index=index
        )
        bound = {"float32": 4e-7, "float64": 4e-15}[dtype]
        assert (np.abs(out / scale - exact) <= bound * (1 + np.abs(exact))).all()


def test_the_ends_of_the_words_reach_the_ends_of_the_normal() -> None:
    """The least word gives the largest radius: sqrt(-2 log 2^-32), and with 52 bits 2^-53."""
    least = np.zeros((4, 1), np.uint32)
    assert np.abs(transform.normal(least, 0.0, 1.0)).max() == pytest.approx(6.66, abs=2e-3)
    assert np.abs(transform.normal(least, 0.0, 1.0)).max() < transform.REACH
    assert np.abs(double.normal(least, least, 0.0, 1.0)).max() < double.REACH
    most = np.full((4, 1), 2**32 - 1, np.uint32)
    assert np.abs(transform.normal(most, 0.0, 1.0)).max() < 1e-3
    for kernel in (transform.normal(most, 0.0, 1.0), transform.truncated(most, 0, 1, 1, 0)):
        assert np.isfinite(kernel).all()


CASES = {
    "normal": (draw.Normal(0.5, 0.02), (100, 33)),
    "uniform": (draw.Uniform(-0.1, 0.3), (100, 33)),
    "truncated": (draw.TruncatedNormal(0.0, 0.02, 2.0), (100, 33)),
    "truncated far": (draw.TruncatedNormal(0.0, 0.02, 6.0), (100, 33)),
    "rademacher": (draw.Rademacher(0.1), (100, 33)),
    "orthogonal tall": (draw.Orthogonal(1.5), (70, 33)),
    "orthogonal wide": (draw.Orthogonal(1.5, keep="second_moment"), (33, 70)),
    "delta orthogonal": (draw.DeltaOrthogonal(1.0, 2), (8, 4, 3, 3)),
}
DTYPES = ("float32", "float64", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")


def hashes() -> dict[str, str]:
    """A hash for each distribution in each type."""
    found = {}
    for name, (distribution, shape) in CASES.items():
        for dtype in DTYPES:
            storage = {"float32": "f4", "float64": "f8"}.get(dtype, "u1" if "8_" in dtype else "u2")
            out = np.empty(shape, storage)
            draw.fill(out, distribution, seed=2**63 + 1, name="a.weight", dtype=dtype)
            found[f"{name} {dtype}"] = hashlib.sha256(out.tobytes()).hexdigest()[:16]
    return found


def test_a_stream_version_never_changes_its_values(path: str) -> None:
    """A change here needs a new STREAM_VERSION and a new table beside the old one."""
    kept = json.loads((REFERENCE / f"draw_stream_{draw.STREAM_VERSION}.json").read_text())
    assert hashes() == kept
