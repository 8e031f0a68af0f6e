"""Prints a result, and keeps it as a dated file that names the machine and the versions."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def processor() -> str:
    """The processor's own name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def machine() -> str:
    """The machine in one line."""
    count = len(os.sched_getaffinity(0))
    return f"{processor()}, {count} cores, {platform.system()} {platform.machine()}"


def versions(*packages: str) -> str:
    """Versions of Python and of some packages in one line; what is not installed says so."""
    return ", ".join([f"Python {platform.python_version()}", *map(_version, packages)])


def _version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"no {package}"


def record(
    name: str,
    title: str,
    lines: list[str],
    write: bool,
    packages: tuple[str, ...] = ("numpy", "numba"),
) -> str:
    """Print a result and return it; with `write`, keep it under results/."""
    today = datetime.date.today().isoformat()
    text = "\n".join(
        [f"# {title}", "", f"{today}. {machine()}. {versions(*packages)}.", "", *lines, ""]
    )
    print(text)
    if write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}-{today}.md").write_text(text)
    return text
