"""The report, and the figures in it."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanin.reproduce import figures
from fanin.reproduce.run import Options, reproduce

from .fake import checkout


class Reader(HTMLParser):
    """Collects tags, attributes and text, and checks that sections are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag in ("section", "table", "details", "figure", "main", "picture"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open and tag == self.open[-1]:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = checkout(tmp_path_factory.mktemp("page"), picture=True)
    return reproduce(Options(out=root / "out", workers=1), start=root).report.read_text()


def test_nothing_comes_from_outside_and_nothing_runs(report: str) -> None:
    read = Reader(report)
    assert not {"script", "link", "iframe", "object", "embed"} & set(read.tags)
    for name, value in read.attributes:
        assert not name.startswith("on")
        if name in ("src", "srcset"):
            assert (value or "").startswith("data:image/svg+xml;base64,")
        if name == "href":
            assert (value or "").startswith("#")
    assert "url(" not in report
    assert "@import" not in report
    assert "default-src 'none'" in report


def test_text_of_claims_is_escaped(report: str) -> None:
    read = Reader(report)
    assert "alert(1)" in "".join(read.text)
    assert read.open == []
    for text in ("Squares <&>", "Told <b>only</b>", "a < b", "x < y"):
        assert text in "".join(read.text)


def test_the_numbers_behind_the_figures_are_there(report: str) -> None:
    text = "".join(Reader(report).text)
    assert '"arm 2": 4' in text
    for word in ("PASS", "REPORT", "Where the paper and the numbers part", "Values", "arm 2"):
        assert word in text


def test_the_figure_comes_in_light_and_dark_as_svg(report: str) -> None:
    found = re.findall(r'(?:src|srcset)="data:image/svg\+xml;base64,([^"]+)"', report)
    drawn = [base64.b64decode(each).decode() for each in found]
    assert len(drawn) == 2
    assert figures.DARK.paper in drawn[0]
    assert figures.LIGHT.paper in drawn[1]
    assert all("<text" not in svg and "<script" not in svg for svg in drawn)


def test_it_is_made_for_phones_and_for_both_themes(report: str) -> None:
    assert 'name="viewport" content="width=device-width, initial-scale=1"' in report
    assert "@media (prefers-color-scheme: dark)" in report
    assert "@media (max-width: 40rem)" in report


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("palette", [figures.LIGHT, figures.DARK])
def test_colours_can_be_read(palette: figures.Palette) -> None:
    assert contrast(palette.ink, palette.paper) > 7
    assert contrast(palette.soft, palette.paper) > 4.5
    assert all(contrast(colour, palette.paper) > 3 for colour in palette.series)


def test_the_pills_of_the_page_can_be_read() -> None:
    css = (Path(figures.__file__).parent / "page.css").read_text()
    for theme in css.split("@media")[:2]:
        colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", theme))
        for word in ("pass", "fail", "report"):
            assert contrast(colours[word], colours[f"{word}-paper"]) > 4.5
        assert contrast(colours["link"], colours["paper"]) > 4.5


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=8), st.floats(0.01, 2))
def test_labels_are_moved_apart_in_their_order(positions: list[float], gap: float) -> None:
    moved = figures.spread(positions, gap)
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    placed = [moved[i] for i in order]
    assert all(b - a >= gap - 1e-9 for a, b in pairwise(placed))
    assert sum(moved) == pytest.approx(sum(positions), abs=1e-6)
    if all(b - a >= gap for a, b in pairwise(sorted(positions))):
        assert moved == pytest.approx(positions)
