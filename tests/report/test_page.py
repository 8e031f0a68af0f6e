"""The page in a real Chromium: offline, sortable, reacting; hostile names are text."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import fanin

sys.path.insert(0, str(Path(__file__).parent))
from browser import Page, chromium, executable

pytestmark = pytest.mark.skipif(executable() is None, reason="no Chromium is installed")

HOSTILE = '<script>window["broken"]=1</script><img src=x onerror="broken=1">'


def hostile_model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential()
    for i in range(12):
        model.add_module(f"{HOSTILE}{i}" if i == 3 else f"layer{i}", nn.Linear(32, 32))
        model.add_module(f"act{i}", nn.Sigmoid())
    model.add_module("a_very_long_name_" * 12, nn.Linear(32, 4))
    return model


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("page")
    fanin.check(hostile_model(), torch.randn(64, 32), "ce").to_html(folder / "report.html")
    with chromium(folder / "profile") as opened:
        opened.open(folder / "report.html")
        yield opened


def column(page: Page, number: int) -> list[str]:
    cells = (
        f"[...document.querySelectorAll('tbody td:nth-child({number})')].map(c => c.textContent)"
    )
    return list(page.run(cells))


def test_it_loads_without_network_and_without_an_error(page: Page) -> None:
    assert page.errors == []
    assert [url for url in page.requests if not url.startswith("file:")] == []
    assert page.run("document.getElementById('verdict').textContent") == "FAIL"
    assert page.run("document.querySelectorAll('.finding').length") >= 1
    assert len(column(page, 1)) == 25


def test_hostile_names_are_shown_and_not_run(page: Page) -> None:
    assert page.run("window.broken") is None
    assert page.run("document.querySelectorAll('img').length") == 0
    assert f"{HOSTILE}3" in column(page, 2)


def test_the_table_sorts_both_ways_and_filters(page: Page) -> None:
    heads = page.run("[...document.querySelectorAll('th')].map(h => h.textContent)")
    where = heads.index("second moment") + 1
    click = f"document.querySelectorAll('th button')[{where - 1}].click()"
    page.run(click)
    up = [float(v) for v in column(page, where)]
    assert up == sorted(up)
    page.run(click)
    assert [float(v) for v in column(page, where)] == sorted(up, reverse=True)
    assert (
        page.run("document.querySelector('th[aria-sort]').getAttribute('aria-sort')")
        == "descending"
    )
    page.run("filter.value = 'act'; filter.dispatchEvent(new Event('input'))")
    assert (
        page.run("[...document.querySelectorAll('tbody tr')].filter(r => !r.hidden).length") == 12
    )
    page.run("filter.value = ''; filter.dispatchEvent(new Event('input'))")
    page.run("document.querySelectorAll('th button')[0].click()")


def test_the_curve_reacts_to_pointer_and_keys(page: Page) -> None:
    page.run("document.querySelector('svg').scrollIntoView({block: 'center'})")
    place = "document.querySelector('svg').getBoundingClientRect()"
    box = page.run(f"(r => [r.left, r.top, r.width, r.height])({place})")
    left, top, width, height = box
    page.move(left + width * 0.5, top + height * 0.5)
    assert page.run("tip.hidden") is False
    first = page.run("tip.textContent")
    page.move(left + width * 0.9, top + height * 0.5)
    assert page.run("tip.textContent") != first
    marks = "[...document.querySelectorAll('.cross')].map(c => c.getAttribute('visibility'))"
    assert page.run(marks) == ["visible", "visible"]  # signal and gradient move together
    page.move(2, 2)
    assert page.run("tip.hidden") is True
    page.run("document.querySelector('svg').focus()")
    key = "new KeyboardEvent('keydown', {key: 'ArrowLeft'})"
    page.run(f"document.querySelector('svg').dispatchEvent({key})")
    assert page.run("tip.hidden") is False
    page.run("document.querySelector('svg').blur()")


def test_a_finding_leads_to_its_row(page: Page) -> None:
    page.run("document.querySelector('.where').click()")
    name = page.run("document.querySelector('.where').textContent").removeprefix("at ")
    assert page.run("document.querySelector('tr.lit td.name').textContent") == name


def test_light_and_dark(page: Page) -> None:
    colours = []
    for scheme in ("light", "dark"):
        page.scheme(scheme)
        for _ in range(50):  # the page is told in its own time
            if page.run("document.documentElement.dataset.theme") == scheme:
                break
            time.sleep(0.02)
        assert page.run("document.documentElement.dataset.theme") == scheme
        colours.append(page.run("getComputedStyle(document.body).backgroundColor"))
    assert colours[0] != colours[1]
    page.run("theme.click()")
    assert page.run("document.documentElement.dataset.theme") == "light"


def test_readable_on_a_phone(page: Page) -> None:
    page.resize(390, 844)
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    assert float(page.run("getComputedStyle(document.body).fontSize").removesuffix("px")) >= 14
    page.resize(1200, 900)
    assert page.errors == []


def test_the_page_of_an_audit(page: Page, tmp_path: Path) -> None:
    with fanin.recording():
        model = nn.Sequential(nn.ConvTranspose2d(8, 8, 4, 2, 1), nn.Linear(8, 8))
        nn.init.kaiming_normal_(model[0].weight)
    fanin.audit(model).to_html(tmp_path / "audit.html")
    page._session = ""
    page.open(tmp_path / "audit.html")
    assert page.errors == []
    assert len(column(page, 1)) == 4
    assert page.run("document.querySelectorAll('svg .curve').length") == 2
