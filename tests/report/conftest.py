"""The gallery's blocks under a name that tests can import."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "gallery"
if str(FOLDER) not in sys.path:
    sys.path.insert(0, str(FOLDER))
sys.modules.setdefault("tests_gallery", importlib.import_module("blocks"))
