"""Write docs/gallery: `python examples/gallery/write.py`. What fanin says of each model."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import broken  # noqa: F401  registers its entries
import broken_tensors  # noqa: F401
import torch
from entries import BROKEN
from healthy import HEALTHY

import fanin

HOME = Path(__file__).resolve().parents[2] / "docs" / "gallery"

HEAD = """# Gallery

Written by `python examples/gallery/write.py`; `tests/report/test_gallery.py` asserts the causes.

{broken} broken models, most of them as users reported them, and the first thing that fanin says
of each. Then {healthy} models with an initialization that is accepted, which must not fail;
over ten seeds: [false alarms]({alarms}).

## Broken
"""


def link(thread: str) -> str:
    """Where a user met it, as a sentence with a link."""
    repository, _, number = thread.partition("#")
    url = f"https://github.com/{repository}/issues/{number}"
    return f" See [{thread}]({url})." if thread else ""


def main() -> None:
    """Run every entry and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HOME)
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    alarms = sorted(path.name for path in HOME.glob("alarms-*.md"))[-1]  # alarms.py writes them
    lines = [HEAD.format(broken=len(BROKEN), healthy=len(HEALTHY), alarms=alarms)]
    for case in BROKEN:
        torch.manual_seed(0)
        report = case.run()
        first = report.findings[0]
        lines.append(f"### {case.name}\n\n{case.story}{link(case.thread)}\n")
        place = f" at {first.where}" if first.where else ""
        said = [
            f"{first.severity} {first.rule} {first.name}{place}",
            f"  {first.cause}",
            f"  {first.number}",
            f"  fix: {first.fix}",
        ]
        lines.append("```text\n" + "\n".join(said) + "\n```\n")
        print(f"{report.verdict} {case.name}")
    lines.append("## Healthy\n\n| model | initialization | verdict | warnings |\n|---|---|---|---|")
    for case in HEALTHY:
        torch.manual_seed(1)
        model, inputs, loss = case.build()
        report = fanin.check(model, inputs, loss)
        warned = ", ".join(f.name for f in report.findings if f.severity == "WARN") or "none"
        lines.append(f"| {case.name} | {case.init} | {report.verdict} | {warned} |")
        print(f"{report.verdict} {case.name}")
    (out / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
