"""The page: tables between markers of docs/trainability.md, and figures beside it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.activations import ACTIVATIONS
from benchmarks.trainability import climb, figures
from benchmarks.trainability.cells import CLIMBING, DEPTHS, OPTIMISERS, SETS
from benchmarks.trainability.run import duration, total
from benchmarks.trainability.starts import STARTS
from benchmarks.trainability.table import Results, Score, lead, pick, reach, score

from fanin.reproduce.figures import LIGHT, svg
from fanin.reproduce.store import write_bytes, write_text

Rows = list[list[str]]
GRIDS = tuple(itertools.product(("mnist", "fashion-mnist"), OPTIMISERS))
_POINT = 0.01 + 1e-9  # accuracies are shares of 1,000 images


def write(docs: Path, results: Results) -> list[Path]:
    """Rewrite what stands between the markers, and draw the figures that have their cells.

    Args:
        docs: the folder of `trainability.md` and `img/`.
        results: finished cells.

    Returns:
        The files written.
    """
    page = docs / "trainability.md"
    text = page.read_text()
    for name, made in SECTIONS.items():
        text = between(text, name, made(results))
    write_text(page, text)
    return [page, *draw(docs / "img", results)]


def draw(folder: Path, results: Results) -> list[Path]:
    """Draw the figures that have their cells; the files written."""
    written = []
    for picture in figures.pictures(results):
        path = folder / f"{picture.name}.svg"
        write_bytes(path, svg(picture, LIGHT))
        written.append(path)
    return written


def between(text: str, name: str, content: str) -> str:
    """Replace what stands between the markers of a section.

    Raises:
        ValueError: the page has no such markers.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    head, found, rest = text.partition(begin)
    _, closed, tail = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"the page has no section {name!r}")
    return f"{head}{begin}\n\n{content.strip()}\n\n{end}{tail}"


def markdown(heads: Sequence[str], rows: Rows) -> str:
    """A table; nothing where it has no rows."""
    if not rows:
        return "No cells yet."
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def shown(found: Score | None, *, best: float | None = None) -> str:
    """An accuracy in percent, with half the range of several seeds; bold where it is the best."""
    if found is None:
        return "–"
    text = f"{100 * found.mean:.1f}"
    if best is not None and found.mean >= best:
        text = f"**{text}**"
    return f"{text} ± {100 * found.spread:.1f}" if len(found.final) > 1 else text


# --- sections -----------------------------------------------------------------------------------


def accuracy(family: str, depth: int) -> Callable[[Results], str]:
    """Final accuracy by activation and start."""

    def made(results: Results) -> str:
        by = _scores(results, family=family, depth=depth, data="mnist", optimiser="sgd")
        starts = [s for s in STARTS if any(key[1] == s for key in by)]
        rows = []
        for f in ACTIVATIONS:
            row = {s: by[f, s] for s in starts if (f, s) in by}
            best = max((x.mean for x in row.values() if x), default=None)
            cells = [shown(row[s], best=best) if s in row else "" for s in starts]
            rows += [[f"`{f}`", *cells]] if row else []
        return markdown(["activation", *starts], rows)

    return made


def depths(**wanted: str) -> Callable[[Results], str]:
    """The deepest network trained to the bar, of the depths that were run."""

    def made(results: Results) -> str:
        by = {(s, f): reach(results, f, s, **wanted) for s in STARTS for f in ACTIVATIONS}
        rows = []
        for s in STARTS:
            row = [by[s, f] for f in ACTIVATIONS]
            rows += [[s, *(str(x) if x else "" for x in row)]] if any(row) else []
        text = markdown(["start", *(f"`{f}`" for f in ACTIVATIONS)], rows)
        again = {key: x for key, x in by.items() if x and x.failed and x.run > x.failed}
        better = [key for key, x in again.items() if x.failed and x.trained > x.failed]
        names = f" ({'; '.join(f'{s}, `{f}`' for s, f in better)})" if better else ""
        checked = (
            f"Failed at one depth and run at a greater one as well: {len(again)}, of which "
            f"{len(better)} trained there{names}."
        )
        return f"{text}\n\n{checked}" if again else text

    return made


