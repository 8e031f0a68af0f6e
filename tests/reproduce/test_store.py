"""Finished arms on disk."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fanin.reproduce import store
from fanin.reproduce.store import Store

FACTS = {"claim": "c", "config": {"rate": 0.1, "seeds": [0, 1]}}


def test_what_is_put_is_got(tmp_path: Path) -> None:
    kept = Store(tmp_path / "arms")
    assert kept.get(FACTS) is None
    kept.put(FACTS, {"final": [0.5, None]})
    assert kept.get(FACTS) == {"final": [0.5, None]}
    assert kept.get(dict(reversed(FACTS.items()))) == {"final": [0.5, None]}


@pytest.mark.parametrize(
    "other",
    [
        {**FACTS, "claim": "d"},
        {**FACTS, "more": 1},
        {"claim": "c", "config": {"rate": 0.1000001, "seeds": [0, 1]}},
        {"claim": "c", "config": {"rate": 0.1, "seeds": [1, 0]}},
    ],
)
def test_other_facts_have_another_result(tmp_path: Path, other: dict[str, object]) -> None:
    kept = Store(tmp_path)
    kept.put(FACTS, {"x": 1})
    assert kept.get(other) is None


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"facts": {}, "result": {}}', '{"result": {"x": 2}}']
)
def test_a_damaged_file_counts_as_absent(tmp_path: Path, content: str) -> None:
    kept = Store(tmp_path)
    kept.put(FACTS, {"x": 1})
    (file,) = tmp_path.iterdir()
    file.write_text(content)
    assert kept.get(FACTS) is None


def test_a_number_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        Store(tmp_path).put(FACTS, {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    store.write_text(path, "old")

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_files_say_what_they_hold(tmp_path: Path) -> None:
    Store(tmp_path).put(FACTS, {"x": 1})
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text()) == {"facts": FACTS, "result": {"x": 1}}
    assert file.stat().st_mode & 0o777 == 0o644
