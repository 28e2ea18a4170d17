"""The page in a real browser: Chromium, on a desktop, on a phone, in dark mode and in print."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from test_report import HOSTILE, RECONSTRUCTION, _poisoned, results  # noqa: F401 - a fixture

from onnx_hyvit.report import render_report

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from interop.browser import Browser

pytestmark = pytest.mark.interop
OVERLAPS = """
const shown = [...document.querySelectorAll('.card, .strip li, figure, details, table')];
const boxes = shown.map(e => e.getBoundingClientRect());
return boxes.filter(b => b.width > 0 && (b.right > document.documentElement.clientWidth + 1 || b.left < -1)).length;
"""


@pytest.fixture(scope="module")
def page(results: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    path = tmp_path_factory.mktemp("page") / "page.html"
    quantized = {**results["quantize"], "reconstruction": RECONSTRUCTION}
    path.write_text(render_report({"quantize": quantized, "compare": results["compare"]}), encoding="utf-8")
    return path


@pytest.mark.parametrize("width", [1280, 360])
def test_it_fits_and_asks_for_nothing(page: Path, tmp_path: Path, width: int) -> None:
    with Browser(tmp_path / "profile", width) as browser:
        browser.open(page)
        assert browser.run("return document.documentElement.scrollWidth") <= width
        assert browser.run(OVERLAPS) == 0
        assert browser.log("browser") == []
        assert [url for url in browser.requests() if not url.startswith("data:")] == [page.resolve().as_uri()]
        headings = browser.run("return [...document.querySelectorAll('h1, h2')].map(e => e.innerText)")
        for heading in ("What to do next", "The model", "Where the error is", "Block by block"):
            assert heading in headings
        assert browser.run("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")
        assert browser.run("return document.images.length") > 0


def test_hostile_names_do_nothing(results: dict[str, dict[str, Any]], tmp_path: Path) -> None:  # noqa: F811
    path = tmp_path / "hostile.html"
    path.write_text(render_report(_poisoned(results)), encoding="utf-8")
    with Browser(tmp_path / "profile", 360) as browser:
        browser.open(path)
        assert browser.run("return document.documentElement.scrollWidth") <= 360
        assert browser.log("browser") == []
        assert [url for url in browser.requests() if not url.startswith("data:")] == [path.resolve().as_uri()]
        assert browser.run("return document.querySelectorAll('script').length") == 0
        assert HOSTILE[:20] in browser.run("return document.body.innerText")


def test_dark_mode(page: Path, tmp_path: Path) -> None:
    colours = []
    for dark in (False, True):
        with Browser(tmp_path / f"profile{dark}", 800, dark=dark) as browser:
            browser.open(page)
            found = browser.run("return getComputedStyle(document.body).backgroundColor")
            colours.append(sum(int(part) for part in re.findall(r"\d+", found)[:3]))
            bars = "return getComputedStyle(document.querySelector('.plot .patch, .plot path')).fill"
            assert browser.run(bars).startswith("rgb")
    assert colours[0] > 700 > 200 > colours[1]


def test_print_opens_every_block(page: Path, tmp_path: Path) -> None:
    with Browser(tmp_path / "profile", 1280) as browser:
        browser.open(page)
        browser.devtools("Emulation.setEmulatedMedia", {"media": "print"})
        lists = "[...document.querySelectorAll('details dl')]"
        assert browser.run(f"return {lists}.filter(e => e.getBoundingClientRect().height < 5).length") == 0
        browser.devtools("Emulation.setEmulatedMedia", {"media": ""})
        document = browser.pdf()
    assert document.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page[^s]", document)) >= 3
