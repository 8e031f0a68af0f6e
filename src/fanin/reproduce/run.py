"""`reproduce`: from options to verdicts, files and the report."""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import fanin
from fanin.errors import ArgumentError
from fanin.reproduce import experiments, figures, images, page
from fanin.reproduce.claim import Claim, Conclusion
from fanin.reproduce.store import Store, write_bytes, write_text
from fanin.reproduce.work import Interrupted, Watch, Work, measure

REPORT = "report.html"


@dataclass(frozen=True)
class Options:
    """What to run.

    Args:
        mode: `quick` or `full`.
        only: numbers of claims; all if empty.
        out: folder for the report, its numbers and the finished arms.
        seed: of everything that is drawn.
        data: name of the images, see `images.names()`.
        root: folder of the images' files.
        download: fetch what is missing into `root`.
        fresh: measure again what is on disk.
        workers: arms side by side; the cores that this process may use if None.
    """

    mode: str = "quick"
    only: Sequence[int] = ()
    out: Path = Path("reproduce")
    seed: int = 0
    data: str = "mnist"
    root: Path | None = None
    download: bool = False
    fresh: bool = False
    workers: int | None = None


@dataclass(frozen=True)
class Outcome:
    """Verdicts of the claims that were finished.

    Args:
        claims: in their order.
        conclusions: of each.
        facts: when, where, with what.
        report: the HTML file.
        work: the arms behind it.
        interrupted: whether Ctrl-C ended it.
    """

    claims: list[Claim]
    conclusions: list[Conclusion]
    facts: dict[str, Any]
    report: Path
    work: Work = field(repr=False)
    interrupted: bool = False

    @property
    def failed(self) -> int:
        """Number of lines that say FAIL."""
        return sum(line.verdict == "FAIL" for each in self.conclusions for line in each.lines)


def reproduce(
    options: Options, watch: Watch = lambda work: None, start: Path | None = None
) -> Outcome:
    """Run claims of the paper and write what came of them.

    Args:
        options: what to run.
        watch: called often with the state of the work.
        start: where to look for `experiments/`; the current directory if None.

    Returns:
        The verdicts; after Ctrl-C those of the claims that were finished before.

    Raises:
        ArgumentError: an option that makes no sense, or a folder that cannot be written.
        DataError: images, or the folder `experiments/`, are missing or damaged.
    """
    _check(options)
    began, spent = time.monotonic(), time.process_time()
    root = experiments.folder(start or Path.cwd())
    claims = experiments.claims(root, options.mode, options.only)
    loaded = None
    if any(claim.experiment.NEEDS_IMAGES for claim in claims):
        loaded = images.load(options.data, options.root, download=options.download)
    interrupted = False
    try:
        work = measure(
            claims,
            loaded,
            Store(options.out / "arms"),
            seed=options.seed,
            fresh=options.fresh,
            workers=options.workers or len(os.sched_getaffinity(0)),
            watch=watch,
        )
    except Interrupted as stop:
        work, interrupted = stop.work, True
    finished = [claim for claim in claims if work.finished(claim.number)]
    conclusions = [
        claim.experiment.conclude(claim.config, work.results[claim.number]) for claim in finished
    ]
    facts = _facts(options, loaded, work, time.monotonic() - began, time.process_time() - spent)
    report = _write(options.out, finished, conclusions, facts)
    return Outcome(finished, conclusions, facts, report, work, interrupted)


def _check(options: Options) -> None:
    if options.mode not in experiments.MODES:
        raise ArgumentError("mode", expected=" or ".join(experiments.MODES), got=repr(options.mode))
    if not 0 <= options.seed < 2**31:
        raise ArgumentError("--seed", expected="0 to 2^31 - 1", got=str(options.seed))
    try:
        (options.out / "arms").mkdir(parents=True, exist_ok=True)
        write_text(options.out / "arms" / ".writable", "")
        (options.out / "arms" / ".writable").unlink()
    except OSError as error:
        raise ArgumentError(
            "--out",
            expected="a folder that can be written",
            got=f"{options.out} ({error.strerror})",
        ) from error


def _facts(
    options: Options, loaded: images.Images | None, work: Work, wall: float, cpu: float
) -> dict[str, Any]:
    """When, where, with what: enough to judge the numbers and to run them again."""
    # Linux counts the largest resident set in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    done, total = work.count
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "mode": options.mode,
        "seed": options.seed,
        "images": loaded.source if loaded is not None else "no images",
        "arms": f"{done} of {total}, {work.reused} taken from disk",
        "wall_seconds": round(wall, 1),
        "cpu_seconds": round(cpu, 1),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6),
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fanin": fanin.__version__,
    }


def _write(
    out: Path, claims: Sequence[Claim], conclusions: Sequence[Conclusion], facts: dict[str, Any]
) -> Path:
    """The numbers of each claim, its figures, and the report that holds all of them."""
    drawn: page.Drawn = {}
    for claim, conclusion in zip(claims, conclusions, strict=True):
        kept = {
            "claim": claim.experiment.TITLE,
            "statement": claim.experiment.STATEMENT,
            "run": facts,
            "config": claim.config,
            "verdicts": [asdict(line) for line in conclusion.lines],
            "values": conclusion.values,
        }
        text = json.dumps(kept, indent=1, ensure_ascii=False)
        write_text(out / f"claim-{claim.number}.json", text + "\n")
        for picture in conclusion.pictures:
            themes = {"light": figures.LIGHT, "dark": figures.DARK}
            drawn[picture.name] = {name: figures.svg(picture, p) for name, p in themes.items()}
            for theme, svg in drawn[picture.name].items():
                write_bytes(out / "figures" / f"{picture.name}-{theme}.svg", svg)
    write_text(out / REPORT, page.html(claims, conclusions, drawn, facts))
    return out / REPORT
