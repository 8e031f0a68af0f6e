"""What the repository promises about its own files."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("src", "tests", "experiments", "benchmarks", "examples")
PYTHON = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def test_no_python_file_is_over_600_lines() -> None:
    assert PYTHON
    long = {
        str(p.relative_to(ROOT)): n for p in PYTHON if (n := len(p.read_text().splitlines())) > 600
    }
    assert not long


def test_every_source_file_says_what_it_is() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "src").rglob("*.py")
        if path.read_text().strip() and not path.read_text().lstrip().startswith(('"""', 'r"""'))
    ]
    assert not silent


@pytest.mark.parametrize(
    "call", [r"\beval\(", r"\bexec\(", r"\bpickle\.load", r"weights_only=False"]
)
def test_the_package_never_unpickles_nor_executes_text(call: str) -> None:
    # `model.eval()` is a method; the builtin is meant.
    pattern = re.compile(rf"(?<![.\w]){call}" if call.startswith(r"\b") else call)
    guilty = [str(p) for p in (ROOT / "src").rglob("*.py") if pattern.search(p.read_text())]
    assert not guilty


def test_tracked_text_names_no_machine_path() -> None:
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    words = ("/" + "work/", "/" + "root/", "pypi" + ".org", "/opt/" + "pypi")
    guilty = [
        name
        for name in files
        if Path(name).suffix
        in {".py", ".md", ".toml", ".txt", ".json", ".yaml", ".html", ".svg", ""}
        and any(word in (ROOT / name).read_text(errors="ignore") for word in words)
    ]
    assert not guilty
