"""Write docs/img/check.png: the page of a broken model in a real Chromium."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from blocks import mlp
from torch import nn

import fanin

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "report"))
from browser import chromium  # noqa: E402


def main() -> None:
    """Check a sigmoid network with torch's default layers, and keep what its page shows."""
    torch.manual_seed(0)
    report = fanin.check(mlp(256, 20, nn.Sigmoid), torch.randn(256, 784), "ce", predicted=True)
    with tempfile.TemporaryDirectory() as folder:
        page = report.to_html(Path(folder) / "report.html")
        assert page
        with chromium(Path(folder) / "profile") as browser:
            browser.open(Path(folder) / "report.html", 1120, 1180)
            browser.scheme("light")
            place = "document.querySelector('svg').getBoundingClientRect()"
            left, top, width = browser.run(f"(r => [r.left, r.top, r.width])({place})")
            browser.move(left + 0.62 * width, top + 70)
            browser.screenshot(ROOT / "docs" / "img" / "check.png")


if __name__ == "__main__":
    main()
