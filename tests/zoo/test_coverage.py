"""The coverage table: its arithmetic, and that it leaves no model out."""

from __future__ import annotations

import re

import pytest
from benchmarks.coverage import DOCUMENT, Coverage, Row, cover, share, table
from tests.zoo import entries, entry


def test_a_row_is_close_near_and_likely() -> None:
    assert Row("w", 1.09, 1.0, 0.0).close
    assert not Row("w", 1.11, 1.0, 0.0).close
    assert Row("w", 1.11, 1.0, 0.03).close
    assert Row("w", 1.49, 1.0, 0.0).near
    assert not Row("w", 1.51, 1.0, 0.0).near
    assert not Row("w", 0.66, 1.0, 0.0).near
    assert Row("w", 1.9, 1.0, 0.3).likely
    assert not Row("w", 1.9, 1.0, 0.2).likely
    assert share((Row("w", 1.0, 1.0, 0.0), Row("w", 2.0, 1.0, 0.0)), "near") == 0.5


def test_a_small_model_is_compared() -> None:
    found, tensors, gradients = cover(entry("MLP tanh"), small=True, seeds=3, rule="auto")
    assert (found.operations, found.tensors, found.gradients) == (7, 7, 4)
    assert [r.what for r in gradients] == [f"layers.{i}.weight" for i in range(4)]
    assert found.close == share(tensors, "close")
    # Another prediction is seen to be wrong.
    assert not any(Row(r.what, 3 * r.predicted, r.measured, 0.0).near for r in tensors)


def test_every_model_of_the_zoo_has_a_row() -> None:
    names = [e.name for e in entries()]
    assert len(set(names)) == len(names)
    text = table({names[0]: Coverage(names[0], failed="why")})
    assert re.findall(r"^\| ([^|]+) \|", text, flags=re.M)[1:] == names
    assert f"| {names[0]} | why |" in text
    assert f"0 of {len(names)} models keep it" in text


@pytest.mark.skipif(not DOCUMENT.exists(), reason="the table has not been written yet")
def test_the_document_leaves_no_model_out() -> None:
    rows = re.findall(r"^\| ([^|]+) \|", DOCUMENT.read_text(), flags=re.M)
    assert rows[1:] == [e.name for e in entries()]