def steps(results: Results) -> str:
    """Steps to the bar at depth 100, by activation and start: mean and half the range of seeds."""
    by = _scores(results, family="plain", depth=100, data="mnist", optimiser="sgd")
    starts = [s for s in STARTS if any(key[1] == s and x for key, x in by.items())]
    rows = []
    for f in ACTIVATIONS:
        row = [_steps(x) if (x := by.get((f, s))) else "" for s in starts]
        rows += [[f"`{f}`", *row]] if any(row) else []
    return markdown(["activation", *starts], rows)


def _steps(found: Score) -> str:
    """Steps to the bar; never, where a seed did not reach it."""
    known = [x for x in found.steps if x is not None]
    if len(known) < len(found.steps):
        return "never"
    half = (max(known) - min(known)) // 2
    text = f"{sum(known) // len(known)}"
    return f"{text} ± {half}" if len(known) > 1 else text


def language(results: Results) -> str:
    """Held-out loss of the small GPT."""
    rows = []
    for family in ("gpt", "gpt without norm"):
        for s in ("fanin", "torch default", "gpt2"):
            found = pick(results, family=family, start=s)
            if found is None:
                continue
            scored = score(*found)
            assert scored is not None
            each = ", ".join(f"{x:.3f}" for x in scored.final)
            rows.append([family, s, f"{scored.mean:.3f}", each, f"{scored.rate:g}"])
    return markdown(["network", "start", "held-out loss", "of each seed", "rate"], rows)


def targets(results: Results) -> str:
    """The bars that were set before the measurement, and where they stand."""
    rows: Rows = []
    bars = [("plain", 100, 11), ("plain", 200, 8), ("conv", 50, 10)]
    for family, depth, wanted in bars:
        run = [
            x for f in ACTIVATIONS if (x := _score(results, family, f, depth, "fanin")) is not None
        ]
        good = sum(x.mean >= 0.85 for x in run)
        rows.append(
            [
                f"{family}, {depth} layers: at least {wanted} of {len(ACTIVATIONS)} to 85%",
                f"{good} of {len(run)} run",
            ]
        )
    rows += [
        row
        for data, by in GRIDS
        if "0 of 0" not in (row := _deepest(results, data=data, optimiser=by))[1]
    ]
    rows += [_against(results, 100)]
    rows += [row for d in DEPTHS if d != 100 and "0 of 0" not in (row := _against(results, d))[1]]
    return markdown(["bar", "found"], rows)


def _deepest(results: Results, **grid: str) -> list[str]:
    """Whether a start that leaves the network what it is trains deeper than fanin's."""
    rivals = [s for s, how in STARTS.items() if not how.changes and not s.startswith("fanin")]
    deeper, run_ = [], 0
    for f in ACTIVATIONS:
        ours = reach(results, f, "fanin", **grid)
        theirs = [x for s in rivals if (x := reach(results, f, s, **grid)) and x.run]
        run_ += bool(ours and theirs)
        if ours and any(x.trained > ours.trained for x in theirs):
            deeper.append(f)
    names = f": {_names(deeper)}" if deeper else ""
    return [
        "no start that leaves the network as it is trains deeper, on any activation: "
        f"{grid['data']}, {grid['optimiser']}",
        f"deeper on {len(deeper)} of {run_} run{names}",
    ]


def _against(results: Results, depth: int) -> list[str]:
    """How often fanin is within a point of the rivals that train another network."""
    leads = {f: lead(results, f, depth, ("dks", "tat", "layer norm")) for f in ACTIVATIONS}
    run_ = {f: x for f, x in leads.items() if x is not None}
    behind = [f for f, x in run_.items() if x < -_POINT]
    absent = [f for f in ACTIVATIONS if f not in run_]
    less = f"; less: {_names(behind)}" if behind else ""
    missing = f"; not comparable: {_names(absent)}" if absent else ""
    return [
        f"{depth} layers, within 1 point of the best of dks, tat and layer norm or above: at least "
        f"9 of {len(ACTIVATIONS)}",
        f"{len(run_) - len(behind)} of {len(run_)} run{less}{missing}",
    ]


