"""Finished arms on disk, by a key of everything that they depend on."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def key(facts: Mapping[str, Any]) -> str:
    """A name for facts: equal facts, equal name, in any order of writing.

    Args:
        facts: JSON values.

    Example:
        >>> key({"a": 1, "b": 2}) == key({"b": 2, "a": 1}), key({"a": 1}) == key({"a": 2})
        (True, False)
    """
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader, or an interruption, sees the old one or the new one whole.

    Args:
        path: the file; its folder is made if it is not there.
        text: what it is to hold.
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """As `write_text`, for bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@dataclass(frozen=True)
class Store:
    """A folder with one JSON file for each finished arm: its facts and its result."""

    folder: Path

    def get(self, facts: Mapping[str, Any]) -> dict[str, Any] | None:
        """The result with these facts, or None; a file that cannot be read counts as absent."""
        try:
            kept = json.loads((self.folder / f"{key(facts)}.json").read_text())
        except (OSError, ValueError):
            return None
        whole = isinstance(kept, dict) and kept.get("facts") == json.loads(json.dumps(facts))
        return kept["result"] if whole and isinstance(kept.get("result"), dict) else None

    def put(self, facts: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Keep a result; numbers that are not finite are refused, an arm says None instead."""
        text = json.dumps({"facts": facts, "result": result}, indent=1, allow_nan=False)
        write_text(self.folder / f"{key(facts)}.json", text + "\n")