def _names(activations: Sequence[str]) -> str:
    return (
        "all" if len(activations) == len(ACTIVATIONS) else ", ".join(f"`{f}`" for f in activations)
    )


def starts(results: Results) -> str:
    """What the names of the starts mean."""
    del results
    return markdown(["start", "is"], [[name, how.says] for name, how in STARTS.items()])


def pictures(results: Results) -> str:
    """The figures that have their cells."""
    return "\n\n".join(
        f"![{made.title}](img/{made.name}.svg)\n\n*{made.title}. {made.caption}*"
        for made in figures.pictures(results)
    )


def coverage(results: Results) -> str:
    """Which cells of each set were run, and what the rest would cost."""
    rows = []
    for name, made in SETS.items():
        cells = set(made())
        left = cells - results.keys()
        due = set(climb.due(left, results)) if name in CLIMBING else left
        time = duration(total(due, results)) if due else "–"
        bound = "at most " if due and name in CLIMBING else ""
        counts = (len(cells), len(cells) - len(left), len(left) - len(due))
        rows.append([name, *map(str, counts), f"{bound}{time}"])
    heads = ["set", "cells", "run", "ruled out", "one core would need for the rest"]
    return markdown(heads, rows)


def _score(results: Results, family: str, f: str, depth: int, s: str) -> Score | None:
    found = pick(
        results, family=family, activation=f, depth=depth, start=s, data="mnist", optimiser="sgd"
    )
    return None if found is None else score(*found)


def _scores(results: Results, **wanted: Any) -> dict[tuple[str, str], Score | None]:
    """By activation and start."""
    keys = {
        (c.activation, c.start)
        for c in results
        if all(getattr(c, k) == v for k, v in wanted.items())
    }
    found = {}
    for f, s in keys:
        best = pick(results, activation=f, start=s, **wanted)
        assert best is not None
        found[f, s] = score(*best)
    return found


def signal(_: Results) -> str:
    """The newest table of `benchmarks/signal_at_start.py`, turned: a row for each activation."""
    newest = max((Path(__file__).parent.parent / "results").glob("signal-*.md"))
    lines = [x.strip("| ").split(" | ") for x in newest.read_text().splitlines() if x[:2] == "| "]
    (_, *heads), *rows = zip(*lines, strict=True)
    named = [[f"`{a}`" if a in ACTIVATIONS else a, *cells] for a, *cells in rows]
    more = (
        f"[The whole page](../benchmarks/results/{newest.name}), with what has no numbers and why."
    )
    return f"{markdown(['', *heads], named)}\n\n{more}"


SECTIONS: dict[str, Callable[[Results], str]] = {
    "pictures": pictures,
    "targets": targets,
    "signal": signal,
    "depths": depths(),
    "depths fashion": depths(data="fashion-mnist"),
    "depths adam": depths(optimiser="adam"),
    "depths adam fashion": depths(optimiser="adam", data="fashion-mnist"),
    "depths conv": depths(family="conv"),
    "plain 10": accuracy("plain", 10),
    "plain 20": accuracy("plain", 20),
    "plain 50": accuracy("plain", 50),
    "plain 100": accuracy("plain", 100),
    "plain 200": accuracy("plain", 200),
    "steps": steps,
    "conv 20": accuracy("conv", 20),
    "conv 50": accuracy("conv", 50),
    "conv 100": accuracy("conv", 100),
    "residual 21": accuracy("residual", 21),
    "residual 51": accuracy("residual", 51),
    "language": language,
    "starts": starts,
    "coverage": coverage,
}
